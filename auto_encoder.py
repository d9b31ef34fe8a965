"""Train the auto-encoder on MNIST and draw the codes of the last 1000 test images.

    python auto_encoder.py                      # the homework: trains, evaluates, draws
    python auto_encoder.py --epochs 2           # a quick look
    python auto_encoder.py --data digits.csv    # your own digits; or a folder of idx files

README.md has more. Then `python decoder_generate.py` draws new digits with the decoder.
"""

import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

import plots
import training
from cli import Parser, between, nonempty_path, run
from data import MNIST, read_digits
from errors import InputError
from evaluation import evaluate, format_epoch, format_results
from files import PROJECT, reserved, write_files
from models import MODELS, SHIPPED, checkpoint_bytes
from training import train_epoch

LARGE = 2**31 - 1  # for numbers that have no other limit
PICTURE = 2**19  # bytes, about as many as a picture has


def train(model, digits, args, files, identity):
    """Train, saving after each epoch; leave the best weights in the model.

    Without held-out images the last epoch counts as the best. Returns the history: "log", figures
    per epoch; "snapshots" of the test images after some epochs; "best", the weights.
    """
    optimizers, settings = training.make_optimizers(model), identity["settings"]
    watched = {"validation": digits.x_validation} if args.validation else {}
    watched["test"] = digits.x_test
    if args.resume:
        history = training.restore(files["resume"], settings, model, optimizers)
    else:
        history = {"log": [], "snapshots": {0: plots.snapshot(model, digits)}, "best": {}}
    log, saved = history["log"], len(history["log"])
    try:
        while len(log) < args.epochs:
            if args.patience and log and len(log) - training.best_epoch(log) > args.patience:
                break
            epoch, contents = len(log), {}
            log.append(train_epoch(model, optimizers, digits.x_train, watched, epoch, settings))
            if training.best_epoch(log) == epoch:
                history["best"] = {name: w.clone() for name, w in model.state_dict().items()}
                contents[files["checkpoint"]] = checkpoint_bytes(model, **identity, epochs=len(log))
            if str(len(log)).rstrip("0") in ("1", "2", "5"):  # 1, 2, 5, 10, 20, 50, ...
                history["snapshots"][len(log)] = plots.snapshot(model, digits)
            so_far = json.dumps({**identity, "log": log}, indent=1) + "\n"
            contents[files["metrics"]] = so_far.encode()
            contents[files["resume"]] = training.resume_bytes(settings, model, optimizers, history)
            write_files(contents)
            saved = len(log)
            print(format_epoch(epoch, log[-1], digits.which), flush=True)
    except KeyboardInterrupt:
        kept = f" after {saved} epochs; they are saved, --resume continues" if saved else ""
        raise KeyboardInterrupt(kept) from None
    model.load_state_dict(history["best"])
    return history


def main():
    started = time.perf_counter()
    args = parse_arguments()
    gpu = torch.cuda.is_available()
    if args.device == "cuda" and not gpu:
        raise InputError("--device cuda: PyTorch finds no such device here; use --device cpu")
    device = torch.device("cuda" if gpu and args.device != "cpu" else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = MODELS[args.model](args.latent_dim).to(device)
    files = output_files(args)
    weights = sum(weight.nbytes for weight in model.state_dict().values())
    room = 2 * (5 * weights + PICTURE * len(files))  # twice: new files stand beside older ones
    with plots.own_style(), reserved(files.values(), room):
        digits = read_digits(args.data, device, args.validation)
        identity = describe_run(args, model, digits)
        history = train(model, digits, args, files, identity)
        epochs = training.best_epoch(history["log"]) + 1
        print("evaluating ...", flush=True)
        results = evaluate(model, digits.x, digits.labels, digits.x_test, digits.test_labels)
        print("drawing ...", flush=True)
        pictures = plots.draw(model, digits, history, epochs, args.figures)
        summary = {**identity, "epochs": epochs, "results": results}
        machine = {"device": f"{device} {platform.machine()}", "threads": torch.get_num_threads()}
        metrics = {**summary, "machine": machine, "log": history["log"]}
        metrics["training_seconds"] = round(sum(epoch["seconds"] for epoch in metrics["log"]), 1)
        metrics["total_seconds"] = round(time.perf_counter() - started, 1)
        contents = pictures | {"checkpoint": checkpoint_bytes(model, **summary)}
        contents["metrics"] = (json.dumps(metrics, indent=1) + "\n").encode()
        write_files({files[name]: content for name, content in contents.items()})
    print(format_results(metrics, digits.which), flush=True)
    print(f"wrote {', '.join(map(str, files.values()))}", flush=True)


def describe_run(args, model, digits):
    """The settings, which --resume must find unchanged, and the versions."""
    same = ("model", "latent_dim", "epochs", "validation", "seed")
    settings = {name: getattr(args, name) for name in same}
    batch_size, lr = training.USUAL[training.is_taught(model)]
    settings |= {"batch_size": args.batch_size or batch_size, "lr": args.lr or lr}
    settings["data"] = digits.identity
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    return {"settings": settings, "versions": versions | {"torch": torch.__version__}}


# fmt: off
def parse_arguments():
    parser = Parser(__doc__)
    add = parser.add_argument_group("files (defaults are beside this script)").add_argument
    add("--data", type=nonempty_path, metavar="PATH", default=MNIST,
        help="a folder of idx files, or a table: a label and 784 pixels a line (default mnist)")
    add("--checkpoint", type=nonempty_path, metavar="FILE", default=SHIPPED,
        help="the trained weights, results beside them (default checkpoints/vae.safetensors)")
    add("--scatter", type=nonempty_path, metavar="FILE", default=PROJECT / "encoder.png",
        help="picture of the codes of the last 1000 test images (default encoder.png)")
    add("--figures", type=nonempty_path, metavar="DIR", default=PROJECT / "figures",
        help=f"folder for {', '.join(plots.FIGURES)}.png (default figures)")
    add("--no-figures", dest="figures", action="store_const", const=None,
        help="draw nothing but the scatter")
    add = parser.add_argument_group("model").add_argument
    add("--model", choices=MODELS, default="vae", help="variational or plain (default vae)")
    add("--latent-dim", type=between(int, 1, 784), metavar="N", default=2,
        help="numbers in a code (default 2)")
    add = parser.add_argument_group("training").add_argument
    whole = between(int, 1, LARGE)
    add("--epochs", type=whole, metavar="N", default=20, help="passes over the data (default 20)")
    add("--batch-size", type=whole, metavar="N",
        help="images a step (default 512 for a VAE of 2 latents, 256 for others)")
    add("--lr", type=between(float, 1e-9, 1e6), metavar="X",
        help="highest learning rate (default 0.009 for a VAE of 2 latents, 0.003 for others)")
    add("--validation", type=between(int, 0, LARGE), metavar="N", default=0,
        help="hold out the last N training images, and keep the best epoch's weights (default 0)")
    add("--patience", type=whole, metavar="N",
        help="stop after N epochs without a better validation figure (default: never)")
    add("--seed", type=between(int, 0, LARGE), metavar="N", default=0,
        help="the same seed gives the same files (default 0)")
    add = parser.add_argument_group("running").add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="auto takes a GPU if there is one (default auto)")
    add("--threads", type=between(int, 1, 1024), metavar="N", help="CPU threads (default: all)")
    add("--resume", action="store_true",
        help="continue an interrupted run; give the other flags as before")
    args = parser.parse_args()
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
        taken.add(place)
    return files


if __name__ == "__main__":
    run(main)
