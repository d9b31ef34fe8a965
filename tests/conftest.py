"""Small real data, and ways to run the two scripts."""

import contextlib
import gzip
import hashlib
import io
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from quick import make_quick, small_model

import auto_encoder
import models
from lib import cli, plots

PROJECT = Path(__file__).resolve().parent.parent
MNIST = PROJECT / "mnist"
FILES = {  # split: (images, labels), the names that LeCun gave them
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as nohup starts what it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what the tests start, too
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

slow_start = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
common = settings(database=None, deadline=10_000, suppress_health_check=slow_start)
settings.register_profile("short", common, max_examples=30)
settings.register_profile("long", common, max_examples=1000)
settings.load_profile("short")


# --- Digits -----------------------------------------------------------------------------------


def idx_bytes(array):
    """An idx file of unsigned bytes, as LeCun describes it."""
    header = struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape)
    return header + array.astype("u1").tobytes()


def write_idx_folder(folder, train, test):
    """Write two (images, labels) pairs under the four canonical names."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, arrays in (("train", train), ("test", test)):
        for name, array in zip(FILES[split], arrays, strict=True):
            (folder / name).write_bytes(idx_bytes(array))
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
    for split in FILES:
        for name, kind in zip(FILES[split], ("images", "labels"), strict=True):
            raw = gzip.decompress((MNIST / f"{name}.gz").read_bytes())
            body = np.frombuffer(raw, np.uint8, offset=16 if kind == "images" else 8)
            arrays[f"{split}_{kind}"] = body.reshape(-1, 28, 28) if kind == "images" else body
    return SimpleNamespace(**arrays)


def part_of_mnist(folder, mnist, train, test):
    """The first `train` training images, and from number `test` on the test images."""
    first, last = slice(train), slice(test, None)
    train = mnist.train_images[first], mnist.train_labels[first]
    return write_idx_folder(folder, train, (mnist.test_images[last], mnist.test_labels[last]))


@pytest.fixture(scope="session")
def small_mnist(tmp_path_factory, mnist):
    """1500 training and 1100 test images."""
    return part_of_mnist(tmp_path_factory.mktemp("small mnist"), mnist, 1500, -1100)


@pytest.fixture(scope="session")
def tiny_mnist(tmp_path_factory, mnist):
    """300 training and 100 test images."""
    return part_of_mnist(tmp_path_factory.mktemp("tiny mnist"), mnist, 300, -100)


# --- Models -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shipped():
    """The shipped model, trained on MNIST."""
    return models.load_checkpoint(models.SHIPPED)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, small_mnist):
    """A run of two epochs: what it printed, and what the scatter was given."""
    folder = tmp_path_factory.mktemp("trained")
    drawn = []
    draw_scatter = plots.draw_scatter

    def record(*arguments):
        drawn.append(arguments)
        return draw_scatter(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plots, "draw_scatter", record)
        result = call(auto_encoder, *flags(folder, small_mnist))
    assert (result.status, result.stderr) == (0, "")  # no bar without a terminal
    return SimpleNamespace(folder=folder, lines=result.stdout.splitlines(), scatter=drawn[0])


@pytest.fixture(scope="session")
def trained(finished_run):
    """The folder of that run."""
    return finished_run.folder


# --- Scripts ----------------------------------------------------------------------------------


def flags(folder, digits, **changed):
    """A command line for a quick training run that writes into `folder`."""
    values = {"data": digits, "epochs": 2, "out": folder, **changed}
    arguments = []
    for name, value in values.items():
        arguments += [f"--{name.replace('_', '-')}", value]
    return arguments


def call(script, *arguments):
    """Run a script's main in this process as its command line would; give status and output.

    Its networks are narrow. What it changed in this process it must have put back.
    """
    handler = signal.getsignal(signal.SIGINT)
    status, stdout, stderr = 0, io.StringIO(), io.StringIO()
    output = contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr)
    with pytest.MonkeyPatch.context() as patched, output[0], output[1]:
        make_quick(patched.setattr)
        patched.setattr(auto_encoder, "make_model", small_model)
        patched.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        try:
            cli.run(script.main)
        except SystemExit as stop:
            status = stop.code or 0
    assert torch.get_float32_matmul_precision() == "highest"
    assert signal.getsignal(signal.SIGINT) is handler
    return SimpleNamespace(status=status, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def program(script):
    """How a script is started; auto_encoder.py with the narrow networks of `call`."""
    start_quickly = [PROJECT / "tests/quick.py"] if script == "auto_encoder.py" else []
    return [sys.executable, *start_quickly, PROJECT / script]


def start(script, *arguments, **options):
    """The process of a script, its output in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*program(script), *map(str, arguments)], **pipes, **options)


def command(script, *arguments, **options):
    """Run a script to its end."""
    process = start(script, *arguments, **options)
    stdout, stderr = process.communicate(timeout=200)
    return SimpleNamespace(status=process.returncode, stdout=stdout, stderr=stderr)


def assert_one_line(result, *parts):
    """Exit status 2, and one line on stderr that names all of `parts`."""
    assert result.status == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert str(part) in result.stderr


# --- Files ------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_larger_than(size):
    """The kernel refuses to write more, as on a full disk, but with another error."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(folder):
    """The bytes of all files in a folder and its subfolders."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def digests(folder):
    """Of all that the same command leaves the same; the .json has times in it."""
    found = {}
    for name, content in contents(folder).items():
        if name.endswith((".png", ".html", ".safetensors")):
            found[name] = hashlib.sha256(content).hexdigest()
    return found
