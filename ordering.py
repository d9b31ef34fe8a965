"""Where codes start, so that images that look alike are neighbours, found without labels.

A self-organising map (Kohonen 1982) of gradient histograms: it leaves each digit few islands.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from exact import middles

NODES = 27  # a side of the map
SEEN = 5000  # images that organise it, at most
RADII = np.geomspace(0.3, 0.02, 20)  # within which nodes learn together, as shares of a side


@functools.lru_cache(maxsize=1)
def ordered_places(x, seed):
    """A place for each of images [N, 784] in the plane of the prior's quantiles: [N, 2], 0 to 1.

    The batch form of the map (Kohonen 2001, section 3.6), begun with two principal components.
    """
    features = torch.cat([gradient_histograms(upright(part)) for part in x.split(200)])
    seen = features[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:SEEN]]
    nodes = torch.cartesian_prod(middles(NODES), middles(NODES)).to(x.device)
    centred = seen - seen.mean(0)
    axes = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors[:, [-1, -2]].float()
    place = centred @ axes
    nearest = torch.cdist(torch.special.ndtr(place / place.std(0)), nodes).argmin(1)
    for radius in RADII:
        sums = seen.new_zeros(len(nodes), seen.shape[1]).index_add_(0, nearest, seen)
        counts = nearest.bincount(minlength=len(nodes)).float()[:, None]
        weights = torch.exp(-0.5 * (torch.cdist(nodes, nodes) / radius).square())
        prototypes = weights @ sums / (weights @ counts).clamp_min(1e-30)
        nearest = torch.cdist(seen, prototypes).argmin(1)
    return nodes[torch.cdist(features, prototypes).argmin(1)]


def lean(x):
    """How far the ink of images [N, 784] leans, columns a row; its mean row, from -1 to 1: [N]."""
    r, c = torch.cartesian_prod(*2 * [torch.linspace(-1, 1, 28, device=x.device)]).T
    ink = x / x.sum(1, keepdim=True).clamp_min(1)
    row, column, square, product = (ink @ torch.stack([r, c, r * r, r * c], 1)).T
    return (product - row * column) / (square - row * row).clamp_min(1e-3), row


def upright(x):
    """Images [N, 28, 28], of x [N, 784], sheared so that ink does not lean to either side."""
    slant, row = lean(x)
    shear = torch.eye(2, 3, device=x.device).repeat(len(x), 1, 1)
    shear[:, 0, 1], shear[:, 0, 2] = slant, -slant * row
    grid = F.affine_grid(shear, [len(x), 1, 28, 28], align_corners=True)
    return F.grid_sample(x.view(-1, 1, 28, 28), grid, align_corners=True)[:, 0]


def gradient_histograms(images):
    """Per image [N, 28, 28], how much gradient points each of 8 ways in each of 5 x 5 cells.

    [N, 200] of length 1: histograms of oriented gradients (Dalal & Triggs 2005). Cells overlap.
    """
    down, right = (part[:, None] for part in torch.gradient(images, dim=(1, 2)))
    turn, length = torch.atan2(down, right) * 4 / torch.pi, torch.hypot(down, right)
    way = turn.floor().long()
    after = (turn - way) * length  # split between two ways
    shares = images.new_zeros(len(images), 8, 28, 28).scatter_(1, way & 7, length - after)
    shares.scatter_add_(1, (way + 1) & 7, after)
    return F.normalize(F.avg_pool2d(shares, kernel_size=8, stride=5).flatten(1))
