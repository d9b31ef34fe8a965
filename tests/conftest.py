"""Small real data, and ways to run the two scripts."""

import contextlib
import gzip
import hashlib
import io
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

import auto_encoder
import cli
import data
import models
import training

PROJECT = Path(__file__).resolve().parent.parent
MNIST = PROJECT / "mnist"

slow_start = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
common = settings(database=None, deadline=10_000, suppress_health_check=slow_start)
settings.register_profile("short", common, max_examples=30)
settings.register_profile("long", common, max_examples=2000)
settings.load_profile("short")


def idx_bytes(array, magic=None):
    """An idx file of unsigned bytes, as LeCun describes it."""
    magic = magic or 2048 + array.ndim
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype("u1").tobytes()


def write_idx_folder(folder, train, test):
    """Write two (images, labels) pairs under the four canonical names."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in (("train", train), ("test", test)):
        images_name, labels_name = data.FILES[split]
        (folder / images_name).write_bytes(idx_bytes(images))
        (folder / labels_name).write_bytes(idx_bytes(labels))
    return folder


def table_of(images, labels, label="first"):
    """The lines of a table of digits."""
    columns = [labels[:, None], images.reshape(len(images), 784)]
    rows = np.hstack(columns if label == "first" else columns[::-1])
    return [",".join(map(str, row)) for row in rows]


def write_lines(path, lines):
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def mnist():
    """All of MNIST: train_images, train_labels, test_images, test_labels."""
    arrays = {}
    for split in data.FILES:
        for name, kind in zip(data.FILES[split], ("images", "labels"), strict=True):
            raw = gzip.decompress((MNIST / f"{name}.gz").read_bytes())
            body = np.frombuffer(raw, np.uint8, offset=16 if kind == "images" else 8)
            arrays[f"{split}_{kind}"] = body.reshape(-1, 28, 28) if kind == "images" else body
    return SimpleNamespace(**arrays)


@pytest.fixture(scope="session")
def small_mnist(tmp_path_factory, mnist):
    """A folder with the first 1500 training and the last 1100 test images of MNIST."""
    return write_idx_folder(
        tmp_path_factory.mktemp("small mnist"),
        (mnist.train_images[:1500], mnist.train_labels[:1500]),
        (mnist.test_images[-1100:], mnist.test_labels[-1100:]),
    )


@pytest.fixture(scope="session")
def tiny_mnist(tmp_path_factory, mnist):
    """A folder with the first 300 training and the first 100 test images of MNIST."""
    return write_idx_folder(
        tmp_path_factory.mktemp("tiny mnist"),
        (mnist.train_images[:300], mnist.train_labels[:300]),
        (mnist.test_images[:100], mnist.test_labels[:100]),
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory, small_mnist):
    """The folder of a finished run of two epochs, with what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    result = call(auto_encoder, *flags(folder, small_mnist, figures=folder / "figures"))
    assert result.status == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory, tiny_mnist):
    """The folder of a finished run of two epochs with all figures."""
    folder = tmp_path_factory.mktemp("unbroken")
    arguments = unbroken_flags(folder, tiny_mnist)
    result = call(auto_encoder, *arguments)
    assert (result.status, result.stderr) == (0, "")
    return folder


@pytest.fixture(scope="session")
def trained_a_little():
    """A small model and its optimizers after an epoch: the arguments of `resume_bytes`."""
    torch.manual_seed(0)
    model = models.VAE(2, decoder_widths=(8, 8))
    optimizers = training.make_optimizers(model)
    x = torch.rand(20, 784)
    settings = {"seed": 0, "epochs": 2, "batch_size": 10, "lr": 0.01}
    figures = training.train_epoch(model, optimizers, x, {"test": x}, 0, settings)
    best = {name: weight.clone() for name, weight in model.state_dict().items()}
    snapshots = {0: {"codes": torch.rand(3, 2)}, 10: {"codes": torch.rand(3, 2)}}
    return settings, model, optimizers, {"log": [figures], "snapshots": snapshots, "best": best}


def call(script, *arguments):
    """Run a script's main in this process as its command line would; give status and output.

    With a coarse quadrature, as the same training on a few images is evaluated many times.
    """
    coarse = partialmethod(models.VAE.log_likelihood, side=81)
    status, stdout, stderr = 0, io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(models.VAE, "log_likelihood", coarse)
        patched.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        stack.enter_context(contextlib.redirect_stdout(stdout))
        stack.enter_context(contextlib.redirect_stderr(stderr))
        try:
            cli.run(script.main)
        except SystemExit as stop:
            status = stop.code or 0
    return SimpleNamespace(status=status, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def interrupting(train_epoch, epoch):
    """An epoch's training that is interrupted in this epoch."""

    def interrupted(model, optimizers, x, watched, now, settings):
        if now == epoch:
            train_epoch(model, optimizers, x[:400], watched, now, settings)
            raise KeyboardInterrupt
        return train_epoch(model, optimizers, x, watched, now, settings)

    return interrupted


def command(script, *arguments, **options):
    """Run a script as a user does, in a new process."""
    return subprocess.run(
        [sys.executable, PROJECT / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        **options,
    )


def assert_one_line(result, *parts):
    """Exit status 2, and one line on stderr that names all of `parts`."""
    assert result.status == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert str(part) in result.stderr


@contextlib.contextmanager
def cheaply(megabytes, seconds=10):
    """What Python and NumPy take stays below that."""
    started = time.monotonic()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 1e6 * megabytes
        assert time.monotonic() - started < seconds
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def no_file_larger_than(size):
    """The kernel refuses to write more, as on a full disk, but with another error."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def start(script, *arguments, **options):
    """The process of a script, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, PROJECT / script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def contents(folder):
    """The bytes of all files in a folder and its subfolders."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flags(folder, small_mnist, **changed):
    """A command line for a quick training run that writes into `folder`."""
    values = {
        "data": small_mnist,
        "epochs": 2,
        "checkpoint": folder / "vae.safetensors",
        "scatter": folder / "encoder.png",
        **changed,
    }
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in values.items()]
    drawing = [] if "figures" in changed else ["--no-figures"]
    return [*(part for pair in pairs for part in pair), *drawing]


def unbroken_flags(folder, tiny_mnist):
    return flags(folder, tiny_mnist, epochs=2, batch_size=50, figures=folder / "figures")


def digests(folder):
    names = ("vae.safetensors", "encoder.png")
    files = [folder / name for name in names] + sorted((folder / "figures").glob("*.png"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
