"""The pictures, as the bytes of PNG files. Matplotlib is imported only when one is drawn."""

import contextlib
import importlib.util
import io
import logging
import math
import os
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from data import InputError

# Paul Tol's "muted" scheme and black, told apart with any colour vision
# (P. Tol, "Colour Schemes", SRON technical note EPS/TN/09-002, 2021).
COLOURS = (
    "#332288",
    "#CC6677",
    "#117733",
    "#DDCC77",
    "#88CCEE",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
    "#000000",
)
MARKERS = "osD^vPX*<>"
MANIFOLD_SIDE = 20  # images a side


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
    shares = (scale**2 / max((scale**2).sum(), np.finfo(np.float32).tiny))[:2]
    names = tuple(
        f"{name} principal component, {share:.0%} of the variance"
        for name, share in zip(("first", "second"), shares, strict=True)
    )
    return Plane(origin, directions[:2, :latent_dim], names)


def require_matplotlib():
    """Raise InputError if matplotlib is missing: better before the training than after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("matplotlib is missing; pip install -r requirements.txt")


@contextlib.contextmanager
def own_style():
    """Draw the same pictures for everyone, whatever their settings of matplotlib say."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of old settings, and caches
    os.environ.pop("MPLBACKEND", None)  # no backend is used, and an unknown one ends the import
    import matplotlib

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
    axes.legend(
        title="digit",
        fontsize=13,
        title_fontsize=13,
        loc="center left",
        bbox_to_anchor=(0.98, 0.5),
        markerscale=1.8,
        handletextpad=0,
        frameon=False,
    )
    return _png(figure)


def draw_manifold(images, points, plane, title):
    """Decoded codes as a map of the plane: images [S * S, 784] at points [S * S, 2]."""
    from matplotlib.ticker import MaxNLocator

    side = math.isqrt(len(images))
    figure = _figure(5.4, 4.8)
    axes = figure.subplots()
    extent = (0, side, 0, side)
    axes.imshow(_mosaic(images, side), cmap="gray_r", vmin=0, vmax=1, extent=extent)
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


def draw_figures(views, labels, shown, plane, log):
    """All other pictures of a training run: {name: the bytes of a PNG file}.

    Args:
        views: {epochs trained: {"scattered": codes [M, d] of the images with these labels, "codes":
            of the images shown [N, d], "images": their reconstructions [N, 784]}}.
        labels: int [M].
        shown: images `[N, 784]`, ten of each digit.
        log: per epoch {split: {"L_tot": nats per image}}.
    """
    points = {epochs: plane.project(view["scattered"]) for epochs, view in views.items()}
    images = {epochs: view["images"] for epochs, view in views.items()}
    curves = {
        split: [epoch[split]["L_tot"] for epoch in log]
        for split in ("train", "validation", "test")
        if split in log[0]
    }
    last = views[max(views)]
    return {
        "scatter_epochs": draw_scatter_epochs(points, labels, plane),
        "reconstructions": draw_reconstructions(shown, images),
        "loss": draw_loss(curves),
        "sanity_check": draw_sanity_check(shown[::10], last["codes"][::10], last["images"][::10]),
    }


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
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        title="digit",
        loc="outside right center",
        markerscale=3,
        fontsize=12,
        title_fontsize=12,
        handletextpad=0.1,
        frameon=False,
    )
    return _png(figure)


def draw_reconstructions(originals, reconstructions):
    """Images [10 n, 784], and a panel for each of {epochs trained: their reconstructions}."""
    shown = {None: originals, **reconstructions}
    figure, panels = _panels(shown, 2.4)
    for axes, (epochs, images) in zip(panels, shown.items(), strict=True):
        axes.imshow(_mosaic(images, 10), cmap="gray_r", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title("test images" if epochs is None else _after(epochs), fontsize=13)
    return _png(figure)


def draw_loss(curves):
    """L_tot over the epochs: {split: [epochs]}, in nats per image."""
    figure = _figure(6, 3.6)
    axes = figure.subplots()
    looks = {
        "train": ("o-", COLOURS[0]),
        "validation": ("s-", COLOURS[2]),
        "test": ("^-", COLOURS[1]),
    }
    for split, values in curves.items():
        style, colour = looks[split]
        epochs = range(1, len(values) + 1)
        axes.plot(
            epochs, values, style, ms=4, color=colour, label=f"{split}, last {values[-1]:.2f}"
        )
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
    for axes, image, code, reconstruction in zip(
        rows.T, images, codes, reconstructions, strict=True
    ):
        for box, picture in ((axes[0], image), (axes[2], reconstruction)):
            box.imshow(picture.reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
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
    if epochs == 0:
        return "before training"
    return f"after {epochs} epoch{'s' if epochs > 1 else ''}"


def _mosaic(images, columns):
    """Images [N, 784] as one picture, row by row."""
    tiles = images.reshape(-1, columns, 28, 28)
    return tiles.transpose(0, 2, 1, 3).reshape(28 * len(tiles), 28 * columns)


def _scatter(axes, points, labels, marker_area, digit_size):
    """The points of each digit, and the digit itself where they are densest."""
    from matplotlib import patheffects

    apart = 0.07 * np.ptp(points, axis=0).max()  # so that no two digits overlap
    written = []
    for digit in np.unique(labels):
        own = points[labels == digit]
        axes.scatter(
            *own.T,
            s=marker_area,
            color=COLOURS[digit],
            marker=MARKERS[digit],
            linewidths=0,
            alpha=0.8,
            label=digit,
        )
        if not digit_size:
            continue
        written.append(densest(own, written, apart))
        axes.annotate(
            str(digit),
            written[-1],
            ha="center",
            va="center",
            fontsize=digit_size,
            fontweight="bold",
            color=COLOURS[digit],
            path_effects=[patheffects.withStroke(linewidth=digit_size / 5, foreground="white")],
        )


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

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    return Figure(figsize=(width, height), layout=layout)


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=200)
    return buffer.getvalue()
