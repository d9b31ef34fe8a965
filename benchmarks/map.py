"""How the digits lie on the map: the islands of each, by a classifier trained on MNIST.

    python benchmarks/map.py [CHECKPOINT ...]   # a few seconds each; writes map.json

The classifier names the decoder's image at 81 x 81 quantiles of the prior. An island is a set of
such codes of one digit that touch, also at corners. By default: the shipped model and those of
seeds 1 and 2.
"""

import sys
from collections import Counter

import torch
from classifier import classifier
from common import OTHERS, write_json

from exact import SIDE, decode_plane
from models import SHIPPED, load_checkpoint

SMALLEST = 0.002  # share of the area that makes an island


def islands(digits):
    """The islands of a map of digits [S, S]: [(digit, its number of codes)]."""
    found, left = [], {(i, j): int(d) for i, row in enumerate(digits) for j, d in enumerate(row)}
    while left:
        start, digit = left.popitem()
        size, border = 1, [start]
        while border:
            row, column = border.pop()
            for place in [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if left.get(place) == digit:
                    del left[place]
                    border.append(place)
                    size += 1
        found.append((digit, size))
    return found


@torch.no_grad()
def figures(decoder, network):
    """Islands, the share of the area in the largest of each digit, and of unsure images."""
    images = decode_plane(decoder).logits.sigmoid()
    parts = [network(part).softmax(1).max(1) for part in images.split(1000)]
    confidence, digit = (torch.cat(part) for part in zip(*parts, strict=True))
    found, largest = islands(digit.view(SIDE, SIDE).tolist()), Counter()
    for name, size in found:
        largest[name] = max(largest[name], size)
    return {
        "islands": sum(size >= SMALLEST * SIDE**2 for _, size in found),
        "share_of_largest": largest.total() / SIDE**2,
        "share_below_90_percent": (confidence < 0.9).float().mean().item(),
    }


def main():
    network, results = classifier(), {}
    for path in sys.argv[1:] or [SHIPPED, *OTHERS]:
        results[str(path).rpartition("/")[2]] = figures(load_checkpoint(path).decoder, network)
    if sys.argv[1:]:
        print(results)
    else:
        write_json("map", results)


if __name__ == "__main__":
    main()
