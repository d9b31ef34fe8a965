"""Train the auto-encoder on MNIST and draw the codes of the last 1000 test images.

    python auto_encoder.py                  # the homework: trains, evaluates, writes encoder.png
    python auto_encoder.py --epochs 2       # a quick look
    python auto_encoder.py --resume         # go on after Ctrl-C
    python auto_encoder.py --data DIR       # Fashion-MNIST, KMNIST or your own, in MNIST's format

Then `python decoder_generate.py` draws new digits with the decoder.
"""

import contextlib
import hashlib
import itertools
import json
import math
import platform
import struct
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import (
    PROJECT,
    InputError,
    Parser,
    check_writable,
    load_digits,
    positive_number,
    run,
    whole_number,
    write_file,
)
from models import BATCH, VAE, damage_reported, read_checkpoint, save_checkpoint, write_tensors
from plots import draw_scatter

RESUME_FORMAT = "mnist-vae-resume-1"
SCATTERED = 1000  # the homework asks for the last 1000 test images
WARMUP = 0.05  # share of the steps in which the learning rate rises
REFRESH = 50  # steps between two codebooks; the decoder moves little in between
NEIGHBOURS = 15  # k of the k-NN classifier that judges the codes


# fmt: off
def parse_arguments(argv=None):
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument_group("files (defaults are beside this script)").add_argument
    add("--data", type=Path, metavar="DIR", default=PROJECT / "mnist",
        help="folder with the idx files of MNIST or of a data set in its format (default mnist)")
    add("--checkpoint", type=Path, metavar="FILE", default=PROJECT / "checkpoints/vae.pt",
        help="the trained weights; figures go beside them in a .json (default checkpoints/vae.pt)")
    add("--scatter", type=Path, metavar="FILE", default=PROJECT / "encoder.png",
        help="picture of the codes of the last 1000 test images (default encoder.png)")
    add = parser.add_argument_group("model and training").add_argument
    add("--epochs", type=whole_number(1), metavar="N", default=20,
        help="passes over the training images (default %(default)s)")
    add("--batch-size", type=whole_number(1), metavar="N", default=256,
        help="images in one step (default %(default)s)")
    add("--lr", type=positive_number, metavar="X", default=5e-3,
        help="highest learning rate (default %(default)s)")
    add("--latent-dim", type=whole_number(1, 784), metavar="N", default=2,
        help="numbers in a code (default %(default)s)")
    add("--encoder", choices=("exact", "network"),
        help="Bayes' rule on a grid of codes (default for 2 latents) "
        "or a feed-forward network (default for others)")
    add("--seed", type=whole_number(0), metavar="N", default=0,
        help="the same seed gives the same files (default %(default)s)")
    add = parser.add_argument_group("running").add_argument
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="auto takes a GPU if there is one (default %(default)s)")
    add("--threads", type=whole_number(1, 1024), metavar="N",
        help="CPU threads (default: all cores)")
    add("--resume", action="store_true",
        help="continue an interrupted run; give the other flags as before")
    args = parser.parse_args(argv)
    if args.encoder == "exact" and args.latent_dim != 2:
        raise InputError("--encoder exact: needs --latent-dim 2; leave it out")
    return args
# fmt: on


def main(argv=None):
    started = time.perf_counter()
    args = parse_arguments(argv)
    device = choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    metrics_file = args.checkpoint.with_suffix(".json")
    resume_file = args.checkpoint.with_suffix(".resume.pt")
    outputs = [args.checkpoint, metrics_file, resume_file, args.scatter]
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise InputError(f"--checkpoint {args.checkpoint}: would be overwritten by another output")
    for path in outputs:
        check_writable(path)
    train_images, train_labels = load_digits(args.data, "train")
    test_images, test_labels = load_digits(args.data, "test")
    x_train, x_test = as_input(train_images, device), as_input(test_images, device)

    settings = {
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "lr": args.lr,
        "latent_dim": args.latent_dim,
        "encoder": args.encoder or ("exact" if args.latent_dim == 2 else "network"),
        "seed": args.seed,
        "training_images": {"count": len(train_images), "md5": idx_md5(train_images)},
    }
    identity = {"settings": settings, "versions": versions()}
    torch.manual_seed(args.seed)
    vae = VAE(args.latent_dim, settings["encoder"]).to(device)
    optimizers = make_optimizers(vae)
    log = restore(resume_file, settings, vae, optimizers) if args.resume else []

    try:
        for epoch in range(len(log), args.epochs):
            log.append(train_epoch(vae, optimizers, x_train, x_test, epoch, settings))
            print(format_epoch(epoch, log[-1]), flush=True)
            save_resume(resume_file, settings, vae, optimizers, log)
            save_checkpoint(args.checkpoint, vae, **identity, epochs=epoch + 1)
            write_json(metrics_file, {**identity, "log": log})
    except KeyboardInterrupt:
        kept = f" after {len(log)} epochs; they are saved, --resume continues" if log else ""
        raise KeyboardInterrupt(kept) from None

    results, codes = evaluate(vae, x_train, train_labels, x_test, test_labels)
    save_checkpoint(args.checkpoint, vae, **identity, epochs=len(log), results=results)
    write_file(args.scatter, draw_scatter(codes, test_labels[-SCATTERED:]))
    metrics = {
        **identity,
        "results": results,
        "training_seconds": round(sum(epoch["seconds"] for epoch in log), 1),
        "total_seconds": round(time.perf_counter() - started, 1),
        "machine": machine(device),
        "log": log,
    }
    write_json(metrics_file, metrics)
    print(format_results(metrics))
    print(f"wrote {args.checkpoint}, {metrics_file}, {args.scatter}")


def choose_device(name):
    """The torch.device for --device; "auto" prefers CUDA, then Apple's MPS, then the CPU."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise InputError(f"--device {name}: PyTorch finds no such device here; use --device cpu")
    return torch.device(name)


def as_input(images, device):
    """uint8 images [N, 28, 28] -> float32 [N, 784] in [0, 1] on the device."""
    return torch.from_numpy(images).to(device).flatten(1).float() / 255


def idx_md5(images):
    """MD5 of the images as an uncompressed idx file: MNIST's is known, so it names the data."""
    header = struct.pack(">4I", 2051, *images.shape)
    return hashlib.md5(header + images.tobytes(), usedforsecurity=False).hexdigest()


def make_optimizers(vae):
    """Muon (Jordan et al. 2024) for the hidden layers' matrices, Adam for all else.

    As Muon's authors advise, the first and the last layers stay with Adam.
    """
    hidden = []
    for network in (vae.encoder, vae.decoder):
        if network is not None:
            matrices = [p for p in network.parameters() if p.ndim == 2]
            hidden += matrices[1:-1]
    others = [p for p in vae.parameters() if all(p is not matrix for matrix in hidden)]
    return [
        torch.optim.Muon(hidden, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam(others, fused=True),
    ]


def learning_rate(progress, highest):
    """Linear warm-up, then half a cosine to zero; `progress` goes from 0 to 1."""
    return highest * min(progress / WARMUP, 1) * 0.5 * (1 + math.cos(math.pi * progress))


@contextlib.contextmanager
def fast_matmul():
    """Multiply bfloat16 and sum float32 where the processor can (AMX, AVX512-BF16).

    Less training time for the same figures (README's ablation); elsewhere it changes nothing.
    """
    # PyTorch 2.9 alone announces that these functions would be deprecated after it; they are not.
    warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@fast_matmul()
def train_epoch(vae, optimizers, x, x_test, epoch, settings):
    """Train on every image once; return the figures met on the way, and those on the test set."""
    started = time.perf_counter()
    vae.train()
    # A random stream of its own for each epoch: --resume needs no saved random state.
    seeds = np.random.SeedSequence([settings["seed"], epoch])
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    batches = torch.randperm(len(x)).split(settings["batch_size"])
    total_steps = settings["epochs"] * len(batches)
    sums = torch.zeros(2, device=x.device)
    codebook = None
    bar = tqdm(batches, f"epoch {epoch}", unit="step", leave=False, disable=None)
    for step, batch in enumerate(bar):
        progress = (epoch * len(batches) + step) / total_steps
        for group in itertools.chain(*(optimizer.param_groups for optimizer in optimizers)):
            group["lr"] = learning_rate(progress, settings["lr"])
        if vae.encoder is None and step % REFRESH == 0:
            codebook = vae.codebook()
        likelihood, divergence = vae.elbo(x[batch.to(x.device)], codebook)
        vae.zero_grad()
        (divergence - likelihood).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        sums += torch.stack([likelihood.detach().sum(), divergence.detach().sum()])
    figures = {"train": elbo_figures(sums / len(x)), "test": mean_elbo(vae, x_test)}
    return figures | {"seconds": round(time.perf_counter() - started, 2)}


@torch.no_grad()
def mean_elbo(vae, x):
    """Mean likelihood and divergence over images [N, 784], nats per image."""
    vae.eval()
    torch.manual_seed(0)
    codebook = vae.codebook() if vae.encoder is None else None
    parts = [torch.stack(vae.elbo(part, codebook)) for part in x.split(BATCH)]
    return elbo_figures(torch.cat(parts, dim=1).mean(1))


def elbo_figures(means):
    likelihood, divergence = means.tolist()
    if not math.isfinite(likelihood + divergence):
        raise InputError("the loss is no longer a finite number; give a smaller --lr")
    return {
        "L_tot": divergence - likelihood,
        "L_likelihood": likelihood,
        "L_divergence": divergence,
    }


def format_epoch(epoch, figures):
    train, test = format_elbo(figures["train"]), format_elbo(figures["test"])
    return f"epoch {epoch}: {train} | test {test}"


def format_elbo(figures):
    return " ".join(f"{name} {value:.2f}" for name, value in figures.items())


@torch.no_grad()
def evaluate(vae, x_train, train_labels, x_test, test_labels):
    """Figures on the full test set, and the codes [<= 1000, latent_dim] to draw."""
    vae.eval()
    torch.manual_seed(0)
    binarized = torch.bernoulli(x_test.cpu()).to(x_test.device)
    scattered = vae.encode(x_test[-SCATTERED:])[0]
    with fast_matmul():  # neighbours need no last digits, and there are 60,000
        known = vae.encode(x_train)[0]
    predicted = nearest_label(known, train_labels, scattered)
    both = vae.log_likelihood(torch.cat([x_test, binarized])).view(2, -1).mean(1).tolist()
    results = {
        "test": mean_elbo(vae, x_test),
        "log_likelihood": both[0],
        "log_likelihood_binarized": both[1],
        "log_likelihood_method": "quadrature" if vae.latent_dim == 2 else "importance sampling",
        "knn_accuracy": float((predicted == test_labels[-SCATTERED:]).mean()),
    }
    return results, scattered.cpu().numpy()


def nearest_label(known, labels, asked, k=NEIGHBOURS):
    """The commonest label among the k nearest of `known` [N, d] codes, for each of `asked`."""
    k = min(k, len(known))
    nearest = [
        # the matrix-product shortcut loses the digits that tell close neighbours apart
        torch.cdist(part, known, compute_mode="donot_use_mm_for_euclid_dist")
        .topk(k, largest=False)
        .indices
        for part in asked.split(100)
    ]
    votes = labels[torch.cat(nearest).cpu().numpy()]
    return np.array([np.bincount(row).argmax() for row in votes])


def save_resume(path, settings, vae, optimizers, log):
    """All that `restore` needs, in one file, so that a kill between two files does no harm."""
    contents = {
        "format": RESUME_FORMAT,
        "settings": settings,
        "weights": vae.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "log": log,
    }
    write_tensors(path, contents)


def restore(path, settings, vae, optimizers):
    """Put weights and optimizer back as they were after the last epoch; return the log."""
    saved = read_checkpoint(path, RESUME_FORMAT)
    for name, value in settings.items():
        before = saved.get("settings", {}).get(name)
        if name != "epochs" and before != value:
            flag = "--data" if name == "training_images" else "--" + name.replace("_", "-")
            raise InputError(
                f"--resume: {path} was made with another {flag} ({before}, not {value})"
            )
    with damage_reported(path):
        vae.load_state_dict(saved["weights"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        return list(saved["log"])


def format_results(metrics):
    results = metrics["results"]
    exact = results["log_likelihood_method"] == "quadrature"
    return (
        f"test {format_elbo(results['test'])}\n"
        f"test log p(x) {results['log_likelihood']:.2f} grey-scale, "
        f"{results['log_likelihood_binarized']:.2f} binarized "
        f"({'exact' if exact else 'lower bound'}, by {results['log_likelihood_method']})\n"
        f"k-NN accuracy {results['knn_accuracy']:.3f} of the last {SCATTERED} test codes "
        f"(k={NEIGHBOURS}, among all training codes)\n"
        f"took {metrics['total_seconds']:.0f} s, {metrics['training_seconds']:.0f} s in training"
    )


def versions():
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def machine(device):
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return {"device": f"{device.type} {name}", "threads": torch.get_num_threads()}


def write_json(path, contents):
    write_file(path, (json.dumps(contents, indent=1) + "\n").encode())


if __name__ == "__main__":
    run(main)
