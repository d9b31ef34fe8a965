"""Checkpoints and the files of --resume: what is saved comes back, and nothing else is taken."""

import functools
import io
import pickle
import struct

import pytest
import safetensors.torch
import torch
from conftest import assert_one_line, call, flags
from hypothesis import given
from hypothesis import strategies as st

import auto_encoder
import decoder_generate
from lib import checkpoints
from lib.errors import InputError
from lib.history import History, restore, resume_bytes
from models import CHECKPOINT_FORMAT, VAE, AutoEncoder, GridVAE, checkpoint_bytes, load_checkpoint

SMALL = (8, 8), (8, 8)  # widths of an encoder and a decoder
MODELS = {"grid": GridVAE(*SMALL), "vae": VAE(6, *SMALL), "ae": AutoEncoder(3, *SMALL)}


@pytest.mark.parametrize("kind", MODELS)
def test_round_trip(tmp_path, kind):
    """The loaded model has the same kind, settings, weights and metadata; so say its bytes."""
    path, x = tmp_path / "a.safetensors", torch.rand(4, 784)
    made = MODELS[kind].eval()
    path.write_bytes(checkpoint_bytes(made, epochs=3, nested={"list": [1.5, "text"]}))
    loaded = load_checkpoint(path)
    assert loaded.metadata == {"epochs": 3, "nested": {"list": [1.5, "text"]}}
    assert (type(loaded), loaded.config, loaded.training) == (type(made), made.config, False)
    assert torch.equal(loaded.decode(loaded.codes(x)), made.decode(made.codes(x)))
    theirs = safetensors.torch.load_file(path)  # any reader of the format sees the weights
    assert all(torch.equal(theirs[name], w) for name, w in made.state_dict().items())
    assert checkpoint_bytes(loaded, **loaded.metadata) == path.read_bytes()


def test_a_checkpoint_says_what_its_architecture_depends_on(tmp_path):
    """Sizes that are not the usual ones come back."""
    model = GridVAE(*SMALL, regions_per_side=9, readout_width=16, grid_side=45)
    (tmp_path / "a").write_bytes(checkpoint_bytes(model))
    loaded = load_checkpoint(tmp_path / "a")
    assert loaded.encoder.classifier.out_features == 81
    assert loaded.encoder.readout.out_features == 16
    assert len(loaded.make_grid().codes) == 45**2


OTHER = [
    {"regions_per_side": 9},
    {"readout_width": 32},
    {"encoder_widths": [16, 16]},
    {"body": "convolutions"},
]


@pytest.mark.parametrize("config", OTHER)
def test_another_architecture_is_called_that(tmp_path, config):
    """As of a model that was saved before a network was changed."""
    model = GridVAE(*SMALL)
    contents = {"model": "GridVAE", "config": {**model.config, **config}, "metadata": {}}
    made = checkpoints.file_bytes(CHECKPOINT_FORMAT, model.state_dict(), contents)
    (tmp_path / "a").write_bytes(made)
    line = r"another architecture .*auto_encoder\.py makes a new one"
    with pytest.raises(InputError, match=line):
        load_checkpoint(tmp_path / "a")


# --- What is no checkpoint --------------------------------------------------------------------


class Call(tuple):
    """Pickled as a call, which loading it makes, if it may."""

    def __reduce__(self):
        return self[0], self[1:]


def saved(contents):
    """As torch.save makes it."""
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    return buffer.getvalue()


NO_CHECKPOINT = {  # each from the path that would exist if its code ran
    "empty": lambda _: b"",
    "text": lambda _: b"<!DOCTYPE html>\n<title>404 Not Found</title>\n" * 20,
    "a long header": lambda _: struct.pack("<Q", 2**61) + b"{}",
    "somebody else's safetensors": lambda _: safetensors.torch.save({"weight": torch.zeros(2)}),
    "an older format": lambda _: checkpoints.file_bytes("mnist-auto-encoder-5", {}, {}),
    "torch.save": lambda _: saved({"weight": torch.zeros(2)}),
    "code in torch.save": lambda ran: saved({"settings": Call((open, str(ran), "w"))}),
    "code in a pickle": lambda ran: pickle.dumps(Call((open, str(ran), "w")), protocol=2),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINT)
def test_what_is_no_checkpoint(tmp_path, tiny_mnist, kind):
    """One line from the scripts, whether as a checkpoint or with --resume; no code of it runs."""
    ran = tmp_path / "ran"
    path = tmp_path / "checkpoints/vae.resume.pt"
    path.parent.mkdir()
    path.write_bytes(NO_CHECKPOINT[kind](ran))
    result = call(decoder_generate, "--checkpoint", path, "--out", tmp_path / "images")
    assert_one_line(result, path, "auto_encoder.py makes a new one")
    result = call(auto_encoder, *flags(tmp_path, tiny_mnist), "--resume")
    assert_one_line(result, path, "leave out --resume")
    assert not ran.exists()
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_and_a_missing_file(tmp_path):
    """One line that names it."""
    for path in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 300)):
        result = call(decoder_generate, "--checkpoint", path, "--out", tmp_path / "images")
        assert_one_line(result, path)


# --- Damage -----------------------------------------------------------------------------------


@functools.cache
def trained_a_little():
    """The files of a small model after a step: a checkpoint and what --resume needs."""
    model = AutoEncoder(2, *SMALL)
    optimizers = auto_encoder.optimizers_for(model, auto_encoder.PLAIN_SETTINGS)
    auto_encoder.elbo_step(model, optimizers, torch.rand(5, 784), None)
    history = History(snapshots={0: {"last_codes": torch.rand(3, 2)}})
    history.add_epoch({"train": {"L_tot": 200.0}, "seconds": 0.5}, model)
    resume = resume_bytes({"seed": 0}, model, optimizers, history)
    return model, optimizers, {"checkpoint": checkpoint_bytes(model), "resume": resume}


def complaint_of(kind, path, model, optimizers):
    """The line with which a file is refused; None if it loads."""
    try:
        if kind == "checkpoint":
            load_checkpoint(path)
        else:
            restore(path, {"seed": 0}, model, optimizers)
    except InputError as error:
        return str(error)
    return None


def test_what_resume_needs_comes_back(tmp_path):
    """Weights, optimizers and history, in a model and optimizers that are new."""
    model, _, files = trained_a_little()
    (tmp_path / "a.pt").write_bytes(files["resume"])
    other = AutoEncoder(2, *SMALL)
    other_optimizers = auto_encoder.optimizers_for(other, auto_encoder.PLAIN_SETTINGS)
    history = restore(tmp_path / "a.pt", {"seed": 0}, other, other_optimizers)
    assert history.log == [{"train": {"L_tot": 200.0}, "seconds": 0.5}]
    assert list(history.snapshots) == [0]
    for name, weight in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight)
        assert torch.equal(history.best_weights[name], weight)
    assert resume_bytes({"seed": 0}, other, other_optimizers, history) == files["resume"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind", ["checkpoint", "resume"])
@given(place=st.integers(0, 300) | st.integers(0, 10**6), bit=st.none() | st.integers(0, 7))
def test_damaged_files(tmp_path_factory, kind, place, bit):
    """A flipped bit, or an end that is missing: one line, or it loads, as a weight may be any."""
    model, optimizers, files = trained_a_little()
    damaged = bytearray(files[kind])
    place %= len(damaged)
    if bit is None:
        del damaged[place:]
    else:
        damaged[place] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(damaged)
    complaint = complaint_of(kind, path, model, optimizers)
    if complaint is not None:
        assert str(path) in complaint
        assert "\n" not in complaint
