"""L_tot over seconds, of `auto_encoder.py` and of others: speed.json and figures/speed.png.

    pip install pythae
    python benchmarks/speed.py      # about twenty minutes on two cores

Seconds are from the start of the process to a test L_tot. All run on one machine, one after the
other: PyTorch's VAE example with its data loader and with all images in one tensor, Pythae's VAE
and SVAE at the best of the learning rates in peers.json, and, in several runs, ours and a usual VAE
with our decoder. The learning rate of these two falls to 0 at the end of a run, so only the end of
each counts. Others have a constant one, and each epoch counts.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import torch
from common import PROJECT, write_files, write_json

from lib import plots

OUR_EPOCHS = (1, 2, 5, 10, 20)
USUAL_EPOCHS = (2, 5)  # of the usual VAE with our decoder
BENCHMARKS = PROJECT / "benchmarks"
STYLES = {  # of the curves: line and marker, colour
    "ours": ("o-", plots.COLOURS[0]),
    "usual VAE with our decoder": ("s-", plots.COLOURS[5]),
    "PyTorch's example, data loader": ("^--", plots.COLOURS[4]),
    "PyTorch's example, one tensor": ("v-", plots.COLOURS[4]),
    "Pythae's VAE": ("<-", plots.COLOURS[6]),
    "Pythae's SVAE": (">-", plots.COLOURS[2]),
}


class Run(NamedTuple):
    """What a script printed, and what it needed."""

    curve: list  # (seconds from the start, test L_tot) of each epoch
    peak_megabytes: float


def run_script(*command):
    """Run a script and read what it prints: a `Run`."""
    print(*command, flush=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True
    )
    curve = []
    for line in process.stdout:
        found = re.match(r"epoch \d+:.*test L_tot ([\d.]+)", line)
        if found:
            seconds = time.perf_counter() - started
            curve.append((round(seconds, 1), float(found[1])))
            print("   ", *curve[-1], flush=True)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed")
    return Run(curve, usage.ru_maxrss / 1024)


def run_ours(epochs):
    """`run_script` for `auto_encoder.py`, into a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return run_script(PROJECT / "auto_encoder.py", "--epochs", epochs, "--out", folder)


def run_peer(name):
    """`run_script` for a model of Pythae, at its best learning rate."""
    rates = json.loads((BENCHMARKS / "peers.json").read_text())[name]
    best = min(rates, key=lambda rate: rates[rate]["L_tot"])
    return run_script(BENCHMARKS / "peers.py", name, best)


def draw(curves):
    """L_tot over seconds, these on a logarithmic axis, as a PNG."""
    figure = plots.new_figure(6.4, 4.2)
    axes = figure.subplots()
    for name, curve in curves.items():
        style, colour = STYLES[name]
        axes.plot(*zip(*curve, strict=True), style, color=colour, label=name, markersize=4)
    seconds = (10, 20, 50, 100, 200, 500)
    axes.set(xscale="log", xticks=seconds, xticklabels=seconds)
    axes.minorticks_off()
    axes.set(xlabel="seconds from the start, two cores", ylabel="test $L_{tot}$, nats per image")
    axes.set_ylim(top=185)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return plots.png_bytes(figure)


def main():
    ours = [run_ours(epochs) for epochs in OUR_EPOCHS]
    usual = [run_script(BENCHMARKS / "usual_vae.py", epochs) for epochs in USUAL_EPOCHS]
    conventional = BENCHMARKS / "conventional.py"
    curves = {
        "ours": [run.curve[-1] for run in ours],
        "usual VAE with our decoder": [run.curve[-1] for run in usual],
        "PyTorch's example, data loader": run_script(conventional).curve,
        "PyTorch's example, one tensor": run_script(conventional, "--tensors").curve,
        "Pythae's VAE": run_peer("VAE").curve,
        "Pythae's SVAE": run_peer("SVAE").curve,
    }
    results = {
        "curves": curves,
        "our_epochs": OUR_EPOCHS,
        "usual_epochs": USUAL_EPOCHS,
        "peak_memory_MB": round(max(run.peak_megabytes for run in ours)),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    write_json("speed", results)
    with plots.own_style():
        write_files({PROJECT / "figures/speed.png": draw(curves)})


if __name__ == "__main__":
    main()
