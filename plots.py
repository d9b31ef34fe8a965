"""All pictures of a training run, as the bytes of PNG files, and what they show of the model.

Matplotlib is imported only when one is drawn.
"""

import contextlib
import io
import logging
import math
import os
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch

from data import SCATTERED
from errors import InputError
from models import VAE

# Paul Tol's "muted" scheme and black, told apart with any colour vision
# (P. Tol, "Colour Schemes", SRON technical note EPS/TN/09-002, 2021).
COLOURS = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE",
           "#882255", "#44AA99", "#999933", "#AA4499", "#000000")  # fmt: skip
MARKERS = "osD^vPX*<>"
MANIFOLD_SIDE = 20  # images a side
FIGURES = ("scatter_epochs", "reconstructions", "loss", "sanity_check", "manifold")
LEGEND = {"title": "digit", "frameon": False}
INK = {"cmap": "gray_r", "vmin": 0, "vmax": 1}  # how imshow shows an image


@torch.no_grad()
def snapshot(model, digits):
    """What the pictures show of the model as it is now: codes and decoded images."""
    model.eval()
    codes = model.codes(torch.cat([digits.x_shown, digits.x_test[-SCATTERED:]]))
    shown, scattered = codes.tensor_split([len(digits.x_shown)])
    images = model.decode(shown).sigmoid()
    return {"scattered": scattered.cpu(), "codes": shown.cpu(), "images": images.cpu()}


def draw(model, digits, history, trained, which, all_figures):
    """The pictures of a run: {"scatter" or a name of FIGURES: the bytes of a PNG file}.

    Args:
        model: after as many epochs as `trained` says.
        digits: what `read_digits` returned.
        history: {"log": per epoch {split: {"L_tot": nats per image}},
            "snapshots": {epochs: what `snapshot` returned then}}.
        which: "test" or "held-out", the images that are shown.
        all_figures: whether more than the scatter is asked for.
    """
    views = {n: view for n, view in sorted(history["snapshots"].items()) if n < trained}
    views[trained] = snapshot(model, digits)
    views = {n: {name: part.numpy() for name, part in view.items()} for n, view in views.items()}
    last, labels = views[trained], digits.test_labels[-SCATTERED:]
    plane = plane_of(last["scattered"])
    points = {n: plane.project(view["scattered"]) for n, view in views.items()}
    title = f"Codes of {'the last ' * (which == 'test')}{len(labels)} {which} images"
    pictures = {"scatter": draw_scatter(points[trained], labels, plane, title)}
    if all_figures:
        shown = digits.x_shown.cpu().numpy()
        one_of_each = (part[::10] for part in (shown, last["codes"], last["images"]))
        decoded = _decoded_quantiles(model, points[trained], plane)
        pictures |= {
            "scatter_epochs": draw_scatter_epochs(points, labels, plane),
            "reconstructions": draw_reconstructions(
                shown, {n: view["images"] for n, view in views.items()}
            ),
            "loss": draw_loss(history["log"]),
            "sanity_check": draw_sanity_check(*one_of_each),
            "manifold": draw_manifold(*decoded, plane),
        }
    return pictures


class Plane(NamedTuple):
    """The plane that is drawn: the codes' own two numbers, or their first principal components."""

    origin: np.ndarray  # [d]
    directions: np.ndarray  # [2, d], orthonormal
    names: tuple[str, str]

    def project(self, codes):
        """Codes [N, d] as points [N, 2]."""
        return (codes - self.origin) @ self.directions.T

    def codes_at(self, points):
        """The codes [N, d] in the plane at points [N, 2]."""
        return (self.origin + points @ self.directions).astype(np.float32)


def plane_of(codes):
    """The `Plane` in which to draw codes [N, d]."""
    latent_dim = codes.shape[1]
    if latent_dim == 2:
        names = ("latent variable $z_1$", "latent variable $z_2$")
        return Plane(np.zeros(2), np.eye(2), names)
    origin = codes.mean(0)
    missing = [(0, max(0, 2 - size)) for size in codes.shape]  # one number makes a flat line
    _, scale, directions = np.linalg.svd(np.pad(codes - origin, missing), full_matrices=False)
    shares = scale**2 / max((scale**2).sum(), np.finfo(np.float32).tiny)
    which = zip(("first", "second"), shares, strict=False)
    names = tuple(f"{name} principal component, {s:.0%} of the variance" for name, s in which)
    return Plane(origin, directions[:2, :latent_dim], names)


@contextlib.contextmanager
def own_style():
    """Inside, pictures are the same for everyone, whatever their settings of matplotlib say.

    Raises:
        InputError: matplotlib is missing: better known before the training than after.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of old settings, and caches
    os.environ.pop("MPLBACKEND", None)  # no backend is used, and an unknown one ends the import
    try:
        import matplotlib
    except ImportError:
        raise InputError("matplotlib is missing; pip install -r requirements.txt") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def draw_scatter(points, labels, plane, title):
    """Points [N, 2] of the plane, coloured by their digit."""
    figure = _figure(5.4, 4.8)
    axes = figure.subplots()
    _scatter(axes, points, labels, marker_area=11, digit_size=18)
    _square(axes, points)
    _name_axes(axes, plane, title)
    place = {"loc": "center left", "bbox_to_anchor": (0.98, 0.5), "handletextpad": 0}
    axes.legend(fontsize=13, title_fontsize=13, markerscale=1.8, **place, **LEGEND)
    return _png(figure)


def draw_manifold(images, points, title, plane):
    """Decoded codes as a map of the plane: images [S * S, 784] at points [S * S, 2]."""
    from matplotlib.ticker import MaxNLocator

    side = math.isqrt(len(images))
    figure = _figure(5.4, 4.8)
    axes = figure.subplots()
    axes.imshow(_mosaic(images, side), extent=(0, side, 0, side), **INK)
    columns, rows = points[:side, 0], points[::-side, 1]
    middles = np.arange(side) + 0.5
    for set_ticks, codes in ((axes.set_xticks, columns), (axes.set_yticks, rows)):
        values = MaxNLocator(5).tick_values(codes[0], codes[-1])
        values = values[(values >= codes[0]) & (values <= codes[-1])]
        set_ticks(np.interp(values, codes, middles), [f"{value:g}" for value in values])
    _name_axes(axes, plane, title)
    return _png(figure)


def manifold_points():
    """Points [S * S, 2] at the quantiles of N(0, I), row by row from the top left."""
    quantiles = [NormalDist().inv_cdf((i + 0.5) / MANIFOLD_SIDE) for i in range(MANIFOLD_SIDE)]
    columns, rows = np.meshgrid(quantiles, quantiles[::-1])
    return np.stack([columns.ravel(), rows.ravel()], axis=1)


@torch.no_grad()
def _decoded_quantiles(model, points, plane):
    """Images and points of `manifold_points` for the prior or, without one, for points [N, 2]."""
    if isinstance(model, VAE):
        title, scale = "Decoded quantiles of the prior", 1.0
        middle = plane.project(np.zeros(model.latent_dim))
    else:
        title, scale, middle = "Decoded quantiles of the codes", points.std(0), points.mean(0)
    grid = middle + scale * manifold_points()
    codes = torch.tensor(plane.codes_at(grid), device=next(model.parameters()).device)
    return model.decode(codes).sigmoid().cpu().numpy(), grid, title


def draw_scatter_epochs(points, labels, plane):
    """A panel for each entry of {epochs trained: points [N, 2]}, all on the same axes."""
    figure, panels = _panels(points, 3.0)
    everything = np.concatenate(list(points.values()))
    for axes, (epochs, part) in zip(panels, points.items(), strict=True):
        _scatter(axes, part, labels, marker_area=5, digit_size=15 if epochs else 0)
        _square(axes, everything)
        axes.set_title(_after(epochs), fontsize=13)
    figure.supxlabel(plane.names[0], fontsize=13)
    figure.supylabel(plane.names[1], fontsize=13)
    place = {"loc": "outside right center", "handletextpad": 0.1}
    entries = panels[0].get_legend_handles_labels()
    figure.legend(*entries, fontsize=12, title_fontsize=12, markerscale=3, **place, **LEGEND)
    return _png(figure)


def draw_reconstructions(originals, reconstructions):
    """Images [10 n, 784], and a panel for each of {epochs trained: their reconstructions}."""
    shown = {None: originals, **reconstructions}
    figure, panels = _panels(shown, 2.4)
    for axes, (epochs, images) in zip(panels, shown.items(), strict=True):
        axes.imshow(_mosaic(images, 10), **INK)
        axes.set_axis_off()
        axes.set_title("test images" if epochs is None else _after(epochs), fontsize=13)
    return _png(figure)


def draw_loss(log):
    """L_tot over the epochs: per epoch {split: {"L_tot": nats per image}}."""
    figure = _figure(6, 3.6)
    axes = figure.subplots()
    for split, style, colour in (("train", "o-", 0), ("validation", "s-", 2), ("test", "^-", 1)):
        if split in log[0]:
            values = [epoch[split]["L_tot"] for epoch in log]
            look = {"ms": 4, "color": COLOURS[colour], "label": f"{split}, last {values[-1]:.2f}"}
            axes.plot(range(1, len(values) + 1), values, style, **look)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epochs", fontsize=12)
    axes.set_ylabel("$L_{tot}$, nats per image (log scale)", fontsize=12)
    axes.tick_params(which="both", labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", which="both", alpha=0.25)
    axes.legend(fontsize=12, frameon=False)
    return _png(figure)


def draw_sanity_check(images, codes, reconstructions):
    """Images [N, 784], their codes [N, d] as small images or as numbers, their reconstructions."""
    figure = _figure(0.8 * len(images) + 1, 3)
    rows = figure.subplots(3, len(images), squeeze=False)
    height = next(n for n in range(math.isqrt(codes.shape[1]), 0, -1) if codes.shape[1] % n == 0)
    limit = np.abs(codes).max()
    for axes, image, code, decoded in zip(rows.T, images, codes, reconstructions, strict=True):
        axes[0].imshow(image.reshape(28, 28), **INK)
        axes[2].imshow(decoded.reshape(28, 28), **INK)
        if len(code) <= 3:
            text = "\n".join(f"{number:.2f}" for number in code)
            axes[1].text(0.5, 0.5, text, ha="center", va="center", fontsize=12)
        else:
            axes[1].imshow(code.reshape(height, -1), cmap="PuOr", vmin=-limit, vmax=limit)
    for axes in rows.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, name in zip(rows[:, 0], ("test image", "code", "reconstruction"), strict=True):
        axes.set_ylabel(name, fontsize=12, rotation=0, ha="right", va="center")
    return _png(figure)


def _after(epochs):
    return "before training" if epochs == 0 else f"after {epochs} epoch{'s' * (epochs > 1)}"


def _mosaic(images, columns):
    """Images [N, 784] as one picture, row by row."""
    tiles = images.reshape(-1, columns, 28, 28)
    return tiles.transpose(0, 2, 1, 3).reshape(28 * len(tiles), 28 * columns)


def _scatter(axes, points, labels, marker_area, digit_size):
    """The points of each digit, and the digit itself where they are densest."""
    from matplotlib import patheffects

    apart = 0.07 * np.ptp(points, axis=0).max()  # so that no two digits overlap
    outline = patheffects.withStroke(linewidth=digit_size / 5, foreground="white")
    written = []
    for digit in np.unique(labels):
        own, colour = points[labels == digit], COLOURS[digit]
        look = {"color": colour, "marker": MARKERS[digit], "linewidths": 0, "alpha": 0.8}
        axes.scatter(*own.T, s=marker_area, label=digit, **look)
        if digit_size:
            written.append(densest(own, written, apart))
            look = {"ha": "center", "va": "center", "fontweight": "bold", "color": colour}
            look |= {"fontsize": digit_size, "path_effects": [outline]}
            axes.annotate(str(digit), written[-1], **look)


def _square(axes, points):
    """Equal axes that show all the points."""
    middle = (points.max(0) + points.min(0)) / 2
    reach = 1.05 * np.abs(points - middle).max() or 1.0
    axes.set_xlim(middle[0] - reach, middle[0] + reach)
    axes.set_ylim(middle[1] - reach, middle[1] + reach)
    axes.set_aspect("equal")


def densest(points, others=(), apart=0.0, neighbours=20):
    """The point [2] among [N, 2] with the closest neighbours, at least `apart` from the others."""
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    spread = np.sort(distances)[:, : neighbours + 1].sum(1)
    for other in others:
        spread[np.linalg.norm(points - other, axis=1) < apart] += spread.max()
    return points[spread.argmin()]


def _name_axes(axes, plane, title):
    """In sizes that can be read where two pictures share the width of a page."""
    axes.set_xlabel(plane.names[0], fontsize=13)
    axes.set_ylabel(plane.names[1], fontsize=13)
    axes.tick_params(labelsize=13)
    axes.set_title(title, fontsize=14)


def _panels(shown, size):
    """A figure with a panel of `size` inches for each of what is shown, about 3 to 2."""
    columns = math.ceil(math.sqrt(1.5 * len(shown)))
    rows = math.ceil(len(shown) / columns)
    figure = _figure(size * columns, size * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in panels[len(shown) :]:
        unused.remove()
    return figure, panels[: len(shown)]


def _figure(width, height):
    from matplotlib.figure import Figure  # without pyplot: needs no display and no closing
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=200)
    return buffer.getvalue()
