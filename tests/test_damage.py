"""Damaged input by the hundred: it loads as what it says, or one line refuses it.

The long version, 1,000 of each kind, in a few minutes:

    python -m pytest tests/test_damage.py --hypothesis-profile=long
"""

import contextlib
import itertools
import resource
import struct
import sys

import pytest
import torch
from conftest import assert_one_line, call, contents
from hypothesis import given
from hypothesis import strategies as st

import auto_encoder
import decoder_generate
import models
from lib import checkpoints
from lib.errors import InputError
from models import AutoEncoder, GridVAE, checkpoint_bytes, load_checkpoint

# A warning would be a line more on standard error.
pytestmark = pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning")

LARGE = 0, 1, 27, 2049, 2051, 10**9, 2**31 - 1, 2**31, 2**32 - 1
NUMBERS = [struct.pack(form, number) for form in (">I", "<I", "<Q") for number in LARGE]
WORDS = [b"-1", b"256", b"255", b"10", b"1e3", b"0.5", b"nan", b"1_0", b"9" * 400, b"label", b"#"]
WORDS += [b",", b",,", b";", b" ", b"\n", b"\r", b"\n\n", b"\0", b'"', b"\xff", b" " * 10**5]
WORDS += [word.encode() for word in ("\u0663", "\ufeff", "\u2462", "\uff13", "\U0010ffff", "\xb2")]

PLACES = st.integers(0, 64) | st.integers(0, 2**20)  # headers are small, bodies are not
FLIPS = st.tuples(PLACES, st.just(1), st.integers(0, 7))


def edits(pieces):
    """A few flipped bits, and stretches repeated elsewhere, cut out or replaced."""
    new = st.just(b"") | st.sampled_from(pieces) | st.binary(max_size=12)
    splices = st.tuples(PLACES, st.integers(0, 16) | PLACES, new | st.tuples(PLACES, PLACES))
    return st.lists(FLIPS | splices, min_size=1, max_size=4)


def damaged(original, changes):
    content = bytearray(original)
    for place, removed, new in changes:
        place %= len(original)
        if isinstance(new, int):
            new = bytes(byte ^ 1 << new for byte in content[place : place + 1])
        elif isinstance(new, tuple):
            new = original[new[0] % len(original) :][: new[1]]
        content[place : place + removed] = new
    return bytes(content)


@contextlib.contextmanager
def one_line():
    """Nothing, or an InputError of one line."""
    message = ""
    try:
        yield
    except InputError as error:
        message = str(error)
    assert "\n" not in message[:1000] == message


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def generate(checkpoint, content, out):
    """What decoder_generate.py leaves of this checkpoint; an error is one line."""
    checkpoint.write_bytes(content)
    result = call(decoder_generate, "--checkpoint", checkpoint, "--out", out, "--count", 2)
    if result.status:
        assert_one_line(result, checkpoint)
        assert len(result.stderr) < 1000
    return contents(out)


@pytest.fixture(scope="module", params=["vae", "ae"])
def model(request, work):
    """A small model, and in work/images what it generates."""
    torch.manual_seed(0)
    small = (8, 8), (8, 8)
    model = GridVAE(*small) if request.param == "vae" else AutoEncoder(3, *small)
    generate(work / "a.safetensors", checkpoint_bytes(model, seed=0), work / "images")
    return model


@given(changes=edits(NUMBERS))
def test_damaged_checkpoints(work, model, changes):
    """What loads is bit by bit what was saved; and a refused one costs no images."""
    path, images = work / "a.safetensors", contents(work / "images")
    assert len(images) == 2
    assert (
        generate(path, damaged(checkpoint_bytes(model, seed=0), changes), work / "images") == images
    )
    with one_line():
        loaded = load_checkpoint(path)
        assert (loaded.config, loaded.metadata) == (model.config, {"seed": 0})
        assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


JSON = [
    None,
    True,
    -1,
    0,
    2.0,
    10**12,
    "",
    "VAE",
    "AutoEncoder",
    {},
    [],
    [8],
    [-8],
    ["8"],
    [8] * 200,
]
TENSORS = [torch.eye(8), torch.eye(8).double(), torch.eye(8).int(), torch.ones(8), torch.ones(())]
TENSORS += [torch.zeros(8, 0), torch.full((2,), torch.nan), torch.full((8,), torch.inf)]


def test_checkpoints_with_other_contents_but_right_checksums(work, model):
    """Each entry in turn is something else: what loads must work."""
    config = dict(model.config)
    contents = {"model": type(model).__name__, "config": config, "metadata": {}}
    path, tensors = work / "a.safetensors", dict(model.state_dict())
    for part, values in (contents, JSON), (config, JSON), (tensors, TENSORS):
        for (name, kept), value in itertools.product(list(part.items()), values):
            part[name] = value
            path.write_bytes(checkpoints.file_bytes(models.CHECKPOINT_FORMAT, tensors, contents))
            part[name] = kept
            with one_line():
                loaded = load_checkpoint(path)
                assert loaded.decode(torch.zeros(1, loaded.latent_dim)).isfinite().all()
                assert loaded.decode(loaded.codes(torch.rand(2, 784))).shape == (2, 784)


@given(changes=edits(NUMBERS))
def test_damaged_resume_files(work, trained_a_little, changes):
    """What --resume takes is exactly what was saved."""
    path = work / "a.resume.safetensors"
    path.write_bytes(damaged(auto_encoder.resume_bytes(*trained_a_little), changes))
    *arguments, history = trained_a_little
    untrained = history.snapshots[0]
    with one_line():
        assert auto_encoder.restore(path, *arguments, untrained).log == history.log
    weights = arguments[1].state_dict().values()
    assert all(map(torch.equal, weights, history.best_weights.values()))


@given(changes=edits([*WORDS, b"1e39", b"-inf"]))
def test_damaged_codes(work, changes):
    """What loads has the numbers that Python reads."""
    path = work / "codes.csv"
    path.write_bytes(damaged(b"0.5, -1\n\n1.5 0.25\n0,0\n", changes))
    with one_line():
        codes = decoder_generate.read_codes(path, 2)
        text = path.read_text(encoding="latin-1").removeprefix("\xef\xbb\xbf")
        words = text.replace(",", " ").split()
        assert codes.flatten().tolist() == pytest.approx([float(word) for word in words])


def test_peak_memory():
    """Of this process, whatever it ran before; ru_maxrss is in KiB, on macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak * (1 if sys.platform == "darwin" else 1024) < 2e9
