"""All pictures, as the bytes of PNG files; Matplotlib is imported only inside `own_style`."""

import contextlib
import io
import logging
import math
import os
import warnings
from typing import NamedTuple

import numpy as np
import torch

from data import SCATTERED

# Of 0 to 9, out of Paul Tol's "vibrant", "muted" and "dark" schemes ("Colour Schemes", SRON note
# EPS/TN/09-002, 2021): none pale on white, neighbours apart with any colour vision and in grey.
COLOURS = ("#CC3311", "#555555", "#33BBEE", "#AA4499", "#117733",
           "#000000", "#0077BB", "#EE3377", "#EE7733", "#332288")  # fmt: skip
MARKERS, AREAS = ">^D<vXP*os", (1, 1, 0.8, 1, 1, 1.2, 1.2, 1.6, 1, 0.7)  # look equally large
STYLE = {"figure.constrained_layout.use": True, "savefig.dpi": 200, "font.size": 12,
         "axes.titlesize": "medium", "figure.labelsize": "medium", "axes.linewidth": 0.6,
         "lines.markersize": 4, "legend.frameon": False, "scatter.edgecolors": "white"}  # fmt: skip
LEGEND = {"ncols": 10, "handlelength": 1, "handletextpad": 0.2, "columnspacing": 0.9}
SMALL = {"fontsize": "small", "ha": "center", "va": "center"}
FIGURES = ("scatter_epochs", "reconstructions", "loss", "sanity_check", "manifold")


@torch.no_grad()
def snapshot(model, digits):
    """What the pictures show of the model as it is now: codes and decoded images."""
    model.eval()
    codes = model.codes(torch.cat([digits.x_shown, digits.x_test[-SCATTERED:]]))
    shown, scattered = codes.tensor_split([len(digits.x_shown)])
    images = model.decode(shown).sigmoid()
    return {"scattered": scattered.cpu(), "codes": shown.cpu(), "images": images.cpu()}


def draw(model, digits, history, trained, all_figures):
    """The PNG files of a run: {"scatter" or, if `all_figures`, a name of FIGURES: bytes}.

    `history`: {"log": for `draw_loss`, "snapshots": {epochs: what `snapshot` returned then}}.
    """
    views = {**history["snapshots"], trained: snapshot(model, digits)}
    order = sorted(n for n in views if n <= trained)
    views = {n: {name: part.numpy() for name, part in views[n].items()} for n in order}
    last, labels, which = views[trained], digits.test_labels[-SCATTERED:], digits.which
    plane = plane_of(last["scattered"])
    titles = {n: f"after {n} epoch{'s' * (n > 1)}" if n else "before training" for n in views}
    points = {titles[n]: plane.project(view["scattered"]) for n, view in views.items()}
    title = f"Codes of {'the last ' * (which == 'test')}{len(labels)} {which} images"
    pictures = {"scatter": draw_scatter(plane.project(last["scattered"]), labels, plane, title)}
    if all_figures:
        shown = digits.x_shown.cpu().numpy()
        decoded = {titles[n]: view["images"] for n, view in views.items() if n}  # at 0 all is grey
        pictures["scatter_epochs"] = draw_scatter_epochs(points, labels, plane)
        pictures["reconstructions"] = draw_reconstructions({f"{which} images": shown} | decoded)
        pictures["loss"] = draw_loss(history["log"])
        pictures["sanity_check"] = draw_sanity_check(shown, last["codes"], last["images"])
        pictures["manifold"] = draw_manifold(model.decoder, plane)
    return pictures


class Plane(NamedTuple):
    """The map that is drawn: the codes' own two numbers, or their first principal components."""

    origin: np.ndarray  # [d]
    directions: np.ndarray  # [2, d], orthonormal
    names: list[str]
    reach: float  # it is a square about 0, this far

    def project(self, codes):
        """Codes [N, d] as points [N, 2]."""
        return (codes - self.origin) @ self.directions.T

    def codes_at(self, points):
        """The codes [N, d] in the plane at points [N, 2]."""
        return (self.origin + points @ self.directions).astype(np.float32)


def plane_of(codes):
    """The `Plane` that just shows codes [N, d]."""
    if codes.shape[1] == 2:
        origin, directions = np.zeros(2), np.eye(2)
        names = ["latent variable $z_1$", "latent variable $z_2$"]
    else:
        origin = codes.mean(0)
        missing = [(0, max(0, 2 - size)) for size in codes.shape]  # one number makes a flat line
        _, scale, directions = np.linalg.svd(np.pad(codes - origin, missing), full_matrices=False)
        directions = directions[:2, : codes.shape[1]]
        shares = scale[:2] ** 2 / max((scale**2).sum(), np.finfo(np.float32).tiny)
        names = [f"component {i}, {s:.0%} of the variance" for i, s in enumerate(shares, 1)]
    reach = 1.04 * float(np.abs((codes - origin) @ directions.T).max())
    return Plane(origin, directions, names, reach or 1.0)


@contextlib.contextmanager
def own_style():
    """Inside, pictures look the same whatever anybody's settings of matplotlib say."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of old settings, and caches
    os.environ.pop("MPLBACKEND", None)  # no backend is used, and an unknown one ends the import
    warnings.filterwarnings("ignore", module="matplotlib|pyparsing")  # old versions of the two
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def draw_scatter(points, labels, plane, title):
    """Points [N, 2] of the plane, coloured by their digit."""
    axes = _map_axes(plane)
    axes.set_title(title, pad=26)  # above the legend
    _scatter(axes, points, labels, area=20)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 0.975), markerscale=1.6, **LEGEND)
    return _png(axes.figure)


def draw_manifold(decoder, plane):
    """The images that the decoder makes all over the plane, on the axes of the scatter."""
    axes = _map_axes(plane)
    axes.set_title("Images decoded from a grid of codes,\neach drawn where its code lies")
    _show_map(axes, decoder, plane)
    return _png(axes.figure)


def draw_generated(images, codes, decoder):
    """The first 50 images [N, 784] of codes [N, d]; for two latent variables, where these lie."""
    images, codes = np.asarray(images)[:50].reshape(-1, 784), np.asarray(codes)[:50]
    columns = max(5, math.ceil(math.sqrt(1.25 * len(images))))
    rows, label = math.ceil(len(images) / columns), 0.2 if codes.shape[1] < 3 else 0.5
    height = (1.1 + label) * rows  # inches
    widths = [1.1 * columns] + [max(height, 5.2)] * (codes.shape[1] == 2)
    figure = _figure(sum(widths), max(height, *widths[1:], 0))
    sheet, *beside = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths).flat
    _sheet(sheet, columns, [1, label] * rows, images, codes)
    disc = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "linewidth": 0.8}
    for i in range(len(images)):
        sheet.axes[i].text(2, 2, f"{i:02d}", bbox=disc, **SMALL)
    for part in beside:
        axes = _map_axes(plane := plane_of(1.08 * codes), part.subplots())
        _show_map(axes, decoder, plane, alpha=0.3)
        for i, code in enumerate(codes):
            axes.text(*code, f"{i:02d}", bbox=disc, **SMALL)
    return _png(figure)


def draw_scatter_epochs(points, labels, plane):
    """A panel for each entry of {title: points [N, 2]}, all on the same axes."""
    reach = plane_of(np.concatenate(list(points.values()))).reach
    bare = plane._replace(names=["", ""], reach=reach)
    figure = _panels(points, lambda axes, part: _scatter(_map_axes(bare, axes, 4), part, labels, 5))
    figure.supxlabel(plane.names[0])
    figure.supylabel(plane.names[1])
    entries = figure.axes[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside upper center", markerscale=3, **LEGEND)
    return _png(figure)


def draw_reconstructions(shown):
    """A panel for each entry of {title: images [10 n, 784]}."""
    return _png(_panels(shown, lambda axes, images: _tile(axes, images, 10)))


def draw_loss(log):
    """L_tot over the epochs: per epoch {split or "exact", the exact posterior: {"L_tot": nats}}."""
    axes = _figure(5.4, 4).subplots()
    looks = {"train": ("o-", 6), "validation": ("s-", 4), "test": ("^-", 0), "exact": ("--", 5)}
    for split in (split for split in looks if split in log[-1]):
        epochs = [n for n, epoch in enumerate(log, 1) if split in epoch]
        values = [log[n - 1][split]["L_tot"] for n in epochs]
        name = split if split != "exact" else "test, exact posterior"
        label = f"{name}, {values[0]:.1f} to {values[-1]:.2f}"
        axes.plot(epochs, values, looks[split][0], color=COLOURS[looks[split][1]], label=label)
        if split == "exact":
            test = [log[n - 1]["test"]["L_tot"] for n in epochs]
            gap = f"amortisation gap, last {test[-1] - values[-1]:.2f} nats"
            axes.fill_between(epochs, values, test, fc=COLOURS[0], alpha=0.2, label=gap)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epochs", ylabel="$L_{tot}$, nats per image")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return _png(axes.figure)


def draw_sanity_check(images, codes, reconstructions):
    """Every tenth of images [10 n, 784], of their codes [10 n, d] and of what these decode to."""
    figure = _figure(0.062 * len(images) + 1, 2.1)
    layers = {"image": images[::10], "code": codes[::10], "decoded": reconstructions[::10]}
    _sheet(figure, len(codes[::10]), [1, 1, 1], *layers.values())
    for axes, name in zip(figure.axes[:: len(codes[::10])], layers, strict=True):
        axes.text(-0.2, 0.5, name, transform=axes.transAxes, ha="right", va="center")
    return _png(figure)


def _sheet(figure, columns, heights, *layers):
    """Rows of images [N, 784], below each its code of [N, d], below that perhaps another image."""
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    for layer, i in np.ndindex(len(layers), len(layers[0])):
        axes = figure.add_subplot(grid[i // columns * len(layers) + layer, i % columns])
        axes.set_axis_off()
        part = layers[layer][i]
        if layer != 1:
            _tile(axes, part, 1)
        elif len(part) <= 3:
            words = [f"{number:.2f}".replace("-", "\N{MINUS SIGN}") for number in part]
            axes.text(0.5, 0.5, (", " if heights[1] < 0.5 else "\n").join(words), **SMALL)
        else:
            height = next(n for n in range(math.isqrt(len(part)), 0, -1) if len(part) % n == 0)
            limit = np.abs(layers[1]).max()
            axes.imshow(part.reshape(height, -1), cmap="PuOr", vmin=-limit, vmax=limit)


def _tile(axes, images, columns, **options):
    """Show images [N, 784] as one picture, row by row."""
    mosaic = images.reshape(-1, columns, 28, 28).swapaxes(1, 2).reshape(-1, 28 * columns)
    axes.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1, **options)
    axes.axis("on" if options else "off")  # a map keeps its axes


@torch.no_grad()
def _show_map(axes, decoder, plane, **options):
    """20 * 20 codes, evenly spaced over the plane, decoded: each image where its code lies."""
    steps = plane.reach * np.arange(-19, 20, 2) / 20  # the middles of 20 images
    points = np.stack(np.meshgrid(steps, -steps), axis=2).reshape(-1, 2)
    codes = torch.from_numpy(plane.codes_at(points)).to(next(decoder.parameters()).device)
    images = decoder(codes).sigmoid().cpu().numpy()
    _tile(axes, images, 20, extent=plane.reach * np.array([-1, 1, -1, 1]), **options)


def _scatter(axes, points, labels, area):
    for digit in np.unique(labels):
        look = {"c": COLOURS[digit], "marker": MARKERS[digit], "linewidths": area / 80}
        axes.scatter(*points[labels == digit].T, s=area * AREAS[digit], label=digit, **look)


def _map_axes(plane, axes=None, ticks=8):
    """The axes of the plane; by default in a figure of their own, at the same place in each."""
    axes = axes or _figure(5.4, 5.8, layout="none").add_axes((0.13, 0.115, 0.8424, 0.7843))
    axes.set(xlabel=plane.names[0], ylabel=plane.names[1], aspect="equal")
    axes.set(xlim=(-plane.reach, plane.reach), ylim=(-plane.reach, plane.reach))
    axes.locator_params(nbins=ticks, steps=[1, 2, 5, 10])
    return axes


def _panels(shown, show):
    """A figure in which `show(axes, part)` has drawn each of {title: part}, three a row."""
    columns, rows = min(len(shown), 3), math.ceil(len(shown) / 3)
    figure = _figure(6.3, 6.3 * rows / columns + 0.5)
    for place, (title, part) in enumerate(shown.items(), start=1):
        show(figure.add_subplot(rows, columns, place, title=title), part)
    return figure


def _figure(width, height, **options):
    from matplotlib.figure import Figure  # without pyplot: needs no display and no closing

    return Figure((width, height), **options)


def _png(figure):
    figure.savefig(buffer := io.BytesIO())
    return buffer.getvalue()
