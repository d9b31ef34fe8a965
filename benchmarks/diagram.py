"""Draw figures/diagram.png: how an image goes through the model, and what trains it.

python benchmarks/diagram.py

The pictures in it are those of the shipped model and one test image.
"""

import torch
from common import PROJECT, digits, write_files

from lib import latent_grid, plots
from models import SHIPPED, load_checkpoint

IMAGE = 110  # in the test set; its posterior has two peaks
BOX = {"boxstyle": "round,pad=0.35", "facecolor": "#EEEEEE", "linewidth": 0.6}
ARROW = {"arrowstyle": "-|>", "linewidth": 0.8, "color": "black", "shrinkA": 0, "shrinkB": 0}
TRAINS = {**ARROW, "color": plots.COLOURS[0], "linestyle": "--"}
SIZE = 8.5  # points
WIDTH = 6.9  # inches
HEIGHT = 1.95
UPPER = 1.4  # heights of the middles of the two rows
LOWER = 0.4
SIDE = 0.64  # of a picture


def picture(figure, left, middle, values, name):
    """Show an array on a square that begins at `left`, with a name above it."""
    bottom = (middle - SIDE / 2) / HEIGHT
    axes = figure.add_axes((left / WIDTH, bottom, SIDE / WIDTH, SIDE / HEIGHT))
    axes.imshow(values, cmap="gray_r")
    axes.set(xticks=[], yticks=[])
    axes.set_title(name, size=SIZE, pad=3)


def draw(vae, x):
    """The diagram, for an image x [1, 784]."""
    features = vae.encoder.body(x)
    predicted = vae.encoder.classifier(features).softmax(1)
    log_posterior = vae.make_grid().log_likelihood_grid(x)
    posterior = latent_grid.region_probabilities(log_posterior, vae.regions_per_side)
    # z_1 grows to the right and z_2 upwards, as in the scatterplot.
    regions = [
        p.view(vae.regions_per_side, -1).T.flip(0).sqrt() for p in (predicted, posterior)
    ]  # roots, so that small probabilities can be seen

    figure = plots.new_figure(WIDTH, HEIGHT, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_axis_off()

    def box(centre, middle, text):
        axes.text(centre, middle, text, bbox=BOX, size=SIZE, ha="center", va="center")

    def arrow(start, end, style=ARROW):
        axes.annotate("", end, start, arrowprops=style)

    picture(figure, 0.1, UPPER, x.view(28, 28), "image x")
    box(1.42, UPPER, "encoder\nnetwork")
    picture(figure, 2.1, UPPER, regions[0], "27 x 27 regions")
    box(3.75, UPPER, "five Gaussians: the\ndecoder chooses one")
    box(5.3, UPPER, "decoder\nnetwork")
    picture(figure, 6.05, UPPER, vae.decode(vae.codes(x)).sigmoid().view(28, 28), "decoded")
    for start, end in ((0.85, 1.05), (1.8, 2.07), (2.85, 3.03), (4.45, 4.92), (5.68, 6.02)):
        arrow((start, UPPER), (end, UPPER))
    axes.text(4.67, UPPER + 0.08, "z", size=SIZE, ha="center")

    box(1.0, LOWER, "Bayes' rule on\n81 x 81 decoded codes")
    picture(figure, 2.1, LOWER, regions[1], "grid posterior")
    box(3.9, LOWER, "Laplace posterior,\ntwice its variance")
    box(5.9, LOWER, "decoder loss\n$-\\log\\,p(x|z)$")
    arrow((0.46, UPPER - 0.36), (0.46, LOWER + 0.24))
    arrow((1.78, LOWER), (2.07, LOWER))
    arrow((2.85, LOWER), (3.25, LOWER))
    arrow((4.58, LOWER), (5.43, LOWER))
    axes.text(5.0, LOWER + 0.08, "z", size=SIZE, ha="center")
    arrow((2.42, LOWER + 0.52), (2.42, UPPER - 0.35), TRAINS)
    axes.text(2.52, 0.99, "trains the encoder", size=SIZE, color=TRAINS["color"], va="center")
    arrow((5.6, LOWER + 0.24), (5.3, UPPER - 0.24), TRAINS)
    axes.text(5.6, 0.93, "trains the decoder", size=SIZE, color=TRAINS["color"], va="center")
    return plots.png_bytes(figure)


@torch.no_grad()
def main():
    x, _ = digits("test")
    with plots.own_style():
        content = draw(load_checkpoint(SHIPPED), x[IMAGE : IMAGE + 1])
    write_files({PROJECT / "figures/diagram.png": content})


if __name__ == "__main__":
    main()
