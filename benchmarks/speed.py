"""How fast and how large `auto_encoder.py` is, as ratios measured side by side in one run.

    python benchmarks/speed.py      # about six minutes on two cores; writes benchmarks/speed.json

1. `auto_encoder.py` against ten epochs of conventional.py, as published and with all images in one
   tensor. Seconds from the start of the process to their last test L_tot, with `--epochs 2`; and
   the test L_tot that ours has when theirs on tensors ends, with as many epochs as end before.
   Ours is that of the trained encoder.
2. Training speed as a share of the floor: the time that the matrix products of a step take alone,
   at the very shapes they have there, in float32 and as the step multiplies.
3. Peak memory of `auto_encoder.py`.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

import torch
from common import PROJECT, digits, write_json

from auto_encoder import GRID_SETTINGS, make_optimizers, matmul_precision, train_epoch
from models import PIXELS, GridVAE, HiddenLayer

MOST_EPOCHS = 5  # that are tried in the time of the conventional example on tensors


def run_script(*command):
    """Run a script; the (seconds, test L_tot) of its epochs, its total seconds, its peak in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True
    )
    epochs = []
    for line in process.stdout:
        print("   ", line, end="")
        found = re.match(r"epoch \d+:.*test L_tot ([\d.]+)", line)
        if found:
            epochs.append((time.perf_counter() - started, float(found[1])))
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed")
    return epochs, time.perf_counter() - started, usage.ru_maxrss / 1024


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
    with_copies = batch + round(GRID_SETTINGS.distorted_part * batch)
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
        for layer in layers:
            if isinstance(layer, HiddenLayer):  # five Newton-Schulz steps of three products each
                wide, narrow = sorted(layer.weight.shape, reverse=True)
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


def share_of_the_floor(few=20, many=110):
    """The floor's seconds per step, in float32 and as multiplied in training; the step's own."""
    torch.set_flush_denormal(True)  # as auto_encoder.py does
    x = digits("train")[0]
    vae = GridVAE()
    settings = GRID_SETTINGS
    optimizers = make_optimizers(vae, settings)

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
        outputs = []
        for flag, name in (("checkpoint", "vae.safetensors"), ("scatter", "encoder.png")):
            outputs += [f"--{flag}", f"{folder}/{name}"]
        outputs += ["--figures", f"{folder}/figures"]
        return run_script(PROJECT / "auto_encoder.py", "--epochs", epochs, *outputs)


def ours_within(seconds):
    """The epochs of the longest run of ours whose last epoch ends in time, and its last figure."""
    for epochs in range(MOST_EPOCHS, 0, -1):
        log, _, _ = run_ours(epochs)
        last_seconds, l_tot = log[-1]
        if last_seconds <= seconds:
            return {"epochs": epochs, "seconds": round(last_seconds, 1), "test_L_tot": l_tot}
    sys.exit(f"not even one epoch ends within {seconds:.0f} s")


def main():
    theirs = {}
    for name, *flags in (("as_published",), ("on_tensors", "--tensors")):
        print("conventional example, 10 epochs", *flags)
        log, _, _ = run_script(PROJECT / "benchmarks/conventional.py", *flags)
        seconds, l_tot = log[-1]
        theirs[name] = {"seconds": round(seconds, 1), "test_L_tot": l_tot}
    log, whole, memory = run_ours(epochs=2)
    target = min(example["test_L_tot"] for example in theirs.values())
    ours = next(seconds for seconds, l_tot in log if l_tot <= target)
    in_the_same_time = ours_within(theirs["on_tensors"]["seconds"])
    floor = share_of_the_floor()
    results = {
        "conventional_example": theirs,
        "our_seconds_to_that_figure": round(ours, 1),
        "times_sooner": {
            name: round(example["seconds"] / ours, 1) for name, example in theirs.items()
        },
        "ours_in_the_time_of_theirs_on_tensors": in_the_same_time,
        "our_seconds_for_two_epochs_and_all_figures": round(whole, 1),
        "gigaflop_a_step": round(floor["flops"] / 1e9, 2),
        "milliseconds_a_step": round(1e3 * floor["step"], 1),
        "milliseconds_of_float32_products": round(1e3 * floor["float32"], 1),
        "milliseconds_of_products_as_multiplied": round(1e3 * floor["as_multiplied"], 1),
        "share_of_float32_floor": round(floor["float32"] / floor["step"], 2),
        "peak_memory_MB": round(memory),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    write_json("speed", results)


if __name__ == "__main__":
    main()
