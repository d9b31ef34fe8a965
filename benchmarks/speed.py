"""How fast and how large `auto_encoder.py` is, as ratios measured side by side in one run.

    python benchmarks/speed.py      # about two minutes on two cores; writes benchmarks/speed.json

1. Seconds from the start of the process to the figure that the conventional example reaches in
   its ten epochs: `auto_encoder.py --epochs 2` against conventional.py.
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
    products = [(batch, PIXELS, nodes, 1)]  # the images against the grid
    muon = []
    for network in (vae.decoder, vae.encoder):
        layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
        for layer in layers:
            outputs, inputs = layer.weight.shape
            products += [
                (batch, inputs, outputs, 1),  # forward
                (outputs, batch, inputs, 1),  # gradient of the weights
            ]
            if layer is not layers[0]:
                products.append((batch, outputs, inputs, 1))  # gradient of the layer's input
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


def main():
    print("conventional example, 10 epochs")
    epochs, _, _ = run_script(PROJECT / "benchmarks/conventional.py")
    theirs, target = epochs[-1]
    with tempfile.TemporaryDirectory() as folder:
        names = {"checkpoint": "vae.safetensors", "scatter": "encoder.png", "figures": "figures"}
        outputs = [
            part for flag, name in names.items() for part in (f"--{flag}", f"{folder}/{name}")
        ]
        print("auto_encoder.py --epochs 2")
        epochs, whole, memory = run_script(PROJECT / "auto_encoder.py", "--epochs", 2, *outputs)
    ours = next(seconds for seconds, l_tot in epochs if l_tot <= target)
    floor = share_of_the_floor()
    results = {
        "test_L_tot_of_conventional_example": target,
        "its_seconds": round(theirs, 1),
        "our_seconds_to_that_figure": round(ours, 1),
        "times_sooner": round(theirs / ours, 1),
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
