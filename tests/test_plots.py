"""What is drawn, read back from Matplotlib's own objects."""

import io
import math

import numpy as np
import pytest
from PIL import Image

import plots

RNG = np.random.default_rng(0)


@pytest.fixture
def figures(monkeypatch):
    """The Matplotlib figures that are made, in order."""
    made = []
    make = plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *size: made.append(make(*size)) or made[-1])
    return made


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
    assert {text.get_text() for text in axes.texts} == set("0123456789")
    assert axes.get_title() == "Some codes"
    assert axes.get_aspect() == 1


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
    """Each image's pixels say where it should be: its grey level rises to the right and up."""
    points = plots.manifold_points()
    # at each quantile (i + 1/2) / 20 of the normal distribution, by its error function
    shares = sorted(0.5 * (1 + math.erf(value / math.sqrt(2))) for value in set(points[:, 0]))
    assert np.allclose(shares, (np.arange(20) + 0.5) / 20)
    rank = {value: i for i, value in enumerate(sorted(set(points[:, 0])))}
    grey = np.array([rank[x] + 100 * rank[y] for x, y in points])
    images = np.repeat(grey[:, None], 784, axis=1)
    plots.draw_manifold(images, points, "map", plots.plane_of(points))
    (shown,) = figures[0].axes[0].images
    mosaic = np.asarray(shown.get_array())
    assert mosaic.shape == (560, 560)
    assert shown.origin == "upper"
    assert mosaic[-1, 0] == 0  # the lowest codes at the bottom left
    assert mosaic[-1, -1] == 19  # z_1 grows to the right
    assert mosaic[0, 0] == 1900  # z_2 grows upwards
    ticks = [
        float(text.get_text().replace("\N{MINUS SIGN}", "-"))
        for text in figures[0].axes[0].get_yticklabels()
    ]
    assert ticks == sorted(ticks)


def test_panels_share_their_axes_and_say_when(figures):
    labels = RNG.integers(0, 10, 200)
    points = {epochs: RNG.normal(size=(200, 2)) * (1 + epochs) for epochs in (0, 1, 2, 5)}
    plots.draw_scatter_epochs(points, labels, plots.plane_of(points[0]))
    axes = figures[0].axes
    assert [panel.get_title() for panel in axes] == [
        "before training",
        "after 1 epoch",
        "after 2 epochs",
        "after 5 epochs",
    ]
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in axes}) == 1
    (left, right), (bottom, top) = axes[0].get_xlim(), axes[0].get_ylim()
    for panel, part in zip(axes, points.values(), strict=True):
        assert sorted(map(tuple, drawn_points(panel))) == sorted(map(tuple, part))
        assert (part > (left, bottom)).all()
        assert (part < (right, top)).all()


def test_reconstructions_stand_where_their_originals_do(figures):
    originals = RNG.random((100, 784))
    plots.draw_reconstructions(originals, {0: originals / 2, 20: originals / 3})
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


@pytest.mark.parametrize(
    ("latent_dim", "shape"), [(2, None), (32, (4, 8)), (20, (4, 5)), (7, (1, 7))]
)
def test_sanity_check_shows_codes_as_images_or_numbers(figures, latent_dim, shape):
    images, codes = RNG.random((10, 784)), RNG.normal(size=(10, latent_dim))
    plots.draw_sanity_check(images, codes, images)
    middle = np.array(figures[0].axes).reshape(3, 10)[1]
    for axes, code in zip(middle, codes, strict=True):
        if shape is None:
            assert axes.texts[0].get_text().split() == [f"{number:.2f}" for number in code]
        else:
            assert np.array_equal(axes.images[0].get_array(), code.reshape(shape))
