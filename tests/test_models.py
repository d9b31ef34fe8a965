"""The VAE against closed forms, torch.distributions and numerical integration."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from data import as_input
from models import SHIPPED, VAE, AutoEncoder, load_checkpoint


@pytest.fixture(scope="module")
def shipped():
    """The shipped model, trained on MNIST."""
    return load_checkpoint(SHIPPED)


@pytest.fixture(scope="module")
def images(mnist):
    """The last 60 test images."""
    return as_input(mnist.test_images[-60:].copy())


@pytest.fixture(scope="module")
def log_likelihoods(shipped, images):
    """log p(x) of the images under the shipped model, [60]."""
    return shipped.log_likelihood(images)


def log_p_x_given_z(vae, x, z):
    """log p(x|z) by torch.distributions, for grey pixels the cross-entropy, [N]."""
    return Bernoulli(logits=vae.decode(z), validate_args=False).log_prob(x).sum(1)


def product_decoder(slope, each):
    """Logits slope * z_1 for the first pixels and slope * z_2 for the next, 0 for the others."""
    decoder = torch.nn.Linear(2, 784, bias=False)
    decoder.weight.data[:] = 0
    decoder.weight.data[:each, 0] = decoder.weight.data[each : 2 * each, 1] = slope
    return decoder


def test_auto_encoder_samples_like_its_codes(images):
    torch.manual_seed(0)
    model = AutoEncoder(5).eval()
    model.fit_samples(images)
    codes = model.codes(images).detach()
    drawn = model.decoder.sample(torch.randn(200_000, 5))
    scale = codes.std(0)
    torch.testing.assert_close(drawn.mean(0) / scale, codes.mean(0) / scale, rtol=0, atol=0.02)
    both = [torch.cov(part.T, correction=0) / torch.outer(scale, scale) for part in (drawn, codes)]
    torch.testing.assert_close(*both, rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", ["shipped", "plain"])
def test_elbo_terms_agree_with_torch_distributions(request, images, kind):
    torch.manual_seed(0)
    vae = request.getfixturevalue("shipped") if kind == "shipped" else VAE(5).eval()
    x = images[:8]
    with torch.no_grad():
        mean, logvar = vae.encode(x)
        posterior = Normal(mean, (0.5 * logvar).exp())
        likelihood, divergence = (term.view(100, 8) for term in vae.elbo(x.repeat(100, 1)))
        theirs = torch.stack([log_p_x_given_z(vae, x, posterior.sample()) for _ in range(1000)])
        error = (likelihood.var(0) / 100 + theirs.var(0) / 1000).sqrt()
        assert ((likelihood.mean(0) - theirs.mean(0)).abs() < 5 * error + 1e-3).all()
        exact = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
        torch.testing.assert_close(divergence[0], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_log_likelihood_of_a_decoder_that_ignores_its_code(latent_dim):
    """Then log p(x) is that of independent pixels, whatever the latents."""
    vae, logits = VAE(latent_dim).eval(), torch.linspace(-3, 3, 784)
    vae.decoder.net[-1].weight.data[:] = 0
    vae.decoder.net[-1].bias.data[:] = logits
    x = torch.rand(5, 784).round()
    known = Bernoulli(logits=logits).log_prob(x).sum(1)
    tolerance = 2e-3 if latent_dim == 2 else 0.2  # by quadrature, or by importance sampling
    ours = vae.log_likelihood(x, side=81, samples=500)
    torch.testing.assert_close(ours, known, rtol=0, atol=tolerance)


@pytest.mark.parametrize("slope", [0.5, 3.0])
def test_log_likelihood_of_a_product_by_one_dimensional_integration(slope):
    """With z_1 and z_2 acting on different pixels the integral factorises; NumPy does each part."""
    vae, each = VAE(2).eval(), 20
    vae.decoder = product_decoder(slope, each)
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
    torch.testing.assert_close(vae.log_likelihood(x), torch.tensor(known), rtol=0, atol=2e-3)


def test_posterior_finds_a_known_peak():
    """With factorising pixels each coordinate's peak solves z = slope (ink - each p(z))."""
    vae, each, slope = VAE(2).eval(), 40, 3.0
    vae.decoder = product_decoder(slope, each)
    x = torch.zeros(1, 784)
    x[0, :30] = x[0, each : each + 8] = 1
    mean, logvar = vae.posterior(x)
    for coordinate, ink in enumerate((30, 8)):
        z, step = 0.0, 5.0
        for _ in range(60):  # bisection: the slope of the log density falls with z
            p, step = 1 / (1 + math.exp(-slope * z)), step / 2
            z += math.copysign(step, slope * (ink - each * p) - z)
        assert mean[0, coordinate] == pytest.approx(z, abs=0.003)
        known = -math.log(1 + each * slope**2 * p * (1 - p))
        assert logvar[0, coordinate] == pytest.approx(known, abs=0.1)  # differences


def test_quadrature(shipped, images, log_likelihoods):
    """It has converged; by tiles it is the same as all nodes at once, in double precision."""
    difference = log_likelihoods[:25] - shipped.log_likelihood(images[:25], side=648)
    assert difference.mean().abs() < 0.02
    assert difference.abs().median() < 0.001
    x, side = images[:10], 162
    axis = torch.tensor([NormalDist().inv_cdf((i + 0.5) / side) for i in range(side)])
    codes = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logits = torch.cat([shipped.decode(part) for part in codes.split(4000)]).double()
    log_weight = -torch.nn.functional.softplus(logits).sum(1) - 2 * math.log(side)
    known = (x.double() @ logits.T + log_weight).logsumexp(1)
    ours = shipped.log_likelihood(x, side=side).double()
    torch.testing.assert_close(ours, known, rtol=0, atol=1e-3)


def test_elbo_of_the_posterior_is_a_tight_lower_bound(shipped, images, log_likelihoods):
    torch.manual_seed(0)
    with torch.no_grad():
        q = [part.repeat(50, 1) for part in shipped.posterior(images)]
        elbo = torch.sub(*shipped.elbo(images.repeat(50, 1), q)).view(50, -1)
        gap = log_likelihoods - elbo.mean(0)
    standard_error = elbo.std(0) / 50**0.5
    assert (gap > -5 * standard_error - 0.01).all()
    assert 0 < gap.mean() < 1


def test_importance_samples_bound_the_quadrature(images):
    """The two ways to log p(x) on one model."""
    torch.manual_seed(0)
    vae = VAE(2).eval()
    vae.encode = lambda x: 2 * (torch.zeros(len(x), 2),)  # the prior itself
    exact = vae.log_likelihood(images[:20], side=81)
    sampled = vae._importance_sampled(images[:20], samples=500)
    torch.testing.assert_close(sampled, exact, rtol=0, atol=0.5)
