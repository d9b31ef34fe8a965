"""Has the quadrature of log p(x) converged? Its mean of the shipped model on ever finer grids.

python benchmarks/quadrature.py     # about a minute on two cores; writes quadrature.json
"""

import time

from common import digits, write_json

from models import SHIPPED, load_checkpoint

SIDES = (81, 162, 324, 648)  # nodes a side of the grid; the third is the default


def main():
    vae = load_checkpoint(SHIPPED)
    x, _ = digits("test")
    rows = []
    for side in SIDES:
        started = time.perf_counter()
        mean = vae.log_likelihood(x, side=side).mean().item()
        seconds = time.perf_counter() - started
        rows.append({"side": side, "log_likelihood": mean, "seconds": round(seconds, 1)})
    write_json("quadrature", rows)


if __name__ == "__main__":
    main()
