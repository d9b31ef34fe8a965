"""A self-organising map (Kohonen 1982) of images, so that those that look alike are neighbours.

It compares gradient histograms of the images, after their slant is removed, and needs no labels.
"""

import numpy as np
import torch
import torch.nn.functional as F

from lib.latent_grid import cell_centres

# Images whose features are computed at once: few enough for the processor's cache.
FEATURE_BATCH = 200
# The radius of the neighbourhood in each round; the side of the map is 1. At first a third of the
# map learns together, at last each node alone: 0.02 is half the distance between two of 27 nodes.
RADII = np.geomspace(0.3, 0.02, 20)
# Directions of the gradient that are told apart.
DIRECTIONS = 8
# Pixels per side of a cell, and from the start of a cell to that of the next one. An image of
# 28 x 28 pixels has 5 x 5 cells, which overlap.
CELL = 8
STRIDE = 5


def som_positions(images, seed, side=27, training_images=5000):
    """The node of the map whose prototype is nearest to each of images [N, H, W].

    float32 [N, 2], from 0 to 1; the nodes are the centres of side x side cells of the unit square.
    """
    features = [gradient_histograms(deskew(part)) for part in images.split(FEATURE_BATCH)]
    features = torch.cat(features)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:training_images]
    centres = cell_centres(side)
    nodes = torch.cartesian_prod(centres, centres).to(images.device)
    prototypes = fit_prototypes(features[chosen], nodes)
    return nodes[torch.cdist(features, prototypes).argmin(1)]


def fit_prototypes(features, nodes):
    """A feature vector for each of nodes [M, 2], from features [N, F]: [M, F].

    The batch form of the map (Kohonen 2001, section 3.6). In each round every prototype becomes a
    weighted mean of the features,

        m_i = sum_j h_ij S_j / sum_j h_ij n_j,    h_ij = exp(-|r_i - r_j|^2 / (2 radius^2)),

    where S_j is the sum of the n_j features whose nearest prototype is that of node j, and r_j is
    that node's place. The radius shrinks from round to round.
    """
    nearest = _nodes_by_principal_components(features, nodes)
    node_distances = torch.cdist(nodes, nodes)
    for radius in RADII:
        sums = features.new_zeros(len(nodes), features.shape[1])
        sums.index_add_(0, nearest, features)
        counts = nearest.bincount(minlength=len(nodes)).float()[:, None]
        neighbourhood = torch.exp(-0.5 * (node_distances / radius).square())
        # A node far from all features has weights that underflow to 0, and stays at 0.
        weighted_counts = (neighbourhood @ counts).clamp_min(1e-30)
        prototypes = neighbourhood @ sums / weighted_counts
        nearest = torch.cdist(features, prototypes).argmin(1)
    return prototypes


def _nodes_by_principal_components(features, nodes):
    """Where features [N, F] begin: the nodes nearest to their first two principal components.

    The components are moved to the unit square by the CDF of a Gaussian.
    """
    if len(features) == 1:  # it has no components; every place is as good as another
        return torch.zeros(1, dtype=torch.long, device=features.device)
    components = project_on_principal_axes(features)
    u = torch.special.ndtr(components / components.std(0))
    return torch.cdist(u, nodes).argmin(1)


def project_on_principal_axes(features):
    """Features [N, F] along their first two principal components, less their mean: [N, 2]."""
    centred = features - features.mean(0)
    scatter_matrix = (centred.T @ centred).cpu().double()  # Apple's GPUs have no float64
    eigenvectors = torch.linalg.eigh(scatter_matrix).eigenvectors  # by rising eigenvalue
    axes = eigenvectors[:, [-1, -2]].float()
    return centred @ axes.to(features.device)


def slant(images):
    """The slant of the ink of images [N, H, W], and its mean row: [N] each.

    The slant is in columns per row: the covariance of the ink's row and column, over the variance
    of its row. The mean row is from -1 at the top to 1 at the bottom.
    """
    height, width = images.shape[1:]
    rows = torch.linspace(-1, 1, height, device=images.device)
    columns = torch.linspace(-1, 1, width, device=images.device)
    row, column = torch.cartesian_prod(rows, columns).T
    ink = images.flatten(1)
    ink = ink / ink.sum(1, keepdim=True).clamp_min(1)  # an empty image stays empty
    moments = ink @ torch.stack([row, column, row * row, row * column], 1)
    mean_row, mean_column, mean_row_squared, mean_product = moments.T
    covariance = mean_product - mean_row * mean_column
    # A variance below 1e-3 is that of ink in a single row of pixels; it has no slant.
    variance = (mean_row_squared - mean_row * mean_row).clamp_min(1e-3)
    return covariance / variance, mean_row


def deskew(images):
    """Images [N, H, W] sheared so that their ink leans to neither side."""
    slants, mean_row = slant(images)
    shear = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    shear[:, 0, 1] = slants
    shear[:, 0, 2] = -slants * mean_row  # the row of the ink's centre stays where it is
    grid = F.affine_grid(shear, [len(images), 1, *images.shape[1:]], align_corners=True)
    return F.grid_sample(images[:, None], grid, align_corners=True)[:, 0]


def gradient_histograms(images):
    """How much of the gradient points each of 8 ways in each cell of images [N, H, W].

    [N, 8 * cells], of length 1: histograms of oriented gradients (Dalal & Triggs 2005).
    """
    gradient_down, gradient_right = torch.gradient(images, dim=(1, 2))
    angle = torch.atan2(gradient_down, gradient_right)  # from -pi to pi
    magnitude = torch.hypot(gradient_down, gradient_right)
    # Each pixel's magnitude is split between the two nearest directions.
    place = angle * (DIRECTIONS / 2) / torch.pi  # the angle, in steps from direction to direction
    direction = place.floor().long()
    to_next = (place - direction) * magnitude
    to_this = magnitude - to_next
    this_bin = direction.remainder(DIRECTIONS)[:, None]
    next_bin = (direction + 1).remainder(DIRECTIONS)[:, None]
    histograms = images.new_zeros(len(images), DIRECTIONS, *images.shape[1:])
    histograms.scatter_add_(1, this_bin, to_this[:, None])
    histograms.scatter_add_(1, next_bin, to_next[:, None])
    cells = F.avg_pool2d(histograms, kernel_size=CELL, stride=STRIDE)
    return F.normalize(cells.flatten(1))
