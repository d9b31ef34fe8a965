"""How the digits lie on the map: the islands of each, by a classifier trained on MNIST.

    python benchmarks/map.py [CHECKPOINT ...]   # a few seconds each; writes map.json

The classifier names the decoder's image at 81 x 81 quantiles of the prior. An island is a set of
such codes of one digit that touch, also at corners. By default: the shipped model and those of
seeds 1 and 2.
"""

import itertools
import sys
from collections import Counter
from pathlib import Path

import torch
from classifier import classifier
from common import OTHER_SEEDS, write_json

from lib.latent_grid import square_grid
from models import SHIPPED, load_checkpoint

SIDE = 81  # codes per side
SMALLEST = 0.002  # share of the area that makes an island
SURE = 0.9  # confidence of the classifier
AROUND = list(itertools.product((-1, 0, 1), repeat=2))  # a node and its eight neighbours


def find_islands(digits):
    """The islands of a map of digits, a list of rows: [(digit, its number of codes)]."""
    unvisited = {}
    for row, names in enumerate(digits):
        for column, digit in enumerate(names):
            unvisited[row, column] = digit
    islands = []
    while unvisited:
        start, digit = unvisited.popitem()
        islands.append((digit, 1 + _visit_from(start, digit, unvisited)))
    return islands


def _visit_from(start, digit, unvisited):
    """Take the codes of this digit that are connected to `start` out of `unvisited`; count them."""
    count = 0
    border = [start]
    while border:
        row, column = border.pop()
        for down, right in AROUND:
            place = (row + down, column + right)
            if unvisited.get(place) == digit:
                del unvisited[place]
                border.append(place)
                count += 1
    return count


@torch.no_grad()
def map_metrics(decoder, network):
    """Islands, the share of the area in the largest of each digit, and that of unsure images."""
    images = square_grid(decoder, SIDE).logits.sigmoid()
    probabilities = torch.cat([network(part).softmax(1) for part in images.split(1000)])
    confidence, digit = probabilities.max(1)
    islands = find_islands(digit.view(SIDE, SIDE).tolist())
    largest = Counter()
    for name, size in islands:
        largest[name] = max(largest[name], size)
    return {
        "islands": sum(size >= SMALLEST * SIDE**2 for _, size in islands),
        "share_of_largest": largest.total() / SIDE**2,
        "share_below_90_percent": (confidence < SURE).float().mean().item(),
    }


def main(paths):
    network = classifier()
    results = {}
    for path in paths or [SHIPPED, *OTHER_SEEDS]:
        results[Path(path).name] = map_metrics(load_checkpoint(path).decoder, network)
    if paths:
        print(results)
    else:
        write_json("map", results)


if __name__ == "__main__":
    main(sys.argv[1:])
