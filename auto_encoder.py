"""Train the auto-encoder on MNIST and draw the codes of the last 1000 test images.

    python auto_encoder.py                      # the homework: trains, evaluates, draws
    python auto_encoder.py --epochs 2           # a quick look
    python auto_encoder.py --resume             # go on after Ctrl-C
    python auto_encoder.py --model ae           # a plain auto-encoder
    python auto_encoder.py --latent-dim 20      # longer codes, drawn in principal components
    python auto_encoder.py --data digits.csv    # your own digits; or a folder of idx files

Then `python decoder_generate.py` draws new digits with the decoder.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import platform
import re
import struct
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import plots
from data import (
    FILE_NAMES,
    PROJECT,
    InputError,
    Parser,
    check_writable,
    load_digits,
    nonempty_path,
    positive_number,
    run,
    say,
    whole_number,
    write_files,
)
from models import (
    BATCH,
    MODELS,
    PIXELS,
    VAE,
    AutoEncoder,
    checkpoint_bytes,
    damage_reported,
    load_tensors,
    read_checkpoint,
    tensor_bytes,
)

RESUME_FORMAT = "mnist-auto-encoder-resume-3"
FIGURES = ("scatter_epochs", "reconstructions", "loss", "sanity_check", "manifold")
LEARNING_RATES = {"exact": 5e-3, "network": 3e-3}  # by the encoder
WEIGHT_DECAYS = {"exact": 0.0, "network": 0.4}  # of the hidden matrices
SCATTERED = 1000  # the homework asks for the last 1000 test images
WARMUP = 0.05  # share of the steps in which the learning rate rises
HOPELESS = 10 * math.log(2) * PIXELS  # nats; a tenth of it needs no training: all pixels 0.5
REFRESH = 50  # steps between two codebooks; the decoder moves little in between
SAMPLED = 10_000  # training images to whose codes an AutoEncoder fits what it samples from
PICTURE = 2**19  # bytes, about as many as a picture has
NEIGHBOURS = 15  # k of the k-NN classifier that judges the codes


# fmt: off
def parse_arguments():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument_group("files (defaults are beside this script)").add_argument
    add("--data", type=nonempty_path, metavar="PATH", default=PROJECT / "mnist",
        help="folder with the idx files of MNIST or of a data set in its format, or a table: a "
        "label and 784 pixels a line (default mnist)")
    add("--checkpoint", type=nonempty_path, metavar="FILE", default=PROJECT / "checkpoints/vae.pt",
        help="the trained weights; results go beside them in a .json (default checkpoints/vae.pt)")
    add("--scatter", type=nonempty_path, metavar="FILE", default=PROJECT / "encoder.png",
        help="picture of the codes of the last 1000 test images (default encoder.png)")
    add("--figures", type=nonempty_path, metavar="DIR", default=PROJECT / "figures",
        help=f"folder for {', '.join(FIGURES)}.png (default figures)")
    add("--no-figures", dest="figures", action="store_const", const=None,
        help="draw nothing but the scatter")
    add = parser.add_argument_group("model").add_argument
    add("--model", choices=MODELS, default="vae",
        help="variational or deterministic auto-encoder (default %(default)s)")
    add("--latent-dim", type=whole_number(1, 784), metavar="N", default=2,
        help="numbers in a code (default %(default)s)")
    add("--encoder", choices=("exact", "network"),
        help="of the VAE: Bayes' rule on a grid of codes (default for 2 latents) "
        "or a feed-forward network (default for others)")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=whole_number(1), metavar="N", default=20,
        help="passes over the training images (default %(default)s)")
    add("--batch-size", type=whole_number(1), metavar="N", default=256,
        help="images in one step (default %(default)s)")
    add("--lr", type=positive_number, metavar="X",
        help="highest learning rate (default {exact} with the exact encoder, {network} with a "
        "network)".format(**LEARNING_RATES))
    add("--validation", type=whole_number(0), metavar="N", default=0,
        help="hold out the last N training images, and keep the weights of the epoch that is best "
        "on them (default: train on all, keep the last)")
    add("--patience", type=whole_number(1), metavar="N",
        help="stop after N epochs without a better validation figure (default: never)")
    add("--seed", type=whole_number(0), metavar="N", default=0,
        help="the same seed gives the same files (default %(default)s)")
    add = parser.add_argument_group("running").add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="auto takes a GPU if there is one (default %(default)s)")
    add("--threads", type=whole_number(1, 1024), metavar="N",
        help="CPU threads (default: all cores)")
    add("--resume", action="store_true",
        help="continue an interrupted run; give the other flags as before")
    args = parser.parse_args()
    if args.encoder and args.model != "vae":
        raise InputError("--encoder: only for --model vae; leave it out")
    if args.encoder == "exact" and args.latent_dim != 2:
        raise InputError("--encoder exact: needs --latent-dim 2; leave it out")
    if args.patience and not args.validation:
        raise InputError("--patience: needs held-out images; give --validation, say 5000")
    return args
# fmt: on


def main():
    started = time.perf_counter()
    args = parse_arguments()
    plots.require_matplotlib()
    device = choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    options = {"encoder": args.encoder} if args.encoder else {}
    model = MODELS[args.model](args.latent_dim, **options).to(device)
    encoder = encoder_kind(model)
    files = output_files(args)
    check_writable(room(files, model))
    digits = read_digits(args, device)
    settings = {
        "model": args.model,
        "latent_dim": args.latent_dim,
        "encoder": encoder,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "lr": args.lr or LEARNING_RATES[encoder],
        "validation": args.validation,
        "seed": args.seed,
        "training_images": digits.identity,
    }
    identity = {"settings": settings, "versions": versions()}

    history = train(model, digits, args, files, identity)
    log, epochs = history["log"], best_epoch(history["log"]) + 1
    results = evaluate(model, digits.x, digits.labels, digits.x_test, digits.test_labels)
    metrics = {
        **identity,
        "epochs": epochs,
        "results": results,
        "training_seconds": round(sum(epoch["seconds"] for epoch in log), 1),
        "machine": machine(device),
        "log": log,
    }
    pictures = draw(model, digits, history, args)
    metrics["total_seconds"] = round(time.perf_counter() - started, 1)
    write_files(
        {files[name]: picture for name, picture in pictures.items()}
        | {
            files["checkpoint"]: checkpoint_bytes(
                model, **identity, epochs=epochs, results=results
            ),
            files["metrics"]: json_bytes(metrics),
        }
    )
    say(format_results(metrics))
    wrote = [files[name] for name in ("checkpoint", "metrics", "scatter")]
    say(f"wrote {', '.join(map(str, wrote + [args.figures] * bool(args.figures)))}")


def output_files(args):
    """The path of each output, none in the way of another or of the data."""
    if not args.checkpoint.name:
        raise InputError(f"--checkpoint {args.checkpoint}: is a folder; name a file")
    name = re.sub(r"\.pth?$", "", args.checkpoint.name) or args.checkpoint.name
    files = {
        "checkpoint": args.checkpoint,
        "metrics": args.checkpoint.with_name(f"{name}.json"),
        "resume": args.checkpoint.with_name(f"{name}.resume.pt"),
        "scatter": args.scatter,
    }
    if args.figures:
        files |= {name: args.figures / f"{name}.png" for name in FIGURES}
    places = [Path(os.path.realpath(file)) for file in files.values()]
    taken = {Path(os.path.realpath(args.data))}
    for file, place in zip(files.values(), places, strict=True):
        if place in taken or any(place in other.parents for other in places):
            raise InputError(f"{file}: would be overwritten; name another output")
        if place.name.removesuffix(".gz") in FILE_NAMES:
            raise InputError(f"{file}: is named like data; name another output")
        taken.add(place)
    return files


def room(files, model):
    """How many bytes of room each output needs, about: {path: bytes}.

    Twice its size less what it has already, as it is written beside its older version.
    """
    weights = sum(weight.nbytes for weight in model.state_dict().values())
    sizes = {"checkpoint": weights, "resume": 4 * weights}  # with the optimizers' state
    older = {path: path.stat().st_size if path.is_file() else 0 for path in files.values()}
    return {
        path: max(2 * sizes.get(name, PICTURE) - older[path], 0) for name, path in files.items()
    }


class Digits(NamedTuple):
    """All that is read. Images are float32 [N, 784] in [0, 1] on the device, labels int64 [N]."""

    x: torch.Tensor
    labels: np.ndarray
    x_train: torch.Tensor  # the first of x
    x_validation: torch.Tensor  # the last of x, held out
    x_test: torch.Tensor
    test_labels: np.ndarray
    x_shown: torch.Tensor  # the first ten test images of each digit
    identity: dict  # names the training images: their number and MD5


def read_digits(args, device):
    images, labels = load_digits(args.data, "train")
    test_images, test_labels = load_digits(args.data, "test")
    if args.validation >= len(images):
        raise InputError(f"--validation {args.validation}: there are {len(images)} images in all")
    x, x_test = as_input(images, device), as_input(test_images, device)
    x_train, x_validation = x.split([len(x) - args.validation, args.validation])
    x_shown = x_test[examples(test_labels)]
    identity = {"count": len(images), "md5": idx_md5(images)}
    return Digits(x, labels, x_train, x_validation, x_test, test_labels, x_shown, identity)


def choose_device(name):
    """The torch.device for --device; "auto" takes CUDA if it is there."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("--device cuda: PyTorch finds no such device here; use --device cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def as_input(images, device):
    """uint8 images [N, 28, 28] -> float32 [N, 784] in [0, 1] on the device."""
    return torch.from_numpy(images).to(device).flatten(1).float() / 255


def idx_md5(images):
    """MD5 of the images as an uncompressed idx file: MNIST's is known, so it names the data."""
    header = struct.pack(">4I", 2051, *images.shape)
    return hashlib.md5(header + images.tobytes(), usedforsecurity=False).hexdigest()


def encoder_kind(model):
    """The model's encoder as --encoder names it: "exact" or "network"."""
    return "exact" if model.encoder is None else "network"


def codebook_of(model):
    """What an exact encoder looks images up in; a network needs none."""
    return model.codebook() if encoder_kind(model) == "exact" else None


def make_optimizers(model):
    """Muon (Jordan et al. 2024) for the hidden layers' matrices, Adam for all else.

    As Muon's authors advise, the first and the last layers stay with Adam.
    """
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"PyTorch 2.9 or newer is needed, not {torch.__version__}; install it")
    hidden = []
    for network in (model.encoder, model.decoder):
        if network is not None:
            matrices = [p for p in network.parameters() if p.ndim == 2]
            hidden += matrices[1:-1]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in hidden)]
    decay = WEIGHT_DECAYS[encoder_kind(model)]
    return [
        torch.optim.Muon(hidden, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam(others, fused=True),
    ]


def train(model, digits, args, files, identity):
    """Train, saving after each epoch; leave the best weights in the model.

    Without held-out images the last epoch counts as the best.

    Returns:
        The history: "log", figures per epoch; "snapshots" of the test images after some epochs;
        "best", the weights.
    """
    optimizers = make_optimizers(model)
    settings = identity["settings"]
    watched = {"validation": digits.x_validation} if args.validation else {}
    watched["test"] = digits.x_test
    if args.resume:
        history = restore(files["resume"], settings, model, optimizers)
    else:
        history = {"log": [], "snapshots": {0: snapshot(model, digits)}, "best": {}}
    log = history["log"]
    saved = len(log)
    try:
        while len(log) < args.epochs and not out_of_patience(log, args.patience):
            epoch = len(log)
            log.append(train_epoch(model, optimizers, digits.x_train, watched, epoch, settings))
            contents = {}
            if best_epoch(log) == epoch:
                history["best"] = {name: w.clone() for name, w in model.state_dict().items()}
                contents[files["checkpoint"]] = checkpoint_bytes(model, **identity, epochs=len(log))
            if str(len(log)).rstrip("0") in ("1", "2", "5"):  # 1, 2, 5, 10, 20, 50, ...
                history["snapshots"][len(log)] = snapshot(model, digits)
            contents[files["metrics"]] = json_bytes({**identity, "log": log})
            contents[files["resume"]] = resume_bytes(settings, model, optimizers, history)
            write_files(contents)
            saved = len(log)
            say(format_epoch(epoch, log[-1]))
    except KeyboardInterrupt:
        kept = f" after {saved} epochs; they are saved, --resume continues" if saved else ""
        raise KeyboardInterrupt(kept) from None
    model.load_state_dict(history["best"])
    return history


def best_epoch(log):
    """The epoch with the lowest L_tot on the held-out images; without any, the last."""
    if "validation" not in log[-1]:
        return len(log) - 1
    return min(range(len(log)), key=lambda epoch: log[epoch]["validation"]["L_tot"])


def out_of_patience(log, patience):
    return bool(patience and log) and len(log) - 1 - best_epoch(log) >= patience


def learning_rate(progress, highest):
    """Linear warm-up, then half a cosine to zero; `progress` goes from 0 to 1."""
    return highest * min(progress / WARMUP, 1) * 0.5 * (1 + math.cos(math.pi * progress))


@contextlib.contextmanager
def fast_matmul():
    """Multiply bfloat16 and sum float32 where the processor can (AMX, AVX512-BF16).

    Less training time for the same figures (README's ablation). On CUDA it allows TF32.
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
def train_epoch(model, optimizers, x, watched, epoch, settings):
    """Train on every image once; return the figures met on the way, and those on images watched.

    All of them from fast products; `evaluate` has the last digits.
    """
    started = time.perf_counter()
    model.train()
    # A random stream of its own for each epoch: --resume needs no saved random state.
    seeds = np.random.SeedSequence([settings["seed"], epoch])
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    batches = torch.randperm(len(x)).split(settings["batch_size"])
    total_steps = settings["epochs"] * len(batches)
    sums = torch.zeros(2, device=x.device)
    bar = tqdm(batches, f"epoch {epoch}", unit="step", leave=False, disable=None)
    for step, batch in enumerate(bar):
        progress = (epoch * len(batches) + step) / total_steps
        for group in itertools.chain(*(optimizer.param_groups for optimizer in optimizers)):
            group["lr"] = learning_rate(progress, settings["lr"])
        if step % REFRESH == 0:
            codebook = codebook_of(model)
        likelihood, divergence = model.elbo(x[batch.to(x.device)], codebook)
        model.zero_grad()
        (divergence - likelihood).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        sums += torch.stack([likelihood.detach().sum(), divergence.detach().sum()])
    figures = {"train": elbo_figures(sums / len(x))}
    if figures["train"]["L_tot"] > HOPELESS:
        raise diverged(figures["train"]["L_tot"])
    model.eval()
    codebook = codebook_of(model)
    figures |= {name: mean_elbo(model, images, codebook) for name, images in watched.items()}
    if isinstance(model, AutoEncoder):
        model.fit_samples(x[:SAMPLED])
    return figures | {"seconds": round(time.perf_counter() - started, 2)}


@torch.no_grad()
def mean_elbo(model, x, codebook):
    """Mean likelihood and divergence, nats per image; arguments as those of `VAE.elbo`."""
    torch.manual_seed(0)
    parts = [torch.stack(model.elbo(part, codebook)) for part in x.split(BATCH)]
    return elbo_figures(torch.cat(parts, dim=1).mean(1))


def elbo_figures(means):
    likelihood, divergence = means.tolist()
    if not math.isfinite(likelihood + divergence):
        raise diverged(divergence - likelihood)
    return {
        "L_tot": divergence - likelihood,
        "L_likelihood": likelihood,
        "L_divergence": divergence,
    }


def diverged(loss):
    return InputError(
        f"--lr: training diverges, the loss is {loss:.3g} nats an image; give a smaller one (what "
        "was saved before is kept)"
    )


def format_epoch(epoch, figures):
    watched = [
        f"{name} {format_elbo(figures[name])}" for name in ("validation", "test") if name in figures
    ]
    return " | ".join([f"epoch {epoch}: {format_elbo(figures['train'])}", *watched])


def format_elbo(figures):
    return " ".join(f"{name} {value:.2f}" for name, value in figures.items())


@torch.no_grad()
def evaluate(model, x, labels, x_test, test_labels):
    """Figures on the full test set; `x` and `labels` are the training images'."""
    model.eval()
    codebook = codebook_of(model)
    results = {"test": mean_elbo(model, x_test, codebook)}
    if isinstance(model, VAE):
        torch.manual_seed(0)
        binarized = torch.bernoulli(x_test.cpu()).to(x_test.device)
        both = model.log_likelihood(torch.cat([x_test, binarized])).view(2, -1).mean(1).tolist()
        results["log_likelihood"], results["log_likelihood_binarized"] = both
        exact = model.latent_dim == 2
        results["log_likelihood_method"] = "quadrature" if exact else "importance sampling"
    else:
        # A pixel's cross-entropy is lowest where the decoder gives its grey value itself.
        entropy = F.binary_cross_entropy(x_test, x_test, reduction="none")
        results["entropy_of_grey_pixels"] = entropy.sum(1).mean().item()
    with fast_matmul():  # neighbours need no last digits, and there are 60,000
        known = torch.cat([model.codes(part, codebook) for part in x.split(10 * BATCH)])
    predicted = nearest_label(known, labels, model.codes(x_test[-SCATTERED:], codebook))
    results["knn_accuracy"] = float((predicted == test_labels[-SCATTERED:]).mean())
    results["knn_codes"] = len(predicted)
    return results


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


@torch.no_grad()
def snapshot(model, digits):
    """What the pictures show of the model as it is now."""
    model.eval()
    codes = model.codes(torch.cat([digits.x_shown, digits.x_test[-SCATTERED:]]))
    shown, scattered = codes.tensor_split([len(digits.x_shown)])
    return {
        "scattered": scattered.cpu(),
        "codes": shown.cpu(),
        "images": model.decode(shown).sigmoid().cpu(),
    }


@plots.own_style()
def draw(model, digits, history, args):
    """The pictures: {name of the output: the bytes of a PNG file}."""
    log, trained = history["log"], best_epoch(history["log"]) + 1
    views = {epochs: view for epochs, view in history["snapshots"].items() if epochs < trained}
    views[trained] = snapshot(model, digits)
    views = {
        epochs: {name: tensor.numpy() for name, tensor in view.items()}
        for epochs, view in views.items()
    }
    labels = digits.test_labels[-SCATTERED:]
    plane = plots.plane_of(views[trained]["scattered"])
    which = f"{len(labels)} held-out" if args.data.is_file() else f"the last {len(labels)} test"
    points = plane.project(views[trained]["scattered"])
    title = f"Codes of {which} images"
    pictures = {"scatter": plots.draw_scatter(points, labels, plane, title)}
    if args.figures:
        if isinstance(model, VAE):
            title, scale = "Decoded quantiles of the prior", 1.0
            middle = plane.project(np.zeros(model.latent_dim))
        else:
            title, scale, middle = "Decoded quantiles of the codes", points.std(0), points.mean(0)
        grid = middle + scale * plots.manifold_points()
        with torch.no_grad():
            codes = torch.tensor(plane.codes_at(grid), device=digits.x.device)
            decoded = model.decode(codes).sigmoid().cpu().numpy()
        shown = digits.x_shown.cpu().numpy()
        pictures |= plots.draw_figures(views, labels, shown, plane, log)
        pictures["manifold"] = plots.draw_manifold(decoded, grid, plane, title)
    return pictures


def examples(labels):
    """Positions of the first ten images of each digit; if there are fewer, they repeat."""
    return np.concatenate([np.resize(np.flatnonzero(labels == d), 10) for d in np.unique(labels)])


def resume_bytes(settings, model, optimizers, history):
    """All that `restore` needs, for one file, so that a kill between two files does no harm.

    With a checksum: what could go wrong with other contents would go wrong much later.
    """
    contents = {
        "settings": settings,
        "weights": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "history": history,
    }
    packed = tensor_bytes(contents)
    return tensor_bytes(
        {
            "format": RESUME_FORMAT,
            "sha256": hashlib.sha256(packed).hexdigest(),
            "contents": torch.frombuffer(bytearray(packed), dtype=torch.uint8),
        }
    )


def restore(path, settings, model, optimizers):
    """Put weights and optimizer back as they were after the last epoch; return the history."""
    if not path.is_file():
        raise InputError(f"--resume: {path} is not there; leave out --resume to begin anew")
    saved = read_checkpoint(path, RESUME_FORMAT)
    with damage_reported(path):
        packed = saved["contents"].numpy().tobytes()
        if hashlib.sha256(packed).hexdigest() != saved["sha256"]:
            raise ValueError("not what was saved")
        saved = load_tensors(packed)
        for name, value in settings.items():
            if saved["settings"][name] != value:
                flag = "--data" if name == "training_images" else "--" + name.replace("_", "-")
                raise InputError(
                    f"--resume: {path} was made with another {flag}; give that, or leave out "
                    "--resume to begin anew"
                )
        model.load_state_dict(saved["weights"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        return saved["history"]


def format_results(metrics):
    results = metrics["results"]
    lines = [f"test {format_elbo(results['test'])}"]
    if "log_likelihood" in results:
        method = results["log_likelihood_method"]
        lines.append(
            f"test log p(x) {results['log_likelihood']:.2f} grey-scale, "
            f"{results['log_likelihood_binarized']:.2f} binarized "
            f"({'exact' if method == 'quadrature' else 'lower bound'}, by {method})"
        )
    else:
        floor = results["entropy_of_grey_pixels"]
        lines.append(
            f"{results['test']['L_tot'] - floor:.2f} nats above {floor:.2f}, the entropy of grey "
            "pixels, which no model can pass"
        )
    return "\n".join(
        [
            *lines,
            f"k-NN accuracy {results['knn_accuracy']:.3f} of the last {results['knn_codes']} test "
            f"codes (k={NEIGHBOURS}, among all training codes)",
            f"trained for {metrics['training_seconds']:.0f} s; this run took "
            f"{metrics['total_seconds']:.0f} s in all",
        ]
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
    write_files({path: json_bytes(contents)})


def json_bytes(contents):
    return (json.dumps(contents, indent=1) + "\n").encode()


if __name__ == "__main__":
    run(main)
