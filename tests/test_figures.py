"""What the pictures of a training are given: which model, which images, which epoch."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_idx_folder
from torch.distributions import Bernoulli, Normal, kl_divergence

import auto_encoder
from data import Digits, find_source, load_both_splits
from lib import explorer, figures, plots
from lib.history import History
from models import VAE, AutoEncoder, GridVAE

SMALL = (8, 8), (8, 8)  # widths of an encoder and a decoder


@pytest.fixture
def given(monkeypatch):
    """What the functions are given that draw or make a page, {name: arguments}; none is drawn."""
    arguments = {}

    def stand_in_for(name):
        def draw(*args):
            arguments[name] = args
            return name.encode()

        return draw

    for name in dir(plots):
        if name.startswith("draw_"):
            monkeypatch.setattr(plots, name, stand_in_for(name))
    monkeypatch.setattr(explorer, "page_bytes", stand_in_for("page_bytes"))
    return arguments


@pytest.fixture
def digits():
    """Random images: 100 to show and 30 to test with, of which all are the last."""
    rng = torch.Generator().manual_seed(0)
    return Digits(
        x_train=torch.rand(12_345, 784, generator=rng),
        train_labels=np.zeros(12_345, int),
        x_test=torch.rand(30, 784, generator=rng),
        test_labels=np.arange(30) % 10,
        x_shown=torch.rand(100, 784, generator=rng),
        test_name="test",
        checksums={},
    )


def new_model(model_class=AutoEncoder, seed=0):
    """A small model with two latents, whose images depend on the code."""
    torch.manual_seed(seed)
    if model_class is GridVAE:
        model = GridVAE(*SMALL, regions_per_side=9, readout_width=8, grid_side=27)
    else:
        model = model_class(2, *SMALL)
    model.decoder.net[-1].weight.data.mul_(20)
    return model.eval()


def model_after(epochs_done):
    """Stands for the model after so many epochs: each is another one."""
    return new_model(seed=epochs_done)


def log_of(*test_losses):
    return [{"train": {"L_tot": 100.0}, "test": {"L_tot": loss}} for loss in test_losses]


def shown_after(epochs, snapshots_after, digits, test_name="test"):
    """The picture data of a training of so many epochs with snapshots after some of them."""
    digits = digits._replace(test_name=test_name)
    snapshots = {}
    for epochs_done in snapshots_after:
        snapshots[epochs_done] = figures.take_snapshot(model_after(epochs_done), digits)
    history = History(log_of(*range(epochs)), snapshots)
    return figures.picture_data(model_after(epochs), digits, history)


@torch.no_grad()
def reconstructed(model, x):
    """Images decoded from the codes of x."""
    return model.decode(model.codes(x)).sigmoid().numpy()


# --- Epochs -----------------------------------------------------------------------------------


def test_each_panel_of_codes_is_of_its_epoch(given, digits):
    """In order, also when the snapshots are not."""
    shown = shown_after(4, (2, 1, 0), digits)
    figures.draw_scatter_epochs(shown)
    panels, labels, plane = given["draw_scatters"]
    titles = ["before training", "after 1 epoch", "after 2 epochs", "after 4 epochs"]
    assert list(panels) == titles
    for title, epochs_done in zip(titles, (0, 1, 2, 4), strict=True):
        codes = model_after(epochs_done).codes(digits.x_test)
        np.testing.assert_allclose(panels[title], codes.detach(), rtol=1e-5)
    assert np.array_equal(labels, digits.test_labels)
    assert plane.reach == pytest.approx(1.04 * np.abs(panels["after 4 epochs"]).max())


def test_each_panel_of_reconstructions_is_of_its_epoch(given, digits):
    """Beside the images themselves; those of an untrained model are left out."""
    figures.draw_reconstructions(shown_after(4, (0, 1, 2), digits))
    (panels,) = given["draw_image_panels"]
    originals, *trained = panels
    assert originals == "test images"
    assert np.array_equal(panels[originals], digits.x_shown)
    assert trained == ["after 1 epoch", "after 2 epochs", "after 4 epochs"]
    for title, epochs_done in zip(trained, (1, 2, 4), strict=True):
        known = reconstructed(model_after(epochs_done), digits.x_shown)
        np.testing.assert_allclose(panels[title], known, rtol=1e-4)


def test_pictures_end_with_the_best_epoch(digits):
    """The model has its weights; what came after it is not shown."""
    log = log_of(9, 8, 7, 6, 5)
    for entry, validation_loss in zip(log, (5, 4, 3, 6, 6), strict=True):
        entry["validation"] = {"L_tot": validation_loss}
    snapshots = {}
    for epochs_done in (5, 2, 1, 0):
        snapshots[epochs_done] = figures.take_snapshot(model_after(epochs_done), digits)
    shown = figures.picture_data(model_after(3), digits, History(log, snapshots))
    assert list(shown.snapshots) == [0, 1, 2, 3]
    assert shown.epochs_done == 3
    codes = model_after(3).codes(digits.x_test).detach()
    np.testing.assert_allclose(shown.final["last_codes"], codes, rtol=1e-5)


# --- Images and codes -------------------------------------------------------------------------


def test_the_scatter_is_of_the_final_models_codes_of_the_last_test_images(given, digits):
    figures.draw_scatter(shown_after(2, (0, 1), digits))
    points, labels, _, title = given["draw_scatter"]
    np.testing.assert_allclose(points, model_after(2).codes(digits.x_test).detach(), rtol=1e-5)
    assert np.array_equal(labels, digits.test_labels)
    assert title == "Codes of the last 30 test images"
    figures.draw_scatter(shown_after(2, (0, 1), digits, test_name="held-out"))
    assert given["draw_scatter"][3] == "Codes of 30 held-out images"


def test_the_sanity_check_is_an_image_its_code_and_what_that_decodes_to(given, digits):
    """The first image of each digit, and the final model."""
    figures.draw_sanity_check(shown_after(2, (0, 1), digits))
    images, codes, decoded = given["draw_image_code_image"]
    assert np.array_equal(images, digits.x_shown[0:100:10])
    model = model_after(2)
    of_images = model.codes(torch.from_numpy(images))
    np.testing.assert_allclose(codes, of_images.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(decoded, model.decoder.decode_images(codes), rtol=1e-4)


def test_the_manifold_is_decoded_by_the_model(given, digits):
    shown = shown_after(1, (0,), digits)
    figures.draw_manifold(shown)
    decode, plane = given["draw_decoded_plane"]
    codes = np.array([[0.5, -1.0]], np.float32)
    known = model_after(1).decode(torch.from_numpy(codes)).sigmoid()
    np.testing.assert_allclose(decode(codes), known.detach(), rtol=1e-5)
    assert plane is shown.plane


def test_shown_images_are_the_first_ten_test_images_of_each_digit(tmp_path):
    """Of the digits 0 to 9 in turn; of a digit with fewer they come again."""
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (200, 28, 28)), np.arange(200) % 10
    test_labels = rng.permutation(np.append(np.arange(150) % 10, [3, 4, 5]))
    test_labels[test_labels == 7] = 8
    test_labels[:4] = 7
    test = rng.integers(0, 256, (153, 28, 28)), test_labels
    source = find_source(write_idx_folder(tmp_path / "digits", train, test))
    shown = load_both_splits(source, "cpu").x_shown
    known = []
    for digit in range(10):
        of_digit = [n for n, label in enumerate(test_labels) if label == digit]
        ten = (of_digit * 10)[:10] if digit == 7 else of_digit[:10]
        known += ten
    pixels = test[0][known].reshape(100, 784) / 255
    np.testing.assert_allclose(shown, pixels, rtol=1e-6)


# --- The page ---------------------------------------------------------------------------------


def page_settings(model, digits, log, last_log_p_x=None):
    """The settings of the page of a model after a training with this log."""
    history = History(log)
    shown = figures.picture_data(model, digits, history, last_log_p_x)
    return figures.explorer_settings(shown)


def test_the_page_has_the_loss_of_the_best_epoch(digits):
    """Not of the last one; on test images."""
    log = log_of(150.0, 140.0, 145.0)
    for entry, validation_loss in zip(log, (152.0, 141.0, 147.0), strict=True):
        entry["validation"] = {"L_tot": validation_loss}
    settings = page_settings(new_model(), digits, log)
    assert settings["mean_loss"] == 140.0
    assert settings["about"] == (
        "This is a plain auto-encoder with two latent variables, trained on 12,345 images for "
        "2 epochs."
    )
    assert settings["images_name"] == "the last 30 of 30 test images"


def test_the_page_of_one_epoch_of_a_grid_vae(digits):
    settings = page_settings(new_model(GridVAE), digits, log_of(150.0))
    assert settings["mean_loss"] == 150.0
    assert settings["about"].startswith("This is a variational auto-encoder")
    assert settings["about"].endswith("for 1 epoch.")
    assert (settings["kind"], settings["regions_per_side"]) == ("VAE", 9)
    json.dumps(settings)


def test_the_page_shows_first_what_the_encoder_loses_most_on(digits):
    """L_tot above -log p(x); the Gaussians are so narrow that samples of z are their means."""
    model = new_model(VAE)
    model.encoder[-1].weight.data[2:] = 0
    model.encoder[-1].bias.data[2:] = -20
    x = digits.x_test
    last_log_p_x = 300 * torch.randn(30, generator=torch.Generator().manual_seed(0))
    settings = page_settings(model, digits, log_of(150.0), last_log_p_x)
    with torch.no_grad():
        mean, logvar = model.encode(x)
        logits = model.decode(mean)
        likelihood = Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(1)
        q = Normal(mean, (0.5 * logvar).exp())
        l_tot = kl_divergence(q, Normal(0.0, 1.0)).sum(1) - likelihood
    excess = l_tot + last_log_p_x
    assert settings["worst_first"] == excess.argsort(descending=True).tolist()


def test_without_log_likelihoods_the_page_sorts_by_the_loss(digits):
    model = new_model()
    settings = page_settings(model, digits, log_of(150.0))
    with torch.no_grad():
        logits = model.decode(model.codes(digits.x_test))
        likelihood = Bernoulli(logits=logits, validate_args=False).log_prob(digits.x_test).sum(1)
    assert settings["worst_first"] == likelihood.argsort().tolist()


def test_the_page_has_the_final_model_and_the_last_images(given, digits):
    shown = shown_after(2, (0, 1), digits)
    assert figures.draw_explorer(shown) == b"page_bytes"
    tensors, images, codes, labels, settings = given["page_bytes"]
    for name, weight in model_after(2).state_dict().items():
        assert np.array_equal(tensors[name], weight)
    assert np.array_equal(images, digits.x_test)
    np.testing.assert_allclose(codes, model_after(2).codes(digits.x_test).detach(), rtol=1e-5)
    assert np.array_equal(labels, digits.test_labels)
    assert settings["reach"] == shown.plane.reach


def test_a_model_with_three_latents_has_no_page(given, digits):
    history = History(log_of(150.0))
    shown = figures.picture_data(AutoEncoder(3, *SMALL), digits, history)
    assert figures.draw_explorer(shown) is None


# --- All pictures -----------------------------------------------------------------------------


def test_loss_curves_and_the_gap(given):
    """The gap is between the test curve and the Laplace posterior's, where that is there."""
    log = log_of(190.0, 140.0, 125.0)
    for entry, train_loss in zip(log, (200.0, 150.0, 120.0), strict=True):
        entry["train"]["L_tot"] = train_loss
    log[0]["laplace"] = {"L_tot": 140.0}
    log[2]["laplace"] = {"L_tot": 116.5}
    figures.draw_loss(SimpleNamespace(log=log))
    curves, gap, _, _ = given["draw_curves"]
    train, test, laplace = curves
    assert (train.x, train.y) == ([1, 2, 3], [200, 150, 120])
    assert (test.x, test.y) == ([1, 2, 3], [190, 140, 125])
    assert (laplace.x, laplace.y) == ([1, 3], [140, 116.5])
    assert train.label == "train, 200.0 to 120.0"
    assert (gap.x, gap.lower, gap.upper) == ([1, 3], [140, 116.5], [190, 125])
    assert gap.label == "gap between the two, last 8.5 nats"


def test_loss_curves_of_a_model_without_a_laplace_posterior(given):
    log = log_of(190.0, 140.0)
    for entry in log:
        entry["validation"] = {"L_tot": 160.0}
    figures.draw_loss(SimpleNamespace(log=log))
    curves, gap, _, _ = given["draw_curves"]
    assert [curve.label.split(",")[0] for curve in curves] == ["train", "validation", "test"]
    assert gap is None


def test_another_picture_is_one_function_and_one_entry(monkeypatch, given, digits):
    """And one that makes no sense for a model is not there."""
    monkeypatch.setitem(figures.FIGURES, "new.png", lambda shown: b"png")
    monkeypatch.setitem(figures.FIGURES, "none.png", lambda shown: None)
    pictures = auto_encoder.draw_pictures(shown_after(1, (0,), digits))
    assert pictures["scatter"] == b"draw_scatter"
    assert pictures["loss.png"] == b"draw_curves"
    assert pictures["new.png"] == b"png"
    assert "none.png" not in pictures
    assert pictures.keys() == {"scatter", *figures.FIGURES} - {"none.png"}
