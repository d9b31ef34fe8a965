"""Has the quadrature of log p(x) converged? The shipped model's figure at ever finer grids.

python benchmarks/quadrature.py     # about a minute on two cores; writes quadrature.json
"""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from auto_encoder import as_input, write_json
from data import PROJECT, load_digits
from models import load_checkpoint

SIDES = (81, 162, 324, 648)  # nodes a side of the grid; the third is the default


def main():
    vae = load_checkpoint(PROJECT / "checkpoints/vae.pt")
    x = as_input(load_digits(PROJECT / "mnist", "test")[0], torch.device("cpu"))
    rows = []
    for side in SIDES:
        started = time.perf_counter()
        mean = vae.log_likelihood(x, side=side).mean().item()
        seconds = time.perf_counter() - started
        rows.append({"side": side, "log_likelihood": mean, "seconds": round(seconds, 1)})
        print(rows[-1], flush=True)
    write_json(PROJECT / "benchmarks/quadrature.json", rows)


if __name__ == "__main__":
    main()
