"""How the models are trained: settings, losses, steps, epochs, whole runs, final metrics."""

import copy
import dataclasses
import inspect
import json
import math
import re
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

import auto_encoder
from auto_encoder import GRID_SETTINGS, PLAIN_SETTINGS, SomPhase
from data import Digits, as_input
from lib import latent_grid
from lib.errors import InputError
from lib.som import som_positions
from models import VAE, AutoEncoder, GridVAE, load_checkpoint

PROJECT = Path(auto_encoder.__file__).parent
SMALL = (8, 8), (8, 8)  # widths of an encoder and a decoder
STANDARD_NORMAL = Normal(0.0, 1.0)


@pytest.fixture(scope="module")
def images(mnist):
    """250 training images."""
    return as_input(mnist.train_images[:250].copy())


def small_grid_vae():
    """One with 9 x 9 regions and 27 x 27 codes, whose decoder's images depend on the code."""
    torch.manual_seed(0)
    vae = GridVAE(*SMALL, regions_per_side=9, readout_width=8, grid_side=27)
    vae.decoder.net[-1].weight.data.mul_(20)
    return vae


def flat(model):
    """The model, its decoder changed to give the same image for every code."""
    model.decoder.net[-1].weight.data.zero_()
    return model


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spy(monkeypatch, owner, name):
    """The calls of a function, which goes on to do what it did: its arguments, by their names.

    A generator is kept as it was before the call.
    """
    function = getattr(owner, name)
    signature = inspect.signature(function)
    calls = []

    def recording(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        call = SimpleNamespace(**bound.arguments)
        if "generator" in bound.arguments:
            call.generator = call.generator.clone_state()
        calls.append(call)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, recording)
    return calls


def assert_gradients(parameters, loss):
    """The gradients that parameters have are those of this loss."""
    parameters = list(parameters)
    expected = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


# --- Settings ---------------------------------------------------------------------------------


def test_each_kind_of_model_has_its_settings():
    assert auto_encoder.default_settings(GridVAE(*SMALL)) is GRID_SETTINGS
    assert auto_encoder.default_settings(VAE(2, *SMALL)) is PLAIN_SETTINGS
    assert auto_encoder.default_settings(AutoEncoder(2, *SMALL)) is PLAIN_SETTINGS


def stated(document, pattern):
    """The number in a document that a pattern's group matches; line breaks do not count."""
    text = " ".join((PROJECT / document).read_text(encoding="utf-8").split())
    found = re.search(pattern, text)
    assert found, f"{document} does not say {pattern}"
    words = {"half": 0.5, "quarter": 0.25}
    return words.get(found[1]) or float(found[1])


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("epochs", r"training \| (\d+) epochs"),
        ("batch_size", r"batches of (\d+)"),
        ("lr", r"learning rate ([\d.]+) \(encoder"),
        ("encoder_hidden_decay", r"weight decay ([\d.]+) \(encoder only\)"),
        ("encoder_decay", r"weight decay ([\d.]+) \(encoder only\)"),
        ("grid_refresh", r"anew every (\d+) steps"),
        ("som_part", r"[Ii]n the first (quarter) of the epochs"),
        ("som_grid_side", r"near these places, on a grid of (\d+) x \d+ codes"),
        ("posterior_temperature", r"mathcal N\(m,\\,(\d)S\)"),
        ("label_smoothing", r"smoothed by ([\d.]+) "),
        ("elbo_weight", r"\+ ([\d.]+) \\cdot \\?\\text\{L\\_tot\}"),
    ],
)
def test_the_default_model_is_trained_as_the_report_says(name, pattern):
    assert getattr(GRID_SETTINGS, name) == stated("Report.md", pattern)


def test_the_encoders_learning_rate_is_what_the_report_says():
    encoder_lr = GRID_SETTINGS.lr * GRID_SETTINGS.encoder_lr_scale
    assert encoder_lr == pytest.approx(stated("Report.md", r"\(encoder (0\.\d+)\)"))
    assert GRID_SETTINGS.decoder_hidden_decay == 0  # "encoder only"


def test_a_usual_vae_is_trained_as_the_ablation_says():
    document = "benchmarks/README.md"
    decay = stated(document, r"weight decay of ([\d.]+) for the hidden matrices of both networks")
    assert PLAIN_SETTINGS.batch_size == stated(document, r"gives a Gaussian, batches of (\d+)")
    assert PLAIN_SETTINGS.lr == stated(document, r"batches of \d+, a learning rate of ([\d.]+)")
    assert PLAIN_SETTINGS.decoder_hidden_decay == decay
    assert PLAIN_SETTINGS.encoder_hidden_decay == decay
    assert PLAIN_SETTINGS.encoder_decay == 0
    assert PLAIN_SETTINGS.encoder_lr_scale == 1
    assert PLAIN_SETTINGS.som_part == 0


def test_settings_that_no_document_states():
    """Chosen on held-out images: a change of one needs new measurements."""
    chosen = {"warmup_part": 0.05, "som_sigma": 0.05}
    for name, value in chosen.items():
        assert getattr(GRID_SETTINGS, name) == value


def test_the_epochs_of_the_map_are_rounded_up():
    for epochs, som_epochs in ((1, 1), (2, 1), (4, 1), (5, 2), (20, 5)):
        assert dataclasses.replace(GRID_SETTINGS, epochs=epochs).som_epochs == som_epochs
        assert dataclasses.replace(PLAIN_SETTINGS, epochs=epochs).som_epochs == 0


@pytest.mark.parametrize("model", [GridVAE(*SMALL), VAE(3, *SMALL)])
def test_flags_change_settings(model):
    """Those that are not given stay as they are for this kind of model."""
    default = auto_encoder.default_settings(model)
    without = auto_encoder.parse_arguments([])
    assert auto_encoder.settings_from(without, model) == default
    given = {"epochs": 3, "batch_size": 7, "lr": 0.25, "seed": 5, "validation": 11, "patience": 2}
    flags = []
    for name, value in given.items():
        flags += ["--" + name.replace("_", "-"), str(value)]
    args = auto_encoder.parse_arguments(flags)
    assert auto_encoder.settings_from(args, model) == dataclasses.replace(default, **given)


class InitialWeightsMade(Exception):
    """Ends a run before the training."""


def test_the_initial_weights_follow_the_seed(monkeypatch, tmp_path, tiny_mnist):
    drawn = []

    def end(model, *_):
        drawn.append(model.state_dict())
        raise InitialWeightsMade

    monkeypatch.setattr(auto_encoder, "train", end)
    for seed in ("0", "0", "1"):
        flags = ["--data", str(tiny_mnist), "--out", str(tmp_path), "--seed", seed]
        with pytest.raises(InitialWeightsMade):
            auto_encoder.main([*flags, "--model", "ae", "--device", "cpu"])
    first, again, other = drawn
    for name in ("encoder.0.weight", "decoder.net.0.weight"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


# --- The encoder's loss -----------------------------------------------------------------------


def test_encoder_loss_is_bayes_rule_and_the_elbo(images):
    """Shares of regions summed up in NumPy; the ELBO by torch.distributions and the decoder."""
    vae = small_grid_vae()
    x = images[:4]
    grid = latent_grid.square_grid(vae.decoder, 81)
    log_posterior = grid.log_likelihood_grid(x)
    with torch.no_grad():
        logits = grid.logits.double().numpy()
        log_p = x.double().numpy() @ logits.T - np.logaddexp(0, logits).sum(1)
        p = np.exp(log_p - log_p.max(1, keepdims=True)).reshape(4, 9, 9, 9, 9)
        p_of_regions = p.sum((2, 4)).reshape(4, 81)  # of the nodes in each region
        shares = torch.tensor(p_of_regions / p_of_regions.sum(1, keepdims=True))

        features = vae.encoder.body(x)
        mean, logvar = vae.encoder.gaussian(features, shares.argmax(1))
        q = Normal(mean, (0.5 * logvar).exp())
        offsets = q.sample((2000,)) - mean
        samples = torch.cat([mean + offsets, mean - offsets])
        sampled_logits = vae.decode(samples.view(-1, 2)).view(4000, 4, 784)
        bernoulli = Bernoulli(logits=sampled_logits, validate_args=False)
        likelihood = bernoulli.log_prob(x).sum(2).mean(0)
        elbo = likelihood - kl_divergence(q, STANDARD_NORMAL).sum(1)

        smooth = 0.8 * shares + 0.2 / 81
        cross_entropy = -(smooth * vae.encoder.classifier(features).log_softmax(1)).sum(1)
        stream = generator()
        losses = []
        for _ in range(500):
            loss = auto_encoder.encoder_loss(vae.encoder, x, log_posterior, GRID_SETTINGS, stream)
            losses.append(loss.item())
    known = cross_entropy.mean().item() - 0.1 * elbo.mean().item()
    assert np.mean(losses) == pytest.approx(known, abs=0.05)


def test_the_loss_of_the_regions_reaches_the_whole_encoder(images):
    """Its slope is the predicted probabilities less the target, from the last to the first layer.

    Without the negative ELBO, the only other way from the loss to the body.
    """
    vae = small_grid_vae()
    encoder = vae.encoder
    settings = dataclasses.replace(GRID_SETTINGS, elbo_weight=0, label_smoothing=0)
    log_posterior = vae.make_grid().log_likelihood_grid(images)
    auto_encoder.encoder_loss(encoder, images, log_posterior, settings, generator()).backward()

    posterior = log_posterior.softmax(1).view(-1, 9, 3, 9, 3)
    target = posterior.sum((2, 4)).flatten(1)
    features = encoder.body(images)
    predicted = encoder.classifier(features).softmax(1)
    slope = (predicted - target).detach() / len(images)
    torch.testing.assert_close(encoder.classifier.bias.grad, slope.sum(0))
    feature_slope = slope @ encoder.classifier.weight.detach()
    weights = list(encoder.body.parameters())
    expected = torch.autograd.grad(features, weights, grad_outputs=feature_slope)
    for weight, gradient in zip(weights, expected, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-7)


def test_the_negative_elbo_reaches_the_whole_encoder(images):
    """What it adds to the slope of the body's weights is its own slope."""
    encoder = small_grid_vae().encoder
    log_posterior = small_grid_vae().make_grid().log_likelihood_grid(images)
    weights = list(encoder.body.parameters())
    slopes = {}
    for elbo_weight in (0.0, 1.0):
        settings = dataclasses.replace(GRID_SETTINGS, elbo_weight=elbo_weight)
        loss = auto_encoder.encoder_loss(encoder, images, log_posterior, settings, generator(1))
        slopes[elbo_weight] = torch.autograd.grad(loss, weights)

    posterior = log_posterior.softmax(1).view(-1, 9, 3, 9, 3)
    likeliest = posterior.sum((2, 4)).flatten(1).argmax(1)
    mean, logvar = encoder.gaussian(encoder.body(images), likeliest)
    elbo = auto_encoder.grid_elbo(mean, logvar, log_posterior, generator(1))
    expected = torch.autograd.grad(-elbo.mean(), weights)
    for with_it, without_it, gradient in zip(slopes[1.0], slopes[0.0], expected, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(with_it - without_it, gradient, rtol=1e-3, atol=1e-4)


def test_the_elbo_on_the_grid_has_antithetic_samples():
    """What is odd in the noise cancels: of a likelihood linear in u, near the centre."""
    u = (torch.arange(81.0) + 0.5) / 81
    values = (100 * u)[:, None].expand(81, 81).reshape(1, -1).expand(200, -1)
    mean = torch.zeros(200, 2)
    logvar = torch.full((200, 2), -2.0)
    elbo = auto_encoder.grid_elbo(mean, logvar, values, generator())
    divergence = math.exp(-2) - 1 + 2  # of two coordinates, half each
    torch.testing.assert_close(elbo, torch.full((200,), 50 - divergence), rtol=0, atol=1e-3)


def test_the_elbo_on_the_grid_by_numerical_integration():
    """Of a likelihood that is quadratic in the first coordinate of u, against a sum over z."""
    u = (torch.arange(81.0) + 0.5) / 81
    values = (-40 * (u - 0.3) ** 2)[:, None].expand(81, 81).reshape(1, -1)
    mean = 0.4
    logvar = -0.7
    z = np.linspace(-8, 8, 4001)
    density = np.exp(-((z - mean) ** 2) / (2 * math.exp(logvar)))
    u_of_z = np.array([NormalDist().cdf(value) for value in z])
    likelihood = (density * -40 * (u_of_z - 0.3) ** 2).sum() / density.sum()
    divergence = (mean**2 + 2 * math.exp(logvar) - 2 - 2 * logvar) / 2
    count = 50_000
    means = torch.tensor([[mean, 0.0]]).expand(count, -1)
    logvars = torch.full((count, 2), logvar)
    elbo = auto_encoder.grid_elbo(means, logvars, values.expand(count, -1), generator())
    assert elbo.mean().item() == pytest.approx(likelihood - divergence, abs=0.03)


# --- A step -----------------------------------------------------------------------------------

CHOSEN = torch.tensor([7, 3, 11, 2, 19, 5, 0, 13])  # the images of a batch, in random order


class Step:
    """A step of a small GridVAE that moves no weight, so that the gradients can be looked at."""

    def __init__(self, monkeypatch, vae, x_train, som_phase=None, **changed):
        settings = dataclasses.replace(GRID_SETTINGS, **changed)
        self.grid = vae.make_grid()
        with monkeypatch.context() as patched:
            encoder_calls = spy(patched, auto_encoder, "encoder_loss")
            elbo_calls = spy(patched, vae, "elbo")
            self.l_tot = auto_encoder.train_step(
                vae, [], x_train, CHOSEN, self.grid, settings, generator(3), som_phase
            )
        (self.encoder,) = encoder_calls  # what the encoder's loss was given
        (self.decoder,) = elbo_calls  # and that of the decoder


def test_each_network_learns_from_its_own_loss(monkeypatch, images):
    """Gradients left by an earlier step do not count."""
    vae = small_grid_vae()
    for parameter in vae.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    step = Step(monkeypatch, vae, images)

    given = step.decoder
    likelihood, divergence = vae.elbo(given.x, given.q, generator=given.generator)
    assert_gradients(vae.decoder.parameters(), -likelihood.mean())
    l_tot = (divergence - likelihood).mean().item()
    assert step.l_tot.item() == pytest.approx(l_tot, rel=1e-6)

    given = step.encoder
    loss = auto_encoder.encoder_loss(
        vae.encoder, given.x, given.log_posterior, given.settings, given.generator
    )
    assert_gradients(vae.encoder.parameters(), loss)


def test_the_decoder_learns_from_twice_the_posteriors_variance(monkeypatch, images):
    vae = small_grid_vae()
    posterior_mean, posterior_logvar = vae.laplace_posterior(images[CHOSEN])
    step = Step(monkeypatch, vae, images)
    mean, logvar = step.decoder.q
    assert torch.equal(step.decoder.x, images[CHOSEN])
    torch.testing.assert_close(mean, posterior_mean)
    torch.testing.assert_close(logvar.exp(), 2 * posterior_logvar.exp())


def test_the_encoder_learns_from_the_posterior_of_the_images(monkeypatch, images):
    step = Step(monkeypatch, small_grid_vae(), images)
    x = images[CHOSEN]
    assert torch.equal(step.encoder.x, x)
    torch.testing.assert_close(step.encoder.log_posterior, step.grid.log_likelihood_grid(x))
    assert step.encoder.settings == GRID_SETTINGS


@pytest.fixture
def som_phase(images):
    """That of 20 images, with places of our own."""
    phase = SomPhase(images[:20], dataclasses.replace(GRID_SETTINGS, som_sigma=0.1))
    phase.places = 0.2 + 0.6 * torch.rand(20, 2, generator=generator(1))
    return phase


def test_the_map_is_that_of_the_training_images(images):
    """Its places do not depend on the number of threads, and the settings say the rest."""
    settings = dataclasses.replace(GRID_SETTINGS, seed=4, som_sigma=0.1, som_grid_side=54)
    phase = SomPhase(images[:60], settings)
    known = som_positions(images[:60].view(-1, 28, 28), seed=4)
    assert torch.equal(phase.places, known)
    assert (phase.sigma, phase.grid_side) == (0.1, 54)


def test_the_maps_prior_is_a_gaussian_around_an_images_place(som_phase):
    """By torch.distributions, up to a constant."""
    codes = torch.randn(50, 2, generator=generator())
    ours = som_phase.log_som_prior(CHOSEN, codes)
    places = som_phase.places[CHOSEN][:, None]
    u = STANDARD_NORMAL.cdf(codes)
    log_density = Normal(places, 0.1).log_prob(u).sum(2)
    difference = ours - log_density
    torch.testing.assert_close(difference, difference[:1, :1].expand(8, 50), rtol=0, atol=1e-4)


def test_in_the_phase_of_the_map_the_prior_is_part_of_the_posterior(monkeypatch, images, som_phase):
    """That of each image; for the encoder and for the decoder.

    The decoder ignores its code, so the posterior is the prior: the codes are near the places.
    """
    vae = flat(small_grid_vae())
    step = Step(monkeypatch, vae, images, som_phase)
    prior = som_phase.log_som_prior(CHOSEN, step.grid.codes)
    likelihood = step.grid.log_likelihood_grid(step.encoder.x)
    torch.testing.assert_close(step.encoder.log_posterior, likelihood + prior)
    mean, _ = step.decoder.q
    distance = STANDARD_NORMAL.cdf(mean) - som_phase.places[CHOSEN]
    assert distance.abs().max() < 0.03  # the prior of all codes draws them inwards


@pytest.mark.parametrize("model", [VAE(3, *SMALL), AutoEncoder(3, *SMALL)])
def test_a_step_on_the_elbo(images, model):
    """L_tot by torch.distributions with the same noise, and its slope."""
    x = images[:20]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)  # left by an earlier step
    l_tot = auto_encoder.elbo_step(model, [], x, generator(1))
    if isinstance(model, VAE):
        mean, logvar = model.encode(x)
        deviation = (0.5 * logvar).exp()
        codes = mean + deviation * torch.randn(20, 3, generator=generator(1))
        divergence = kl_divergence(Normal(mean, deviation), STANDARD_NORMAL).sum(1)
    else:
        codes = model.encoder(x)
        divergence = torch.zeros(20)
    bernoulli = Bernoulli(logits=model.decode(codes), validate_args=False)
    expected = (divergence - bernoulli.log_prob(x).sum(1)).mean()
    assert l_tot.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_gradients(model.parameters(), expected)


# --- An epoch ---------------------------------------------------------------------------------


class Recorder:
    """Stands in for an optimizer: what the learning rates are at each step."""

    def __init__(self):
        self.param_groups = [{"lr_scale": 1.0}, {"lr_scale": 0.6}]
        self.rates = []

    def step(self):
        self.rates.append([group["lr"] for group in self.param_groups])


@pytest.fixture
def steps(monkeypatch):
    """What `train_step` is given at each step; it only makes the decoder's images blacker."""
    calls = []

    def step(vae, optimizers, x_train, indices, grid, settings, generator, som_phase):
        vae.decoder.net[-1].bias.data += 1
        calls.append(SimpleNamespace(indices=indices, grid=grid, som_phase=som_phase))
        return torch.tensor(12.34)

    monkeypatch.setattr(auto_encoder, "train_step", step)
    return calls


def run_epoch(x, epoch=0, som_phase=None, **changed):
    """An epoch of a small GridVAE in batches of five images."""
    settings = dataclasses.replace(GRID_SETTINGS, batch_size=5, **changed)
    auto_encoder.train_epoch(small_grid_vae(), [Recorder()], x, epoch, settings, som_phase)


def test_an_epoch_meets_every_image_once(steps):
    """In an order that differs from epoch to epoch and from seed to seed."""
    x = torch.zeros(203, 784)
    orders = []
    for epoch, seed in ((0, 0), (0, 0), (1, 0), (0, 1), (1, 1)):
        steps.clear()
        run_epoch(x, epoch=epoch, seed=seed)
        assert [len(step.indices) for step in steps] == [5] * 40 + [3]
        order = torch.cat([step.indices for step in steps]).tolist()
        assert sorted(order) == list(range(203))
        orders.append(order)
    first, again, *others = orders
    assert first == again
    assert first != sorted(first)
    for other in others:
        assert other != first
    assert others[0] != others[1]


def test_the_learning_rate_of_each_step():
    """Over two epochs of 41 steps, each at its middle; the second group's is 0.6 times as high."""
    model = AutoEncoder(2, *SMALL)
    recorder = Recorder()
    settings = dataclasses.replace(PLAIN_SETTINGS, batch_size=5, lr=0.02, epochs=2, warmup_part=0.1)
    for epoch in range(2):
        auto_encoder.train_epoch(model, [recorder], torch.rand(203, 784), epoch, settings)
    progress = (np.arange(82) + 0.5) / 82
    warmup = np.minimum(progress / 0.1, 1)
    known = 0.02 * warmup * (1 + np.cos(np.pi * progress)) / 2
    rates = np.array(recorder.rates)
    np.testing.assert_allclose(rates[:, 0], known, rtol=1e-6)
    np.testing.assert_allclose(rates[:, 1], 0.6 * known, rtol=1e-6)


@pytest.mark.parametrize("refresh", [20, 7])
def test_the_grid_is_decoded_anew_every_so_many_steps(steps, refresh):
    """As it is then: a logit says after how many steps, each of which adds 1."""
    run_epoch(torch.zeros(203, 784), grid_refresh=refresh)
    logits = np.array([step.grid.logits[0, 0].item() for step in steps])
    steps_done = np.arange(41)
    known = steps_done // refresh * refresh
    assert logits - logits[0] == pytest.approx(known, abs=1e-3)
    assert {len(step.grid.codes) for step in steps} == {27**2}


def test_the_grid_in_the_phase_of_the_map(steps):
    phase = SimpleNamespace(grid_side=18)
    run_epoch(torch.zeros(20, 784), som_phase=phase)
    for step in steps:
        assert step.som_phase is phase
        assert len(step.grid.codes) == 18**2


class Bar(list):
    """Stands in for tqdm's progress bar."""

    made: ClassVar[list] = []

    def __init__(self, steps, **options):
        super().__init__(steps)
        self.options = options
        self.texts = []
        self.disable = Bar.without_terminal
        Bar.made.append(self)

    def set_postfix_str(self, text):
        self.texts.append(text)


@pytest.mark.parametrize("without_terminal", [False, True])
def test_the_progress_bar(monkeypatch, steps, without_terminal):
    """Every ten steps it says L_tot; it goes when the epoch ends, and needs a terminal."""
    monkeypatch.setattr(auto_encoder, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    monkeypatch.setattr(Bar, "without_terminal", without_terminal, raising=False)
    run_epoch(torch.zeros(103, 784), epoch=4)
    (bar,) = Bar.made
    assert len(bar) == 21
    assert bar.options == {"desc": "epoch 4 (0 to 19)", "leave": False, "disable": None}
    assert bar.texts == ([] if without_terminal else ["L_tot 12.3"] * 3)


@pytest.mark.parametrize("kind", [GridVAE, VAE, AutoEncoder])
def test_one_step_moves_every_weight_as_the_seed_says(images, kind):
    """And PyTorch's own random numbers are left alone."""
    after = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = small_grid_vae() if kind is GridVAE else kind(3, *SMALL)
        before = [weight.detach().clone() for weight in model.parameters()]
        default = auto_encoder.default_settings(model)
        settings = dataclasses.replace(default, batch_size=250, seed=seed)
        optimizers = auto_encoder.optimizers_for(model, settings)
        random_state = torch.get_rng_state()
        auto_encoder.train_epoch(model, optimizers, images, 0, settings)
        assert torch.equal(torch.get_rng_state(), random_state)
        weights = list(model.parameters())
        for weight, weight_before in zip(weights, before, strict=True):
            assert not torch.equal(weight, weight_before)
        after.append(torch.cat([weight.detach().flatten() for weight in weights]))
    first, again, other = after
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_auto_encoder_fits_its_sampler_after_each_epoch(images):
    model = AutoEncoder(3, *SMALL)
    settings = dataclasses.replace(PLAIN_SETTINGS, batch_size=100)
    optimizers = auto_encoder.optimizers_for(model, settings)
    auto_encoder.train_epoch(model, optimizers, images, 0, settings)
    codes = model.codes(images)
    torch.testing.assert_close(model.decoder.sample_mean, codes.mean(0), rtol=1e-4, atol=1e-4)


# --- What training gives ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_vae(images):
    """A VAE that saw 250 images 20 times, in the phase of the map; and the images' places."""
    torch.manual_seed(0)
    vae = GridVAE((64, 64), (64, 64), readout_width=16)
    x = images.repeat(20, 1)
    settings = dataclasses.replace(GRID_SETTINGS, epochs=1, batch_size=50)
    optimizers = auto_encoder.optimizers_for(vae, settings)
    som_phase = SomPhase(x, settings)
    auto_encoder.train_epoch(vae, optimizers, x, 0, settings, som_phase)
    return vae.eval(), som_phase.places[:250]


@torch.no_grad()
def mean_l_tot(vae, x, q):
    """Mean L_tot of Gaussians q, nats per image."""
    likelihood, divergence = vae.mean_elbo(x, q, pairs=10, generator=generator())
    return (divergence - likelihood).mean().item()


def test_trained_codes_are_those_of_the_images(trained_vae, images):
    """L_tot with q(z|x) is far below that with another image's q, and bounded as it should be."""
    vae, _ = trained_vae
    x = images[:100]
    q = vae.encode(x)
    anothers = [part.roll(1, 0) for part in q]
    of_encoder = mean_l_tot(vae, x, q)
    of_laplace = mean_l_tot(vae, x, vae.laplace_posterior(x))
    log_likelihood = vae.log_likelihood(x, side=81).mean().item()
    assert of_encoder < mean_l_tot(vae, x, anothers) - 30
    assert -log_likelihood - 0.1 < of_laplace < of_encoder


def test_codes_begin_near_their_places_on_the_map(trained_vae, images):
    """The posterior was held there, so the decoder learnt it so."""
    vae, positions = trained_vae
    u = STANDARD_NORMAL.cdf(vae.laplace_posterior(images)[0])
    distance = (u - positions).norm(dim=1).median()
    anothers = (u - positions.roll(1, 0)).norm(dim=1).median()
    assert distance < 0.4 * anothers


# --- A whole run ------------------------------------------------------------------------------


def digits_of(x_train, x_test):
    """Images as a data set, all of the digit 0."""
    return Digits(
        x_train=x_train,
        train_labels=np.zeros(len(x_train), int),
        x_test=x_test,
        test_labels=np.zeros(len(x_test), int),
        x_shown=x_test[:10],
        test_name="test",
        checksums={},
    )


METADATA = {"settings": {"seed": 0}}


@pytest.fixture
def small_run(tmp_path, images):
    """A function: train a small model on 60 images, 30 others held out; what it gave and wrote.

    Two of its four epochs are on the map.
    """
    digits = digits_of(images[:90], images[90:120])
    default = dataclasses.replace(
        GRID_SETTINGS, epochs=4, batch_size=20, som_part=0.5, validation=30
    )

    def run(name, resume=False, **changed):
        model = small_grid_vae()
        settings = dataclasses.replace(default, **changed)
        files = auto_encoder.output_files(tmp_path / name, "vae")
        history = auto_encoder.train(model, digits, settings, files, METADATA, resume)
        return SimpleNamespace(model=model, history=history, files=files, digits=digits)

    return run


def assert_same_tensors(first, second):
    """Two dicts of tensors are the same, bit by bit."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_first_epochs_are_on_the_map_of_the_training_images(small_run, monkeypatch, images):
    """Not of those that are held out."""
    epochs = spy(monkeypatch, auto_encoder, "train_epoch")
    small_run("whole")
    places = som_positions(images[:60].view(-1, 28, 28), seed=0)
    assert [call.epoch for call in epochs] == [0, 1, 2, 3]
    for call in epochs[:2]:
        assert torch.equal(call.som_phase.places, places)
    for call in epochs[2:]:
        assert call.som_phase is None
    for call in epochs:
        assert torch.equal(call.x, images[:60])


def test_each_epoch_is_in_the_precision_of_the_settings(small_run, monkeypatch):
    """And what follows is in full precision."""
    seen = []
    train_epoch = auto_encoder.train_epoch

    def looking(*args):
        seen.append(torch.get_float32_matmul_precision())
        train_epoch(*args)

    monkeypatch.setattr(auto_encoder, "train_epoch", looking)
    small_run("medium", epochs=1)
    small_run("high", epochs=1, matmul_precision="high")
    assert seen == ["medium", "high"]
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def weights_after(monkeypatch):
    """The weights after so many epochs, {number: weights}; epoch 1, the second, is made the best.

    The loss on held-out images is replaced by a falling, then a rising one.
    """
    weights = {}
    epoch_metrics = auto_encoder.epoch_metrics

    def measured(model, *args):
        weights[len(weights) + 1] = copy.deepcopy(model.state_dict())
        entry = epoch_metrics(model, *args)
        entry["validation"]["L_tot"] = [300.0, 200.0, 210.0, 205.0, 201.0][len(weights) - 1]
        return entry

    monkeypatch.setattr(auto_encoder, "epoch_metrics", measured)
    return weights


def test_the_best_weights_are_restored_and_saved(small_run, weights_after):
    """Training ends after two more epochs without improvement."""
    run = small_run("patient", epochs=5, patience=2)
    assert len(run.history.log) == 4
    assert run.history.best_epoch == 1
    assert_same_tensors(run.model.state_dict(), weights_after[2])
    saved = load_checkpoint(run.files["checkpoint"])
    assert_same_tensors(saved.state_dict(), weights_after[2])
    assert saved.metadata == {**METADATA, "epochs": 2}


def test_snapshots_are_of_the_model_after_so_many_epochs(small_run, weights_after):
    """0, 1, 2 and 5: by the weights that it had then."""
    run = small_run("whole", epochs=5)
    weights_after[0] = small_grid_vae().state_dict()
    assert sorted(run.history.snapshots) == [0, 1, 2, 5]
    then = small_grid_vae()
    for epochs_done, snapshot in run.history.snapshots.items():
        then.load_state_dict(weights_after[epochs_done])
        with torch.no_grad():
            last_codes = then.codes(run.digits.last_x_test)
            shown_images = then.decode(then.codes(run.digits.x_shown)).sigmoid()
        torch.testing.assert_close(snapshot["last_codes"], last_codes)
        torch.testing.assert_close(snapshot["shown_images"], shown_images)


def test_what_training_logs(small_run, capsys):
    """The file has what it returns, and a line is printed for each epoch."""
    run = small_run("whole")
    log = run.history.log
    for entry in log:
        assert 0 < entry["seconds"] < 60
        assert entry["seconds"] == round(entry["seconds"], 2)
    assert json.loads(run.files["metrics"].read_text()) == {**METADATA, "log": log}
    lines = ["placing the training images on a self-organising map ..."]
    for epoch, entry in enumerate(log):
        lines.append(auto_encoder.format_epoch(epoch, entry, "test"))
    assert capsys.readouterr().out.splitlines() == lines


def test_training_goes_on_where_it_was_interrupted(small_run, monkeypatch):
    """In its second epoch, which is on the map, and in its third before any step."""
    whole = small_run("whole")
    train_epoch = auto_encoder.train_epoch

    def interrupted_in(stop):
        """A function that trains until Ctrl-C comes at the end of epoch `stop`."""

        def train(model, optimizers, x, epoch, *args):
            train_epoch(model, optimizers, x, epoch, *args)
            if epoch == stop:
                raise KeyboardInterrupt

        return train

    for stop, resume in ((1, False), (2, True)):
        with monkeypatch.context() as patched:
            patched.setattr(auto_encoder, "train_epoch", interrupted_in(stop))
            message = f"^ after {stop} epochs; they are saved, --resume continues$"
            with pytest.raises(KeyboardInterrupt, match=message):
                small_run("broken", resume=resume)
    resumed = small_run("broken", resume=True)

    for first, second in zip(whole.history.log, resumed.history.log, strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert_same_tensors(whole.model.state_dict(), resumed.model.state_dict())
    assert whole.history.snapshots.keys() == resumed.history.snapshots.keys()
    for epochs_done, snapshot in whole.history.snapshots.items():
        assert_same_tensors(snapshot, resumed.history.snapshots[epochs_done])


def test_an_interruption_of_the_first_epoch_saves_nothing(small_run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(auto_encoder, "train_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        small_run("broken")


def test_held_out_images_are_the_last():
    x = torch.rand(10, 3)
    train, validation = auto_encoder.hold_out(x, 4)
    assert torch.equal(train, x[:6])
    assert torch.equal(validation, x[6:])
    assert len(auto_encoder.hold_out(x, 0)[1]) == 0
    assert len(auto_encoder.hold_out(x, 9)[0]) == 1
    with pytest.raises(InputError, match=r"--validation 10: there are 10 training images in all"):
        auto_encoder.hold_out(x, 10)


# --- Metrics ----------------------------------------------------------------------------------


def test_what_is_measured_after_an_epoch(images, som_phase):
    """Each entry by `elbo` with a fixed seed; that of the Laplace posterior after the map."""
    vae = small_grid_vae()
    x_train, x_validation, x_test = images.split([100, 50, 100])
    near_map = auto_encoder.epoch_metrics(vae, x_train, x_validation, x_test, som_phase)
    entry = auto_encoder.epoch_metrics(vae, x_train, x_validation, x_test)
    assert list(near_map) == ["train", "validation", "test"]
    assert list(entry) == ["train", "validation", "test", "laplace"]
    assert near_map["test"] == entry["test"]
    measured = {
        "train": (x_train, None),
        "validation": (x_validation, None),
        "test": (x_test, None),
        "laplace": (x_test, vae.laplace_posterior(x_test)),
    }
    for name, (x, q) in measured.items():
        with torch.no_grad():
            likelihood, divergence = vae.elbo(x, q, generator=generator())
        known = {
            "L_tot": (divergence - likelihood).mean().item(),
            "L_likelihood": likelihood.mean().item(),
            "L_divergence": divergence.mean().item(),
        }
        assert entry[name] == pytest.approx(known, rel=1e-5)
    usual = auto_encoder.epoch_metrics(VAE(3, *SMALL), x_train, x_train[:0], x_test)
    assert list(usual) == ["train", "test"]


def test_a_diverging_loss_is_an_error(images):
    """If it is not a number, or above ten times that of a blank guess, 5434 nats."""
    model = flat(AutoEncoder(2, *SMALL))
    for bias, is_error in ((0.0, False), (7.5, False), (-60.0, True), (math.nan, True)):
        model.decoder.net[-1].bias.data.fill_(bias)
        if is_error:
            with pytest.raises(InputError, match=r"--lr: training diverges.*; give a smaller one"):
                auto_encoder.elbo_terms(model, images)
        else:
            assert auto_encoder.elbo_terms(model, images)["L_tot"] < 5435
    assert not model.training


def test_log_likelihoods_of_grey_and_of_binarized_images():
    """In closed form, as the decoder ignores its code and the encoder gives the prior.

    Images are of one grey level each. With logit l for every pixel, log p(x) is 784 times
    level * l - log(1 + exp(l)). For a binarized one it is so on average, with the deviation of 784
    Bernoulli variables, each times l; if grey was rounded to black or white, it would be far off.
    """
    logit = 1.5
    levels = torch.linspace(0.05, 0.45, 20)
    x = levels[:, None].expand(20, 784).contiguous()
    model = flat(VAE(3, *SMALL))
    model.decoder.net[-1].bias.data.fill_(logit)
    model.encoder[-1].weight.data.zero_()
    model.encoder[-1].bias.data.zero_()
    results, of_last = auto_encoder.final_metrics(model, digits_of(x, x))
    known = 784 * (levels * logit - math.log1p(math.exp(logit)))
    torch.testing.assert_close(of_last, known, rtol=1e-5, atol=0)
    grey = known.mean().item()
    assert results["log_likelihood"] == pytest.approx(grey, rel=1e-5)
    variance_of_ink = (784 * levels * (1 - levels)).mean().item()
    deviation = logit * math.sqrt(variance_of_ink / 20)
    off = abs(results["log_likelihood_binarized"] - grey)
    assert 0.01 * deviation < off < 4 * deviation
    assert results["test"] == pytest.approx(
        {"L_tot": -grey, "L_likelihood": grey, "L_divergence": 0}, rel=1e-5
    )


def test_the_final_metrics_of_the_laplace_posterior(monkeypatch):
    """With a decoder that ignores its code it is N(0, 1/4^2), as wide as it may be."""
    monkeypatch.setattr(GridVAE, "log_likelihood", lambda _, x, generator: torch.zeros(len(x)))
    x = torch.rand(20, 784)
    results, _ = auto_encoder.final_metrics(flat(small_grid_vae()), digits_of(x, x))
    narrow = Normal(torch.zeros(2), 0.25)
    known = kl_divergence(narrow, STANDARD_NORMAL).sum().item()
    assert results["laplace"]["L_divergence"] == pytest.approx(known, abs=0.01)


def test_the_final_metrics_are_means_over_sixteen_samples(monkeypatch, images):
    """Of the chosen proposals, and of the first ones."""
    monkeypatch.setattr(GridVAE, "log_likelihood", lambda _, x, generator: torch.zeros(len(x)))
    vae = small_grid_vae()
    torch.nn.init.normal_(vae.encoder.matrices.weight)
    results, _ = auto_encoder.final_metrics(vae, digits_of(images, images))
    for name, proposals in (("test", 5), ("first_proposal", 1)):
        mean, logvar = vae.encode(images, proposals)
        drawn = generator()
        likelihood = 0
        for _ in range(8):
            offset = (0.5 * logvar).exp() * torch.randn(len(images), 2, generator=drawn)
            for z in (mean + offset, mean - offset):
                bernoulli = Bernoulli(logits=vae.decode(z), validate_args=False)
                likelihood += bernoulli.log_prob(images).sum(1).mean().item() / 16
        assert results[name]["L_likelihood"] == pytest.approx(likelihood, rel=1e-5)
    assert results["test"]["L_tot"] < results["first_proposal"]["L_tot"]


def test_the_final_metrics_of_an_auto_encoder():
    """Among the training images each test image is there 15 times, with its label or another."""
    x = torch.rand(20, 784, generator=generator())
    labels = np.arange(20) % 10
    for shift, accuracy in ((0, 1.0), (1, 0.0)):
        digits = digits_of(x.repeat(15, 1), x)
        train_labels = np.tile((labels + shift) % 10, 15)
        digits = digits._replace(train_labels=train_labels, test_labels=labels)
        results, of_last = auto_encoder.final_metrics(AutoEncoder(2, *SMALL), digits)
        assert of_last is None
        assert list(results) == ["test", "knn_accuracy", "knn_codes"]
        assert results["knn_accuracy"] == accuracy
        assert results["knn_codes"] == 20


def test_log_lines():
    terms = {"L_tot": 161.467, "L_likelihood": -157.01, "L_divergence": 4.456}
    line = "L_tot 161.47 L_likelihood -157.01 L_divergence 4.46"
    entry = {"train": terms, "test": terms}
    assert auto_encoder.format_epoch(0, entry, "test") == f"epoch 0: {line} | test {line}"
    entry = {**entry, "validation": terms, "laplace": terms}
    known = f"epoch 7: {line} | validation {line} | held-out {line}"
    assert auto_encoder.format_epoch(7, entry, "held-out") == known


def test_result_lines():
    """What is high and what is low: the gap, log p(x) of either kind, the accuracy."""
    terms = {"L_tot": 120.5, "L_likelihood": -111.0, "L_divergence": 9.5}
    laplace = {"L_tot": 118.25, "L_likelihood": -109.0, "L_divergence": 9.25}
    results = {"test": terms, "knn_accuracy": 0.9583, "knn_codes": 1000}
    likelihoods = {"log_likelihood": -114.52, "log_likelihood_binarized": -113.59}
    knn = "k-NN accuracy 0.958 of the last 1000 test codes (k=15, among all training codes)"
    first = "test L_tot 120.50 L_likelihood -111.00 L_divergence 9.50"
    log_p = "test log p(x) -114.52 grey-scale, -113.59 binarized"
    gap = (
        "Laplace posterior L_tot 118.25 L_likelihood -109.00 L_divergence 9.25 | "
        "the encoder's L_tot is 2.25 higher"
    )
    lines = auto_encoder.format_results(results, "test").splitlines()
    assert lines == [first, knn]
    lines = auto_encoder.format_results({**results, **likelihoods}, "test").splitlines()
    assert lines == [first, f"{log_p} (a lower bound, importance sampling)", knn]
    alone = {"L_tot": 121.75, "L_likelihood": -112.5, "L_divergence": 9.25}
    of_grid = {**results, **likelihoods, "first_proposal": alone, "laplace": laplace}
    one = "the encoder's first proposal alone L_tot 121.75 L_likelihood -112.50 L_divergence 9.25"
    lines = auto_encoder.format_results(of_grid, "test").splitlines()
    assert lines == [first, one, gap, f"{log_p} (quadrature)", knn]
