"""The models against closed forms, torch.distributions and numerical integration."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

import models
from data import as_input
from lib import latent_grid
from models import (
    VAE,
    AutoEncoder,
    Decoder,
    GridVAE,
    HiddenLayer,
    RegionEncoder,
    make_model,
    sample_noise,
)

SMALL = (8, 8), (8, 8)  # widths of an encoder and a decoder


@pytest.fixture(scope="module")
def images(mnist):
    """The last 60 test images."""
    return as_input(mnist.test_images[-60:].copy())


def log_p_x_given_z(vae, x, z):
    """log p(x|z) by torch.distributions, for grey pixels the cross-entropy, [N]."""
    return Bernoulli(logits=vae.decode(z), validate_args=False).log_prob(x).sum(1)


# --- Networks ---------------------------------------------------------------------------------


def test_layers_by_numpy():
    """GELU(x) is x times the CDF of N(0, 1)."""
    torch.manual_seed(0)
    for layer, skips in ((HiddenLayer(5, 5), True), (HiddenLayer(5, 3), False)):
        h = torch.randn(4, 5)
        linear = h.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        known = linear * np.vectorize(math.erf)(linear / math.sqrt(2)) / 2 + linear / 2
        if skips:
            known = known + h.numpy()
        assert layer(h).detach().numpy() == pytest.approx(known, abs=1e-5)


def test_mlp_has_the_widths_it_is_given():
    network = models.mlp(7, (6, 5, 5), 3)
    kinds = [type(layer).__name__ for layer in network]
    assert kinds == ["HiddenLayer", "HiddenLayer", "HiddenLayer", "Linear"]
    assert [(layer.in_features, layer.out_features) for layer in network] == [
        (7, 6), (6, 5), (5, 5), (5, 3),
    ]  # fmt: skip
    assert models.hidden_layers(784, (6, 5))(torch.rand(2, 784)).shape == (2, 5)


def test_what_the_decoder_sees():
    """Quantiles from -4 to 4, and sines and cosines of them and of their halves, by NumPy."""
    z = torch.randn(50, 3)
    ours = Decoder(3, (8, 8)).inputs(z).numpy()
    quantiles = 4 * np.vectorize(math.erf)(z.numpy() / math.sqrt(2))
    known = [quantiles, np.sin(quantiles / 2), np.cos(quantiles / 2)]
    known += [np.sin(quantiles), np.cos(quantiles)]
    assert ours == pytest.approx(np.concatenate(known, axis=1), abs=1e-5)


@pytest.fixture
def encoder():
    """A region encoder of 3 x 3 regions whose Gaussians differ."""
    torch.manual_seed(0)
    encoder = RegionEncoder((8, 8), regions_per_side=3, readout_width=5)
    torch.nn.init.normal_(encoder.matrices.weight)
    return encoder


def test_gaussians_are_relative_to_their_region(encoder):
    """With matrices of zeros: at the region's centre, as wide as exp(-3 / 2) regions."""
    features = torch.rand(9, 8)
    encoder.matrices.weight.data.zero_()
    with torch.no_grad():
        mean, logvar = encoder.gaussian(features, torch.arange(9))
    third = Normal(0.0, 1.0).icdf(torch.tensor([1 / 6, 1 / 2, 5 / 6]))
    torch.testing.assert_close(mean, torch.cartesian_prod(third, third), rtol=0, atol=1e-5)
    # How much a step in z is in regions: three times the density of N(0, 1).
    width = 1 / (3 * Normal(0.0, 1.0).log_prob(mean).exp())
    torch.testing.assert_close(logvar, 2 * width.log() - 3, rtol=1e-4, atol=1e-4)


def test_each_region_has_a_matrix_of_its_own(encoder):
    """Rows: two of the mean, in widths of the region, two of the log-variance; last, offsets."""
    features, region = torch.rand(2, 8), torch.tensor([5, 7])
    ours = torch.cat(encoder.gaussian(features, region), dim=1).detach()
    read = encoder.readout(features).detach().numpy()
    for number, place in enumerate(((1, 2), (2, 1))):
        matrix = encoder.matrices.weight[region[number]].detach().numpy().reshape(4, 6)
        shift = matrix[:, :5] @ read[number] + matrix[:, 5]
        centre = Normal(0.0, 1.0).icdf((torch.tensor(place) + 0.5) / 3)
        width = (1 / (3 * Normal(0.0, 1.0).log_prob(centre).exp())).numpy()
        known = [*(centre.numpy() + width * shift[:2]), *(2 * np.log(width) - 3 + shift[2:])]
        assert ours[number].numpy() == pytest.approx(known, abs=1e-4)


def test_proposals_are_the_gaussians_of_the_likeliest_regions(encoder):
    x = torch.rand(4, 784)
    encoder.classifier.weight.data.zero_()
    encoder.classifier.bias.data = torch.tensor([0, 3, 0, 0, 2, 0, 1, 0, 0.0])
    proposed = encoder.propose(x, 3)
    assert len(proposed) == 3
    for region, (mean, logvar) in zip((1, 4, 6), proposed, strict=True):
        known_mean, known_logvar = encoder.gaussian(encoder.body(x), torch.full((4,), region))
        assert torch.equal(mean, known_mean)
        assert torch.equal(logvar, known_logvar)


def test_a_new_encoder_starts_at_its_regions_centres():
    torch.manual_seed(0)
    encoder = RegionEncoder((64, 64), regions_per_side=9, readout_width=32)
    assert encoder.matrices.weight.shape == (81, 4 * 33)
    assert encoder.matrices.weight.std().item() == pytest.approx(0.02, abs=0.001)
    assert abs(encoder.matrices.weight.mean().item()) < 0.002


def test_codes_have_no_border():
    """The place inside a region at the rim can be learnt to lie beyond every region's centre."""
    encoder, target = RegionEncoder((8,), 27, 64), torch.tensor([[4.0, -4.0]])
    features, region = torch.rand(1, 8), torch.tensor([27 * 26])
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (encoder.gaussian(features, region)[0] - target).square().sum().backward()
        optimizer.step()
    assert (encoder.gaussian(features, region)[0] - target).abs().max() < 0.1


# --- Models -----------------------------------------------------------------------------------


def test_the_model_that_is_made():
    assert {type(make_model("ae", dim)) for dim in (1, 2, 20)} == {AutoEncoder}
    assert [type(make_model("vae", dim)) for dim in (1, 2, 3)] == [VAE, GridVAE, VAE]
    for kind in ("vae", "ae"):
        for dim in (1, 2, 20):
            model = make_model(kind, dim)
            assert model.latent_dim == model.decoder.latent_dim == dim
            x = torch.rand(3, 784)
            assert model.codes(x).shape == (3, dim)
            assert model.decode(model.codes(x)).shape == (3, 784)


@pytest.mark.parametrize("made", [AutoEncoder(5, *SMALL), VAE(5, *SMALL), GridVAE(*SMALL)])
def test_a_config_builds_the_same_architecture(made):
    again = type(made)(**made.config)
    assert again.config == made.config
    shapes = [
        {name: weight.shape for name, weight in model.state_dict().items()}
        for model in (made, again)
    ]
    assert shapes[0] == shapes[1]


def test_default_architectures():
    grid, plain = GridVAE(), VAE(20)
    assert [layer.out_features for layer in grid.encoder.body] == [256] * 3
    assert [layer.out_features for layer in plain.encoder] == [512, 512, 256, 40]
    for model in (grid, plain, AutoEncoder(2)):
        assert [part.out_features for part in model.decoder.net] == [*[256] * 4, 512, 784]
    assert (grid.regions_per_side, grid.readout_width, grid.grid_side, grid.latent_dim) == (
        27,
        64,
        81,
        2,
    )
    assert [layer.out_features for layer in AutoEncoder().encoder] == [512, 512, 256, 2]


def test_an_auto_encoder_samples_like_its_codes(images):
    torch.manual_seed(0)
    model = AutoEncoder(5).eval()
    model.fit_sampler(images)
    codes = model.codes(images).detach()
    drawn = model.decoder.codes_from_noise(torch.randn(200_000, 5))
    scale = codes.std(0)
    torch.testing.assert_close(drawn.mean(0) / scale, codes.mean(0) / scale, rtol=0, atol=0.02)
    both = [torch.cov(part.T, correction=0) / torch.outer(scale, scale) for part in (drawn, codes)]
    torch.testing.assert_close(*both, rtol=0, atol=0.02)


def test_a_sampler_of_codes_that_do_not_vary_or_are_not_finite():
    model = AutoEncoder(3, *SMALL)
    model.fit_sampler(torch.rand(1, 784).repeat(5, 1))
    drawn = model.decoder.codes_from_noise(torch.randn(4, 3))
    torch.testing.assert_close(drawn, drawn[:1].expand(4, 3), rtol=0, atol=1e-5)
    model.encoder[0].weight.data[:] = torch.nan
    model.fit_sampler(torch.rand(5, 784))  # no error: the loss tells


def test_the_code_of_a_vae_is_the_mean():
    for vae in (VAE(3, *SMALL), GridVAE(*SMALL)):
        x = torch.rand(5, 784)
        assert torch.equal(vae.codes(x), vae.encode(x)[0])
        assert not torch.equal(vae.encode(x)[0], vae.encode(x)[1])


def test_a_vae_samples_from_the_prior():
    vae, noise = VAE(3, *SMALL), torch.randn(4, 3)
    vae.fit_sampler(torch.rand(5, 784))
    assert torch.equal(vae.decoder.codes_from_noise(noise), noise)


def proposing_vae(proposals):
    """A model with 3 x 3 regions whose proposals differ, and so do the images at their means."""
    torch.manual_seed(0)
    vae = GridVAE(*SMALL, regions_per_side=3, readout_width=5, grid_side=9, proposals=proposals)
    torch.nn.init.normal_(vae.encoder.classifier.weight)
    torch.nn.init.normal_(vae.encoder.matrices.weight)
    torch.nn.init.normal_(vae.decoder.net[-1].weight)
    return vae


@torch.no_grad()
def test_the_decoder_chooses_among_the_proposals(images):
    """By a loop over images and regions: log p(x|mean) - KL, with torch.distributions."""
    vae = proposing_vae(4)
    standard_normal = Normal(torch.zeros(2), torch.ones(2))
    ranks = []
    for x, mean, logvar in zip(images, *vae.encode(images), strict=True):
        logits = vae.encoder.classifier(vae.encoder.body(x[None]))[0]
        candidates = []
        for region in logits.argsort(descending=True)[:4]:
            q_mean, q_logvar = vae.encoder.gaussian(vae.encoder.body(x[None]), region[None])
            divergence = kl_divergence(Normal(q_mean[0], (q_logvar[0] / 2).exp()), standard_normal)
            score = log_p_x_given_z(vae, x[None], q_mean)[0] - divergence.sum()
            candidates.append((score.item(), q_mean[0], q_logvar[0]))
        scores = [score for score, _, _ in candidates]
        best = scores.index(max(scores))
        ranks.append(best)
        torch.testing.assert_close(mean, candidates[best][1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logvar, candidates[best][2], rtol=1e-4, atol=1e-5)
    assert set(ranks) == {0, 1, 2, 3}  # each is the best one of some image


@torch.no_grad()
def test_one_proposal_is_the_encoder_alone(images):
    vae = proposing_vae(4)
    features = vae.encoder.body(images)
    likeliest = vae.encoder.classifier(features).argmax(1)
    mean, logvar = vae.encode(images, proposals=1)
    known_mean, known_logvar = vae.encoder.gaussian(features, likeliest)
    assert torch.equal(mean, known_mean)
    assert torch.equal(logvar, known_logvar)


@torch.no_grad()
def test_of_equally_good_proposals_the_likeliest_is_taken(images, monkeypatch):
    """All decode to the same image, and nothing diverges."""
    monkeypatch.setattr(models, "kl_divergence", lambda mean, logvar: torch.zeros(len(mean)))
    vae = proposing_vae(4)
    vae.decoder.net[-1].weight.zero_()
    (likeliest_mean, _), *_ = vae.encoder.propose(images, 4)
    assert torch.equal(vae.encode(images)[0], likeliest_mean)


@torch.no_grad()
def test_more_proposals_explain_no_worse(shipped, images):
    """By what they are chosen by, the ELBO with the mean in place of a sample."""
    previous = None
    for proposals in (1, 2, 5, 27):
        mean, logvar = shipped.encode(images, proposals)
        score = log_p_x_given_z(shipped, images, mean) - models.kl_divergence(mean, logvar)
        if previous is not None:
            assert (score >= previous - 1e-3).all()
        previous = score


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
        known = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
        torch.testing.assert_close(divergence[0], known, rtol=1e-4, atol=1e-4)


def test_mean_elbo_of_a_logit_that_is_linear_in_z():
    """Antithetic samples cancel what is linear: only log(1 + exp(l)) is left to chance."""
    vae = VAE(2, *SMALL).eval()
    slope = torch.tensor([[1.5], [-0.5]])
    vae.decoder.forward = lambda z: (z @ slope).expand(-1, 784)
    mean, logvar = torch.tensor([[0.3, -0.2]]), torch.tensor([[-1.0, -3.0]])
    x = torch.full((1, 784), 0.25)
    # l = slope . z is N(m, s^2); E[x l - log(1 + exp(l))] by numerical integration.
    m = (mean @ slope).item()
    s = (logvar.exp() @ slope.square()).sqrt().item()
    logits = torch.linspace(m - 10 * s, m + 10 * s, 20_001, dtype=torch.double)
    weights = Normal(m, s).log_prob(logits).exp()
    values = 0.25 * logits - torch.nn.functional.softplus(logits)
    known = 784 * ((weights * values).sum() / weights.sum()).item()
    generator = torch.Generator().manual_seed(0)
    ours, divergence = vae.mean_elbo(x, (mean, logvar), pairs=4000, generator=generator)
    assert ours.item() == pytest.approx(known, rel=2e-3)
    normal = Normal(mean, (0.5 * logvar).exp())
    assert divergence.item() == pytest.approx(kl_divergence(normal, Normal(0.0, 1.0)).sum().item())


def test_mean_elbo_averages_as_many_samples_as_it_says(images):
    """Its deviation is that of as many independent samples as there are pairs, or less.

    (The two of a pair are the same if the likelihood is even in the offset.)
    """
    torch.manual_seed(0)
    vae = VAE(2, *SMALL).eval()
    with torch.no_grad():
        single = torch.stack([vae.elbo(images)[0] for _ in range(300)])
        averaged = torch.stack([vae.mean_elbo(images)[0] for _ in range(300)])
    error = single.std(0) * (2 / 300) ** 0.5
    assert ((single.mean(0) - averaged.mean(0)).abs() < 5 * error + 1e-3).all()
    assert (averaged.std(0) < 1.3 * single.std(0) / 8**0.5).all()


def test_elbo_of_an_auto_encoder_is_the_cross_entropy(images):
    model = AutoEncoder(4).eval()
    with torch.no_grad():
        likelihood, divergence = model.elbo(images)
        known = log_p_x_given_z(model, images, model.codes(images))
    torch.testing.assert_close(likelihood, known)
    assert divergence.tolist() == [0] * 60


def test_elbo_with_another_posterior_and_its_own_random_stream(images):
    """A Gaussian of no width gives p(x|z) at its mean; a generator decides what is drawn."""
    vae = VAE(2, *SMALL).eval()
    mean, logvar = torch.randn(60, 2), torch.full((60, 2), -60.0)
    with torch.no_grad():
        likelihood, _ = vae.elbo(images, (mean, logvar))
        torch.testing.assert_close(likelihood, log_p_x_given_z(vae, images, mean))
        state = torch.get_rng_state()
        seeds = (3, 3, 4)
        drawn = [
            vae.elbo(images, generator=torch.Generator().manual_seed(seed))[0] for seed in seeds
        ]
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("model", [VAE(1), GridVAE(), VAE(3)])
def test_log_likelihood_of_a_decoder_that_ignores_its_code(model):
    """Then log p(x) is that of independent pixels, whatever the latents."""
    logits = torch.linspace(-3, 3, 784)
    model.decoder.net[-1].weight.data[:] = 0
    model.decoder.net[-1].bias.data[:] = logits
    x = torch.rand(5, 784).round()
    known = Bernoulli(logits=logits).log_prob(x).sum(1)
    if isinstance(model, GridVAE):
        tolerance, ours = 2e-3, model.log_likelihood(x, side=81)
    else:
        tolerance, ours = 0.2, model.log_likelihood(x, samples=500)
    torch.testing.assert_close(ours, known, rtol=0, atol=tolerance)


def test_importance_samples_bound_the_quadrature(images):
    """From below, and the closer the more there are: the two ways to log p(x) on one model."""
    torch.manual_seed(0)
    vae = GridVAE().eval()
    vae.decoder.net[-1].weight.data.mul_(3)  # so that codes matter
    # A posterior that is neither the prior nor the right one.
    vae.encode = lambda x: (torch.full((len(x), 2), 0.1), torch.full((len(x), 2), 0.2))
    known = vae.log_likelihood(images, side=81)
    gaps = [known - VAE.log_likelihood(vae, images, samples=n) for n in (1, 20, 500)]
    one, twenty, many = (gap.mean().item() for gap in gaps)
    assert one > twenty + 0.1 > twenty > many > -0.03
    assert gaps[2].abs().max() < 0.5
    x = images.repeat(18, 1)  # more than one batch
    first, again, other = (
        VAE.log_likelihood(vae, x, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 < (known.repeat(18) - first).mean() < one


def test_elbo_of_the_laplace_posterior_is_a_tight_lower_bound(shipped, images):
    torch.manual_seed(0)
    log_likelihoods = shipped.log_likelihood(images)
    with torch.no_grad():
        q = [part.repeat(50, 1) for part in shipped.laplace_posterior(images)]
        elbo = torch.sub(*shipped.elbo(images.repeat(50, 1), q)).view(50, -1)
        gap = log_likelihoods - elbo.mean(0)
    standard_error = elbo.std(0) / 50**0.5
    assert (gap > -5 * standard_error - 0.01).all()
    assert 0 < gap.mean() < 1


def test_a_latent_grid_of_the_models_decoder(shipped):
    grid = shipped.make_grid()
    assert grid.codes.shape == (81**2, 2)
    with torch.no_grad():
        torch.testing.assert_close(grid.logits[:50], shipped.decode(grid.codes[:50]))
    assert not grid.logits.requires_grad
    assert shipped.make_grid(27).codes.shape == (27**2, 2)
    known = latent_grid.square_grid(shipped.decoder, 27)
    assert torch.equal(shipped.make_grid(27).logits, known.logits)


# --- Probabilities ----------------------------------------------------------------------------


def test_noise_of_a_shape_and_type():
    like = torch.zeros(3, 4, dtype=torch.double)
    generator = torch.Generator().manual_seed(5)
    drawn = models.standard_normal_like(like, generator)
    assert (drawn.dtype, drawn.shape) == (torch.double, (3, 4))
    assert torch.equal(drawn, models.standard_normal_like(like, generator.manual_seed(5)))


def test_reparameterized_noise():
    """A mean, plus noise times the standard deviation."""
    mean, logvar, noise = (
        torch.tensor([1.0, -2.0]),
        torch.tensor([0.0, 2.0]),
        torch.tensor([3.0, 1.0]),
    )
    ours = models.reparameterize(mean, logvar, noise).tolist()
    assert ours == pytest.approx([4, -2 + math.e])


def test_decoded_images_are_the_bernoulli_means(shipped):
    codes = np.array([[0.5, -1.0], [1.5, 0.25]], dtype=np.float32)
    images = shipped.decoder.decode_images(codes)
    with torch.no_grad():
        logits = shipped.decode(torch.from_numpy(codes)).double().numpy()
    assert images == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)


def test_each_even_draw_is_a_sample_of_the_prior():
    """Of 16 points of a scrambled Sobol sequence each 16th of N(0, 1) holds one, by its theory."""
    for draws in ("even", "random"):
        shares = 8 + 8 * torch.erf(sample_noise(16, 3, 0, draws).double() / 2**0.5)
        for column in shares.int().T.tolist():
            assert (sorted(column) == list(range(16))) == (draws == "even")
    noise = torch.stack([sample_noise(20, 2, seed, "even")[-1] for seed in range(4000)])
    torch.testing.assert_close(noise.mean(0), torch.zeros(2), rtol=0, atol=0.06)
    torch.testing.assert_close(noise.T.cov(), torch.eye(2), rtol=0, atol=0.09)
    independent = sample_noise(20_000, 3, 7, "random")
    torch.testing.assert_close(independent.mean(0), torch.zeros(3), rtol=0, atol=0.04)
    torch.testing.assert_close(independent.T.cov(), torch.eye(3), rtol=0, atol=0.04)
    assert torch.equal(independent, sample_noise(20_000, 3, 7, "random"))
    assert torch.equal(sample_noise(9, 3, 7, "even"), sample_noise(9, 3, 7, "even"))
    assert not torch.equal(sample_noise(9, 3, 7, "even"), sample_noise(9, 3, 8, "even"))


def test_even_draws_are_finite(monkeypatch):
    """Also if the sequence holds a 0 or a 1; by the way, they are the quantiles."""
    u = torch.tensor([[0.0, 1.0], [0.5, 0.9]])
    engine = torch.quasirandom.SobolEngine
    monkeypatch.setattr(engine, "draw", lambda self, count: u)
    drawn = sample_noise(2, 2, 0, "even")
    assert drawn.isfinite().all()
    assert drawn[0].abs().min() > 4.5
    assert drawn[1].tolist() == pytest.approx([0, 1.28155], abs=1e-4)
