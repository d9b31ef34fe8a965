"""Train the auto-encoder on MNIST and draw the codes of the last 1000 test images.

    python auto_encoder.py                      # the homework: trains, evaluates, draws
    python auto_encoder.py --epochs 2           # a quick look
    python auto_encoder.py --resume             # go on after Ctrl-C
    python auto_encoder.py --model ae           # a plain auto-encoder
    python auto_encoder.py --latent-dim 20      # longer codes, drawn in principal components
    python auto_encoder.py --data digits.csv    # your own digits; or a folder of idx files

Then `python decoder_generate.py` draws new digits with the decoder.
"""

import functools
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

import plots
from cli import Parser, between, nonempty_path, run
from data import FILE_NAMES, MNIST, read_digits
from errors import InputError
from evaluation import evaluate, format_epoch, format_results
from files import PROJECT, reserved, write_files
from models import MODELS, SHIPPED, checkpoint_bytes, encoder_kind
from training import (  # fmt: skip
    LEARNING_RATES,
    best_epoch,
    make_optimizers,
    out_of_patience,
    restore,
    resume_bytes,
    train_epoch,
)

say = functools.partial(print, flush=True)
LARGE = 2**31 - 1  # for numbers that have no other limit
PICTURE = 2**19  # bytes, about as many as a picture has


def train(model, digits, args, files, identity):
    """Train, saving after each epoch; leave the best weights in the model.

    Without held-out images the last epoch counts as the best.

    Returns:
        The history: "log", figures per epoch; "snapshots" of the test images after some epochs;
        "best", the weights.
    """
    optimizers, settings = make_optimizers(model), identity["settings"]
    watched = {"validation": digits.x_validation} if args.validation else {}
    watched["test"] = digits.x_test
    if args.resume:
        history = restore(files["resume"], settings, model, optimizers)
    else:
        history = {"log": [], "snapshots": {0: plots.snapshot(model, digits)}, "best": {}}
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
                history["snapshots"][len(log)] = plots.snapshot(model, digits)
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


def main():
    started = time.perf_counter()
    args = parse_arguments()
    device = choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    options = {"encoder": args.encoder} if args.encoder else {}
    model = MODELS[args.model](args.latent_dim, **options).to(device)
    files = output_files(args)
    weights = sum(weight.nbytes for weight in model.state_dict().values())
    room = 2 * (5 * weights + PICTURE * len(files))  # twice: new files stand beside older ones
    with plots.own_style(), reserved(files.values(), room):
        digits = read_digits(args.data, device, args.validation)
        identity = describe_run(args, model, digits)
        history = train(model, digits, args, files, identity)
        log = history["log"]
        results = {
            "epochs": best_epoch(log) + 1,
            "results": evaluate(model, digits.x, digits.labels, digits.x_test, digits.test_labels),
        }
        which = "held-out" if args.data.is_file() else "test"
        pictures = plots.draw(model, digits, history, results["epochs"], which, args.figures)
        metrics = (
            identity
            | results
            | {
                "training_seconds": round(sum(epoch["seconds"] for epoch in log), 1),
                "total_seconds": round(time.perf_counter() - started, 1),
                "machine": {"device": device_name(device), "threads": torch.get_num_threads()},
                "log": log,
            }
        )
        contents = {files[name]: picture for name, picture in pictures.items()}
        contents[files["checkpoint"]] = checkpoint_bytes(model, **identity, **results)
        write_files(contents | {files["metrics"]: json_bytes(metrics)})
    say(format_results(metrics))
    wrote = [files["checkpoint"], files["metrics"], files["scatter"], args.figures]
    say(f"wrote {', '.join(str(path) for path in wrote if path)}")


def describe_run(args, model, digits):
    """The settings, which --resume must find unchanged, and the versions."""
    kind = encoder_kind(model)
    same = ("model", "latent_dim", "epochs", "batch_size", "validation", "seed")
    settings = {name: getattr(args, name) for name in same}
    settings |= {"encoder": kind, "lr": args.lr or LEARNING_RATES[kind]}
    settings["training_images"] = digits.identity
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    return {"settings": settings, "versions": versions | {"torch": torch.__version__}}


# fmt: off
def parse_arguments():
    parser = Parser(__doc__)
    add = parser.add_argument_group("files (defaults are beside this script)").add_argument
    add("--data", type=nonempty_path, metavar="PATH", default=MNIST,
        help="folder with the idx files of MNIST or of a data set in its format, or a table: a "
        "label and 784 pixels a line (default mnist)")
    add("--checkpoint", type=nonempty_path, metavar="FILE", default=SHIPPED,
        help="the trained weights, results beside them (default checkpoints/vae.safetensors)")
    add("--scatter", type=nonempty_path, metavar="FILE", default=PROJECT / "encoder.png",
        help="picture of the codes of the last 1000 test images (default encoder.png)")
    add("--figures", type=nonempty_path, metavar="DIR", default=PROJECT / "figures",
        help=f"folder for {', '.join(plots.FIGURES)}.png (default figures)")
    add("--no-figures", dest="figures", action="store_const", const=None,
        help="draw nothing but the scatter")
    add = parser.add_argument_group("model").add_argument
    add("--model", choices=MODELS, default="vae",
        help="variational or deterministic auto-encoder (default %(default)s)")
    add("--latent-dim", type=between(int, 1, 784), metavar="N", default=2,
        help="numbers in a code (default %(default)s)")
    add("--encoder", choices=("exact", "network"),
        help="of the VAE: Bayes' rule on a grid of codes (default for 2 latents) "
        "or a feed-forward network (default for others)")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=between(int, 1, LARGE), metavar="N", default=20,
        help="passes over the training images (default %(default)s)")
    add("--batch-size", type=between(int, 1, LARGE), metavar="N", default=256,
        help="images in one step (default %(default)s)")
    add("--lr", type=between(float, 1e-9, 1e6), metavar="X",
        help="highest learning rate (default {exact} with the exact encoder, {network} with a "
        "network)".format(**LEARNING_RATES))
    add("--validation", type=between(int, 0, LARGE), metavar="N", default=0,
        help="hold out the last N training images, and keep the weights of the epoch that is best "
        "on them (default: train on all, keep the last)")
    add("--patience", type=between(int, 1, LARGE), metavar="N",
        help="stop after N epochs without a better validation figure (default: never)")
    add("--seed", type=between(int, 0, LARGE), metavar="N", default=0,
        help="the same seed gives the same files (default %(default)s)")
    add = parser.add_argument_group("running").add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="auto takes a GPU if there is one (default %(default)s)")
    add("--threads", type=between(int, 1, 1024), metavar="N",
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


def output_files(args):
    """The path of each output, none in the way of another or of the data."""
    if not args.checkpoint.name:
        raise InputError(f"--checkpoint {args.checkpoint}: is a folder; name a file")
    name = args.checkpoint.name.removesuffix(".safetensors") or args.checkpoint.name
    files = {
        "checkpoint": args.checkpoint,
        "metrics": args.checkpoint.with_name(f"{name}.json"),
        "resume": args.checkpoint.with_name(f"{name}.resume.safetensors"),
        "scatter": args.scatter,
    }
    if args.figures:
        files |= {name: args.figures / f"{name}.png" for name in plots.FIGURES}
    places = [Path(os.path.realpath(file)) for file in files.values()]
    taken = {Path(os.path.realpath(args.data))}
    for file, place in zip(files.values(), places, strict=True):
        if place in taken or any(place in other.parents for other in places):
            raise InputError(f"{file}: would be overwritten; name another output")
        if place.name.removesuffix(".gz") in FILE_NAMES:
            raise InputError(f"{file}: is named like data; name another output")
        taken.add(place)
    return files


def choose_device(name):
    """The torch.device for --device; "auto" takes CUDA if it is there."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("--device cuda: PyTorch finds no such device here; use --device cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def device_name(device):
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return f"{device.type} {name}"


def json_bytes(contents):
    return (json.dumps(contents, indent=1) + "\n").encode()


if __name__ == "__main__":
    run(main)
