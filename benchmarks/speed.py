"""How fast and how large `auto_encoder.py` is, measured beside conventional.py.

    python benchmarks/speed.py      # about a quarter of an hour on two cores; writes speed.json

1. Ten epochs of conventional.py, with its data loader as published, and with all images in one
   tensor, against `auto_encoder.py --epochs 2`. The three are run in turns, three times, and the
   medians count, as a machine's speed changes. Seconds are from the start of the process to a test
   L_tot, of ours that of the trained encoder. Two figures come out: when ours is below both of
   theirs; and which L_tot ours has when theirs on tensors ends, after the longest run in whole
   epochs that ends by then.
2. A training step beside its matrix products alone, at the very shapes they have there, in float32
   and in the precision of training.
3. Peak memory of `auto_encoder.py`.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import NamedTuple

import torch
from common import PROJECT, digits, write_json

from auto_encoder import GRID_SETTINGS, optimizers_for, train_epoch
from lib.torch_settings import flush_denormal, matmul_precision
from models import PIXELS, GridVAE, split_parameters

ROUNDS = 3
SHORT = 2  # epochs of ours
EXAMPLES = {"as_published": [], "on_tensors": ["--tensors"]}  # the flags of conventional.py


class Run(NamedTuple):
    """What a script printed, and what it needed."""

    epochs: list  # (seconds from the start, test L_tot) of each
    knn_accuracy: float | None  # of the last 1000 codes
    seconds: float
    peak_megabytes: float

    @property
    def seconds_to_last_epoch(self):
        return self.epochs[-1][0]

    @property
    def last_l_tot(self):
        return self.epochs[-1][1]

    def seconds_to(self, target):
        """When the test L_tot was first as low as this."""
        return next(seconds for seconds, l_tot in self.epochs if l_tot <= target)


def run_script(*command):
    """Run a script and read what it prints: a `Run`."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True
    )
    epochs = []
    knn_accuracy = None
    for line in process.stdout:
        print("   ", line, end="")
        found = re.match(r"epoch \d+:.*test L_tot ([\d.]+)", line)
        if found:
            epochs.append((time.perf_counter() - started, float(found[1])))
        found = re.match(r"k-NN accuracy ([\d.]+)", line)
        if found:
            knn_accuracy = float(found[1])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed")
    seconds = time.perf_counter() - started
    return Run(epochs, knn_accuracy, seconds, usage.ru_maxrss / 1024)


def seconds_of(function, repeat):
    """Seconds of one call, after a few to warm up."""
    for _ in range(3):
        function()
    started = time.perf_counter()
    for _ in range(repeat):
        function()
    return (time.perf_counter() - started) / repeat


def matrix_products(vae, batch):
    """(rows, inner, columns, how often) of the products in one training step, and of Muon's."""
    nodes = vae.grid_side**2
    with_copies = batch + round(GRID_SETTINGS.augmented_part * batch)
    products = [(with_copies, PIXELS, nodes, 1)]  # the images against the grid
    muon = []
    for network in (vae.decoder, vae.encoder):
        layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
        rows = with_copies if network is vae.encoder else batch
        for layer in layers:
            outputs, inputs = layer.weight.shape
            products += [
                (rows, inputs, outputs, 1),  # forward
                (outputs, rows, inputs, 1),  # gradient of the weights
            ]
            if layer is not layers[0]:
                products.append((rows, outputs, inputs, 1))  # gradient of the layer's input
            if network is vae.decoder:
                often = 1 / GRID_SETTINGS.grid_refresh
                products.append((nodes, inputs, outputs, often))  # decoding the grid
        matrices, _ = split_parameters(network)
        for matrix in matrices:  # five Newton-Schulz steps of three products each
            wide, narrow = sorted(matrix.shape, reverse=True)
            muon += [
                (narrow, wide, narrow, 5),
                (narrow, narrow, narrow, 5),
                (narrow, narrow, wide, 5),
            ]
    return products, muon


def seconds_of_products(products, kind=torch.float32):
    """Seconds that all of them take alone, one after the other."""
    total = 0.0
    for rows, inner, columns, often in products:
        left, right = torch.randn(rows, inner).to(kind), torch.randn(columns, inner).to(kind)
        total += often * seconds_of(lambda a=left, b=right: a @ b.T, repeat=20)
    return total


@flush_denormal()
def measure_step(few=20, many=110):
    """Seconds of a training step, and of its matrix products alone, and their multiplications.

    The products are timed in float32, and "as_multiplied" in the precision of training.
    """
    x = digits("train")[0]
    vae = GridVAE()
    settings = GRID_SETTINGS
    optimizers = optimizers_for(vae, settings)

    def seconds_of_steps(count):  # in an epoch after those on the coarse grid
        images = x[: settings.batch_size * count]
        started = time.perf_counter()
        with matmul_precision(settings.matmul_precision):
            train_epoch(vae, optimizers, images, settings.som_epochs, settings)
        return time.perf_counter() - started

    seconds_of_steps(few)  # to warm up
    step = (seconds_of_steps(many) - seconds_of_steps(few)) / (many - few)
    products, muon = matrix_products(vae, settings.batch_size)
    flops = sum(2 * m * k * n * often for m, k, n, often in products + muon)
    float32 = seconds_of_products(products + muon)
    with matmul_precision(settings.matmul_precision):
        as_multiplied = seconds_of_products(products) + seconds_of_products(muon, torch.bfloat16)
    return {"flops": flops, "float32": float32, "as_multiplied": as_multiplied, "step": step}


def run_ours(epochs):
    """`run_script` for `auto_encoder.py`, into a folder that is removed afterwards."""
    print(f"auto_encoder.py --epochs {epochs}")
    with tempfile.TemporaryDirectory() as folder:
        return run_script(PROJECT / "auto_encoder.py", "--epochs", epochs, "--out", folder)


def run_examples_and_ours():
    """The runs of each round: {name: [Run]}, the names those of EXAMPLES and "ours"."""
    runs = {name: [] for name in (*EXAMPLES, "ours")}
    for _ in range(ROUNDS):
        for name, flags in EXAMPLES.items():
            print("conventional.py", *flags)
            runs[name].append(run_script(PROJECT / "benchmarks/conventional.py", *flags))
        runs["ours"].append(run_ours(SHORT))
    return runs


def ours_within(seconds, short_run):
    """The longest of our runs whose last epoch ends in time, from a short one on."""
    if short_run.seconds_to_last_epoch > seconds:
        sys.exit(f"{SHORT} epochs do not end within {seconds:.0f} s")
    longest = short_run
    while True:
        longer = run_ours(len(longest.epochs) + 1)
        if longer.seconds_to_last_epoch > seconds:
            break
        longest = longer
    return {
        "epochs": len(longest.epochs),
        "seconds": round(longest.seconds_to_last_epoch, 1),
        "test_L_tot": longest.last_l_tot,
        "knn_accuracy": longest.knn_accuracy,
    }


def main():
    runs = run_examples_and_ours()
    examples = {}
    for name in EXAMPLES:
        seconds = median(run.seconds_to_last_epoch for run in runs[name])
        # The seed is fixed, so all rounds end at the same figure.
        examples[name] = {"seconds": round(seconds, 1), "test_L_tot": runs[name][0].last_l_tot}
    target = min(example["test_L_tot"] for example in examples.values())
    our_seconds = median(run.seconds_to(target) for run in runs["ours"])
    short_run = sorted(runs["ours"], key=lambda run: run.seconds_to_last_epoch)[ROUNDS // 2]
    step = measure_step()
    results = {
        "rounds": ROUNDS,
        "conventional_example": examples,
        "our_seconds_to_that_figure": round(our_seconds, 1),
        "times_sooner": {
            name: round(example["seconds"] / our_seconds, 1) for name, example in examples.items()
        },
        "ours_in_the_time_of_theirs_on_tensors": ours_within(
            examples["on_tensors"]["seconds"], short_run
        ),
        "our_seconds_for_two_epochs_and_all_figures": round(short_run.seconds, 1),
        "gigaflop_a_step": round(step["flops"] / 1e9, 2),
        "milliseconds_a_step": round(1e3 * step["step"], 1),
        "milliseconds_of_float32_products": round(1e3 * step["float32"], 1),
        "milliseconds_of_products_as_multiplied": round(1e3 * step["as_multiplied"], 1),
        "peak_memory_MB": round(max(run.peak_megabytes for run in runs["ours"])),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    write_json("speed", results)


if __name__ == "__main__":
    main()
