"""Measurements of the shipped model for the report's analysis, on all 10,000 test images.

    python benchmarks/analysis.py       # about a minute on two cores

Writes analysis.json and figures/confusions.png.
"""

import itertools

import numpy as np
import torch
from common import PROJECT, digits, write_files, write_json
from gap import l_tot

from auto_encoder import NEIGHBOURS
from lib import latent_grid, plots
from lib.knn import knn_predict, nearest_neighbours
from lib.som import slant
from models import SHIPPED, load_checkpoint

PAIRS_DRAWN = 3  # of digits that are most often confused
IMAGES_DRAWN = 2  # of each digit of a pair


def on_border(laplace_mean, side):
    """Whether the highest node of p(x, z) is on the border of a grid of side x side nodes.

    It is the node nearest to the mean of the Laplace posterior, [N, 2]; see `fit_laplace`.
    """
    node = latent_grid.place_in_grid(laplace_mean, side).round()
    return ((node == 0) | (node == side - 1)).any(1)


def deviation_in_nodes(mean, logvar, side):
    """The standard deviations of Gaussians, in steps of a grid of side x side nodes: [N, 2]."""
    return (0.5 * logvar).exp() / latent_grid.cell_width(mean, side)


def slants(x):
    """How far each of images [N, 784] leans: [N]."""
    return slant(x.view(-1, 28, 28))[0]


def count_confusions(labels, predicted):
    """How often one digit, the row, is taken for another, the column: [10, 10]."""
    confusions = np.zeros((10, 10), int)
    np.add.at(confusions, (labels, predicted), 1)
    return confusions


def most_confused(confusions):
    """[((a, b), how often one is taken for the other)], the most frequent pair first."""
    pairs = {}
    for a, b in itertools.combinations(range(10), 2):
        pairs[a, b] = int(confusions[a, b] + confusions[b, a])
    return sorted(pairs.items(), key=lambda pair: -pair[1])


def draw_confusions(images, labels, predicted, pairs):
    """The first test images of each digit of a pair that are taken for the other one."""
    shown = []
    for pair in pairs:
        for digit, other in itertools.permutations(pair):
            wrong = np.flatnonzero((labels == digit) & (predicted == other))
            for place in wrong[:IMAGES_DRAWN]:
                shown.append((images[place], f"{digit} as {other}"))
    with plots.own_style():
        figure = plots.new_figure(0.6 * len(shown), 0.85)
        for place, (image, title) in enumerate(shown, start=1):
            axes = figure.add_subplot(1, len(shown), place)
            axes.set_title(title, fontsize=9)
            plots.show_images(axes, image, columns=1)
        return plots.png_bytes(figure)


@torch.no_grad()
def main():
    torch.manual_seed(0)
    vae = load_checkpoint(SHIPPED)
    x, train_digits = digits("train")
    x_test, test_digits = digits("test")
    test_labels = test_digits.numpy()
    mean, logvar = vae.encode(x_test)
    train_codes = vae.codes(x)

    predicted = knn_predict(train_codes, train_digits.numpy(), mean, NEIGHBOURS)
    confusions = count_confusions(test_labels, predicted)
    pairs = most_confused(confusions)
    test_slants = slants(x_test)
    neighbours = nearest_neighbours(train_codes, mean, NEIGHBOURS)
    guessed_slants = slants(x)[neighbours].mean(1)
    unexplained = (guessed_slants - test_slants).square().mean() / test_slants.var()

    laplace = vae.laplace_posterior(x_test)
    encoder_l_tot = l_tot(vae, x_test, (mean, logvar))
    laplace_l_tot = l_tot(vae, x_test, laplace)
    gap = encoder_l_tot - laplace_l_tot
    laplace_mean, laplace_logvar = laplace
    laplace_deviations = deviation_in_nodes(laplace_mean, laplace_logvar, vae.grid_side)
    border = on_border(laplace_mean, vae.grid_side)
    in_regions = [
        vae.regions_per_side * torch.special.ndtr(codes) for codes in (mean, laplace_mean)
    ]
    # The same region, or one beside it.
    right = ((in_regions[0] - in_regions[1]).abs() < 1.5).all(1)
    results = {
        "knn_accuracy": float((predicted == test_labels).mean()),
        "errors": int((predicted != test_labels).sum()),
        "most_confused": [(f"{a} and {b}", count) for (a, b), count in pairs[:4]],
        "share_of_slant_explained": (1 - unexplained).item(),
        "median_laplace_deviation_in_nodes": laplace_deviations.median().item(),
        "right_region": right.float().mean().item(),
        "encoder_less_laplace_in_right_region": gap[right].mean().item(),
        "encoder_less_laplace_elsewhere": gap[~right].mean().item(),
        "images_on_border": int(border.sum()),
        "encoder_on_border": encoder_l_tot[border].mean().item(),
        "laplace_on_border": laplace_l_tot[border].mean().item(),
    }
    write_json("analysis", results)
    drawn_pairs = [pair for pair, _ in pairs[:PAIRS_DRAWN]]
    picture = draw_confusions(x_test.numpy(), test_labels, predicted, drawn_pairs)
    write_files({PROJECT / "figures/confusions.png": picture})


if __name__ == "__main__":
    main()
