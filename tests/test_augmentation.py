"""Distorted copies of images: what is drawn, and what it does to an image."""

import pytest
import torch

from lib import augmentation
from lib.augmentation import augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def blob():
    """A round blob, a little right of and above the middle, 200 times."""
    row, column = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    distance = (row - 11).square() + (column - 15).square()
    return (-distance / 8).exp().expand(200, 28, 28)


def centroids(images):
    """Rows and columns of the ink's centroids: [N, 2]."""
    axis = torch.arange(28.0)
    ink = images.sum((1, 2))
    rows = (images.sum(2) * axis).sum(1) / ink
    columns = (images.sum(1) * axis).sum(1) / ink
    return torch.stack([rows, columns], 1)


def test_no_distortion_leaves_an_image_as_it_is(blob):
    torch.testing.assert_close(augment(blob, 0.0, generator()), blob, rtol=0, atol=1e-4)


def test_copies_differ_and_follow_the_seed(blob):
    first, again, other = (augment(blob, 0.06, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == blob.shape
    assert 0 <= first.min() < first.max() <= 1
    assert (first[0] - first[1]).abs().max() > 0.05


def test_how_far_the_ink_moves(blob):
    """By the spread of a bent place: strength x 14 pixels, less between the nodes of the field."""
    moved = centroids(augment(blob, 0.06, generator())) - centroids(blob)
    assert moved.mean(0).abs().max() < 0.2
    assert 0.4 * 0.06 * 14 < moved.std(0).mean() < 1.3 * 0.06 * 14


def test_a_known_matrix_turns_an_image(monkeypatch, blob):
    """What a place shows is what the matrix times that place showed before: a half turn."""

    def fixed(*shape, **_):
        if shape[1:] == (2, 2):
            return (-2 * torch.eye(2)).expand(shape)
        return torch.zeros(shape)

    monkeypatch.setattr(augmentation.torch, "randn", fixed)
    turned = augment(blob, 1.0, None)
    torch.testing.assert_close(turned, blob.flip(1, 2), rtol=0, atol=1e-4)


def test_what_comes_from_outside_is_blank(monkeypatch):
    """With all shifts of half an image, half of it shows what was outside."""

    def fixed(*shape, **_):
        return torch.zeros(shape) if shape[1:] == (2, 2) else torch.ones(shape)

    monkeypatch.setattr(augmentation.torch, "randn", fixed)
    shifted = augment(torch.ones(1, 28, 28), 1.0, None)[0]
    known = torch.zeros(28, 28)
    known[:14, :14] = 1
    torch.testing.assert_close(shifted, known, rtol=0, atol=1e-4)


def test_bicubic_weights():
    """Against F.interpolate."""
    nodes = torch.randn(3, 2, augmentation.NODES, augmentation.NODES, generator=generator())
    known = torch.nn.functional.interpolate(nodes, (28, 20), mode="bicubic", align_corners=True)
    ours = augmentation.bicubic_weights(28) @ nodes @ augmentation.bicubic_weights(20).T
    torch.testing.assert_close(ours, known)


def test_no_images():
    assert augment(torch.empty(0, 28, 28), 0.06, generator()).shape == (0, 28, 28)
