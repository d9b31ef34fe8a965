"""Damaged input by the hundred: it loads as what it says, or one line refuses it.

The long version, 2,000 of each kind, in a few minutes:

    python -m pytest tests/test_damage.py --hypothesis-profile=long
"""

import contextlib
import gzip
import resource
import struct
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import assert_one_line, call, idx_bytes, table_of, write_idx_folder
from hypothesis import event, given
from hypothesis import strategies as st

import data
import decoder_generate
import models
import training
from data import load_digits
from errors import InputError
from models import VAE, AutoEncoder, checkpoint_bytes, load_checkpoint
from tensor_files import tensor_bytes

pytestmark = pytest.mark.filterwarnings("error")  # one would be a line more on standard error

IMAGES, LABELS = data.FILES["train"]
NUMBERS = [
    struct.pack(form, number)
    for form in (">I", "<I", "<Q")
    for number in (0, 1, 27, 2049, 2051, 10**9, 2**31 - 1, 2**31, 2**32 - 1)
]
WORDS = [b"-1", b"256", b"255", b"10", b"1e3", b"0.5", b"nan", b"1_0", b"9" * 400, b"label", b"#"]
WORDS += [b",", b",,", b";", b" ", b"\n", b"\r", b"\n\n", b"\0", b'"', b"\xff", b" " * 10**5]
WORDS += [word.encode() for word in ("\u0663", "\ufeff", "\u2462", "\uff13", "\U0010ffff", "\xb2")]

PLACES = st.integers(0, 64) | st.integers(0, 2**20)  # headers are small, bodies are not
FLIPS = st.tuples(PLACES, st.integers(0, 7))
REPEATS = st.tuples(PLACES, st.integers(0, 16), PLACES, PLACES)


def edits(pieces):
    """A few flipped bits, and stretches repeated elsewhere, cut out or replaced."""
    replacements = st.just(b"") | st.sampled_from(pieces) | st.binary(max_size=12)
    splices = st.tuples(PLACES, st.integers(0, 16) | PLACES, replacements)
    return st.lists(FLIPS | splices | REPEATS, min_size=1, max_size=4)


def damaged(original, changes):
    content = bytearray(original)
    for place, *change in changes:
        place %= len(original)
        if len(change) == 1:
            content[place : place + 1] = [byte ^ 1 << change[0] for byte in content[place:][:1]]
        else:
            removed, inserted, *size = change
            stretch = original[inserted % len(original) :][: size[0]] if size else inserted
            content[place : place + removed] = stretch
    return bytes(content)


@contextlib.contextmanager
def one_line():
    """Nothing, or an InputError of one line."""
    message = ""
    try:
        yield
        event("loaded")
    except InputError as error:
        event("refused")
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000


rng = np.random.default_rng(0)
FEW = rng.integers(0, 256, (6, 28, 28)), np.arange(6) % 3
ORIGINALS = {IMAGES: idx_bytes(FEW[0]), LABELS: idx_bytes(FEW[1])}


@pytest.fixture(scope="module")
def idx_folder(tmp_path_factory):
    return write_idx_folder(tmp_path_factory.mktemp("damaged"), FEW, FEW)


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("suffix", ["", ".gz"])
@given(changes=edits(NUMBERS))
def test_damaged_idx_files(idx_folder, name, suffix, changes):
    """What loads has the header and the very bytes of the file."""
    for other, original in ORIGINALS.items():
        (idx_folder / other).write_bytes(original)
    (idx_folder / name).unlink()
    for leftover in idx_folder.glob("train-*.gz"):
        leftover.unlink()
    original = gzip.compress(ORIGINALS[name], mtime=0) if suffix else ORIGINALS[name]
    content = damaged(original, changes)
    (idx_folder / f"{name}{suffix}").write_bytes(content)
    with one_line():
        images, labels = load_digits(idx_folder, "train")
        arrays = {IMAGES: images, LABELS: labels}
        expected = gzip.decompress(content) if suffix else content
        assert idx_bytes(arrays[name]) == expected


@pytest.fixture(scope="module")
def work_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module", params=["first", "last", "first, with names"])
def table(request, mnist):
    """A table of twelve digits, as bytes."""
    label = request.param.split(",")[0]
    header = [",".join(["label", *map(str, range(784))])] * ("names" in request.param)
    lines = table_of(mnist.train_images[:12], mnist.train_labels[:12], label)
    return "".join(line + "\n" for line in header + lines).encode()


@given(changes=edits(WORDS))
def test_damaged_tables(work_folder, table, changes):
    """What loads has the numbers that Python reads in the lines, none more and none fewer."""
    path = work_folder / "table.csv"
    path.write_bytes(damaged(table, changes))
    with one_line():
        loaded = Counter()
        for split in data.FILES:
            for image, digit in zip(*load_digits(path, split), strict=True):
                loaded[(int(digit), *image.ravel().tolist())] += 1
        rows = numbers_in(path)
        assert loaded in (Counter(rows), Counter((row[-1], *row[:-1]) for row in rows))


def numbers_in(path):
    rows = []
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file):
            words = line.rstrip("\n").split(",")
            if words != [""] and not (number == 0 and len(set(words)) == data.COLUMNS):
                rows.append(tuple(int(word.strip()) for word in words))
    return rows


def generate(checkpoint, out):
    return call(decoder_generate, "--checkpoint", checkpoint, "--out", out, "--count", 2)


@pytest.fixture(scope="module", params=["vae", "ae"])
def model(request):
    torch.manual_seed(0)
    if request.param == "vae":
        return VAE(2, decoder_widths=(8, 8))
    return AutoEncoder(3, encoder_widths=(8,), decoder_widths=(8,))


@pytest.fixture(scope="module")
def images(work_folder, model):
    """The folder of the two images that `model` generates, and their contents."""
    (work_folder / "whole.safetensors").write_bytes(checkpoint_bytes(model, seed=0))
    assert generate(work_folder / "whole.safetensors", work_folder / "images").status == 0
    return {file.name: file.read_bytes() for file in (work_folder / "images").iterdir()}


@given(changes=edits(NUMBERS))
def test_damaged_checkpoints(work_folder, model, images, changes):
    """What loads is bit by bit what was saved; and a refused one costs no images."""
    path, out = work_folder / "damaged.safetensors", work_folder / "images"
    path.write_bytes(damaged(checkpoint_bytes(model, seed=0), changes))
    result = generate(path, out)
    if result.status:
        assert_one_line(result, path)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == images
    with one_line():
        loaded = load_checkpoint(path)
        assert loaded.config == model.config
        assert loaded.metadata == {"seed": 0}
        weights = loaded.state_dict()
        assert all(torch.equal(weights[name], w) for name, w in model.state_dict().items())


KEYS = ["format", "model", "config", "metadata", "latent_dim", "encoder", "encoder_widths"]
KEYS += ["decoder_widths", "decoder.mean", "decoder.net.1.weight"]
REMOVED = "removed"
VALUES = [
    *(REMOVED, None, True, -1, 0, 1, 2.0, 10**5, 10**12, "", "vae", "ae", "exact", "network"),
    *([], {}, [8], [8, 8], [-8], [10**12], ["8"], [8] * 200, {"weights": {}}, {"latent_dim": 2}),
    *(torch.ones(()), torch.ones(8), torch.zeros(0), torch.full((2,), torch.nan)),
    *(torch.eye(8).double(), torch.eye(8).half(), torch.eye(8).int(), torch.eye(8).bool()),
    *(torch.zeros(8, 0), torch.zeros(1, 8, 8), torch.eye(8)),
]
CHANGES = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=2)


@given(changes=CHANGES)
def test_checkpoints_with_other_contents_but_right_checksums(work_folder, model, changes):
    """Nothing can be said of what is in them, but what loads must work."""
    config = dict(model.config)
    contents = {"model": "ae" if isinstance(model, AutoEncoder) else "vae", "config": config}
    contents |= {"format": models.CHECKPOINT_FORMAT, "metadata": {}}
    tensors = model.state_dict()
    for place, kind in ((contents, object), (config, object), (tensors, torch.Tensor)):
        for name in changes.keys() & place.keys():
            if changes[name] is REMOVED:
                del place[name]
            elif isinstance(changes[name], torch.Tensor) == (kind is torch.Tensor):
                place[name] = changes[name]
    path = work_folder / "contents.safetensors"
    path.write_bytes(tensor_bytes(contents.pop("format", None), tensors, contents))
    works_or_is_refused(path, work_folder / "others")


def works_or_is_refused(path, out):
    result = generate(path, out)
    if result.status:
        assert_one_line(result, path)
        assert len(result.stderr) < 1000
    with one_line():
        model = load_checkpoint(path)
        assert model.decoder(torch.zeros(1, model.latent_dim)).isfinite().all()
        codes = model.codes(torch.rand(2, 784))
        assert model.decode(codes).shape == (2, 784)


@given(changes=edits(NUMBERS))
def test_damaged_resume_files(work_folder, trained_a_little, changes):
    """What --resume takes is exactly what was saved."""
    path = work_folder / "a.resume.safetensors"
    path.write_bytes(damaged(training.resume_bytes(*trained_a_little), changes))
    settings, model, optimizers, history = trained_a_little
    with one_line():
        assert training.restore(path, settings, model, optimizers)["log"] == history["log"]
    weights = model.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in history["best"].items())


@given(changes=edits([*WORDS, b"1e39", b"-inf"]))
def test_damaged_codes(work_folder, changes):
    """What loads has the numbers that Python reads."""
    path = work_folder / "codes.csv"
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
