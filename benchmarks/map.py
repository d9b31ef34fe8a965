"""How the digits lie on the map: the islands of each, by a classifier trained on MNIST.

    python benchmarks/map.py [CHECKPOINT ...]   # a few seconds each

The classifier names the decoder's image at 81 x 81 quantiles of the prior. An island is a set of
such codes of one digit that touch, also at corners. By default: the shipped model and those of
seeds 1 and 2; then it writes map.json, and figures/islands.png of the shipped model.
"""

import itertools
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from classifier import classifier
from common import OTHER_SEEDS, PROJECT, write_files, write_json

from lib import plots
from lib.latent_grid import square_grid
from models import SHIPPED, load_checkpoint, sample_noise

SIDE = 81  # codes per side
SMALLEST = 0.002  # share of the area that makes an island
SURE = 0.9  # confidence of the classifier
CENTRED = {"ha": "center", "va": "center"}
AROUND = list(itertools.product((-1, 0, 1), repeat=2))  # a node and its eight neighbours


def find_islands(digit_map):
    """The islands of a map of digits, a list of rows: [(digit, its nodes (row, column))]."""
    unvisited = {}
    for row, names in enumerate(digit_map):
        for column, digit in enumerate(names):
            unvisited[row, column] = digit
    islands = []
    while unvisited:
        start, digit = unvisited.popitem()
        islands.append((digit, [start, *_visit_from(start, digit, unvisited)]))
    return islands


def _visit_from(start, digit, unvisited):
    """Take the nodes of this digit connected to `start` out of `unvisited`, and return them."""
    visited = []
    border = [start]
    while border:
        row, column = border.pop()
        for down, right in AROUND:
            place = (row + down, column + right)
            if unvisited.get(place) == digit:
                del unvisited[place]
                border.append(place)
                visited.append(place)
    return visited


@torch.no_grad()
def name_images(decoder, network):
    """The digit that the classifier sees at each node, and its confidence: [SIDE, SIDE] each."""
    images = square_grid(decoder, SIDE).logits.sigmoid()
    probabilities = torch.cat([network(part).softmax(1) for part in images.split(1000)])
    confidence, digit = probabilities.max(1)
    return digit.view(SIDE, SIDE), confidence.view(SIDE, SIDE)


def map_metrics(decoder, network):
    """Islands, the share of the area in the largest of each digit, and that of unsure images."""
    digit, confidence = name_images(decoder, network)
    largest = Counter()
    count = 0
    for name, nodes in find_islands(digit.tolist()):
        largest[name] = max(largest[name], len(nodes))
        count += is_large(nodes)
    return {
        "islands": count,
        "share_of_largest": largest.total() / SIDE**2,
        "share_below_90_percent": (confidence < SURE).float().mean().item(),
    }


def is_large(nodes):
    """Whether these nodes have the area that makes an island."""
    return len(nodes) >= SMALLEST * SIDE**2


@torch.no_grad()
def draw_islands(vae, network):
    """The digit at each node, pale where the classifier is unsure; on top the 20 shipped codes."""
    from matplotlib.colors import to_rgb  # within `plots.own_style`

    digit, confidence = name_images(vae.decoder, network)
    axes = plots.plane_axes(plots.Plane(None, None, ["quantile of $z_1$", "quantile of $z_2$"], 1))
    axes.set_title("The digit that a classifier sees;\npale where it is less than 90 % sure")
    colours = np.array([to_rgb(colour) for colour in plots.COLOURS])[digit]
    strength = np.where(confidence < SURE, 0.2, 0.6)[:, :, None]
    shown = 1 - strength * (1 - colours)
    # z_1, which grows from row to row, is drawn to the right.
    axes.imshow(shown.swapaxes(0, 1), origin="lower", extent=(0, 1, 0, 1))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for name, nodes in find_islands(digit.tolist()):
        if is_large(nodes):
            places = (np.array(nodes) + 0.5) / SIDE
            nearest = np.square(places - places.mean(0)).sum(1).argmin()
            axes.text(*places[nearest], name, size="xx-large", weight="bold", **CENTRED)
    codes = vae.decoder.sample(sample_noise(20, 2, seed=0, draws="even"))
    disc = {**plots.LABEL_DISC, "alpha": 0.7}
    for number, place in enumerate(torch.special.ndtr(codes).tolist()):
        axes.text(*place, f"{number:02d}", bbox=disc, **CENTRED)
    return plots.png_bytes(axes.figure)


def main(paths):
    network = classifier()
    results = {}
    for path in paths or [SHIPPED, *OTHER_SEEDS]:
        results[Path(path).name] = map_metrics(load_checkpoint(path).decoder, network)
    if paths:
        print(results)
    else:
        write_json("map", results)
        with plots.own_style():
            picture = draw_islands(load_checkpoint(SHIPPED), network)
        write_files({PROJECT / "figures/islands.png": picture})


if __name__ == "__main__":
    main(sys.argv[1:])
