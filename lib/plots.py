"""Pictures from arrays. A `draw_` function gives the bytes of a PNG file, the others are its parts.

Matplotlib is imported only inside `own_style`, in which all pictures must be drawn.
"""

import contextlib
import io
import logging
import math
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lib.files import MARK

# The colours of digits 0 to 9, from Paul Tol's "vibrant", "muted" and "dark" schemes ("Colour
# Schemes", SRON note EPS/TN/09-002, 2021). None is pale on white, and digits whose codes lie side
# by side, such as 4 and 9, are easy to tell apart, also for the colour-blind and in grey.
COLOURS = ("#CC3311", "#555555", "#33BBEE", "#AA4499", "#117733",
           "#000000", "#0077BB", "#EE3377", "#EE7733", "#332288")  # fmt: skip
MARKERS = ">^D<vXP*os"
MARKER_AREAS = (1, 1, 0.8, 1, 1, 1.2, 1.2, 1.6, 1, 0.7)  # so that they look equally large
STYLE = {"figure.constrained_layout.use": True, "savefig.dpi": 200, "font.size": 12,
         "axes.titlesize": "medium", "figure.labelsize": "medium", "axes.linewidth": 0.6,
         "lines.markersize": 4, "legend.frameon": False, "scatter.edgecolors": "white"}  # fmt: skip
LEGEND = {"ncols": 10, "handlelength": 1, "handletextpad": 0.2, "columnspacing": 0.9}
SMALL_TEXT = {"fontsize": "small", "ha": "center", "va": "center"}
LABEL_DISC = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "linewidth": 0.8}
BLACK_INK = {"cmap": "gray_r", "vmin": 0, "vmax": 1}
MINUS = "\N{MINUS SIGN}"
IMAGE_SIDE = 28  # pixels; images are [N, 784]
DECODED_SIDE = 20  # images per side of a picture of the decoded plane
MAX_ON_SHEET = 50  # images; smaller ones could not be seen


# --- The plane of codes -----------------------------------------------------------------------


class Plane(NamedTuple):
    """The plane that is drawn: the codes' own two numbers, or their first principal components."""

    origin: np.ndarray  # [d]
    directions: np.ndarray  # [2, d], orthonormal
    names: list[str]  # of the two axes
    reach: float  # it is drawn as a square about 0, this far

    def project(self, codes):
        """Codes [N, d] as points [N, 2]."""
        return (codes - self.origin) @ self.directions.T

    def codes_at(self, points):
        """The codes [N, d] in the plane at points [N, 2]."""
        return (self.origin + points @ self.directions).astype(np.float32)


def plane_of(codes):
    """The `Plane` that just shows codes [N, d]."""
    if codes.shape[1] == 2:
        origin = np.zeros(2)
        directions = np.eye(2)
        names = ["latent variable $z_1$", "latent variable $z_2$"]
    else:
        origin = codes.mean(0)
        # Two components need two rows and columns; a code of one number makes a flat line.
        missing_rows, missing_columns = (max(0, 2 - size) for size in codes.shape)
        padded = np.pad(codes - origin, [(0, missing_rows), (0, missing_columns)])
        _, scale, directions = np.linalg.svd(padded, full_matrices=False)
        directions = directions[:2, : codes.shape[1]]
        total_variance = max((scale**2).sum(), np.finfo(np.float32).tiny)
        variance_ratios = scale[:2] ** 2 / total_variance
        names = [
            f"component {number}, {ratio:.0%} of the variance"
            for number, ratio in enumerate(variance_ratios, start=1)
        ]
    farthest = np.abs((codes - origin) @ directions.T).max()
    reach = 1.04 * float(farthest)  # a margin for the markers
    return Plane(origin, directions, names, reach or 1.0)


# --- Pictures ---------------------------------------------------------------------------------


@contextlib.contextmanager
def own_style():
    """Inside, pictures look the same whatever anybody's settings of Matplotlib say."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of old settings, and caches
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="matplotlib|pyparsing")  # old versions of the two
        warnings.filterwarnings("ignore", message="constrained_layout not applied")  # for odd codes
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def draw_scatter(points, labels, plane, title):
    """Points [N, 2] of the plane, coloured by their labels [N], with a legend."""
    axes = plane_axes(plane)
    axes.set_title(title, pad=26)  # above the legend
    scatter(axes, points, labels, area=20)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 0.975), markerscale=1.6, **LEGEND)
    return png_bytes(axes.figure)


def draw_scatters(points, labels, plane):
    """A panel for each entry of {title: points [N, 2]}, all on the same axes."""
    reach = plane_of(np.concatenate(list(points.values()))).reach
    bare = plane._replace(names=["", ""], reach=reach)

    def show(axes, panel_points):
        scatter(plane_axes(bare, axes, ticks=4), panel_points, labels, area=5)

    rows = math.ceil(len(points) / 3)
    figure = panels(points, show, height=2 * rows + 0.6)
    for place, axes in enumerate(figure.axes):  # all have the same axes: numbers on the outer ones
        below = place + 3
        axes.tick_params(labelleft=place % 3 == 0, labelbottom=below >= len(points))
    figure.supxlabel(plane.names[0])
    figure.supylabel(plane.names[1])
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", markerscale=3, **LEGEND)
    return png_bytes(figure)


def draw_decoded_plane(decode, plane):
    """The images that `decode`, codes [N, d] -> images [N, 784], makes all over the plane."""
    axes = plane_axes(plane)
    axes.set_title("Images decoded from a grid of codes,\neach drawn where its code lies")
    show_decoded_plane(axes, decode, plane)
    return png_bytes(axes.figure)


def draw_sheet(images, codes, decode):
    """The first images [N, 784], numbered, with their codes [N, d].

    For two latent variables the decoded plane beside them shows where the codes lie.
    """
    images = images[:MAX_ON_SHEET].reshape(-1, IMAGE_SIDE**2)
    codes = codes[:MAX_ON_SHEET]
    columns = max(5, math.ceil(math.sqrt(1.25 * len(images))))
    rows = math.ceil(len(images) / columns)
    on_one_line = codes.shape[1] < 3
    code_height = 0.2 if on_one_line else 0.5  # inches, below an image of 1.1
    with_plane = codes.shape[1] == 2

    height = (1.1 + code_height) * rows
    widths = [1.1 * columns]
    if with_plane:
        plane_width = max(height, 5.2)
        widths.append(plane_width)
        height = max(height, plane_width)
    figure = new_figure(sum(widths), height)
    parts = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]

    sheet = parts[0]
    row_heights = [1, code_height] * rows
    image_sheet(sheet, columns, row_heights, images, codes, codes_on_one_line=on_one_line)
    for number, axes in enumerate(sheet.axes[: len(images)]):
        axes.text(2, 2, f"{number:02d}", bbox=LABEL_DISC, **SMALL_TEXT)
    if with_plane:
        plane = plane_of(1.08 * codes)  # room for the discs
        axes = plane_axes(plane, parts[1].subplots())
        show_decoded_plane(axes, decode, plane, alpha=0.3)
        for number, code in enumerate(codes):
            axes.text(*code, f"{number:02d}", bbox=LABEL_DISC, **SMALL_TEXT)
    return png_bytes(figure)


def draw_image_panels(shown):
    """A panel for each entry of {title: images [10 n, 784]}, ten a row."""
    return png_bytes(panels(shown, lambda axes, images: show_images(axes, images, columns=10)))


class Curve(NamedTuple):
    """A line of `draw_curves`."""

    label: str
    x: list
    y: list
    style: str  # of Matplotlib, as "o-"
    colour: str


class Band(NamedTuple):
    """What `draw_curves` shades between two curves."""

    label: str
    x: list
    lower: list
    upper: list
    colour: str


def draw_curves(curves, band, x_label, y_label):
    """Curves over whole numbers, and a shaded band, if there is one."""
    axes = new_figure(5.4, 4).subplots()
    for curve in curves:
        axes.plot(curve.x, curve.y, curve.style, color=curve.colour, label=curve.label)
    if band:
        axes.fill_between(
            band.x, band.lower, band.upper, fc=band.colour, alpha=0.2, label=band.label
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return png_bytes(axes.figure)


def draw_image_code_image(images, codes, reconstructions):
    """A column each: images [N, 784], their codes [N, d], what these decode to [N, 784]."""
    count = len(images)
    figure = new_figure(0.62 * count + 1, 2.1)
    image_sheet(figure, count, [1, 1, 1], images, codes, reconstructions)
    first_of_each_row = figure.axes[::count]
    for axes, name in zip(first_of_each_row, ("image", "code", "decoded"), strict=True):
        axes.text(-0.2, 0.5, name, transform=axes.transAxes, ha="right", va="center")
    return png_bytes(figure)


# --- Their parts ------------------------------------------------------------------------------


def image_sheet(
    figure, columns, row_heights, images, codes, reconstructions=None, codes_on_one_line=False
):
    """Rows of images [N, 784], below each its code of [N, d], below that perhaps another image."""
    layers = [images, codes]
    if reconstructions is not None:
        layers.append(reconstructions)
    grid = figure.add_gridspec(len(row_heights), columns, height_ratios=row_heights)
    largest = np.abs(codes).max()
    for layer, values in enumerate(layers):
        for number, value in enumerate(values):
            row = number // columns * len(layers) + layer
            axes = figure.add_subplot(grid[row, number % columns])
            axes.set_axis_off()
            if values is codes:
                show_code(axes, value, largest, codes_on_one_line)
            else:
                show_images(axes, value, columns=1)


def show_code(axes, code, largest, one_line):
    """A code [d]: up to three numbers as text, more as colours from -largest to largest."""
    if len(code) <= 3:
        words = [f"{number:.2f}".replace("-", MINUS) for number in code]
        separator = ", " if one_line else "\n"
        axes.text(0.5, 0.5, separator.join(words), **SMALL_TEXT)
        return
    height = math.isqrt(len(code))
    while len(code) % height:
        height -= 1
    axes.imshow(code.reshape(height, -1), cmap="PuOr", vmin=-largest, vmax=largest)


def show_images(axes, images, columns):
    """Show images [N, 784] side by side in rows, without axes."""
    axes.imshow(mosaic(images, columns), **BLACK_INK)
    axes.set_axis_off()


def mosaic(images, columns):
    """Images [N, 784], N a multiple of `columns`, side by side in rows: one array."""
    rows = images.reshape(-1, columns, IMAGE_SIDE, IMAGE_SIDE).swapaxes(1, 2)
    return rows.reshape(-1, IMAGE_SIDE * columns)


def show_decoded_plane(axes, decode, plane, **options):
    """Codes evenly spaced over the plane, decoded: each image where its code lies."""
    centres = plane.reach * np.arange(1 - DECODED_SIDE, DECODED_SIDE, 2) / DECODED_SIDE
    points = np.stack(np.meshgrid(centres, -centres), axis=2).reshape(-1, 2)  # from the top left
    images = decode(plane.codes_at(points))
    extent = plane.reach * np.array([-1, 1, -1, 1])
    axes.imshow(mosaic(images, DECODED_SIDE), extent=extent, **BLACK_INK, **options)


def scatter(axes, points, labels, area):
    """Points [N, 2] with a colour and a marker for each label."""
    for label in np.unique(labels):
        axes.scatter(
            *points[labels == label].T,
            s=area * MARKER_AREAS[label],
            label=label,
            c=COLOURS[label],
            marker=MARKERS[label],
            linewidths=area / 80,
        )


def plane_axes(plane, axes=None, ticks=8):
    """The axes of the plane; by default in a figure of their own, at the same place in each."""
    if axes is None:
        axes = new_figure(5.4, 5.8, layout="none").add_axes((0.13, 0.115, 0.8424, 0.7843))
    axes.set(xlabel=plane.names[0], ylabel=plane.names[1], aspect="equal")
    axes.set(xlim=(-plane.reach, plane.reach), ylim=(-plane.reach, plane.reach))
    axes.locator_params(nbins=ticks, steps=[1, 2, 5, 10])
    return axes


def panels(shown, show, height=None):
    """A figure in which `show(axes, part)` has drawn each of {title: part}, three a row.

    Its height is in inches; by default the panels are about square.
    """
    columns = min(len(shown), 3)
    rows = math.ceil(len(shown) / 3)
    figure = new_figure(6.3, height or 6.3 * rows / columns + 0.5)
    for place, (title, part) in enumerate(shown.items(), start=1):
        show(figure.add_subplot(rows, columns, place, title=title), part)
    return figure


def new_figure(width, height, **options):
    """A figure of this size in inches."""
    from matplotlib.figure import Figure  # without pyplot: needs no display and no closing

    return Figure((width, height), **options)


def png_bytes(figure):
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, metadata={"Software": MARK})
    return buffer.getvalue()


def image_png_bytes(image):
    """An image [784] in [0, 1] as a grey PNG file of 28 x 28 pixels; 1 is white."""
    pixels = (image * 255).round().astype(np.uint8).reshape(IMAGE_SIDE, IMAGE_SIDE)
    metadata = PngInfo()
    metadata.add_text("Software", MARK)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=metadata)
    return buffer.getvalue()
