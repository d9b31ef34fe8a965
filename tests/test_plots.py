"""What is drawn, read back from Matplotlib's own objects."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.markers import MarkerStyle
from PIL import Image

from lib import plots

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """The Matplotlib figures that are made, in order."""
    made, make = [], plots.new_figure
    keep = lambda *size, **options: made.append(make(*size, **options)) or made[-1]  # noqa: E731
    monkeypatch.setattr(plots, "new_figure", keep)
    with plots.own_style():
        yield made


def slope(codes):
    """Decodes a code z to an image of one grey level, which rises with z_1 and faster with z_2."""
    grey = 1 / (1 + np.exp(-codes @ [0.1, 1.0]))
    return np.repeat(grey[:, None], 784, axis=1)


def assert_drawn(axes, points):
    """Every point is there, once, and inside."""
    drawn = np.concatenate([collection.get_offsets() for collection in axes.collections])
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, points))
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert ((left, bottom) < points).all()
    assert (points < (right, top)).all()


def test_scatter_draws_every_code(figures):
    codes, labels = RNG.normal(size=(1000, 2)), RNG.integers(0, 10, 1000)
    png = plots.draw_scatter(codes, labels, plots.plane_of(codes), "Some codes")
    assert min(Image.open(io.BytesIO(png)).size) >= 900
    (axes,) = figures[0].axes
    assert_drawn(axes, codes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list("0123456789")
    assert (axes.get_title(), axes.get_aspect(), len(axes.texts)) == ("Some codes", 1, 0)
    assert axes.get_xlim() == axes.get_ylim()
    left, right = axes.get_xlim()
    assert -left == right < 1.1 * np.abs(codes).max()


def test_each_digit_has_its_own_colour_and_marker(figures):
    """Those that stand at its place in the two lists, from which the page takes them, too.

    Of ten points (n, n), the one of digit n is at n; digit 6 is missing.
    """
    digits = np.array([0, 1, 2, 3, 4, 5, 7, 8, 9])
    points = np.stack([digits, digits], axis=1)
    order = RNG.permutation(9)
    plots.draw_scatter(points[order], digits[order], plots.plane_of(points), "title")
    (axes,) = figures[0].axes
    for drawn, digit in zip(axes.collections, digits, strict=True):
        assert drawn.get_label() == str(digit)
        assert drawn.get_offsets().tolist() == [[digit, digit]]
        assert to_hex(drawn.get_facecolor()[0]).upper() == plots.COLOURS[digit]
        marker = MarkerStyle(plots.MARKERS[digit])
        known = marker.get_path().transformed(marker.get_transform())
        assert np.allclose(drawn.get_paths()[0].vertices, known.vertices)
    assert len(set(plots.COLOURS)) == len(set(plots.MARKERS)) == 10


@pytest.mark.parametrize("latent_dim", [1, 2, 6])
def test_plane(latent_dim):
    """Two numbers as they are, others by principal components; one makes a flat line."""
    codes = RNG.normal(size=(500, latent_dim)) * [1, 5, 1, 1, 3, 1][:latent_dim]
    plane = plots.plane_of(codes)
    points = plane.project(codes)
    assert np.allclose(plane.project(plane.codes_at(points)), points, atol=1e-5)
    if latent_dim == 2:
        assert np.array_equal(points, codes)
    else:
        variances = np.sort(np.linalg.eigvalsh(np.atleast_2d(np.cov(codes.T))))[::-1]
        assert np.allclose(points.var(0, ddof=1), [*variances, 0][:2])
        assert f"{variances[0] / variances.sum():.0%}" in plane.names[0]


def test_manifold_lies_as_the_scatter_does(figures):
    """The same axes, at the same place in both pictures; each image at the code it is of."""
    plane = plots.plane_of(codes := RNG.normal(size=(100, 2)))
    plots.draw_scatter(codes, np.arange(100) % 10, plane, "codes")
    plots.draw_decoded_plane(slope, plane)
    scatter, axes = (figure.axes[0] for figure in figures)
    assert np.array_equal(scatter.get_window_extent().bounds, axes.get_window_extent().bounds)
    assert np.array_equal(scatter.figure.bbox.size, axes.figure.bbox.size)
    for name in ("xlim", "ylim", "xticks", "yticks", "xlabel", "ylabel"):
        assert np.array_equal(*(getattr(part, f"get_{name}")() for part in (scatter, axes)))
    (shown,) = axes.images
    left, right, bottom, top = shown.get_extent()
    assert ((left, right), (bottom, top)) == (axes.get_xlim(), axes.get_ylim())
    assert shown.origin == "upper"
    mosaic = np.asarray(shown.get_array())
    assert mosaic.shape == (560, 560)
    for row, column in np.ndindex(20, 20):
        z1 = left + (right - left) * (column + 0.5) / 20
        z2 = top - (top - bottom) * (row + 0.5) / 20
        tile = mosaic[28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
        assert np.allclose(tile, 1 / (1 + np.exp(-(0.1 * z1 + z2))), atol=1e-5)


@pytest.mark.parametrize(("count", "latent_dim"), [(1, 2), (20, 2), (60, 2), (3, 1), (3, 20)])
def test_generated_images_stand_over_their_codes_and_on_the_map(figures, count, latent_dim):
    images, codes = RNG.random((count, 28, 28)), RNG.normal(size=(count, latent_dim))
    plots.draw_sheet(images, codes, slope)
    sheet, *below = figures[0].subfigs
    names = [f"{number:02d}" for number in range(min(count, 50))]
    above, under = np.array(sheet.axes).reshape(2, len(names))
    for image, text, name, pixels, code in zip(above, under, names, images, codes, strict=False):
        assert np.array_equal(image.images[0].get_array(), pixels)
        assert [label.get_text() for label in image.texts] == [name]
        if latent_dim < 20:
            written = text.texts[0].get_text().replace("\N{MINUS SIGN}", "-")
            assert written == ", ".join(f"{number:.2f}" for number in code)
        assert text.get_subplotspec().colspan == image.get_subplotspec().colspan
        assert text.get_subplotspec().rowspan.start == image.get_subplotspec().rowspan.stop
    assert len(below) == (latent_dim == 2)
    for axes in (part.axes[0] for part in below):
        numbers = {text.get_text(): text.get_position() for text in axes.texts}
        assert numbers == dict(zip(names, map(tuple, codes), strict=False))
        reach = axes.get_xlim()[1]
        assert np.abs(codes[:50]).max() < reach
        assert axes.images[0].get_extent() == [-reach, reach] * 2
        assert axes.get_xlim() == axes.get_ylim() == (-reach, reach)


def test_panels_share_their_axes(figures):
    labels = RNG.integers(0, 10, 200)
    points = {f"after {n}": RNG.normal(size=(200, 2)) * (1 + n) for n in (0, 1, 2, 5)}
    plots.draw_scatters(points, labels, plots.plane_of(points["after 0"]))
    axes = figures[0].axes
    assert [panel.get_title() for panel in axes] == list(points)
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in axes}) == 1
    for panel, part in zip(axes, points.values(), strict=True):
        assert_drawn(panel, part)


def test_reconstructions_stand_where_their_originals_do(figures):
    originals = RNG.random((100, 784))
    shown = {"test images": originals, "one": originals / 2, "two": originals / 3}
    plots.draw_image_panels(shown)
    assert [axes.get_title() for axes in figures[0].axes] == list(shown)
    for axes, images in zip(figures[0].axes, shown.values(), strict=True):
        tile = axes.images[0].get_array()[28:56, 84:112]
        assert np.array_equal(tile, images[13].reshape(28, 28))


def test_curves_and_the_band_between_two(figures):
    """All of them inside the axes."""
    upper = plots.Curve("upper", [1, 2, 3], [190.0, 140.0, 125.0], "^-", "#CC3311")
    lower = plots.Curve("lower", [1, 3], [140.0, 116.5], "--", "#000000")
    band = plots.Band("gap", [1, 3], [140.0, 116.5], [190.0, 125.0], "#CC3311")
    plots.draw_curves([upper, lower], band, "epochs", "nats")
    (axes,) = figures[0].axes
    for line, curve in zip(axes.lines, (upper, lower), strict=True):
        assert list(line.get_xdata()) == curve.x
        assert list(line.get_ydata()) == curve.y
        assert (line.get_label(), line.get_color()) == (curve.label, curve.colour)
    assert axes.lines[1].get_linestyle() == "--"
    bottom, top = axes.get_ylim()
    assert bottom < 116.5
    assert top > 190
    (shaded,) = axes.collections
    corners = {tuple(corner) for corner in shaded.get_paths()[0].vertices}
    assert corners == {(1, 190), (3, 125), (1, 140), (3, 116.5)}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epochs", "nats")
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["upper", "lower", "gap"]


@pytest.mark.parametrize(("latent_dim", "shape"), [(2, None), (32, (4, 8)), (7, (1, 7))])
def test_sanity_check_shows_codes_as_images_or_numbers(figures, latent_dim, shape):
    images, codes = RNG.random((10, 28, 28)), RNG.normal(size=(10, latent_dim))
    plots.draw_image_code_image(images, codes, images / 2)
    rows = np.array(figures[0].axes).reshape(3, 10)
    for above, middle, below, image, code in zip(*rows, images, codes, strict=True):
        assert np.array_equal(above.images[0].get_array(), image)
        assert np.array_equal(below.images[0].get_array(), image / 2)
        if shape is None:
            written = middle.texts[0].get_text().replace("\N{MINUS SIGN}", "-").split()
            assert written == [f"{number:.2f}" for number in code]
        else:
            assert np.array_equal(middle.images[0].get_array(), code.reshape(shape))
