"""The encoder that is taught by Bayes' rule, and its training."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

import exact
import training
from data import as_input
from models import REGIONS, VAE, AutoEncoder, Encoder
from ordering import gradient_histograms, ordered_places, upright


@pytest.fixture(scope="module")
def images(mnist):
    """250 training images."""
    return as_input(mnist.train_images[:250].copy())


@pytest.fixture(scope="module")
def taught(images):
    """A VAE that saw 250 images 20 times."""
    torch.manual_seed(0)
    vae, x = VAE(2, (256, 256), (128, 128)), images.repeat(20, 1)
    settings = {"seed": 0, "epochs": 1, "batch_size": 50, "lr": 5e-3}
    training.train_epoch(vae, training.make_optimizers(vae), x, {"test": images}, 0, settings)
    return vae.eval()


@torch.no_grad()
def mean_total(vae, x, q, draws=20):
    """Mean L_tot, nats per image."""
    return -sum(torch.sub(*vae.elbo(x, q)).mean().item() for _ in range(draws)) / draws


def test_trained_codes_are_those_of_the_images(taught, images):
    """L_tot with q(z|x) is far below that with another image's q, and bounded as it should be."""
    x = images[:100]
    q, anothers = taught.encode(x), [part.roll(1, 0) for part in taught.encode(x)]
    ours, best = mean_total(taught, x, q), mean_total(taught, x, taught.posterior(x))
    assert ours < mean_total(taught, x, anothers) - 50
    assert -taught.log_likelihood(x, side=162).mean() - 0.1 < best < ours


def test_codes_have_no_border():
    """The place inside a region at the rim can be learnt to lie beyond every region's centre."""
    encoder, target = Encoder((8,)), torch.tensor([[4.0, -4.0]])
    features, region = torch.rand(1, 8), torch.tensor([REGIONS * (REGIONS - 1)])
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (encoder.place(features, region)[:, :2] - target).square().sum().backward()
        optimizer.step()
    assert (encoder.place(features, region)[:, :2] - target).abs().max() < 0.1


def test_lesson_is_bayes_rule_and_the_elbo(images):
    """Shares of regions summed up in NumPy; the ELBO by torch.distributions and the decoder."""
    torch.manual_seed(0)
    vae, x = VAE(2), images[:4]
    vae.decoder.net[-1].weight.data.mul_(20)  # so that codes matter
    table = exact.decode_plane(vae.decoder).log_likelihood(x)
    middles = [NormalDist().inv_cdf((i + 0.5) / 81) for i in range(81)]
    codes = torch.tensor([[a, b] for a in middles for b in middles])
    with torch.no_grad():
        logits = vae.decode(codes).double().numpy()
        log_p = x.double().numpy() @ logits.T - np.logaddexp(0, logits).sum(1)
        p = np.exp(log_p - log_p.max(1, keepdims=True)).reshape(4, 27, 3, 27, 3).sum((2, 4))
        shares = torch.tensor(p.reshape(4, -1) / p.sum((1, 2))[:, None])
        features = vae.encoder.features(x)
        scores = vae.encoder.region(features)
        mean, logvar = vae.encoder.place(features, shares.argmax(1)).chunk(2, dim=1)
        q = Normal(mean, (0.5 * logvar).exp())
        logits = vae.decode(q.sample((2000,)).view(-1, 2)).view(2000, 4, 784)
        likelihood = Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(2).mean(0)
        elbo = likelihood - kl_divergence(q, Normal(0.0, 1.0)).sum(1)
        smooth = 0.8 * shares + 0.2 / 27**2
        cross_entropy = -(smooth * scores.log_softmax(1)).sum(1).mean()
        lessons = torch.stack([vae.encoder.lesson(x, table) for _ in range(500)])
    known = cross_entropy.item() - 0.1 * elbo.mean().item()
    assert lessons.mean().item() == pytest.approx(known, abs=0.02)
    vae.encoder.lesson(x, table).backward()
    slope = (scores.softmax(1) - smooth).mean(0).float()
    torch.testing.assert_close(vae.encoder.region.bias.grad, slope, rtol=1e-3, atol=1e-5)


def test_interpolation_of_parabolas():
    """A product of parabolas in the quantiles is met at any code, and so is its gradient."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, dtype=torch.double)
    quantiles = (torch.arange(81, dtype=torch.double) + 0.5) / 81
    powers = torch.stack([quantiles**n for n in range(3)])
    table = torch.outer(a @ powers, b @ powers).view(1, -1)
    z = (2 * torch.randn(500, 2, dtype=torch.double)).requires_grad_()
    ours = exact.interpolate(table.expand(500, -1), z)
    (gradient,) = torch.autograd.grad(ours.sum(), z)
    u = Normal(0.0, 1.0).cdf(z.detach())
    p, q = ((c @ torch.stack([u[:, i] ** n for n in range(3)])) for i, c in enumerate((a, b)))
    torch.testing.assert_close(ours.detach(), p * q, rtol=0, atol=1e-9)
    density = (-z.detach().square() / 2).exp() / math.sqrt(2 * math.pi)
    slopes = [(c[1] + 2 * c[2] * u[:, i]) * density[:, i] for i, c in enumerate((a, b))]
    known = torch.stack([slopes[0] * q, p * slopes[1]], 1)
    torch.testing.assert_close(gradient, known, rtol=0, atol=1e-8)


def test_codes_in_order(mnist):
    """Neighbours on the map show the same digit, though no label was seen."""
    x, labels = as_input(mnist.train_images[:3000].copy()), mnist.train_labels[:3000]
    place = 27 * ordered_places(x, 0) - 0.5
    assert (place - place.round()).abs().max() < 1e-3
    assert -0.01 < place.min() < 1 < 25 < place.max() < 26.01
    votes = np.zeros((27, 27, 10), int)
    np.add.at(votes, (*place.round().long().T.numpy(), labels), 1)
    around = sum(np.roll(votes, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1))
    assert votes.max(2).sum() > 2700
    assert np.take_along_axis(votes, (around - votes).argmax(2)[..., None], 2).sum() > 2500


def test_features_of_the_map(mnist):
    """Ink that leaned does so no more; a ramp's gradient points one way everywhere."""
    images = upright(as_input(mnist.train_images[:200].copy())).double().numpy()
    y, x = np.mgrid[:28, :28]
    for image in images:
        assert abs(np.cov(y.ravel(), x.ravel(), aweights=image.ravel())[0, 1]) < 1
    for way, ramp in ((0, x), (2, y), (4, -x), (5, -x - y)):
        histogram = gradient_histograms(torch.from_numpy(ramp[None] / 28)).view(8, 25)
        assert torch.allclose(histogram[way], torch.tensor(0.2).double(), atol=1e-6)


@pytest.mark.parametrize(("kind", "latent_dim"), [(VAE, 2), (VAE, 3), (AutoEncoder, 2)])
def test_one_step_moves_every_weight_as_the_seed_says(images, kind, latent_dim):
    after = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = kind(latent_dim, (16, 16), (16, 16))
        before = [weight.detach().clone() for weight in model.parameters()]
        settings = {"seed": seed, "epochs": 20, "batch_size": 250, "lr": 5e-3}
        optimizers = training.make_optimizers(model)
        training.train_epoch(model, optimizers, images, {"test": images}, 0, settings)
        after.append(list(model.parameters()))
        assert not any(map(torch.equal, before, after[-1]))
    assert all(map(torch.equal, after[0], after[1]))
    assert not all(map(torch.equal, after[0], after[2]))
