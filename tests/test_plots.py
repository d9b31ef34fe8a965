"""What is drawn, read back from Matplotlib's own objects."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import auto_encoder
from auto_encoder import History
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
    assert len({tuple(digit.get_facecolor()[0]) for digit in axes.collections}) == 10
    assert len({digit.get_paths()[0].vertices.tobytes() for digit in axes.collections}) == 10
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list("0123456789")
    assert (axes.get_title(), axes.get_aspect(), len(axes.texts)) == ("Some codes", 1, 0)
    assert axes.get_xlim() == axes.get_ylim()
    left, right = axes.get_xlim()
    assert -left == right < 1.1 * np.abs(codes).max()


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


class Slope(torch.nn.Module):
    """A model whose code is the first two pixels, decoded to one grey level."""

    latent_dim = 0  # so that there is no page of it

    def __init__(self):
        super().__init__()
        self.decoder = torch.nn.Linear(2, 784)

    def codes(self, x):
        return x[:, :2]

    def decode(self, z):
        return self.decoder(z)


def shown(views, epochs, log=({"train": {"L_tot": 1.0}},)):
    """What is shown of a training with snapshots after so many epochs."""
    model, x = Slope(), torch.rand(20, 784)
    digits = SimpleNamespace(
        x_shown=x,
        last_x_test=x,
        last_test_labels=np.arange(20) % 10,
        test_name="test",
    )
    snapshots = {n: auto_encoder.take_snapshot(model, digits) for n in views}
    history = History(list(log), snapshots, {})
    return auto_encoder.picture_data(model, digits, history, epochs)


def test_panels_say_when(monkeypatch):
    """In order, up to the best epoch; reconstructions of an untrained model are left out."""
    drawn = {}
    for name in ("draw_scatters", "draw_image_panels", "draw_scatter"):
        draw = lambda first, *_, name=name: drawn.update({name: first})  # noqa: E731
        monkeypatch.setattr(plots, name, draw)
    auto_encoder.draw_pictures(shown((20, 10, 2, 1, 0), epochs=5), with_figures=True)
    times = ["before training", "after 1 epoch", "after 2 epochs", "after 5 epochs"]
    assert list(drawn["draw_scatters"]) == times
    assert list(drawn["draw_image_panels"]) == ["test images", *times[1:]]
    assert np.array_equal(drawn["draw_scatter"], drawn["draw_scatters"]["after 5 epochs"])


def test_another_picture_is_one_function_and_one_entry(monkeypatch):
    """And one that makes no sense for a model is not there."""
    figures = {"loss": auto_encoder.draw_loss, "new": lambda _: b"png", "none": lambda _: None}
    monkeypatch.setattr(auto_encoder, "FIGURES", figures)
    pictures = auto_encoder.draw_pictures(shown((0, 1), epochs=1), with_figures=True)
    assert list(pictures) == ["scatter", "loss", "new"]
    assert pictures["new"] == b"png"
    pictures = auto_encoder.draw_pictures(shown((0, 1), epochs=1), with_figures=False)
    assert list(pictures) == ["scatter"]


def test_reconstructions_stand_where_their_originals_do(figures):
    originals = RNG.random((100, 784))
    shown = {"test images": originals, "one": originals / 2, "two": originals / 3}
    plots.draw_image_panels(shown)
    assert [axes.get_title() for axes in figures[0].axes] == list(shown)
    for axes, images in zip(figures[0].axes, shown.values(), strict=True):
        tile = axes.images[0].get_array()[28:56, 84:112]
        assert np.array_equal(tile, images[13].reshape(28, 28))


def test_loss_curves_and_the_gap(figures):
    """The gap is between the test curve and the Laplace posterior's, where that is there."""
    curves = {"train": [200.0, 150.0, 120.0], "test": [190.0, 140.0, 125.0]}
    log = [{s: {"L_tot": curve[n]} for s, curve in curves.items()} for n in range(3)]
    log[0]["laplace"], log[2]["laplace"] = {"L_tot": 140.0}, {"L_tot": 116.5}
    auto_encoder.draw_loss(SimpleNamespace(log=log))
    (axes,) = figures[0].axes
    *lines, dashed = axes.lines
    assert [list(line.get_ydata()) for line in lines] == list(curves.values())
    assert lines[0].get_label() == "train, 200.0 to 120.0"
    bottom, top = axes.get_ylim()
    assert all(bottom < nats < top for nats in sum(curves.values(), [116.5]))
    assert (dashed.get_linestyle(), list(dashed.get_ydata())) == ("--", [140, 116.5])
    (band,) = axes.collections
    assert band.get_label() == "gap between the two, last 8.5 nats"
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert corners == {(1, 190), (3, 125), (1, 140), (3, 116.5)}


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
