"""Checkpoints and the files of --resume: what is saved comes back, and nothing else is taken."""

import io
import itertools
import json
import pickle
import re
import struct
import zipfile

import pytest
import safetensors.torch
import torch
from conftest import assert_one_line, call, cheaply

import decoder_generate
import models
import tensor_files
import training
from errors import InputError
from models import VAE, AutoEncoder, checkpoint_bytes, load_checkpoint
from tensor_files import read_tensors, tensor_bytes


@pytest.mark.parametrize(("model", "latent_dim"), [(VAE, 2), (VAE, 6), (AutoEncoder, 3)])
def test_round_trip(tmp_path, model, latent_dim):
    path = tmp_path / "a.safetensors"
    vae = model(latent_dim, decoder_widths=(32, 16)).eval()
    path.write_bytes(checkpoint_bytes(vae, epochs=3, nested={"list": [1.5, "text"]}))
    loaded = load_checkpoint(path)
    assert loaded.metadata == {"epochs": 3, "nested": {"list": [1.5, "text"]}}
    assert type(loaded) is model
    assert loaded.config == vae.config
    assert not loaded.training
    z = torch.randn(4, latent_dim)
    assert torch.equal(loaded.decode(z), vae.decode(z))
    theirs = safetensors.torch.load_file(path)  # any reader of the format sees the weights
    assert all(torch.equal(theirs[name], w) for name, w in vae.state_dict().items())
    assert checkpoint_bytes(loaded, **loaded.metadata) == path.read_bytes()


class Call:
    """Pickled as a call, which loading it makes, if it may."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def saved(contents, **options):
    buffer = io.BytesIO()
    torch.save(contents, buffer, **options)
    return buffer.getvalue()


def zipped(pickled):
    """As torch.save makes it, but with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


TUPLE_OF_TUPLES = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60))  # hashed 2**60 times
HEADER_OF_2_EB = struct.pack("<Q", 2**61) + b"{}"
DEEP = b"[" * 10**6
BAD = {
    "empty": lambda _: b"",
    "text": lambda _: b"weights",
    "a long header": lambda _: HEADER_OF_2_EB,
    "deep JSON": lambda _: struct.pack("<Q", len(DEEP)) + DEEP,
    "an old checkpoint": lambda _: saved({"format": "mnist-auto-encoder-2", "weights": {}}),
    "an older one": lambda _: saved({}, _use_new_zipfile_serialization=False),
    "a call": lambda ran: saved({"format": Call(open, str(ran), "w")}),
    "a call, pickled": lambda ran: pickle.dumps(Call(open, str(ran), "w")),
    "a stream before a zip": lambda _: (
        saved({"format": Call(bytearray, 10**9)}, _use_new_zipfile_serialization=False)
        + saved({"format": "mnist-auto-encoder-2"})
    ),
    "nested tuples": lambda _: zipped(b"\x80\x02}" + TUPLE_OF_TUPLES + b"K\x01s."),
    "empty sets": lambda _: zipped(b"\x80\x02](" + b"\x8f" * 16 * 10**6 + b"e."),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_checkpoint(tmp_path, kind):
    """One line, at once, and whatever is pickled does not run."""
    path, ran = tmp_path / "a.safetensors", tmp_path / "ran"
    path.write_bytes(BAD[kind](ran))
    with cheaply(megabytes=60):
        for load in (load_checkpoint, read_resume):
            with pytest.raises(InputError, match=r"a\.safetensors: ") as caught:
                load(path)
            assert "\n" not in str(caught.value)
        result = call(decoder_generate, "--checkpoint", path, "--out", tmp_path / "images")
    assert_one_line(result, path)
    assert ("older version" in result.stderr) == (path.read_bytes()[:2] in (b"PK", b"\x80\x02"))
    assert sorted(tmp_path.iterdir()) == [path]


def read_resume(path):
    return training.restore(path, {}, None, ())


def test_a_checkpoint_that_is_missing(tmp_path):
    for load in (load_checkpoint, read_resume):
        with pytest.raises(InputError, match="nowhere"):
            load(tmp_path / "nowhere")


REFUSED = re.compile("damaged|not of the format|older version")


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "a"
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([0.5, -1])}
    whole = tensor_bytes("form", tensors, {"config": {"sizes": [2, 3]}, "log": ["e", None, 0.25]})
    path.write_bytes(whole)
    read, contents = read_tensors(path, "form")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert contents["config"] == {"sizes": [2, 3]}
    assert contents["log"] == ["e", None, 0.25]
    for place, bit in itertools.product(range(len(whole)), range(8)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.raises(InputError, match=REFUSED):
            read_tensors(path, "form")


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "a"
    whole = bytearray(checkpoint_bytes(AutoEncoder(2, (4,), (4,)), results={"L_tot": 123.5}))
    for place in range(0, len(whole), 89):
        whole[place] ^= 1 << place % 8
        path.write_bytes(whole)
        whole[place] ^= 1 << place % 8
        with pytest.raises(InputError, match=REFUSED):
            load_checkpoint(path)
    path.write_bytes(whole)
    load_checkpoint(path)


@pytest.mark.parametrize(
    ("limit", "complaint"), [("LARGEST_FILE", "too large"), ("LARGEST_TEXT", "damaged")]
)
def test_limits(tmp_path, monkeypatch, limit, complaint):
    (tmp_path / "a").write_bytes(checkpoint_bytes(VAE(2, decoder_widths=(8, 8))))
    load_checkpoint(tmp_path / "a")
    monkeypatch.setattr(tensor_files, limit, 100)
    with pytest.raises(InputError, match=complaint):
        load_checkpoint(tmp_path / "a")


SIZES = [[10**12], [10**9, 10**9], [8] * 1000, [2**63], [], [0], [-8], [1.5], [True], "8", None]


@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_that_are_not_those_of_the_weights(tmp_path, sizes):
    """They are refused before memory is taken for them, though the checksum is right."""
    model = VAE(2, decoder_widths=(8, 8))
    contents = {"model": "vae", "config": model.config | {"decoder_widths": sizes}, "metadata": {}}
    path = tmp_path / "a"
    path.write_bytes(tensor_bytes(models.CHECKPOINT_FORMAT, model.state_dict(), contents))
    with cheaply(megabytes=20), pytest.raises(InputError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "lacking", ["settings", "log", "weights/", "best/", "optimizer/", "optimizer/1"]
)
def test_resume_files_that_lack_something(tmp_path, trained_a_little, lacking):
    """Even with the right checksum."""
    path = tmp_path / "c.resume.safetensors"
    path.write_bytes(training.resume_bytes(*trained_a_little))
    tensors, contents = read_tensors(path, training.RESUME_FORMAT)
    left = {name: tensor for name, tensor in tensors.items() if not name.startswith(lacking)}
    contents.pop(lacking, None)
    path.write_bytes(tensor_bytes(training.RESUME_FORMAT, left, contents))
    with pytest.raises(InputError, match=r"c\.resume\.safetensors"):
        training.restore(path, *trained_a_little[:3])


@pytest.mark.parametrize("name", ["format", "sha256", "settings", "log"])
def test_resume_files_with_other_contents(tmp_path, trained_a_little, name):
    path = tmp_path / "b.resume.safetensors"
    path.write_bytes(training.resume_bytes(*trained_a_little))
    with safetensors.safe_open(path, "pt") as file:
        contents = json.loads(file.metadata()["json"])
    contents[name] = contents[name][1:] if name != "settings" else {"seed": 1}
    tensors = safetensors.torch.load_file(path)
    path.write_bytes(safetensors.torch.save(tensors, {"json": json.dumps(contents)}))
    with pytest.raises(InputError, match=r"b\.resume\.safetensors"):
        training.restore(path, *trained_a_little[:3])
