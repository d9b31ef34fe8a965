"""Where codes start, so that images that look alike are neighbours, found without labels.

A self-organising map (Kohonen 1982) of gradient histograms: it leaves each digit few islands.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from exact import middles

NODES = 27  # a side of the map
CELLS = 5  # a side, into which an image is cut for its histograms
SEEN = 5000  # images that organise it, at most
RADII = np.geomspace(0.3, 0.02, 20)  # within which nodes learn together, as shares of a side


@functools.lru_cache(maxsize=1)
def ordered_places(x, seed):
    """A place for each of images [N, 784] in the plane of the prior's quantiles: [N, 2], 0 to 1.

    The batch form of the map (Kohonen 2001, section 3.6), begun with two principal components.
    """
    draw = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:SEEN]
    seen = gradient_histograms(upright(x[draw.to(x.device)]))
    nodes = torch.cartesian_prod(middles(NODES), middles(NODES)).to(x.device)
    between = torch.cdist(nodes, nodes)
    centred = seen - seen.mean(0)
    axes = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors[:, [-1, -2]].float()
    place = centred @ axes
    nearest = torch.cdist(torch.special.ndtr(place / place.std(0)), nodes).argmin(1)
    for radius in RADII:
        sums = seen.new_zeros(len(nodes), seen.shape[1]).index_add_(0, nearest, seen)
        counts = nearest.bincount(minlength=len(nodes)).float()[:, None]
        weights = torch.exp(-0.5 * (between / radius).square())
        prototypes = weights @ sums / (weights @ counts).clamp_min(1e-30)
        nearest = torch.cdist(seen, prototypes).argmin(1)
    parts = (gradient_histograms(upright(part)) for part in x.split(500))
    return nodes[torch.cat([torch.cdist(part, prototypes).argmin(1) for part in parts])]


def upright(x):
    """Images [N, 28, 28], of x [N, 784], sheared so that ink does not lean to either side."""
    images, place = x.view(-1, 28, 28), torch.linspace(-1, 1, 28, device=x.device)
    ink = images / images.sum((1, 2), keepdim=True).clamp_min(1)
    row = ink.sum(2) @ place
    height = (ink.sum(2) @ place.square() - row.square()).clamp_min(1e-3)
    slant = ((ink @ place * place).sum(1) - row * (ink.sum(1) @ place)) / height
    shear = torch.eye(2, 3, device=x.device).repeat(len(x), 1, 1)
    shear[:, 0, 1], shear[:, 0, 2] = slant, -slant * row
    grid = F.affine_grid(shear, [len(x), 1, 28, 28], align_corners=True)
    return F.grid_sample(images[:, None], grid, align_corners=True)[:, 0]


def gradient_histograms(images):
    """Per image [N, 28, 28], how much gradient points each of 8 ways in each of 5 x 5 cells.

    [N, 200] of length 1: histograms of oriented gradients (Dalal & Triggs 2005).
    """
    down, right = (part.flatten(1) for part in torch.gradient(images, dim=(1, 2)))
    turn, length = torch.atan2(down, right) * 4 / torch.pi, torch.hypot(down, right)
    way = turn.floor().long()
    after = (turn - way) * length  # split between two ways
    cell = torch.arange(28, device=images.device) * CELLS // 28
    cell = (CELLS * cell[:, None] + cell).flatten()
    histograms = images.new_zeros(len(images), 8 * CELLS**2)
    for part, share in ((way, length - after), (way + 1, after)):
        histograms.scatter_add_(1, (part & 7) * CELLS**2 + cell, share)
    return F.normalize(histograms)
