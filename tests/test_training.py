"""How the models are trained: settings, losses, optimizers, epochs; and what that gives."""

import dataclasses
import json
import math
from statistics import NormalDist
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

import auto_encoder
from auto_encoder import GRID_SETTINGS, PLAIN_SETTINGS
from data import as_input
from lib import latent_grid
from lib.errors import InputError
from lib.som import som_positions
from models import VAE, AutoEncoder, GridVAE, HiddenLayer, load_checkpoint

SMALL = (8, 8), (8, 8)  # widths of an encoder and a decoder


@pytest.fixture(scope="module")
def images(mnist):
    """250 training images."""
    return as_input(mnist.train_images[:250].copy())


@pytest.fixture
def grid_vae():
    """A VAE whose decoder's images depend on the code."""
    torch.manual_seed(0)
    vae = GridVAE()
    vae.decoder.net[-1].weight.data.mul_(20)
    return vae


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- What training gives ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_vae(images):
    """A VAE that saw 250 images 20 times."""
    torch.manual_seed(0)
    vae, x = GridVAE((256, 256), (128, 128)), images.repeat(20, 1)
    settings = dataclasses.replace(GRID_SETTINGS, epochs=1, batch_size=50, lr=5e-3)
    optimizers = auto_encoder.make_optimizers(vae, settings)
    positions = som_positions(x.view(-1, 28, 28), seed=0)
    auto_encoder.train_epoch(vae, optimizers, x, 0, settings, positions)
    return vae.eval()


@torch.no_grad()
def mean_total(vae, x, q, draws=20):
    """Mean L_tot, nats per image."""
    return -sum(torch.sub(*vae.elbo(x, q)).mean().item() for _ in range(draws)) / draws


def test_trained_codes_are_those_of_the_images(trained_vae, images):
    """L_tot with q(z|x) is far below that with another image's q, and bounded as it should be."""
    x = images[:100]
    q = trained_vae.encode(x)
    anothers = [part.roll(1, 0) for part in q]
    ours = mean_total(trained_vae, x, q)
    best = mean_total(trained_vae, x, trained_vae.laplace_posterior(x))
    assert ours < mean_total(trained_vae, x, anothers) - 50
    assert -trained_vae.log_likelihood(x, side=162).mean() - 0.1 < best < ours


def test_codes_begin_near_their_positions(trained_vae, images):
    """The posterior was held there in the first epochs, so the decoder learnt it so."""
    positions = som_positions(images.repeat(20, 1).view(-1, 28, 28), seed=0)[:250]
    quantiles = Normal(0.0, 1.0).cdf(trained_vae.laplace_posterior(images)[0])
    distance = (quantiles - positions).norm(dim=1).median()
    assert distance < 0.4 * (quantiles - positions.roll(1, 0)).norm(dim=1).median()


@pytest.mark.parametrize("kind", [GridVAE, VAE, AutoEncoder])
def test_one_step_moves_every_weight_as_the_seed_says(images, kind):
    after = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        widths = (16, 16), (16, 16)
        model = kind(*widths) if kind is GridVAE else kind(3, *widths)
        before = [weight.detach().clone() for weight in model.parameters()]
        settings = dataclasses.replace(
            auto_encoder.default_settings(model), batch_size=250, lr=5e-3, seed=seed
        )
        optimizers = auto_encoder.make_optimizers(model, settings)
        positions = torch.rand(250, 2, generator=generator())
        auto_encoder.train_epoch(model, optimizers, images, 0, settings, positions)
        after.append(list(model.parameters()))
        assert not any(map(torch.equal, before, after[-1]))
    assert all(map(torch.equal, after[0], after[1]))
    assert not all(map(torch.equal, after[0], after[2]))


# --- An epoch ---------------------------------------------------------------------------------


class Recorder:
    """Stands in for an optimizer: what the learning rates are at each step."""

    def __init__(self):
        self.param_groups = [{"lr_scale": 1.0}, {"lr_scale": 0.6}]
        self.rates = []

    def step(self):
        self.rates.append([group["lr"] for group in self.param_groups])


@pytest.fixture
def losses(monkeypatch):
    """What the loss of a GridVAE is given at each step: images, grid, positions."""
    calls = []

    def loss(vae, x, grid, positions, settings, generator):
        calls.append(SimpleNamespace(x=x, grid=grid, positions=positions, generator=generator))
        return sum(weight.sum() for weight in vae.parameters()), torch.tensor(0.0)

    monkeypatch.setattr(auto_encoder, "grid_loss", loss)
    return calls


def run_epoch(x, epoch=0, positions=None, **changed):
    """An epoch of a small GridVAE whose optimizer changes nothing: the learning rates."""
    recorder = Recorder()
    settings = dataclasses.replace(GRID_SETTINGS, batch_size=5, **changed)
    auto_encoder.train_epoch(GridVAE(*SMALL), [recorder], x, epoch, settings, positions)
    return np.array(recorder.rates)


def test_an_epoch_meets_every_image_once(losses):
    x = torch.rand(203, 784)
    run_epoch(x)
    assert [len(call.x) for call in losses] == [5] * 40 + [3]
    seen = torch.cat([call.x for call in losses])
    assert not torch.equal(seen, x)
    order = (seen[:, None, :5] == x[:, :5]).all(2).nonzero()[:, 1]
    assert sorted(order.tolist()) == list(range(203))
    run_epoch(x)
    run_epoch(x, epoch=1)
    run_epoch(x, seed=1)
    epochs = [torch.cat([call.x for call in losses[41 * n : 41 * n + 41]]) for n in range(4)]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[3])


def test_the_learning_rate_rises_and_falls():
    """From 0 in a twentieth of all steps, then as half a cosine, to 0; the encoder's is 0.6."""
    settings = dataclasses.replace(PLAIN_SETTINGS, lr=2.0)
    known = {0: 0, 0.025: 0.5 * (1 + math.cos(0.025 * math.pi)), 0.5: 1, 0.75: 1 - 0.5**0.5, 1: 0}
    for progress, rate in known.items():
        assert auto_encoder.learning_rate(progress, settings) == pytest.approx(rate, abs=1e-9)
    x, rates = torch.rand(203, 784), []
    for epoch in range(2):
        rates.append(run_epoch(x, epoch, epochs=2))
    rates = np.concatenate(rates)
    assert len(rates) == 82
    assert rates[:, 1] == pytest.approx(0.6 * rates[:, 0])
    assert rates[0, 0] == pytest.approx(0.009 * (0.25 / 41) / 0.05, rel=0.01)
    assert 0.0085 < rates.max() < 0.009
    assert rates[:, 0].argmax() == 4  # of 82 steps a twentieth
    assert (np.diff(rates[4:, 0]) < 0).all()
    assert rates[40, 0] == pytest.approx(0.0045, rel=0.05)
    assert 0 < rates[-1, 0] < 1e-5


def test_the_grid_is_decoded_anew_every_twenty_steps(losses):
    run_epoch(torch.rand(203, 784))
    grids = [id(call.grid.logits) for call in losses]
    assert grids == [grids[0]] * 20 + [grids[20]] * 20 + [grids[40]]
    assert len(set(grids)) == 3
    assert {len(call.grid.codes) for call in losses} == {81**2}


def test_near_the_map_with_positions(losses):
    """Those of the batch's own images, on the coarse grid."""
    x = torch.rand(20, 784)
    run_epoch(x, positions=x[:, :2])
    for call in losses:
        assert len(call.grid.codes) == 27**2
        assert torch.equal(call.positions, call.x[:, :2])
    losses.clear()
    run_epoch(x)
    for call in losses:
        assert len(call.grid.codes) == 81**2
        assert call.positions is None


@pytest.mark.parametrize("kind", [GridVAE, VAE])
def test_the_first_quarter_of_the_epochs_of_a_grid_vae_is_near_the_map(monkeypatch, images, kind):
    """The positions are those of the images that are trained on; a resumed run has them, too."""
    model = GridVAE(*SMALL) if kind is GridVAE else VAE(3, *SMALL)
    given, log = [], []
    digits = SimpleNamespace(x_train=images, x_test=images[:5], test_name="test", fingerprint="any")
    entry = {"train": {"L_tot": 1.0}, "test": {"L_tot": 1.0}}
    for name, stand_in in {
        "train_epoch": lambda *arguments: given.append(arguments[-1]),
        "measure": lambda *_: dict(entry),
        "save_epoch": lambda *_: None,
        "take_snapshot": lambda *_: {},
        "restore": lambda *_: auto_encoder.History(log, {}, model.state_dict()),
    }.items():
        monkeypatch.setattr(auto_encoder, name, stand_in)
    settings = dataclasses.replace(auto_encoder.default_settings(model), epochs=5, validation=50)
    metadata = {"settings": {}}
    for done in (0, 1, 4):
        given.clear()
        log[:] = [entry] * done
        files = {"resume": None}
        history = auto_encoder.train(model, digits, settings, files, metadata, resume=True)
        assert len(history.log) == 5
        near = [positions is not None for positions in given]
        # Rounded up: two of five epochs.
        assert near == [kind is GridVAE and epoch < 2 for epoch in range(done, 5)]
        if any(near):
            known = som_positions(images[:200].view(-1, 28, 28), seed=0)  # in full float32
            assert all(
                torch.equal(positions, known) for positions in given if positions is not None
            )


@pytest.fixture
def small_run(tmp_path, images):
    """A function: train a small model of two map epochs, four in all; what it returns and wrote."""
    digits = SimpleNamespace(
        x_train=images[:90],
        x_test=images[90:120],
        x_shown=images[120:130],
        last_x_test=images[100:120],
        test_name="test",
        fingerprint="any",
    )
    settings = dataclasses.replace(
        GRID_SETTINGS, epochs=4, batch_size=20, som_part=0.5, validation=30
    )

    def run(name, **options):
        torch.manual_seed(0)
        model = GridVAE(*SMALL)
        kinds = {"checkpoint": "safetensors", "metrics": "json", "resume": "resume"}
        files = {kind: tmp_path / f"{name}.{ending}" for kind, ending in kinds.items()}
        metadata = {"settings": {"seed": 0}}
        history = auto_encoder.train(model, digits, settings, files, metadata, **options)
        return SimpleNamespace(model=model, history=history, files=files)

    return run


def test_what_training_returns_and_writes(small_run, capsys):
    whole = small_run("whole")
    log = whole.history.log
    assert ["laplace" in entry for entry in log] == [False, False, True, True]
    for entry in log:
        assert 0 < entry["seconds"] < 60
        assert isinstance(entry["seconds"], float)
        assert entry["seconds"] == round(entry["seconds"], 2)
        assert len({entry[name]["L_tot"] for name in ("train", "validation", "test")}) == 3
    assert sorted(whole.history.snapshots) == [0, 1, 2]
    assert len(whole.history.snapshots[0]["last_codes"]) == 20
    assert capsys.readouterr().out.splitlines() == [
        "placing the training images on a self-organising map ...",
        *(auto_encoder.format_epoch(epoch, entry, "test") for epoch, entry in enumerate(log)),
    ]
    assert json.loads(whole.files["metrics"].read_text()) == {"settings": {"seed": 0}, "log": log}
    saved = load_checkpoint(whole.files["checkpoint"])
    best = auto_encoder.best_epoch(log)
    assert saved.metadata == {"settings": {"seed": 0}, "epochs": best + 1}
    for weights in (saved.state_dict(), whole.history.best_weights):
        assert all(map(torch.equal, weights.values(), whole.model.state_dict().values()))


def test_training_goes_on_where_it_was_interrupted(small_run, monkeypatch):
    whole, measure = small_run("whole"), auto_encoder.measure

    def interrupt(*_):
        raise KeyboardInterrupt

    def interrupt_in_the_third_epoch(*arguments):
        return interrupt() if arguments[4] == 2 else measure(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(auto_encoder, "measure", interrupt_in_the_third_epoch)
        message = r"^ after 2 epochs; they are saved, --resume continues$"
        with pytest.raises(KeyboardInterrupt, match=message):
            small_run("broken")
        patched.setattr(auto_encoder, "train_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt, match=message):
            small_run("broken", resume=True)
    resumed = small_run("broken", resume=True)
    for first, second in zip(whole.history.log, resumed.history.log, strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert resumed.history.best_weights.keys() == whole.history.best_weights.keys()
    weights = [run.model.state_dict().values() for run in (whole, resumed)]
    assert all(map(torch.equal, *weights))
    assert whole.history.snapshots.keys() == resumed.history.snapshots.keys()


def test_an_interruption_of_the_first_epoch_saves_nothing(small_run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(auto_encoder, "train_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        small_run("broken")


class Bar(list):
    """Stands in for tqdm's progress bar."""

    made: ClassVar[list] = []

    def __init__(self, steps, **options):
        super().__init__(steps)
        self.options, self.texts, self.disable = options, [], Bar.without_terminal
        Bar.made.append(self)

    def set_postfix_str(self, text):
        self.texts.append(text)


@pytest.mark.parametrize("without_terminal", [False, True])
def test_the_progress_bar(monkeypatch, losses, without_terminal):
    """Every ten steps it says L_tot; it goes when the epoch ends, and needs a terminal."""
    monkeypatch.setattr(auto_encoder, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    monkeypatch.setattr(Bar, "without_terminal", without_terminal, raising=False)
    run_epoch(torch.rand(103, 784), epoch=4)
    (bar,) = Bar.made
    assert len(bar) == 21
    assert bar.options == {"desc": "epoch 4, last 19", "leave": False, "disable": None}
    assert bar.texts == ([] if without_terminal else ["L_tot 0.0"] * 3)


@pytest.mark.parametrize("model", [GridVAE(*SMALL), VAE(3, *SMALL)])
def test_an_epoch_leaves_pytorchs_random_state_alone(images, model):
    settings = auto_encoder.default_settings(model)
    optimizers = auto_encoder.make_optimizers(model, settings)
    state = torch.get_rng_state()
    auto_encoder.train_epoch(model, optimizers, images, 0, settings, torch.full((250, 2), 0.5))
    auto_encoder.measure(model, images, images[:9], images, 5, settings)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_auto_encoder_fits_its_sampler_after_each_epoch(images):
    model = AutoEncoder(3, *SMALL)
    settings = dataclasses.replace(PLAIN_SETTINGS, batch_size=100)
    optimizers = auto_encoder.make_optimizers(model, settings)
    auto_encoder.train_epoch(model, optimizers, images, 0, settings)
    codes = model.codes(images)
    torch.testing.assert_close(model.decoder.sample_mean, codes.mean(0), rtol=1e-4, atol=1e-4)


# --- Losses -----------------------------------------------------------------------------------


def test_negative_elbo(images):
    vae = VAE(3, *SMALL)
    likelihood, divergence = vae.elbo(images, generator=generator(1))
    loss = auto_encoder.negative_elbo(vae, images, generator(1))
    assert loss.item() == pytest.approx((divergence - likelihood).mean().item(), rel=1e-6)


def test_the_decoder_learns_from_twice_the_posteriors_variance(grid_vae, images, monkeypatch):
    """And the loss is minus the likelihood there, plus the encoder's."""
    settings = dataclasses.replace(GRID_SETTINGS, distorted_part=0)  # they draw noise, too
    given, elbo = [], grid_vae.elbo

    def recording(x, q, generator):
        given.append(q)
        return elbo(x, q, generator=generator)

    monkeypatch.setattr(grid_vae, "elbo", recording)
    monkeypatch.setattr(auto_encoder, "encoder_loss", lambda *_: torch.tensor(1000.0))
    grid = grid_vae.make_grid()
    loss, l_tot = auto_encoder.grid_loss(grid_vae, images, grid, None, settings, generator(3))
    mean, logvar = grid_vae.laplace_posterior(images)
    torch.testing.assert_close(given[0][0], mean)
    torch.testing.assert_close(given[0][1], logvar + math.log(2))
    likelihood, divergence = elbo(images, given[0], generator=generator(3))
    assert loss.item() == pytest.approx(1000 - likelihood.mean().item(), rel=1e-5)
    assert l_tot.item() == pytest.approx((divergence - likelihood).mean().item(), rel=1e-5)


def test_the_encoder_also_learns_from_distorted_copies(grid_vae, images, monkeypatch):
    """Of half of the images, each with its own scores; the decoder's images stay as they are."""
    given = {}
    monkeypatch.setattr(
        auto_encoder, "encoder_loss", lambda *inputs: given.update(encoder=inputs[1:3]) or 0
    )
    monkeypatch.setattr(
        auto_encoder, "decoder_loss", lambda *inputs: given.update(decoder=inputs[1:3]) or (0, 0)
    )
    grid = grid_vae.make_grid()
    auto_encoder.grid_loss(grid_vae, images, grid, None, GRID_SETTINGS, generator())
    x, scores = given["encoder"]
    assert len(x) == len(scores) == 375
    assert torch.equal(x[:250], images)
    difference = (x[250:] - images[:125]).abs().mean()
    anothers = (x[250:] - images[1:126]).abs().mean()
    assert 0.01 < difference < 0.6 * anothers
    torch.testing.assert_close(scores, grid.log_likelihood_grid(x))
    x, scores = given["decoder"]
    assert torch.equal(x, images)
    torch.testing.assert_close(scores, grid.log_likelihood_grid(images))


def test_positions_narrow_the_prior(images, monkeypatch):
    """With a decoder that ignores its code the posterior is the Gaussian around the position."""
    torch.manual_seed(0)
    vae, given = GridVAE(), []
    vae.decoder.net[-1].weight.data.zero_()
    monkeypatch.setattr(auto_encoder, "encoder_loss", lambda *inputs: given.append(inputs) or 0)
    positions = torch.tensor([[0.5, 0.5], [0.3, 0.62], [0.1, 0.9]])
    grid, x = vae.make_grid(), images[:3]
    auto_encoder.grid_loss(vae, x, grid, positions, GRID_SETTINGS, generator())
    encoder, x_given, log_likelihood_grid, settings, _ = given[0]
    assert encoder is vae.encoder
    assert settings is GRID_SETTINGS
    assert len(x_given) == 3 + 2  # with the copies of the first two
    assert torch.equal(x_given[:3], x)
    positions = torch.cat([positions, positions[:2]])
    axis = (np.arange(81) + 0.5) / 81
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    for ours, (row, column) in zip(log_likelihood_grid, positions.tolist(), strict=True):
        log_density = -((rows - row) ** 2 + (columns - column) ** 2) / (2 * 0.05**2)
        difference = ours.numpy() - log_density.ravel()
        assert np.ptp(difference) < 1e-2  # but for a constant, the likelihood
    mean, _ = latent_grid.fit_laplace(log_likelihood_grid, grid.codes)
    quantiles = Normal(0.0, 1.0).cdf(mean)
    assert (quantiles - positions).abs().max() < 0.02  # the prior's own slope draws them inwards


def test_encoder_loss_is_bayes_rule_and_the_elbo(grid_vae, images):
    """Shares of regions summed up in NumPy; the ELBO by torch.distributions and the decoder."""
    vae, x = grid_vae, images[:4]
    log_likelihood_grid = vae.make_grid().log_likelihood_grid(x)
    axis = [NormalDist().inv_cdf((i + 0.5) / 81) for i in range(81)]
    codes = torch.tensor([[a, b] for a in axis for b in axis])
    with torch.no_grad():
        logits = vae.decode(codes).double().numpy()
        log_p = x.double().numpy() @ logits.T - np.logaddexp(0, logits).sum(1)
        p = np.exp(log_p - log_p.max(1, keepdims=True)).reshape(4, 27, 3, 27, 3).sum((2, 4))
        shares = torch.tensor(p.reshape(4, -1) / p.sum((1, 2))[:, None])
        features = vae.encoder.body(x)
        scores = vae.encoder.region_logits(features)
        mean, logvar = vae.encoder.gaussian(features, shares.argmax(1))
        q = Normal(mean, (0.5 * logvar).exp())
        logits = vae.decode(q.sample((2000,)).view(-1, 2)).view(2000, 4, 784)
        likelihood = Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(2).mean(0)
        elbo = likelihood - kl_divergence(q, Normal(0.0, 1.0)).sum(1)
        smooth = 0.8 * shares + 0.2 / 27**2
        cross_entropy = -(smooth * scores.log_softmax(1)).sum(1).mean()
        stream = generator()
        losses = [
            auto_encoder.encoder_loss(vae.encoder, x, log_likelihood_grid, GRID_SETTINGS, stream)
            for _ in range(500)
        ]
    known = cross_entropy.item() - 0.1 * elbo.mean().item()
    assert torch.stack(losses).mean().item() == pytest.approx(known, abs=0.02)
    auto_encoder.encoder_loss(vae.encoder, x, log_likelihood_grid, GRID_SETTINGS, stream).backward()
    slope = (scores.softmax(1) - smooth).mean(0).float()
    torch.testing.assert_close(vae.encoder.region_logits.bias.grad, slope, rtol=1e-3, atol=1e-5)


def test_the_elbo_on_the_grid_has_antithetic_samples():
    """What is odd in the noise cancels: of a likelihood linear in the quantile near a centre."""
    quantiles = (torch.arange(81.0) + 0.5) / 81
    values = (100 * quantiles)[:, None].expand(81, 81).reshape(1, -1).expand(200, -1)
    mean, logvar = torch.zeros(200, 2), torch.full((200, 2), -2.0)
    elbo = auto_encoder.grid_elbo(mean, logvar, values, generator())
    divergence = math.exp(-2) - 1 + 2  # of two coordinates, half each
    torch.testing.assert_close(elbo, torch.full((200,), 50 - divergence), rtol=0, atol=1e-3)


def test_the_elbo_on_the_grid_by_numerical_integration():
    """Of a likelihood that is quadratic in the first quantile, against a sum over z."""
    quantiles = (torch.arange(81.0) + 0.5) / 81
    values = (-40 * (quantiles - 0.3) ** 2)[:, None].expand(81, 81).reshape(1, -1)
    z, mean, logvar = np.linspace(-8, 8, 20_001), 0.4, -0.7
    density = np.exp(-((z - mean) ** 2) / (2 * math.exp(logvar)))
    cdf = np.array([NormalDist().cdf(value) for value in z])
    likelihood = (density * -40 * (cdf - 0.3) ** 2).sum() / density.sum()
    divergence = (mean**2 + 2 * math.exp(logvar) - 2 - 2 * logvar) / 2
    means = torch.tensor([[mean, 0.0]]).expand(100_000, -1)
    logvars = torch.full((100_000, 2), logvar)
    elbo = auto_encoder.grid_elbo(means, logvars, values.expand(100_000, -1), generator())
    assert elbo.mean().item() == pytest.approx(likelihood - divergence, abs=0.02)


# --- Optimizers -------------------------------------------------------------------------------


def names_in(model, optimizer):
    """The names of the parameters in each of an optimizer's groups."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[name_of[id(p)] for p in group["params"]] for group in optimizer.param_groups]


@pytest.mark.parametrize("model", [GridVAE(), VAE(20), AutoEncoder(2)])
def test_muon_has_the_matrices_of_hidden_layers(model):
    """AdamW all else, and each has the decoder's weights first."""
    settings = auto_encoder.default_settings(model)
    muon, adamw = auto_encoder.make_optimizers(model, settings)
    assert (type(muon).__name__, type(adamw).__name__) == ("Muon", "AdamW")
    decoder_matrices, encoder_matrices = names_in(model, muon)
    assert decoder_matrices == [f"decoder.net.{n}.weight" for n in range(1, 5)]
    if isinstance(model, GridVAE):
        hidden = [f"encoder.body.{n}.weight" for n in range(1, 4)]
        assert encoder_matrices == [*hidden, "encoder.readout.weight"]
    else:
        assert encoder_matrices == ["encoder.1.weight", "encoder.2.weight"]
    decoder_others, encoder_others = names_in(model, adamw)
    assert all(name.startswith("decoder.") for name in decoder_others)
    assert all(name.startswith("encoder.") for name in encoder_others)
    known = {name for name, _ in model.named_parameters()}
    chosen = [*decoder_matrices, *encoder_matrices, *decoder_others, *encoder_others]
    assert sorted(chosen) == sorted(known)


def test_other_bodies_of_the_encoder_go_to_adamw():
    """A convolution's weights, at the encoder's learning rate and decay."""
    vae = GridVAE()
    vae.encoder.body = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 4, 5), nn.Flatten(), HiddenLayer(2304, 256)
    )
    muon, adamw = auto_encoder.make_optimizers(vae, GRID_SETTINGS)
    assert names_in(vae, muon)[1] == ["encoder.body.3.weight", "encoder.readout.weight"]
    assert {"encoder.body.1.weight", "encoder.body.1.bias"} <= set(names_in(vae, adamw)[1])
    group = adamw.param_groups[1]
    assert (group["lr_scale"], group["weight_decay"]) == (0.6, 0.7)


def test_the_encoders_learning_rate_is_a_multiple_of_the_decoders():
    for model, scale in ((GridVAE(*SMALL), 0.6), (VAE(3, *SMALL), 1.0)):
        optimizers = auto_encoder.make_optimizers(model, auto_encoder.default_settings(model))
        for optimizer in optimizers:
            assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, scale]


@pytest.mark.parametrize("model", [GridVAE(*SMALL), VAE(3, *SMALL)])
def test_weight_decay(model):
    """Without a gradient a step shrinks a weight by lr * decay, and by nothing else."""
    settings = auto_encoder.default_settings(model)
    optimizers = auto_encoder.make_optimizers(model, settings)
    auto_encoder.set_learning_rate(optimizers, 0.01)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    matrices = {name for groups in names_in(model, optimizers[0]) for name in groups}
    for name, weight in model.named_parameters():
        if isinstance(model, GridVAE):
            decay = 0.7 * 0.6 if name.startswith("encoder") else 0
        else:
            decay = 0.4 if name in matrices else 0
        expected = before[name] * (1 - 0.01 * decay)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-7)


def test_both_optimizers_take_steps_of_one_size():
    """A step of Muon has the root mean square of one of AdamW, about 0.2 of the learning rate."""
    model = VAE(3, (64, 64), (64, 64))
    settings = dataclasses.replace(PLAIN_SETTINGS, encoder_hidden_decay=0, decoder_hidden_decay=0)
    muon, adamw = auto_encoder.make_optimizers(model, settings)
    auto_encoder.set_learning_rate([muon, adamw], 0.01)
    matrix = model.decoder.net[1].weight
    before = matrix.detach().clone()
    matrix.grad = torch.randn_like(matrix)
    muon.step()
    change = (matrix.detach() - before).square().mean().sqrt().item()
    assert change == pytest.approx(0.2 * 0.01, rel=0.3)
    assert adamw.defaults["fused"]


def test_an_older_pytorch_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"PyTorch 2\.9 or newer is needed, not 2"):
        auto_encoder.make_optimizers(VAE(3, *SMALL), PLAIN_SETTINGS)


def test_the_precision_of_products_is_put_back():
    """Also after an error."""
    assert torch.get_float32_matmul_precision() == "highest"
    inside = []

    def fail():
        with auto_encoder.matmul_precision("medium"):
            inside.append(torch.get_float32_matmul_precision())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == ["medium"]
    assert torch.get_float32_matmul_precision() == "highest"


# --- The log ----------------------------------------------------------------------------------


def test_default_settings():
    assert auto_encoder.default_settings(GridVAE(*SMALL)) is GRID_SETTINGS
    assert auto_encoder.default_settings(VAE(2, *SMALL)) is PLAIN_SETTINGS
    assert auto_encoder.default_settings(AutoEncoder(2, *SMALL)) is PLAIN_SETTINGS


def test_held_out_images_are_the_last():
    x = torch.rand(10, 3)
    train, validation = auto_encoder.hold_out(x, 4)
    assert torch.equal(train, x[:6])
    assert torch.equal(validation, x[6:])
    assert len(auto_encoder.hold_out(x, 0)[1]) == 0
    assert len(auto_encoder.hold_out(x, 9)[0]) == 1
    with pytest.raises(InputError, match=r"--validation 10: there are 10 training images in all"):
        auto_encoder.hold_out(x, 10)


def log_of(*totals):
    return [{"validation": {"L_tot": total}, "test": {"L_tot": -total}} for total in totals]


def test_the_best_epoch_and_the_end():
    """The first of the best on the held-out images; without any, the last."""
    assert auto_encoder.best_epoch(log_of(5, 3, 4)) == 1
    assert auto_encoder.best_epoch(log_of(5, 3, 3)) == 1
    assert auto_encoder.best_epoch([{"test": {}}, {"test": {}}]) == 1
    assert auto_encoder.best_epoch([{"test": {}}]) == 0
    assert auto_encoder.best_epoch(log_of(5)) == 0
    patient = dataclasses.replace(PLAIN_SETTINGS, epochs=5, patience=2)
    assert not auto_encoder.is_finished([], patient)
    assert not auto_encoder.is_finished(log_of(3, 4), patient)
    assert auto_encoder.is_finished(log_of(3, 4, 4), patient)
    assert not auto_encoder.is_finished(
        log_of(3, 2, 4, 4), dataclasses.replace(patient, patience=3)
    )
    assert not auto_encoder.is_finished(log_of(5, 4, 3, 2), patient)
    assert auto_encoder.is_finished(log_of(5, 4, 3, 2, 1), patient)
    endless = dataclasses.replace(PLAIN_SETTINGS, epochs=5)
    assert not auto_encoder.is_finished(log_of(1, 2, 3, 4), endless)


def test_snapshots_are_taken_ever_more_rarely():
    taken = [epochs for epochs in range(1, 1001) if auto_encoder.is_snapshot_time(epochs)]
    assert taken == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


def test_what_an_epoch_measures(images):
    """Each entry by `elbo` with a fixed seed; that of the Laplace posterior after the map."""
    torch.manual_seed(0)
    vae = GridVAE(*SMALL)
    x_train, x_validation, x_test = images[:100], images[100:150], images[150:]
    log = {
        epoch: auto_encoder.measure(vae, x_train, x_validation, x_test, epoch, GRID_SETTINGS)
        for epoch in (4, 5)  # the map is for the first quarter of twenty epochs
    }
    assert list(log[4]) == ["train", "validation", "test"]
    assert list(log[5]) == ["train", "validation", "test", "laplace"]
    assert log[5]["test"] == log[4]["test"]
    q = vae.laplace_posterior(x_test)
    for name, x, posterior in (
        ("train", x_train, None), ("validation", x_validation, None),
        ("test", x_test, None), ("laplace", x_test, q),
    ):  # fmt: skip
        with torch.no_grad():
            likelihood, divergence = vae.elbo(x, posterior, generator=generator())
        known = {
            "L_tot": (divergence - likelihood).mean().item(),
            "L_likelihood": likelihood.mean().item(),
            "L_divergence": divergence.mean().item(),
        }
        assert log[5][name] == pytest.approx(known, rel=1e-5)
    without = auto_encoder.measure(VAE(3, *SMALL), x_train, x_train[:0], x_test, 9, PLAIN_SETTINGS)
    assert list(without) == ["train", "test"]


def test_a_diverging_loss_is_an_error(images):
    """If it is not a number, or above ten times that of a blank guess, 5434 nats."""
    model = AutoEncoder(2, *SMALL)
    for bias, is_error in ((0.0, False), (7.5, False), (-60.0, True), (math.nan, True)):
        model.decoder.net[-1].weight.data.zero_()
        model.decoder.net[-1].bias.data.fill_(bias)
        if is_error:
            with pytest.raises(
                InputError, match=r"--lr: training diverges.*; give a smaller one \("
            ):
                auto_encoder.mean_elbo_terms(model, images)
        else:
            assert auto_encoder.mean_elbo_terms(model, images)["L_tot"] < 5435
    assert not model.training


def test_log_lines():
    terms = {"L_tot": 161.467, "L_likelihood": -157.01, "L_divergence": 4.456}
    line = "L_tot 161.47 L_likelihood -157.01 L_divergence 4.46"
    assert auto_encoder.format_elbo(terms) == line
    both = {"train": terms, "test": terms}
    assert auto_encoder.format_epoch(0, both, "test") == f"epoch 0: {line} | test {line}"
    three = {**both, "validation": terms, "laplace": terms}
    known = f"epoch 7: {line} | validation {line} | held-out {line}"
    assert auto_encoder.format_epoch(7, three, "held-out") == known
