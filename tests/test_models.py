"""The VAE against closed forms, torch.distributions and numerical integration."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from conftest import PROJECT
from torch.distributions import Bernoulli, Normal, kl_divergence

from models import VAE, AutoEncoder, load_checkpoint


@pytest.fixture(scope="module")
def shipped():
    """The shipped model, trained on MNIST."""
    return load_checkpoint(PROJECT / "checkpoints/vae.safetensors")


@pytest.fixture(scope="module")
def images(mnist):
    """The last 200 test images, float32 [200, 784] in [0, 1]."""
    return torch.tensor(mnist.test_images[-200:]).flatten(1).float() / 255


@pytest.fixture(scope="module")
def log_likelihoods(shipped, images):
    """log p(x) of the images under the shipped model, [200]."""
    return shipped.log_likelihood(images)


def log_p_x_given_z(vae, x, z):
    """log p(x|z) by torch.distributions, for grey pixels the cross-entropy, [N]."""
    return Bernoulli(logits=vae.decode(z), validate_args=False).log_prob(x).sum(1)


class ProductDecoder(torch.nn.Module):
    """Logits slope * z_1 for the first pixels and slope * z_2 for the next, 0 for the others."""

    def __init__(self, slope, each):
        super().__init__()
        self.slope, self.each = slope, each
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, z):
        first, second = (self.slope * column[:, None].expand(-1, self.each) for column in z.T)
        return torch.cat([first, second, torch.zeros(len(z), 784 - 2 * self.each)], dim=1)


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_shapes_and_types(latent_dim):
    vae = VAE(latent_dim).eval()
    x = torch.rand(7, 784)
    mean, logvar = vae.encode(x)
    assert mean.shape == logvar.shape == (7, latent_dim)
    assert vae.decode(mean).shape == (7, 784)
    likelihood, divergence = vae.elbo(x)
    assert likelihood.shape == divergence.shape == vae.log_likelihood(x, side=81).shape == (7,)
    assert likelihood.dtype == divergence.dtype == torch.float32
    assert torch.equal(vae.codes(x), mean)


@pytest.mark.parametrize("latent_dim", [1, 2, 32])
def test_plain_auto_encoder_is_binary_cross_entropy(images, latent_dim):
    torch.manual_seed(0)
    model = AutoEncoder(latent_dim).eval()
    codes = model.encode(images)
    assert codes.shape == (len(images), latent_dim)
    assert torch.equal(model.codes(images), codes)
    likelihood, divergence = model.elbo(images)
    known = Bernoulli(logits=model.decode(codes), validate_args=False).log_prob(images).sum(1)
    torch.testing.assert_close(likelihood, known)
    assert (divergence == 0).all()
    likelihood.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_auto_encoder_samples_like_its_codes(images):
    torch.manual_seed(0)
    model = AutoEncoder(5).eval()
    model.fit_samples(images)
    with torch.no_grad():
        codes = model.encode(images)
    drawn = model.decoder.sample(torch.randn(200_000, 5))
    scale = codes.std(0)
    torch.testing.assert_close(drawn.mean(0) / scale, codes.mean(0) / scale, rtol=0, atol=0.02)
    both = [torch.cov(part.T, correction=0) / torch.outer(scale, scale) for part in (drawn, codes)]
    torch.testing.assert_close(*both, rtol=0, atol=0.02)


def test_vae_samples_from_its_prior():
    noise = torch.randn(4, 3)
    assert torch.equal(VAE(3).decoder.sample(noise), noise)


@pytest.mark.parametrize("kind", ["exact", "network"])
def test_elbo_terms_agree_with_torch_distributions(shipped, images, kind):
    torch.manual_seed(0)
    vae = shipped if kind == "exact" else VAE(5).eval()
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


@pytest.mark.parametrize("latent_dim", [2, 3])
def test_log_likelihood_of_a_decoder_that_ignores_its_code(latent_dim):
    """Then log p(x) is that of independent pixels, whatever the latents."""
    vae = VAE(latent_dim).eval()
    output = vae.decoder.net[-1]
    logits = torch.linspace(-3, 3, 784)
    with torch.no_grad():
        output.weight.zero_()
        output.bias.copy_(logits)
    x = torch.rand(5, 784).round()
    known = Bernoulli(logits=logits).log_prob(x).sum(1)
    tolerance = 2e-3 if latent_dim == 2 else 0.2  # by quadrature, or by importance sampling
    ours = vae.log_likelihood(x, side=81, samples=500)
    torch.testing.assert_close(ours, known, rtol=0, atol=tolerance)


@pytest.mark.parametrize("slope", [0.5, 3.0])
def test_log_likelihood_of_a_product_by_one_dimensional_integration(slope):
    """With z_1 and z_2 acting on different pixels the integral factorises; NumPy does each part."""
    each = 20
    vae = VAE(2).eval()
    vae.decoder = ProductDecoder(slope, each)
    ink = [(10, 10), (13, 4), (12, 8)]
    x = torch.zeros(len(ink), 784)
    for row, (first, second) in zip(x, ink, strict=True):
        row[:first] = 1
        row[each : each + second] = 1
    z = np.linspace(-12, 12, 200_001)
    prior = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    ink_probability = 1 / (1 + np.exp(-slope * z))

    def log_factor(count):
        density = prior * ink_probability**count * (1 - ink_probability) ** (each - count)
        return math.log(density.sum() * (z[1] - z[0]))

    known = [log_factor(a) + log_factor(b) + (784 - 2 * each) * math.log(0.5) for a, b in ink]
    torch.testing.assert_close(vae.log_likelihood(x), torch.tensor(known), rtol=0, atol=2e-3)


def test_exact_encoder_finds_a_known_peak():
    """With factorising pixels each coordinate's peak solves z = slope (ink - each p(z))."""
    each, slope = 40, 3.0
    vae = VAE(2).eval()
    vae.decoder = ProductDecoder(slope, each)
    x = torch.zeros(1, 784)
    x[0, :30] = 1
    x[0, each : each + 8] = 1
    mean, logvar = vae.encode(x)
    for coordinate, ink in enumerate((30, 8)):
        low, high = -5.0, 5.0
        for _ in range(60):  # bisection: the slope of the log density falls with z
            z = (low + high) / 2
            p = 1 / (1 + math.exp(-slope * z))
            low, high = (z, high) if slope * (ink - each * p) > z else (low, z)
        assert mean[0, coordinate] == pytest.approx(z, abs=0.003)
        known = -math.log(1 + each * slope**2 * p * (1 - p))
        assert logvar[0, coordinate] == pytest.approx(known, abs=0.1)  # differences


def test_log_likelihood_agrees_with_importance_sampling(shipped, images, log_likelihoods):
    torch.manual_seed(0)
    x = images[:20]
    with torch.no_grad():
        mean, logvar = shipped.encode(x)
        # Wider than q, and a share of the prior, so that no mass is missed.
        near, prior = Normal(mean, 2 * (0.5 * logvar).exp()), Normal(0.0, 1.0)
        log_weights = []
        for draw in range(2000):
            z = near.sample() if draw % 2 else torch.randn_like(mean)
            log_proposal = torch.logaddexp(near.log_prob(z).sum(1), prior.log_prob(z).sum(1))
            log_prior = prior.log_prob(z).sum(1)
            log_weights.append(log_p_x_given_z(shipped, x, z) + log_prior - log_proposal)
        sampled = torch.stack(log_weights).logsumexp(0) - math.log(2000) + math.log(2)
        difference = log_likelihoods[:20] - sampled
    assert difference.abs().median() < 0.05
    assert difference.mean().abs() < 0.2  # multimodal images are under-sampled


def test_quadrature_has_converged(shipped, images, log_likelihoods):
    coarse, fine = log_likelihoods[:20], shipped.log_likelihood(images[:20], side=648)
    assert (coarse - fine).mean().abs() < 0.02
    assert (coarse - fine).abs().median() < 0.001


def test_quadrature_by_tiles_equals_the_whole_plane(shipped, images):
    """The same midpoint rule over all nodes at once, none passed over, in double precision."""
    x, side = images[:10], 162
    axis = torch.tensor([NormalDist().inv_cdf((i + 0.5) / side) for i in range(side)])
    codes = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logits = torch.cat([shipped.decode(part) for part in codes.split(4000)]).double()
    log_weight = -torch.nn.functional.softplus(logits).sum(1) - 2 * math.log(side)
    known = (x.double() @ logits.T + log_weight).logsumexp(1)
    ours = shipped.log_likelihood(x, side=side).double()
    torch.testing.assert_close(ours, known, rtol=0, atol=1e-3)


def test_elbo_is_a_tight_lower_bound(shipped, images, log_likelihoods):
    torch.manual_seed(0)
    with torch.no_grad():
        elbo = torch.sub(*shipped.elbo(images.repeat(50, 1))).view(50, -1)
        gap = log_likelihoods - elbo.mean(0)
    standard_error = elbo.std(0) / 50**0.5
    assert (gap > -5 * standard_error - 0.01).all()
    assert 0 < gap.mean() < 1


def test_importance_samples_bound_the_quadrature(images):
    """The two ways to log p(x) on one model: the network encoder allows both with 2 latents."""
    torch.manual_seed(0)
    vae = VAE(2, encoder="network").eval()
    exact = vae.log_likelihood(images[:20], side=81)
    sampled = vae._importance_sampled(images[:20], samples=500)
    torch.testing.assert_close(sampled, exact, rtol=0, atol=0.5)


def test_network_encoder_trains(images):
    torch.manual_seed(0)
    vae = VAE(3).train()
    likelihood, divergence = vae.elbo(images)
    (divergence - likelihood).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())


def test_exact_encoder_needs_two_latents():
    with pytest.raises(ValueError, match="2 latent"):
        VAE(3, encoder="exact")
