"""The history of a training: the best epoch, when to stop; and how a run is resumed."""

import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_idx_folder

import auto_encoder
from auto_encoder import PLAIN_SETTINGS
from data import find_source, load_both_splits
from lib.errors import InputError
from lib.history import History, is_snapshot_time, restore, resume_bytes
from models import VAE, AutoEncoder

SETTINGS = {"model": "vae", "latent_dim": 3, "batch_size": 256, "seed": 0, "data": {"all": "1f"}}


def log_of(*validation_losses):
    """A log in which the test loss falls as the validation loss rises."""
    log = []
    for loss in validation_losses:
        log.append({"validation": {"L_tot": loss}, "test": {"L_tot": -loss}})
    return log


# --- The best epoch ---------------------------------------------------------------------------


def test_the_best_epoch_is_the_first_of_the_best_on_held_out_images():
    assert History(log_of(5)).best_epoch == 0
    assert History(log_of(5, 3, 4)).best_epoch == 1
    assert History(log_of(5, 3, 3)).best_epoch == 1
    assert History(log_of(5, 3, 2)).last_is_best
    assert not History(log_of(5, 3, 3)).last_is_best


def test_without_held_out_images_the_last_epoch_is_the_best():
    log = [{"test": {"L_tot": 1.0}}, {"test": {"L_tot": 2.0}}]
    assert History(log).best_epoch == 1
    assert History(log[:1]).best_epoch == 0
    assert History(log).last_is_best


def test_when_training_is_finished():
    """After all epochs, or after `patience` epochs that were no better."""
    assert not History().is_finished(epochs=5, patience=2)
    assert not History(log_of(3, 4)).is_finished(epochs=5, patience=2)
    assert History(log_of(3, 4, 4)).is_finished(epochs=5, patience=2)
    assert not History(log_of(3, 2, 4, 4)).is_finished(epochs=5, patience=3)
    assert not History(log_of(5, 4, 3, 2)).is_finished(epochs=5, patience=2)
    assert History(log_of(5, 4, 3, 2, 1)).is_finished(epochs=5, patience=2)
    assert not History(log_of(1, 2, 3, 4)).is_finished(epochs=5, patience=None)


def test_the_weights_of_the_best_epoch_are_kept():
    """As they were then, not as they became."""
    model = VAE(3, (8,), (8,))
    bias = model.decoder.net[-1].bias
    history = History()
    for level, entry in enumerate(log_of(5, 3, 4)):
        bias.data.fill_(level)
        history.add_epoch(entry, model)
    bias.data.fill_(9.0)
    assert history.log == log_of(5, 3, 4)
    assert history.best_weights.keys() == model.state_dict().keys()
    assert history.best_weights["decoder.net.1.bias"].eq(1).all()


def test_snapshots_are_taken_ever_more_rarely():
    taken = [epochs for epochs in range(1, 1001) if is_snapshot_time(epochs)]
    assert taken == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


# --- Resuming ---------------------------------------------------------------------------------


def new_run(seed):
    """A small model and its optimizers; Muon has two matrices."""
    torch.manual_seed(seed)
    model = VAE(3, (8, 8), (8, 8))
    return model, auto_encoder.optimizers_for(model, PLAIN_SETTINGS)


def train_an_epoch(model, optimizers, epoch):
    x = torch.rand(40, 784, generator=torch.Generator().manual_seed(epoch))
    settings = dataclasses.replace(PLAIN_SETTINGS, batch_size=10)
    auto_encoder.train_epoch(model, optimizers, x, epoch, settings)


@pytest.fixture
def unbroken():
    """A model, its optimizers and its history after an epoch."""
    model, optimizers = new_run(seed=0)
    train_an_epoch(model, optimizers, 0)
    history = History(snapshots={0: {"last_codes": torch.rand(5, 3)}})
    history.add_epoch({"train": {"L_tot": 1.5}, "seconds": 0.25}, model)
    return model, optimizers, history


def test_a_restored_run_goes_on_as_the_unbroken_one(tmp_path, unbroken):
    """The history is the same, and so is each bit of the weights after one more epoch."""
    model, optimizers, history = unbroken
    path = tmp_path / "vae.resume.pt"
    path.write_bytes(resume_bytes(SETTINGS, model, optimizers, history))
    model_2, optimizers_2 = new_run(seed=1)
    history_2 = restore(path, SETTINGS, model_2, optimizers_2)
    assert history_2.log == history.log
    assert torch.equal(history_2.snapshots[0]["last_codes"], history.snapshots[0]["last_codes"])
    assert history_2.best_weights.keys() == history.best_weights.keys()
    for name, weight in history.best_weights.items():
        assert torch.equal(history_2.best_weights[name], weight)

    train_an_epoch(model, optimizers, 1)
    train_an_epoch(model_2, optimizers_2, 1)
    for name, weight in model.state_dict().items():
        assert torch.equal(model_2.state_dict()[name], weight), name


def test_what_is_written_does_not_change_as_training_goes_on(tmp_path, unbroken):
    """It is of the moment at which it was made."""
    model, optimizers, history = unbroken
    before = copy.deepcopy(model.state_dict())
    content = resume_bytes(SETTINGS, model, optimizers, history)
    train_an_epoch(model, optimizers, 1)
    path = tmp_path / "vae.resume.pt"
    path.write_bytes(content)
    restore(path, SETTINGS, model, optimizers)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize(
    ("name", "value", "flag"),
    [
        ("model", "ae", "--model"),
        ("latent_dim", 4, "--latent-dim"),
        ("batch_size", 255, "--batch-size"),
        ("seed", 1, "--seed"),
        ("data", {"all": "1e"}, "--data"),
    ],
)
def test_a_run_with_another_setting_is_refused(tmp_path, unbroken, name, value, flag):
    """By the name of its flag."""
    model, optimizers, history = unbroken
    path = tmp_path / "vae.resume.pt"
    path.write_bytes(resume_bytes({**SETTINGS, name: value}, model, optimizers, history))
    with pytest.raises(InputError) as refused:
        restore(path, SETTINGS, model, optimizers)
    message = str(refused.value)
    assert f"another {flag};" in message
    assert str(path) in message
    assert message.endswith("or leave out --resume to begin anew")


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def damaged_files(content, fuse):
    """Files that cannot be resumed from: {what it is: bytes}; `content` is one that can."""
    middle = len(content) // 2
    scratch = fuse.with_name("scratch")
    torch.save({"settings": SETTINGS, "model": Bomb(fuse)}, scratch)
    with_code_in_it = scratch.read_bytes()
    torch.save({"state_dict": {"weight": torch.ones(3)}, "epoch": 7}, scratch)
    of_another_program = scratch.read_bytes()
    torch.save([torch.ones(3)], scratch)
    a_list = scratch.read_bytes()
    model, optimizers = new_run(seed=0)
    of_another_class = AutoEncoder(3, (8, 8), (8, 8))
    scratch.unlink()
    return {
        "empty": b"",
        "cut off": content[:middle],
        "no file of PyTorch": b"0,1,2\n" * 100,
        "a pickle": pickle.dumps({"settings": SETTINGS}, protocol=2),
        "a pickle with code": pickle.dumps(Bomb(fuse), protocol=2),
        "code in a file of PyTorch": with_code_in_it,
        "of another program": of_another_program,
        "a list": a_list,
        "of another class": resume_bytes(SETTINGS, of_another_class, optimizers, History()),
        "without an optimizer": resume_bytes(SETTINGS, model, optimizers[:1], History()),
        "without all settings": resume_bytes({"seed": 0}, model, optimizers, History()),
    }


def test_damaged_and_foreign_files_are_one_line_and_run_no_code(tmp_path, unbroken):
    fuse = tmp_path / "code ran"
    path = tmp_path / "vae.resume.pt"
    files = damaged_files(resume_bytes(SETTINGS, *unbroken), fuse)
    for what, content in files.items():
        path.write_bytes(content)
        model, optimizers = new_run(seed=0)
        with pytest.raises(InputError) as refused:
            restore(path, SETTINGS, model, optimizers)
        message = str(refused.value)
        assert message.startswith(f"{path}: cannot be resumed from ("), what
        assert message.endswith("; leave out --resume to begin anew"), what
        assert "\n" not in message, what
    assert not fuse.exists()
    pickle.loads(files["a pickle with code"])
    assert fuse.exists()  # so it would have run


def test_there_is_something_to_resume_from(tmp_path):
    """Nothing was begun; a run was interrupted; it is finished."""
    files = auto_encoder.output_files(tmp_path, "vae")
    files["metrics"].parent.mkdir()
    with pytest.raises(InputError, match=r"resume\.pt is not there; leave out --resume"):
        auto_encoder.check_resumable(files)
    files["metrics"].write_bytes(auto_encoder.json_bytes({"log": [], "results": {}}))
    with pytest.raises(InputError, match=r"^--resume: this run is finished, its results are in"):
        auto_encoder.check_resumable(files)
    files["resume"].write_bytes(b"of a new run, which goes on")
    auto_encoder.check_resumable(files)


@pytest.mark.parametrize("changed", ["train images", "train labels", "test images", "test labels"])
def test_digits_that_differ_in_one_number_do_not_resume_each_other(tmp_path, unbroken, changed):
    rng = np.random.default_rng(0)
    parts = {}
    for split in ("train", "test"):
        parts[f"{split} images"] = rng.integers(0, 256, (30, 28, 28))
        parts[f"{split} labels"] = np.arange(30) % 10
    settings = []
    for name in ("as it is", "changed"):
        train = parts["train images"], parts["train labels"]
        test = parts["test images"], parts["test labels"]
        source = find_source(write_idx_folder(tmp_path / name, train, test))
        digits = load_both_splits(source, "cpu")
        args = auto_encoder.parse_arguments(["--data", str(tmp_path / name)])
        metadata = auto_encoder.run_metadata(args, PLAIN_SETTINGS, digits)
        settings.append(metadata["settings"])
        one_number = parts[changed].reshape(-1)[:1]  # a part of the array, not a copy
        one_number[0] = (one_number[0] + 1) % 10

    model, optimizers, history = unbroken
    path = tmp_path / "vae.resume.pt"
    path.write_bytes(resume_bytes(settings[0], model, optimizers, history))
    restore(path, settings[0], model, optimizers)
    with pytest.raises(InputError, match=r"was made with another --data;"):
        restore(path, settings[1], model, optimizers)
