"""The self-organising map: what it puts side by side, and what it sees of an image."""

import numpy as np
import pytest
import torch

from lib.som import (
    deskew,
    fit_prototypes,
    gradient_histograms,
    project_on_principal_axes,
    slant,
    som_positions,
)


def floats(images):
    """uint8 images [N, 28, 28] in [0, 1]."""
    return torch.from_numpy(images.copy()).float() / 255


def test_neighbours_on_the_map_look_alike(mnist):
    """They show the same digit, though no label was seen."""
    labels = mnist.train_labels[:3000]
    positions = 27 * som_positions(floats(mnist.train_images[:3000]), 0) - 0.5
    assert (positions - positions.round()).abs().max() < 1e-3
    assert -0.01 < positions.min() < 1 < 25 < positions.max() < 26.01
    votes = np.zeros((27, 27, 10), int)
    np.add.at(votes, (*positions.round().long().T.numpy(), labels), 1)
    around = sum(np.roll(votes, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1))
    assert votes.max(2).sum() > 2700
    assert np.take_along_axis(votes, (around - votes).argmax(2)[..., None], 2).sum() > 2500


def test_a_square_is_mapped_onto_a_square():
    """Features that lie evenly in a square, in two of ten dimensions, come to lie evenly."""
    torch.manual_seed(0)
    plane = torch.rand(4000, 2)
    features = torch.cat([plane, 0.001 * torch.randn(4000, 8)], 1)
    centres = (torch.arange(9) + 0.5) / 9
    nodes = torch.cartesian_prod(centres, centres)
    prototypes = fit_prototypes(features, nodes)
    assert prototypes.shape == (81, 10)
    fits = []
    for turned in (nodes, nodes.flip(1)):
        ones = torch.ones(81, 1)
        solution = torch.linalg.lstsq(torch.cat([turned, ones], 1), prototypes[:, :2]).solution
        residual = prototypes[:, :2] - torch.cat([turned, ones], 1) @ solution
        fits.append(residual.square().mean().sqrt().item())
    assert min(fits) < 0.06
    assert prototypes[:, :2].min() < 0.15
    assert prototypes[:, :2].max() > 0.85


def test_the_batch_map_by_its_formula():
    """In NumPy, one node after the other: 20 rounds, with radii that shrink by equal factors."""
    torch.manual_seed(0)
    features = torch.rand(60, 3)
    centres = (torch.arange(4) + 0.5) / 4
    nodes = torch.cartesian_prod(centres, centres)
    components = project_on_principal_axes(features)
    u = torch.special.ndtr(components / components.std(0)).numpy()
    features_64 = features.double().numpy()
    nodes_64 = nodes.double().numpy()

    def nearest_to(points, candidates):
        distances = np.linalg.norm(points[:, None] - candidates, axis=2)
        return distances.argmin(1)

    nearest = nearest_to(u, nodes_64)
    for number in range(20):
        radius = 0.3 * (0.02 / 0.3) ** (number / 19)
        prototypes = np.empty((16, 3))
        for i, node in enumerate(nodes_64):
            squared_distances = ((nodes_64[nearest] - node) ** 2).sum(1)
            weights = np.exp(-squared_distances / (2 * radius**2))
            prototypes[i] = weights @ features_64 / weights.sum()
        nearest = nearest_to(features_64, prototypes)
    ours = fit_prototypes(features, nodes)
    np.testing.assert_allclose(ours, prototypes, atol=1e-4)


def test_slant_is_a_regression_of_columns_on_rows(mnist):
    """By NumPy's covariance, its weights the ink; and deskewed ink does not lean."""
    images = floats(mnist.train_images[:200])
    slants, mean_row = slant(images)
    y, x = np.mgrid[:28, :28]
    for image, ours, row in zip(images.double().numpy(), slants, mean_row, strict=True):
        covariance = np.cov(y.ravel(), x.ravel(), aweights=image.ravel())
        assert ours.item() == pytest.approx(covariance[0, 1] / covariance[0, 0], abs=1e-3)
        known = 2 * np.average(y.ravel(), weights=image.ravel()) / 27 - 1
        assert row.item() == pytest.approx(known, abs=1e-4)
    for image in deskew(images).double().numpy():
        assert abs(np.cov(y.ravel(), x.ravel(), aweights=image.ravel())[0, 1]) < 1


def test_deskewed_ink_stays_where_it_is():
    """Rows slide past the row of the ink's centre, also if that is not the image's middle."""
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    images = []
    for middle_row in (8.0, 20.0):
        distance_along = (rows - middle_row).abs()
        distance_across = columns - 14 - 0.5 * (rows - middle_row)
        stroke = (1.5 - distance_across.abs()).clamp(0, 1) * (6 - distance_along).clamp(0, 1)
        images.append(stroke)
    images = torch.stack(images)
    upright = deskew(images)
    for before, after in zip(images, upright, strict=True):
        for places in (rows, columns):
            centre_before = (places * before).sum() / before.sum()
            centre_after = (places * after).sum() / after.sum()
            assert centre_after.item() == pytest.approx(centre_before.item(), abs=0.1)


def test_images_without_a_slant():
    """An empty one and one with a single row of ink stay as they are."""
    images = torch.zeros(2, 28, 28)
    images[1, 10, 5:20] = 1
    assert slant(images)[0].tolist() == pytest.approx([0, 0], abs=1e-3)
    torch.testing.assert_close(deskew(images), images, rtol=0, atol=1e-4)


def test_a_ramp_has_one_gradient_everywhere():
    y, x = np.mgrid[:28, :28]
    for direction, ramp in ((0, x), (2, y), (4, -x), (5, -x - y)):
        histogram = gradient_histograms(torch.from_numpy(ramp[None] / 28)).view(8, 25)
        assert torch.allclose(histogram[direction], torch.tensor(0.2).double(), atol=1e-6)
    between = gradient_histograms(torch.from_numpy((2 * x + y)[None] / 28)).view(8, 25)
    share = np.arctan2(1, 2) / (np.pi / 4)  # of the way from the first direction to the second
    known = np.array([1 - share, share]) / np.hypot(1 - share, share) / 5
    assert between[:2].numpy() == pytest.approx(np.repeat(known[:, None], 25, 1), abs=1e-6)
