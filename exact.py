"""Bayes' rule on a grid of decoded codes: p(z|x) and log p(x) in nats, for two latents."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

SIDE = 81  # nodes a side of the grid of codes, a multiple of TILES
TILES = 9  # a side, into which the plane is cut for quadrature
BATCH = 1000  # images or codes at a time where memory, not speed, is at stake


class Codebook(NamedTuple):
    """Codes on a grid of quantiles of the prior N(0, I), and what the decoder makes of them."""

    codes: torch.Tensor  # [G, 2]
    logits: torch.Tensor  # [G, 784]
    log_normaliser: torch.Tensor  # [G], all of log p(x|z) that does not depend on x

    def log_likelihood(self, x):
        """log p(x|z) in nats for images [N, 784] at every node: [N, G]."""
        return torch.addmm(self.log_normaliser, x, self.logits.T)

    def posterior(self, x):
        """As `fit_posterior`, for any number of images [N, 784]."""
        parts = [self.fit_posterior(self.log_likelihood(part)) for part in x.split(BATCH)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def fit_posterior(self, table):
        """The Gaussian at the highest peak of p(z|x): mean and log-variance, [N, 2] each.

        Laplace's approximation (MacKay 2003, chapter 27) by differences in `table`, log p(x|z) [N,
        G]: one Newton step from the highest node. The factorised Gaussian closest to it keeps the
        diagonal of its precision (Bishop 2006, equation 10.12).
        """
        side = math.isqrt(len(self.codes))
        log_joint = table + log_standard_normal(self.codes)
        best = log_joint.max(1).indices
        best = torch.stack([best // side, best % side], 1)
        centre = best.clamp(1, side - 2)
        values = neighbourhood(log_joint, centre)
        (a, b, c), (d, e, f), (g, h, i) = values.permute(1, 2, 0)
        slope = torch.stack([h - b, f - d], 1) / 2
        precision = (2 * e - torch.stack([b + h, d + f])).T.clamp_min(1e-3)  # per squared node
        limit = 0.9 * precision.prod(1).sqrt()  # keeps the matrix positive definite
        cross = ((c + g - a - i) / 4).clamp(-limit, limit)
        step = precision.flip(1) * slope - cross[:, None] * slope.flip(1)
        peak = centre + step / (precision.prod(1) - cross.square())[:, None]
        peak = peak.clamp(best - 0.45, best + 0.45)  # the best node is the nearest
        mean = torch.special.ndtri((peak + 0.5) / side)
        variance = width_of_share(mean, side).square() / precision
        return mean, variance.clamp_max(1).log()  # no wider than the prior


def neighbourhood(table, node):
    """The values of `table` [N, G] at the 3 x 3 nodes around nodes (row, column) [N, 2]."""
    around = node[:, :, None] + torch.arange(-1, 2, device=table.device)
    nodes = math.isqrt(table.shape[1]) * around[:, 0, :, None] + around[:, 1, None, :]
    return table.gather(1, nodes.flatten(1)).view(-1, 3, 3)


def width_of_share(z, side):
    """How wide a share 1 / side of the prior is at codes z: [N, 2]."""
    return (0.5 * z.square()).exp() * math.sqrt(2 * math.pi) / side


@torch.no_grad()
def decode_grid(decoder, rows, columns):
    """The `Codebook` at these quantiles of the prior, [R] and [C]: R * C codes, row by row."""
    device = next(decoder.parameters()).device
    codes = torch.special.ndtri(torch.cartesian_prod(rows, columns)).to(device)
    logits = torch.cat([decoder(part) for part in codes.split(BATCH)])
    log_normaliser = torch.cat([-F.softplus(part).sum(1) for part in logits.split(BATCH)])
    return Codebook(codes, logits, log_normaliser)


def decode_plane(decoder, side=SIDE):
    """The `Codebook` of side x side codes, each at the middle of an equal share of the prior."""
    return decode_grid(decoder, middles(side), middles(side))


def middles(side):
    """The middles of `side` equal shares of the unit interval: [side]."""
    return (torch.arange(side) + 0.5) / side


def interpolate(table, z):
    """`table` [N, G] at any codes z [N, 2]: a parabola each way through the 3 x 3 nearest nodes."""
    side = math.isqrt(table.shape[1])
    place = side * torch.special.ndtr(z) - 0.5  # counted in nodes
    nearest = place.detach().nan_to_num().round().clamp(1, side - 2)
    t = place - nearest
    weights = torch.stack([t * (t - 1) / 2, 1 - t * t, t * (t + 1) / 2], 2)  # [N, 2, 3]
    values = neighbourhood(table, nearest.long())
    return torch.einsum("nij,ni,nj->n", values, weights[:, 0], weights[:, 1])


def integrate(decoder, x, side):
    """log p(x) in nats, [N], by the midpoint rule on side x side codes, `side` a multiple of 9.

    Tile by tile; one is passed over for an image if a coarse grid stays 100 nats below that image's
    best there: far more than a peak between its nodes can hide.
    """
    coarse = decode_plane(decoder)
    step, nodes = SIDE // TILES, side // TILES
    highest = []
    for part in x.split(BATCH):
        grid = coarse.log_likelihood(part).view(-1, 1, SIDE, SIDE)
        highest.append(F.max_pool2d(grid, step + 2, step, padding=1)[:, 0])
    highest = torch.cat(highest)  # [N, TILES, TILES]
    matters = highest > highest.amax((1, 2), keepdim=True) - 100
    total = x.new_full((len(x),), -math.inf)
    inside = middles(nodes)
    for row, column in torch.cartesian_prod(*2 * [torch.arange(TILES)]):
        own = matters[:, row, column].nonzero()[:, 0]
        if not len(own):
            continue
        tile = decode_grid(decoder, (row + inside) / TILES, (column + inside) / TILES)
        for images in own.split(BATCH):
            logs = tile.log_likelihood(x[images])
            # As logs.logsumexp(1), but 4 times as fast where most terms underflow, as they do here.
            part = logs[:, 0] - logs.log_softmax(1)[:, 0] - 2 * math.log(nodes * TILES)
            total[images] = total[images].logaddexp(part)
    return total


def log_standard_normal(z):
    """log N(z; 0, I) in nats, [N], of codes [N, d]."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
