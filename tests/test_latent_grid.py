"""Bayes' rule on a grid, against closed forms, numerical integration and NumPy."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from data import as_input
from lib import latent_grid

SIDE = 81
AXIS = [NormalDist().inv_cdf((i + 0.5) / SIDE) for i in range(SIDE)]
CODES = torch.tensor([[a, b] for a in AXIS for b in AXIS])


def product_decoder(slope, each):
    """Logits slope * z_1 for the first pixels and slope * z_2 for the next, 0 for the others."""
    decoder = torch.nn.Linear(2, 784, bias=False)
    decoder.weight.data[:] = 0
    decoder.weight.data[:each, 0] = slope
    decoder.weight.data[each : 2 * each, 1] = slope
    return decoder


@pytest.fixture(scope="module")
def images(mnist):
    """The last 25 test images."""
    return as_input(mnist.test_images[-25:].copy())


def test_nodes_are_quantiles_of_the_prior():
    grid = latent_grid.square_grid(product_decoder(1.0, 20), SIDE)
    torch.testing.assert_close(grid.codes, CODES, rtol=1e-5, atol=1e-5)
    upper = latent_grid.rectangular_grid(product_decoder(1.0, 20), *torch.rand(2, 3))
    assert upper.codes.shape == (9, 2)
    assert len(upper.codes[:, 0].unique()) == 3
    assert torch.equal(upper.codes[:3, 0], upper.codes[:1, 0].expand(3))  # row by row


def test_log_likelihood_is_that_of_bernoulli_variables():
    """Grey pixels are met by the same formula, x log p + (1 - x) log(1 - p)."""
    torch.manual_seed(0)
    decoder, x = product_decoder(2.0, 300), torch.rand(4, 784)
    p = decoder(CODES).detach().double().sigmoid()
    known = x.double() @ p.log().T + (1 - x.double()) @ (1 - p).log().T
    ours = latent_grid.square_grid(decoder, SIDE).log_likelihood_grid(x)
    torch.testing.assert_close(ours, known.float(), rtol=1e-5, atol=1e-3)


def quadratic(peak, precision):
    """log p(x|z) [1, G] such that log p(x, z) is a quadratic of the node's row and column."""
    index = torch.arange(SIDE, dtype=torch.double)
    offset = torch.cartesian_prod(index, index) - torch.tensor(peak, dtype=torch.double)
    precision = torch.tensor(precision, dtype=torch.double)
    log_joint = -0.5 * torch.einsum("gi,ij,gj->g", offset, precision, offset)
    log_prior = Normal(0.0, 1.0).log_prob(CODES.double()).sum(1)
    return (log_joint - log_prior)[None]


# Rotated Gaussians, as wide along one diagonal as along the other, or narrow, or in a corner.
PEAKS = [(40.2, 30.8), (12.3, 60.8), (1.3, 78.8)]
PRECISIONS = [[(0.5, 0.3), (0.3, 0.4)], [(0.9, -0.5), (-0.5, 0.6)], [(2.0, 0.0), (0.0, 0.1)]]


@pytest.mark.parametrize("peak", PEAKS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_laplace_finds_the_peak_of_a_rotated_gaussian(peak, precision):
    """Differences of a quadratic are exact, and one Newton step leads to its peak."""
    mean, logvar = latent_grid.fit_laplace(quadratic(peak, precision), CODES.double())
    z = [NormalDist().inv_cdf((place + 0.5) / SIDE) for place in peak]
    assert mean[0].tolist() == pytest.approx(z, abs=1e-6)
    for coordinate in (0, 1):  # dz / dnode is 1 / (side N(z; 0, 1))
        width = 1 / (SIDE * NormalDist().pdf(z[coordinate]))
        variance = width**2 / precision[coordinate][coordinate]
        known = math.log(min(variance, 0.25**2))
        assert logvar[0, coordinate].item() == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize("row", [0, SIDE - 1])
def test_laplace_at_the_border(row):
    """A density that grows to the border: the mean stays in its cell, the width is limited.

    In the other coordinate the peak is as anywhere else.
    """
    outwards = 1 if row else -1
    index = torch.arange(SIDE, dtype=torch.double)
    rows, columns = torch.cartesian_prod(index, index).T
    log_joint = 0.01 * outwards * rows - 0.5 * 0.5 * (columns - 50.3) ** 2
    log_prior = Normal(0.0, 1.0).log_prob(CODES.double()).sum(1)
    mean, logvar = latent_grid.fit_laplace((log_joint - log_prior)[None], CODES.double())
    quantile = SIDE * NormalDist().cdf(mean[0, 0].item()) - 0.5
    assert quantile == pytest.approx(row + 0.45 * outwards, abs=1e-5)
    assert logvar[0, 0].item() == pytest.approx(math.log(0.25**2))
    assert SIDE * NormalDist().cdf(mean[0, 1].item()) - 0.5 == pytest.approx(50.3, abs=1e-6)
    width = 1 / (SIDE * NormalDist().pdf(mean[0, 1].item()))
    assert logvar[0, 1].item() == pytest.approx(math.log(width**2 / 0.5), abs=1e-6)


@pytest.mark.parametrize("node", [(1, 1), (1, 79), (79, 1), (40, 79), (79, 79)])
def test_laplace_near_the_border_uses_the_nodes_around_the_highest(node):
    """Of a density that is no Gaussian: differences by NumPy, around that very node."""
    rng = np.random.default_rng(0)
    log_joint = np.full((SIDE, SIDE), -50.0)
    around = rng.uniform(-3, -1, (3, 3))
    around[1, 1] = 0
    rows, columns = slice(node[0] - 1, node[0] + 2), slice(node[1] - 1, node[1] + 2)
    log_joint[rows, columns] = around
    log_prior = Normal(0.0, 1.0).log_prob(CODES.double()).sum(1)
    log_likelihood = torch.from_numpy(log_joint.ravel()) - log_prior
    mean, logvar = latent_grid.fit_laplace(log_likelihood[None], CODES.double())
    gradient = np.array([around[2, 1] - around[0, 1], around[1, 2] - around[1, 0]]) / 2
    row_curvature = around[0, 1] + around[2, 1]
    column_curvature = around[1, 0] + around[1, 2]
    mixed = (around[2, 2] + around[0, 0] - around[0, 2] - around[2, 0]) / 4
    hessian = np.array([[row_curvature, mixed], [mixed, column_curvature]])
    known = np.array(node) - np.linalg.solve(hessian, gradient)
    nodes = SIDE * Normal(0.0, 1.0).cdf(mean[0]).numpy() - 0.5
    assert nodes == pytest.approx(known, abs=1e-6)
    width = 1 / (SIDE * Normal(0.0, 1.0).log_prob(mean[0]).exp().numpy())
    variance = width**2 / [-row_curvature, -column_curvature]
    assert logvar[0].numpy() == pytest.approx(np.log(np.minimum(variance, 0.25**2)), abs=1e-6)


def test_laplace_on_a_ridge():
    """Where rows and columns seem perfectly correlated the step stays finite, and in its cell."""
    log_likelihood = quadratic((40.3, 40.2), [(1.0, 1.4), (1.4, 1.0)])  # a saddle
    log_likelihood = torch.where(log_likelihood > -50, log_likelihood, -50.0)
    patch = latent_grid.patch_3x3(log_likelihood, torch.tensor([[40, 40]]))
    assert patch.shape == (1, 3, 3)
    mean, logvar = latent_grid.fit_laplace(log_likelihood, CODES.double())
    assert mean.isfinite().all()
    assert logvar.isfinite().all()
    best = (log_likelihood + Normal(0.0, 1.0).log_prob(CODES.double()).sum(1)).argmax()
    nodes = SIDE * Normal(0.0, 1.0).cdf(mean[0]) - 0.5
    known = torch.tensor([best // SIDE, best % SIDE])
    assert (nodes - known).abs().max() <= 0.45 + 1e-6


def test_the_step_solves_newtons_equation_up_to_a_correlation_of_nine_tenths():
    """Beyond it the mixed derivative is taken to be smaller; against a 2 x 2 solve by NumPy."""
    for correlation in (0.5, -0.8, 0.95, -0.99):
        cross = 6 * correlation  # with precisions of 9 and 4
        hessian = np.array([(9.0, cross), (cross, 4.0)])
        peak = np.array([40.02, 39.98])
        log_likelihood = quadratic(peak.tolist(), hessian.tolist())
        mean, _ = latent_grid.fit_laplace(log_likelihood, CODES.double())
        limited_cross = np.clip(cross, -5.4, 5.4)
        limited = np.array([(9.0, limited_cross), (limited_cross, 4.0)])
        gradient = hessian @ (peak - 40)
        known = 40 + np.clip(np.linalg.solve(limited, gradient), -0.45, 0.45)
        nodes = SIDE * Normal(0.0, 1.0).cdf(mean[0]).numpy() - 0.5
        assert nodes == pytest.approx(known, abs=1e-6)


def test_laplace_of_factorising_pixels():
    """Each coordinate's peak solves z = slope (ink - each p(z))."""
    each, slope = 40, 3.0
    x = torch.zeros(2, 784)
    x[:, :30] = x[:, each : each + 8] = 1
    x[1] = 0
    grid = latent_grid.square_grid(product_decoder(slope, each), SIDE)
    mean, logvar = grid.laplace_posterior(x.repeat(600, 1))  # more than one batch
    assert mean.shape == logvar.shape == (1200, 2)
    torch.testing.assert_close(mean[-2:], mean[:2])
    for coordinate, ink in enumerate((30, 8)):
        z, step = 0.0, 5.0
        for _ in range(60):  # bisection: the slope of the log density falls with z
            p, step = 1 / (1 + math.exp(-slope * z)), step / 2
            z += math.copysign(step, slope * (ink - each * p) - z)
        assert mean[0, coordinate] == pytest.approx(z, abs=0.003)
        known = -math.log(1 + each * slope**2 * p * (1 - p))
        assert logvar[0, coordinate] == pytest.approx(known, abs=0.1)  # differences


def test_probabilities_of_regions():
    """Sums over blocks of nodes, by NumPy; and only of blocks that fit."""
    values = 3 * torch.randn(4, SIDE**2, dtype=torch.double)
    posterior = np.exp(values.numpy())
    posterior /= posterior.sum(1, keepdims=True)
    for regions in (3, 9, 27):
        blocks = posterior.reshape(4, regions, SIDE // regions, regions, SIDE // regions)
        known = blocks.sum((2, 4)).reshape(4, -1)
        ours = latent_grid.region_probabilities(values, regions)
        assert ours.numpy() == pytest.approx(known, abs=1e-12)
    with pytest.raises(ValueError, match="81 nodes per side cannot be cut into 10 regions"):
        latent_grid.region_probabilities(values, 10)


def test_interpolation_of_parabolas():
    """A product of parabolas in the quantiles is met at any code, and so is its gradient."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, dtype=torch.double)
    quantiles = (torch.arange(SIDE, dtype=torch.double) + 0.5) / SIDE
    powers = torch.stack([quantiles**n for n in range(3)])
    values = torch.outer(a @ powers, b @ powers).view(1, -1)
    z = (2 * torch.randn(500, 2, dtype=torch.double)).requires_grad_()
    ours = latent_grid.interpolate(values.expand(500, -1), z)
    (gradient,) = torch.autograd.grad(ours.sum(), z)
    u = Normal(0.0, 1.0).cdf(z.detach())
    p, q = ((c @ torch.stack([u[:, i] ** n for n in range(3)])) for i, c in enumerate((a, b)))
    torch.testing.assert_close(ours.detach(), p * q, rtol=0, atol=1e-9)
    density = (-z.detach().square() / 2).exp() / math.sqrt(2 * math.pi)
    slopes = [(c[1] + 2 * c[2] * u[:, i]) * density[:, i] for i, c in enumerate((a, b))]
    known = torch.stack([slopes[0] * q, p * slopes[1]], 1)
    torch.testing.assert_close(gradient, known, rtol=0, atol=1e-8)


def test_interpolation_meets_the_nodes():
    """And between them it uses the nearest: a value that is elsewhere does not matter."""
    values = torch.randn(3, SIDE**2, dtype=torch.double)
    for node in ([5, 70], [0, 0], [80, 40]):
        z = torch.tensor([[AXIS[node[0]], AXIS[node[1]]]], dtype=torch.double).expand(3, 2)
        known = values[:, SIDE * node[0] + node[1]]
        torch.testing.assert_close(latent_grid.interpolate(values, z), known)
    single = torch.zeros(1, SIDE**2, dtype=torch.double)
    single[0, SIDE * 40 + 40] = 1
    for quantile, is_near in ((41.4, True), (41.6, False), (38.6, True), (38.4, False)):
        z = Normal(0.0, 1.0).icdf((torch.tensor([[quantile, 40.0]]).double() + 0.5) / SIDE)
        assert (latent_grid.interpolate(single, z).item() != 0) == is_near
    assert latent_grid.interpolate(single, torch.tensor([[math.nan, 0.0]]).double()).isnan()


@pytest.mark.parametrize("slope", [0.5, 3.0])
def test_log_marginal_likelihood_by_one_dimensional_integration(slope):
    """With z_1 and z_2 acting on different pixels the integral factorises; NumPy does each part."""
    each = 20
    ink = [(10, 10), (13, 4), (12, 8)]
    x = torch.zeros(len(ink), 784)
    for row, (first, second) in zip(x, ink, strict=True):
        row[:first] = row[each : each + second] = 1
    z = np.linspace(-12, 12, 200_001)
    prior = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    ink_probability = 1 / (1 + np.exp(-slope * z))

    def log_factor(count):
        density = prior * ink_probability**count * (1 - ink_probability) ** (each - count)
        return math.log(density.sum() * (z[1] - z[0]))

    known = [log_factor(a) + log_factor(b) + (784 - 2 * each) * math.log(0.5) for a, b in ink]
    ours = latent_grid.log_marginal_likelihood(product_decoder(slope, each), x, 324)
    torch.testing.assert_close(ours, torch.tensor(known), rtol=0, atol=2e-3)


def test_quadrature_by_tiles_is_that_of_all_nodes(shipped, images):
    """In double precision, all nodes at once; and tiles are passed over."""
    side, decoded = 162, []
    with torch.no_grad():
        axis = torch.tensor([NormalDist().inv_cdf((i + 0.5) / side) for i in range(side)])
        codes = torch.cartesian_prod(axis, axis)
        logits = torch.cat([shipped.decode(part) for part in codes.split(4000)]).double()
        log_weight = -torch.nn.functional.softplus(logits).sum(1) - 2 * math.log(side)
        known = (images[:10].double() @ logits.T + log_weight).logsumexp(1)

        def decoder(z):
            decoded.append(len(z))
            return shipped.decode(z)

        ours = latent_grid.log_marginal_likelihood(shipped.decoder, images[:10], side).double()
        torch.testing.assert_close(ours, known, rtol=0, atol=1e-3)
        single = latent_grid.log_marginal_likelihood(decoder, images[:1], side).double()
    torch.testing.assert_close(single, known[:1], rtol=0, atol=1e-3)
    assert 0 < sum(decoded) - SIDE**2 < 0.5 * side**2  # the coarse grid, and less than all tiles
    with pytest.raises(ValueError, match="cannot be cut into 9 tiles"):
        latent_grid.log_marginal_likelihood(shipped.decoder, images, 100)


def test_the_tiles_that_matter():
    """By NumPy: the highest of the 9 x 9 nodes and of those around them, at most 100 nats below."""
    torch.manual_seed(0)
    weight = 30 * torch.randn(784, 6)

    def decoder(z):  # with fine detail, so that peaks lie on both sides of the tiles' edges
        s = 12 * torch.special.ndtr(z)
        return torch.cat([s.sin(), s.cos(), (3 * s).sin()], 1) @ weight.T

    x = torch.rand(30, 784).round()
    ours = latent_grid._tiles_that_matter(decoder, x).numpy()
    grid = latent_grid.square_grid(decoder, SIDE).log_likelihood_grid(x).numpy()
    padded = np.pad(grid.reshape(30, SIDE, SIDE), [(0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    highest = np.empty((30, 9, 9))
    for row, column in np.ndindex(9, 9):
        block = padded[:, 9 * row : 9 * row + 11, 9 * column : 9 * column + 11]
        highest[:, row, column] = block.max((1, 2))
    known = highest > highest.max((1, 2), keepdims=True) - 100
    assert (ours == known).all()
    assert 0 < known.mean() < 0.5


def test_log_of_the_standard_normal():
    z = torch.randn(50, 3)
    known = Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(latent_grid.log_standard_normal(z), known)


def test_quadrature_has_converged(shipped, images):
    few = images[:4]  # the fewer there are, the fewer tiles are decoded
    finer = latent_grid.log_marginal_likelihood(shipped.decoder, few, 405)
    difference = shipped.log_likelihood(few) - finer
    assert difference.mean().abs() < 0.02
    assert difference.abs().median() < 0.001


def test_a_tile_counts_up_to_a_hundred_nats():
    """Two narrow peaks far apart: the lower one is seen, however few nats it adds."""
    for lower in (0.0, 3.0, 60.0):
        decoder = two_peaks(lower)
        ours = latent_grid.log_marginal_likelihood(decoder, torch.ones(1, 1), 324).item()
        assert ours == pytest.approx(math.log((1 + math.exp(-lower)) / 324**2), abs=1e-4)


def two_peaks(lower):
    """log p(x|z) is 0 at one node of 324 x 324 and -lower at another one, -1000 elsewhere.

    Around the two, where the coarse grid looks, it is 50 nats lower.
    """
    nodes = torch.tensor([[40, 40], [300, 290]])
    heights = torch.tensor([0.0, -lower])

    def decoder(z):
        place = 324 * torch.special.ndtr(z.double()) - 0.5
        distance = (place[:, None] - nodes).abs().amax(2)  # [G, 2]
        values = torch.where(distance < 0.01, heights, heights - 50 - 1000 * (distance > 8))
        log_p = values.amax(1)
        # log p(x = 1|z) = -softplus(-logit), so the logit of log_p is log_p - log(1 - exp(log_p))
        logit = torch.where(log_p > -1e-9, 40.0, log_p - torch.log(-torch.expm1(log_p)))
        return logit[:, None].float()

    return decoder
