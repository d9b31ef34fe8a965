"""Small real data, and ways to run the two scripts."""

import gzip
import hashlib
import struct
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import data
import models

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
    """The folder of a finished run of two epochs, by the real command line."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = flags(folder, small_mnist, figures=folder / "figures")
    result = command("auto_encoder.py", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a script's main in this process as its command line would; give status and output.

    With a coarse quadrature, as the same training on a few images is evaluated many times.
    """
    coarse = partialmethod(models.VAE.log_likelihood, side=models.SIDE)
    monkeypatch.setattr(models.VAE, "log_likelihood", coarse)

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        status = 0
        try:
            data.run(script.main)
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return SimpleNamespace(status=status, stdout=captured.out, stderr=captured.err)

    return call


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
        "checkpoint": folder / "vae.pt",
        "scatter": folder / "encoder.png",
        **changed,
    }
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in values.items()]
    drawing = [] if "figures" in changed else ["--no-figures"]
    return [*(part for pair in pairs for part in pair), *drawing]


def digests(folder):
    names = ("vae.pt", "encoder.png")
    files = [folder / name for name in names] + sorted((folder / "figures").glob("*.png"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
