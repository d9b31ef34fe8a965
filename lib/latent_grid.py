"""Bayes' rule on a grid of codes: p(z|x) and log p(x) in nats, for two latent variables.

The prior is p(z) = N(0, I), and a pixel is a Bernoulli variable whose logit a decoder gives; the
decoder is any callable that maps codes [G, 2] to logits [G, D].

Two coordinate systems are used. A code z is a point of the plane, and u is the same point in the
unit square: in each coordinate u is the CDF of N(0, 1) at z. PyTorch's names are u = ndtr(z) and
z = ndtri(u). The nodes of a grid are evenly spaced in u, so that each stands for the same share of
the prior:

- the mean of p(x|z) over the nodes is an integral over the prior, p(x) (the midpoint rule),
- Bayes' rule is a softmax of log p(x|z) over the nodes,
- no node is spent where the prior has no mass.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lib import EVAL_BATCH

# Laplace's approximation, in units of nodes.
#
# At the border of the grid log p(x, z) can be almost linear or even convex, which the log-density
# of a Gaussian never is. There the curvature gives no sensible width, and a Gaussian as wide as the
# prior would have most of its mass where p(x|z) is far lower. Two limits prevent that.
#
# Of the precision, 1 / variance; any small positive number would do.
MIN_PRECISION = 1e-3
# Of the standard deviation, in z.
MAX_DEVIATION = 0.25
# Between row and column; below 1, so that the matrix can be inverted.
MAX_CORRELATION = 0.9
# From the highest node; below half a node, so that it stays the node nearest to the peak.
MAX_DISTANCE = 0.45

# Quadrature.
#
# Tiles per side, into which the unit square is cut.
TILES = 9
# Nodes per side of the grid that says which tiles matter, a multiple of TILES.
TILE_SEARCH_SIDE = 81
# In nats. A tile whose highest node is so far below that of the best tile is passed over: it has
# about exp(-100) of that tile's mass. This margin also covers a peak between the nodes, which is
# higher than they are.
NEGLIGIBLE = 100


class LatentGrid(NamedTuple):
    """Codes on a grid, and what a decoder makes of them."""

    codes: torch.Tensor  # [G, 2]
    logits: torch.Tensor  # [G, D]
    log_normaliser: torch.Tensor  # [G], the part of log p(x|z) that does not depend on x

    def log_likelihood_grid(self, x):
        """log p(x|z) in nats for images [N, D] in [0, 1] at every node: [N, G].

        It is the sum over the pixels of x l - log(1 + exp(l)), with l the pixel's logit. Only the
        first term depends on the image, so one matrix product serves all images and nodes.
        """
        return torch.addmm(self.log_normaliser, x, self.logits.T)

    def laplace_posterior(self, x):
        """The mean and logvar, [N, 2] each, of `fit_laplace` for any number of images [N, D]."""
        means = []
        logvars = []
        for part in x.split(EVAL_BATCH):
            mean, logvar = fit_laplace(self.log_likelihood_grid(part), self.codes)
            means.append(mean)
            logvars.append(logvar)
        return torch.cat(means), torch.cat(logvars)


def square_grid(decoder, side, device="cpu"):
    """The `LatentGrid` of side x side nodes, each in the middle of an equal share of the prior."""
    return rectangular_grid(decoder, cell_centres(side), cell_centres(side), device)


@torch.no_grad()
def rectangular_grid(decoder, row_u, column_u, device="cpu"):
    """The `LatentGrid` at these places of the unit square, [R] and [C]: R * C nodes, row by row."""
    u = torch.cartesian_prod(row_u, column_u)
    codes = torch.special.ndtri(u).to(device)
    logits = torch.cat([decoder(part) for part in codes.split(EVAL_BATCH)])
    log_normaliser = torch.cat([-F.softplus(part).sum(1) for part in logits.split(EVAL_BATCH)])
    return LatentGrid(codes, logits, log_normaliser)


def cell_centres(side):
    """The centres of `side` equal cells of the unit interval: [side]."""
    return (torch.arange(side) + 0.5) / side


def cell_width(z, side):
    """How wide, in z, a cell of width 1 / side in u is at codes z: [N, 2], as z is.

    That is 1 / side times dz/du, and du/dz is the density N(z; 0, 1).
    """
    return (0.5 * z.square()).exp() * math.sqrt(2 * math.pi) / side


def log_standard_normal(z):
    """log N(z; 0, I) in nats, [N], of codes [N, d]."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


def fit_laplace(log_posterior, codes):
    """A factorised Gaussian at the highest peak of p(z|x): mean and logvar, [N, 2] each.

    Laplace's approximation (MacKay 2003, chapter 27) from the `log_posterior` [N, G] of the nodes
    of a square grid, and the nodes' codes, [G, 2]. As all nodes have the same prior mass, the
    log posterior of a node is log p(x|z), up to a constant for each image. The constant does not
    matter, and whatever else is added counts as one more factor of the posterior, here and in the
    functions below.

    Gradient and Hessian are differences between neighbouring nodes, and one Newton step leads from
    the highest node to the peak. The Gaussian's precision matrix is the negative Hessian there. Of
    all factorised Gaussians q, the one with the smallest KL(q || that Gaussian) keeps the diagonal
    of the matrix (Bishop 2006, equation 10.12).

    The nodes may be several standard deviations apart, and then the width is only approximate: the
    differences see how fast the peak falls off farther out.

    The prior's density is added here, as a peak is sought of a density in z. (In
    `region_probabilities` the mass of a node's cell counts, and all cells have the same.)
    """
    side = grid_side(log_posterior)
    log_joint = log_posterior + log_standard_normal(codes)  # log p(x, z), up to a constant
    highest_index = log_joint.max(1).indices
    highest = torch.stack([highest_index // side, highest_index % side], 1)  # row and column
    middle_node = highest.clamp(1, side - 2)  # differences need a neighbour on either side

    patch = patch_3x3(log_joint, middle_node)
    upper_left, up, upper_right = patch[:, 0].unbind(1)
    left, middle, right = patch[:, 1].unbind(1)
    lower_left, down, lower_right = patch[:, 2].unbind(1)

    # All in units of nodes; z_1 grows from row to row, z_2 from column to column.
    gradient_row = (down - up) / 2
    gradient_column = (right - left) / 2
    precision_row = (2 * middle - (up + down)).clamp_min(MIN_PRECISION)
    precision_column = (2 * middle - (left + right)).clamp_min(MIN_PRECISION)
    max_cross = MAX_CORRELATION * (precision_row * precision_column).sqrt()
    # Minus the mixed second derivative.
    cross = (upper_right + lower_left - upper_left - lower_right) / 4
    cross = cross.clamp(-max_cross, max_cross)
    determinant = precision_row * precision_column - cross.square()

    # The inverse of a symmetric 2 x 2 matrix, times the gradient.
    step_row = (precision_column * gradient_row - cross * gradient_column) / determinant
    step_column = (precision_row * gradient_column - cross * gradient_row) / determinant
    newton_step = torch.stack([step_row, step_column], 1)
    peak = (middle_node + newton_step).clamp(highest - MAX_DISTANCE, highest + MAX_DISTANCE)

    # From nodes to codes. A maximum stays a maximum in other coordinates, so the mean needs no
    # correction. Where the gradient is zero, second derivatives change by
    #     d2f / dnode2 = d2f / dz2 * (dz / dnode)**2, exactly;
    # dz / dnode is the width of a cell.
    mean = torch.special.ndtri((peak + 0.5) / side)
    precision = torch.stack([precision_row, precision_column], 1)
    variance = cell_width(mean, side).square() / precision
    return mean, variance.clamp_max(MAX_DEVIATION**2).log()


def grid_side(values):
    """The nodes per side of a square grid, from values [N, G] at its nodes."""
    return math.isqrt(values.shape[1])


def place_in_grid(z, side):
    """The row and column, not whole numbers, of codes z in a grid of side x side nodes: [N, 2]."""
    return side * torch.special.ndtr(z) - 0.5


def patch_3x3(values, node):
    """The values [N, G] at the 3 x 3 nodes around nodes (row, column) [N, 2]: [N, 3, 3]."""
    offsets = torch.arange(-1, 2, device=values.device)
    rows = node[:, 0, None] + offsets
    columns = node[:, 1, None] + offsets
    nodes = grid_side(values) * rows[:, :, None] + columns[:, None, :]
    return values.gather(1, nodes.flatten(1)).view(-1, 3, 3)


def region_probabilities(log_posterior, regions_per_side):
    """The posterior probability of each region; regions have equal shares of the prior.

    [N, regions_per_side**2], row by row, from the log posterior of the nodes, [N, G], up to a
    constant for each image.
    Raises ValueError: the grid's side is no multiple of `regions_per_side`.
    """
    side = grid_side(log_posterior)
    if side % regions_per_side:
        raise ValueError(f"{side} nodes per side cannot be cut into {regions_per_side} regions")
    nodes = side // regions_per_side  # per side of a region
    posterior = log_posterior.softmax(1)  # Bayes' rule
    strips = posterior.view(-1, regions_per_side, nodes, side).sum(2)
    return strips.view(-1, regions_per_side**2, nodes).sum(2)


def interpolate(values, z):
    """Values [N, G], given at the nodes of a square grid, at one code z [N, 2] for each row: [N].

    Quadratic interpolation in both directions, through the 3 x 3 nearest nodes. Outside of the grid
    the outermost parabolas go on.
    """
    side = grid_side(values)
    place = place_in_grid(z, side)
    nearest = place.detach().nan_to_num().round().clamp(1, side - 2)  # NaN: training diverged
    t = place - nearest
    # Lagrange's polynomials: 1 at one of the nodes t = -1, 0, 1, and 0 at the two others.
    weights = torch.stack([t * (t - 1) / 2, 1 - t * t, t * (t + 1) / 2], 2)  # [N, 2, 3]
    patch = patch_3x3(values, nearest.long())
    return torch.einsum("nij,ni,nj->n", patch, weights[:, 0], weights[:, 1])


def log_marginal_likelihood(decoder, x, side):
    """log p(x) in nats, [N], of images [N, D], by the midpoint rule on side x side codes.

    The unit square is cut into tiles, and a tile is passed over for the images for which it does
    not matter. Raises ValueError: `side` is no multiple of TILES.
    """
    if side % TILES:
        raise ValueError(f"{side} nodes per side cannot be cut into {TILES} tiles")
    matters = _tiles_that_matter(decoder, x)
    inside = cell_centres(side // TILES)
    # The logarithm of the tiles' shares of the mean of p(x|z) over all nodes, added up so far.
    log_mean = x.new_full((len(x),), -math.inf)
    for row in range(TILES):
        for column in range(TILES):
            chosen = matters[:, row, column].nonzero()[:, 0]
            if len(chosen) == 0:
                continue
            row_u = (row + inside) / TILES
            column_u = (column + inside) / TILES
            tile = rectangular_grid(decoder, row_u, column_u, x.device)
            for images in chosen.split(EVAL_BATCH):
                log_sum_in_tile = _logsumexp(tile.log_likelihood_grid(x[images]))
                log_share = log_sum_in_tile - 2 * math.log(side)  # of the mean over all nodes
                log_mean[images] = log_mean[images].logaddexp(log_share)
    return log_mean


def _tiles_that_matter(decoder, x):
    """Whether each tile holds more than a negligible part of p(x), for images [N, D].

    bool [N, TILES, TILES]; judged by a coarse grid, with a margin of one node around each tile.
    """
    grid = square_grid(decoder, TILE_SEARCH_SIDE, x.device)
    nodes = TILE_SEARCH_SIDE // TILES  # per side of a tile
    parts = []
    for part in x.split(EVAL_BATCH):
        square = grid.log_likelihood_grid(part).view(-1, 1, TILE_SEARCH_SIDE, TILE_SEARCH_SIDE)
        pooled = F.max_pool2d(square, kernel_size=nodes + 2, stride=nodes, padding=1)
        parts.append(pooled[:, 0])
    highest_in_tile = torch.cat(parts)
    highest = highest_in_tile.amax((1, 2), keepdim=True)
    return highest_in_tile > highest - NEGLIGIBLE


def _logsumexp(values):
    """`values.logsumexp(1)` of [N, G], but faster where most terms underflow.

    log_softmax subtracts the logsumexp from every value, so a value minus its log_softmax is the
    logsumexp, in any column.
    """
    return values[:, 0] - values.log_softmax(1)[:, 0]
