"""What is drawn, read back from Matplotlib's own objects."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import plots

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_style():
    with plots.own_style():
        yield


@pytest.fixture
def figures(monkeypatch):
    """The Matplotlib figures that are made, in order."""
    made = []
    make = plots._figure

    def keep(*size, **options):
        made.append(make(*size, **options))
        return made[-1]

    monkeypatch.setattr(plots, "_figure", keep)
    return made


class Slope(torch.nn.Linear):
    """Decodes a code z to an image of one grey level, which rises with z_1 and faster with z_2."""

    def __init__(self):
        super().__init__(2, 784)
        self.weight.data[:] = torch.tensor([0.1, 1.0])
        self.bias.data.zero_()


def picture(png):
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image


def drawn_points(axes):
    return np.concatenate([collection.get_offsets() for collection in axes.collections])


def test_scatter_draws_every_code(figures):
    codes, labels = RNG.normal(size=(1000, 2)), RNG.integers(0, 10, 1000)
    png = plots.draw_scatter(codes, labels, plots.plane_of(codes), "Some codes")
    assert min(picture(png).size) >= 900
    axes = figures[0].axes[0]
    assert sorted(map(tuple, drawn_points(axes))) == sorted(map(tuple, codes))
    assert len({tuple(c.get_facecolor()[0]) for c in axes.collections}) == 10
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list("0123456789")
    assert not axes.texts  # the points are the picture
    assert axes.get_title() == "Some codes"
    assert axes.get_aspect() == 1
    assert axes.get_xlim() == axes.get_ylim()
    left, right = axes.get_xlim()
    assert left == -right
    assert np.abs(codes).max() < right < 1.1 * np.abs(codes).max()


def test_colours_and_markers_are_told_apart():
    """Ten of each; colours with WCAG 2.1's contrast of 3 to white, three brighter ones over 2."""
    assert len(set(plots.MARKERS)) == len(set(plots.COLOURS)) == len(plots.AREAS) == 10
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in plots.COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    contrast = np.sort(1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05))
    assert contrast[0] > 2
    assert contrast[3] > 3


def test_two_numbers_are_drawn_as_they_are():
    codes = RNG.normal(size=(50, 2))
    plane = plots.plane_of(codes)
    assert np.array_equal(plane.project(codes), codes)
    assert np.allclose(plane.codes_at(codes), codes)


def test_principal_components_keep_the_variance():
    codes = RNG.normal(size=(500, 6)) * [1, 5, 1, 1, 3, 1]
    plane = plots.plane_of(codes)
    projected = plane.project(codes)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(codes.T)))[::-1]
    assert np.allclose(projected.var(0, ddof=1), eigenvalues[:2])
    assert f"{eigenvalues[0] / eigenvalues.sum():.0%}" in plane.names[0]
    assert np.allclose(plane.project(plane.codes_at(projected)), projected, atol=1e-5)


def test_one_number_is_a_flat_line():
    codes = RNG.normal(size=(50, 1))
    plane = plots.plane_of(codes)
    points = plane.project(codes)
    assert np.allclose(points[:, 1], 0)
    assert np.allclose(plane.codes_at(points), codes, atol=1e-6)


def test_manifold_lies_as_the_scatter_does(figures):
    """The same axes, at the same place in both pictures; each image at the code it is of."""
    codes = RNG.normal(size=(100, 2))
    plane = plots.plane_of(codes)
    plots.draw_scatter(codes, np.arange(100) % 10, plane, "codes")
    plots.draw_manifold(Slope(), plane)
    scatter, axes = (figure.axes[0] for figure in figures)
    assert figures[0].get_size_inches().tolist() == figures[1].get_size_inches().tolist()
    for place in ("get_position", "get_window_extent"):
        assert np.array_equal(getattr(scatter, place)().bounds, getattr(axes, place)().bounds)
    for name in ("get_xlim", "get_ylim", "get_xticks", "get_yticks", "get_xlabel", "get_ylabel"):
        assert np.array_equal(getattr(scatter, name)(), getattr(axes, name)())
    (shown,) = axes.images
    mosaic = np.asarray(shown.get_array())
    assert mosaic.shape == (560, 560)
    left, right, bottom, top = shown.get_extent()
    assert (left, right) == axes.get_xlim()
    assert (bottom, top) == axes.get_ylim()
    assert shown.origin == "upper"
    for row, column in ((0, 0), (3, 17), (19, 5), (19, 19)):
        z1 = left + (right - left) * (column + 0.5) / 20
        z2 = top - (top - bottom) * (row + 0.5) / 20
        tile = mosaic[28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
        assert np.allclose(tile, 1 / (1 + np.exp(-(0.1 * z1 + z2))), atol=1e-5)


@pytest.mark.parametrize("count", [1, 20, 50, 60])
def test_generated_images_stand_over_their_codes_and_on_the_map(figures, count):
    images, codes = RNG.random((count, 28, 28)), RNG.normal(size=(count, 2))
    png = plots.draw_generated(torch.tensor(images), torch.tensor(codes), Slope())
    assert min(picture(png).size) >= 900
    sheet, below = figures[0].subfigs
    count = min(count, 50)
    above, under = sheet.axes[:count], sheet.axes[count:]
    for i, (image, text) in enumerate(zip(above, under, strict=True)):
        assert np.array_equal(image.images[0].get_array(), images[i])
        assert [label.get_text() for label in image.texts] == [f"{i:02d}"]
        written = text.texts[0].get_text().replace("\N{MINUS SIGN}", "-")
        assert written == f"{codes[i, 0]:.2f}, {codes[i, 1]:.2f}"
        assert text.get_subplotspec().colspan == image.get_subplotspec().colspan
        assert text.get_subplotspec().rowspan.start == image.get_subplotspec().rowspan.stop
    (axes,) = below.axes
    numbers = {text.get_text(): text.get_position() for text in axes.texts}
    assert numbers == {f"{i:02d}": tuple(code) for i, code in enumerate(codes[:50])}
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert ((left, bottom) < codes[:50]).all()
    assert (codes[:50] < (right, top)).all()
    assert axes.images[0].get_extent() == [left, right, bottom, top]


@pytest.mark.parametrize("latent_dim", [1, 3, 20])
def test_generated_images_of_other_codes_have_no_map(figures, latent_dim):
    plots.draw_generated(RNG.random((3, 784)), RNG.normal(size=(3, latent_dim)), None)
    (sheet,) = figures[0].subfigs
    assert len(sheet.axes) == 6


def test_panels_share_their_axes_and_say_when(figures):
    labels = RNG.integers(0, 10, 200)
    points = {f"after {n}": RNG.normal(size=(200, 2)) * (1 + n) for n in (0, 1, 2, 5)}
    plots.draw_scatter_epochs(points, labels, plots.plane_of(points["after 0"]))
    axes = figures[0].axes
    assert [panel.get_title() for panel in axes] == list(points)
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in axes}) == 1
    (left, right), (bottom, top) = axes[0].get_xlim(), axes[0].get_ylim()
    for panel, part in zip(axes, points.values(), strict=True):
        assert sorted(map(tuple, drawn_points(panel))) == sorted(map(tuple, part))
        assert (part > (left, bottom)).all()
        assert (part < (right, top)).all()


def test_panels_say_when(monkeypatch):
    """In order, up to the best epoch; reconstructions of an untrained model are left out."""
    drawn = {}
    for name in ("scatter_epochs", "reconstructions", "scatter"):
        draw = lambda shown, *_, name=name: drawn.update({name: shown})  # noqa: E731
        monkeypatch.setattr(plots, f"draw_{name}", draw)
    decoder = Slope()
    model = SimpleNamespace(
        eval=decoder.eval, codes=lambda x: x[:, :2], decode=decoder, decoder=decoder
    )
    x = torch.rand(20, 784)
    digits = SimpleNamespace(x_shown=x, x_test=x, test_labels=np.arange(20) % 10)
    views = {n: plots.snapshot(model, digits) for n in (20, 10, 2, 1, 0)}
    plots.draw(
        model, digits, {"log": [{"train": {"L_tot": 1.0}}], "snapshots": views}, 5, "test", True
    )
    times = ["before training", "after 1 epoch", "after 2 epochs", "after 5 epochs"]
    assert list(drawn["scatter_epochs"]) == times
    assert list(drawn["reconstructions"]) == ["test images", *times[1:]]
    assert np.array_equal(drawn["scatter"], drawn["scatter_epochs"]["after 5 epochs"])


def test_reconstructions_stand_where_their_originals_do(figures):
    originals = RNG.random((100, 784))
    shown = {"test images": originals, "one": originals / 2, "two": originals / 3}
    plots.draw_reconstructions(shown)
    assert [axes.get_title() for axes in figures[0].axes] == list(shown)
    mosaics = [np.asarray(axes.images[0].get_array()) for axes in figures[0].axes]
    assert len(mosaics) == 3
    assert np.array_equal(mosaics[0][28:56, 84:112], originals[13].reshape(28, 28))
    assert np.allclose(mosaics[0], 2 * mosaics[1])
    assert np.allclose(mosaics[0], 3 * mosaics[2])


def test_curves(figures):
    curves = {"train": [200.0, 150.0, 120.0], "validation": [190.0, 140.0, 125.0]}
    splits = [[(split, {"L_tot": nats}) for nats in curve] for split, curve in curves.items()]
    plots.draw_loss([dict(epoch) for epoch in zip(*splits, strict=True)])
    lines = figures[0].axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == list(curves.values())
    assert [line.get_label().split(",")[0] for line in lines] == list(curves)
    bottom, top = figures[0].axes[0].get_ylim()
    assert all(bottom < nats < top for nats in curves["validation"] + curves["train"][1:])
    assert [line.get_label().split(" to ")[1] for line in lines] == ["120.00", "125.00"]


def test_gap_is_between_the_test_curve_and_the_exact_posteriors(figures):
    test, exact = [150.0, 130.0, 120.0], [140.0, 125.0, 116.5]
    log = [
        {"train": {"L_tot": 200.0}, "test": {"L_tot": a}, "exact": {"L_tot": b}}
        for a, b in zip(test, exact, strict=True)
    ]
    del log[1]["exact"]  # where it is there
    plots.draw_loss(log)
    (axes,) = figures[0].axes
    dashed = axes.lines[-1]
    assert dashed.get_linestyle() == "--"
    assert list(dashed.get_ydata()) == [140, 116.5]
    (band,) = axes.collections
    assert band.get_label() == "amortisation gap, last 3.50 nats"
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert corners == {(1, 150), (3, 120), (1, 140), (3, 116.5)}


@pytest.mark.parametrize(
    ("latent_dim", "shape"), [(2, None), (32, (4, 8)), (20, (4, 5)), (7, (1, 7))]
)
def test_sanity_check_shows_codes_as_images_or_numbers(figures, latent_dim, shape):
    images, codes = RNG.random((100, 784)), RNG.normal(size=(100, latent_dim))
    plots.draw_sanity_check(images, codes, images / 2)
    rows = np.array(figures[0].axes).reshape(3, 10)
    for above, below, image in zip(rows[0], rows[2], images[::10], strict=True):
        assert np.array_equal(above.images[0].get_array(), image.reshape(28, 28))
        assert np.array_equal(below.images[0].get_array(), image.reshape(28, 28) / 2)
    for axes, code in zip(rows[1], codes[::10], strict=True):
        if shape is None:
            written = axes.texts[0].get_text().replace("\N{MINUS SIGN}", "-").split()
            assert written == [f"{number:.2f}" for number in code]
        else:
            assert np.array_equal(axes.images[0].get_array(), code.reshape(shape))
