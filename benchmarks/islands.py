"""How the digits lie in the plane of codes: the islands of each, by a classifier.

    python benchmarks/islands.py [CHECKPOINT ...]   # a few seconds each

The plane is cut into 81 x 81 cells of the same prior probability, and the classifier, trained on
MNIST, names the image that each cell's centre decodes to. An island is a set of cells of one digit
that touch, also at corners. All shares are shares of the prior's probability. By default: the
shipped model and those of seeds 1 and 2; then it writes islands.json, and figures/islands.png of
the shipped model.
"""

import itertools
import sys
from collections import Counter

import numpy as np
import torch
from classifier import classifier
from common import MODELS_OF_SEEDS, PROJECT, write_files, write_json

from lib import plots
from lib.latent_grid import square_grid
from models import load_checkpoint, sample_noise

SIDE = 81  # cells per side
SMALLEST = 0.002  # the share of the plane that makes an island
SURE = 0.9  # confidence of the classifier
LABEL_DISTANCE = 0.055  # of an island's digit from the middle of a disc; the plane's side is 1
CENTRED = {"ha": "center", "va": "center"}
AROUND = list(itertools.product((-1, 0, 1), repeat=2))  # a cell and its eight neighbours


def find_islands(digit_rows):
    """The islands in rows of digits: [(digit, its cells (row, column))]."""
    unvisited = {}
    for row, names in enumerate(digit_rows):
        for column, digit in enumerate(names):
            unvisited[row, column] = digit
    islands = []
    while unvisited:
        start, digit = unvisited.popitem()
        islands.append((digit, [start, *_visit_from(start, digit, unvisited)]))
    return islands


def _visit_from(start, digit, unvisited):
    """Take the cells of this digit connected to `start` out of `unvisited`, and return them."""
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
    """The digit that the classifier sees in each cell, and its confidence: [SIDE, SIDE] each."""
    images = square_grid(decoder, SIDE).logits.sigmoid()
    probabilities = torch.cat([network(part).softmax(1) for part in images.split(1000)])
    confidence, digit = probabilities.max(1)
    return digit.view(SIDE, SIDE), confidence.view(SIDE, SIDE)


def island_metrics(decoder, network):
    """How many islands, the share in the largest of each digit, and that of unsure images."""
    digit, confidence = name_images(decoder, network)
    largest = Counter()
    count = 0
    for name, cells in find_islands(digit.tolist()):
        largest[name] = max(largest[name], len(cells))
        count += is_large(cells)
    return {
        "islands": count,
        "share_of_largest": largest.total() / SIDE**2,
        "share_below_90_percent": (confidence < SURE).float().mean().item(),
    }


def is_large(cells):
    """Whether these cells are enough for an island."""
    return len(cells) >= SMALLEST * SIDE**2


@torch.no_grad()
def draw_islands(vae, network):
    """The digit in each cell, pale where the classifier is unsure; on top the 20 shipped codes."""
    from matplotlib.colors import to_rgb  # within `plots.own_style`

    digit, confidence = name_images(vae.decoder, network)
    # As in the grid, a code is drawn at its place in the unit square, so that equal areas have
    # equal shares of the prior.
    names = [f"distribution function of $z_{number}$" for number in (1, 2)]
    axes = plots.plane_axes(plots.Plane(None, None, names, 1))
    axes.set_title("The digit that a classifier sees;\npale where it is less than 90 % sure")
    colours = np.array([to_rgb(colour) for colour in plots.COLOURS])[digit]
    strength = np.where(confidence < SURE, 0.2, 0.6)[:, :, None]
    shown = 1 - strength * (1 - colours)
    # z_1, which grows from row to row, is drawn to the right.
    axes.imshow(shown.swapaxes(0, 1), origin="lower", extent=(0, 1, 0, 1))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    codes = vae.decoder.codes_from_noise(sample_noise(20, 2, seed=0, draws="even"))
    codes_u = torch.special.ndtr(codes).numpy()
    for name, cells in find_islands(digit.tolist()):
        if is_large(cells):
            place = label_place((np.array(cells) + 0.5) / SIDE, codes_u)
            axes.text(*place, name, size="xx-large", weight="bold", **CENTRED)
    disc = {**plots.LABEL_DISC, "alpha": 0.7}
    for number, place in enumerate(codes_u):
        axes.text(*place, f"{number:02d}", bbox=disc, **CENTRED)
    return plots.png_bytes(axes.figure)


def label_place(places, taken):
    """The one of an island's places [N, 2] where its digit is written.

    It is the place nearest to their mean, of those that are not under one of the discs at `taken`
    [M, 2], if there are such.
    """
    distances = np.linalg.norm(places[:, None] - taken, axis=2).min(1)
    free = places[distances > LABEL_DISTANCE]
    if len(free) == 0:
        free = places
    nearest = np.square(free - places.mean(0)).sum(1).argmin()
    return free[nearest]


def main(paths):
    network = classifier()
    checkpoints = {path: path for path in paths} or MODELS_OF_SEEDS
    models = {name: load_checkpoint(path) for name, path in checkpoints.items()}
    results = {name: island_metrics(model.decoder, network) for name, model in models.items()}
    if paths:
        print(results)
    else:
        write_json("islands", results)
        with plots.own_style():
            picture = draw_islands(models["seed 0"], network)
        write_files({PROJECT / "figures/islands.png": picture})


if __name__ == "__main__":
    main(sys.argv[1:])
