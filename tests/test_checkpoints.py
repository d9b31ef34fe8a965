"""Checkpoints and the files of --resume: what is saved comes back, and nothing else is taken."""

import io
import pickle
import struct
import warnings
import zipfile

import pytest
import safetensors.torch
import torch
from conftest import assert_one_line, call

import auto_encoder
import decoder_generate
import models
from lib import checkpoints
from lib.errors import InputError
from models import VAE, AutoEncoder, GridVAE, checkpoint_bytes, load_checkpoint

SMALL = (8, 8), (8, 8)  # widths of an encoder and a decoder


MODELS = {"grid": GridVAE(*SMALL), "vae": VAE(6, *SMALL), "ae": AutoEncoder(3, *SMALL)}


@pytest.mark.parametrize("kind", MODELS)
def test_round_trip(tmp_path, kind):
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


class Call(tuple):
    """Pickled as a call, which loading it makes, if it may."""

    def __reduce__(self):
        return self[0], self[1:]


def saved(contents, new=True):
    buffer = io.BytesIO()
    torch.save(contents, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def zipped(pickled):
    """As torch.save makes it, but with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in ("data.pkl", pickled), ("byteorder", "little"), ("version", "3\n"):
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


TUPLE_OF_TUPLES = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60))  # hashed 2**60 times
BAD = {
    "empty": lambda _: b"",
    "a long header": lambda _: struct.pack("<Q", 2**61) + b"{}",
    "deep JSON": lambda _: struct.pack("<Q", 10**6) + b"[" * 10**6,
    "an old checkpoint": lambda _: saved({"format": "mnist-auto-encoder-2", "weights": {}}),
    "a call": lambda ran: saved({"format": Call((open, str(ran), "w"))}),
    "a call, pickled": lambda ran: pickle.dumps(Call((open, str(ran), "w"))),
    "a stream before a zip": lambda _: saved([Call((bytearray, 10**9))], new=False) + saved({}),
    "nested tuples": lambda _: zipped(b"\x80\x02}" + TUPLE_OF_TUPLES + b"K\x01s."),
    "empty sets": lambda _: zipped(b"\x80\x02](" + b"\x8f" * 16 * 10**6 + b"e."),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_checkpoint(tmp_path, complaint, kind):
    """One line, at once, and whatever is pickled does not run."""
    path, ran = tmp_path / "a.safetensors", tmp_path / "ran"
    path.write_bytes(BAD[kind](ran))
    old = path.read_bytes()[:2] in (b"PK", b"\x80\x02")
    for reader in (
        "models.load_checkpoint",
        "lambda path: auto_encoder.restore(path, {}, None, (), {})",
    ):
        message = complaint(reader, path, megabytes=60)
        assert message.startswith(f"{path}: ")
        assert ("torch.save" in message) == old
    result = call(decoder_generate, "--checkpoint", path, "--out", tmp_path / "images")
    assert_one_line(result, path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_flipped_bit_in_any_byte_is_noticed(tmp_path):
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([0.5, -1])}
    contents = {"config": {"sizes": [2, 3]}, "log": ["e", None, 0.25]}
    whole = checkpoints.file_bytes("form", tensors, contents)
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (tmp_path / "a").write_bytes(flipped)
        with pytest.raises(InputError, match=r"damaged|not of the|torch\.save"):
            checkpoints.read_file(tmp_path / "a", "form", "a remedy")


def with_config(model, changes):
    """The checkpoint of a model, with a right checksum but other settings."""
    config = {**model.config, **changes}
    contents = {"model": type(model).__name__, "config": config, "metadata": {}}
    return checkpoints.file_bytes(models.CHECKPOINT_FORMAT, model.state_dict(), contents)


SIZES = [[10**12], [10**9, 10**9], [8] * 1000, [2**63], [], [-8], [1.5], "8"]


@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_that_are_not_those_of_the_weights(tmp_path, complaint, sizes):
    """They are refused before memory is taken for them; as the checksum is right, not as damage."""
    model, path = GridVAE(*SMALL), tmp_path / "a"
    for widths in ("encoder_widths", "decoder_widths"):
        path.write_bytes(with_config(model, {widths: sizes}))
        assert "architecture" in complaint("models.load_checkpoint", path, megabytes=40)


OTHER = [
    {"regions_per_side": 9},
    {"readout_width": 32},
    {"grid_side": 80},
    {"body": "convolutions"},
]


@pytest.mark.parametrize("config", OTHER)
def test_another_architecture_is_called_that(tmp_path, config):
    path = tmp_path / "a"
    path.write_bytes(with_config(GridVAE(*SMALL), config))
    with pytest.raises(
        InputError, match=r"another architecture .*auto_encoder\.py makes a new one"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "config", [{"latent_dim": 0}, {"encoder_widths": [0]}, {"decoder_widths": [8, 0]}]
)
def test_sizes_that_no_model_has(tmp_path, config):
    """With weights to match, and a right checksum."""
    model, path = AutoEncoder(3, *SMALL), tmp_path / "a"
    empty = AutoEncoder.__new__(AutoEncoder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(models, "check_sizes", lambda *_: None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            AutoEncoder.__init__(empty, **{**model.config, **config})
    path.write_bytes(checkpoint_bytes(empty))
    with pytest.raises(InputError, match="another architecture"):
        load_checkpoint(path)
    assert_one_line(call(decoder_generate, "--checkpoint", path, "--out", tmp_path / "b"), path)


def test_a_checkpoint_says_what_its_architecture_depends_on(tmp_path):
    model = GridVAE(*SMALL, regions_per_side=9, readout_width=16, grid_side=45)
    (tmp_path / "a").write_bytes(checkpoint_bytes(model))
    loaded = load_checkpoint(tmp_path / "a")
    assert loaded.encoder.region_logits.out_features == 81
    assert loaded.encoder.readout.out_features == 16
    assert len(loaded.make_grid().codes) == 45**2
    with pytest.raises(ValueError, match="multiple"):
        GridVAE(regions_per_side=10)


LOGS = [{}, 5, [], [1], [{}], "ab", [{"train": 1, "test": 2, "seconds": 3}], [None] * 100]


def test_forged_resume_files(tmp_path, trained_a_little):
    """With right checksums, and something else in the place of each part."""
    flags, model, optimizers, history = trained_a_little
    whole = auto_encoder.resume_bytes(*trained_a_little)
    path = tmp_path / "a"
    path.write_bytes(whole)
    untrained = history.snapshots[0]
    assert auto_encoder.restore(path, flags, model, optimizers, untrained).log == history.log
    tensors, contents = checkpoints.read_file(path, auto_encoder.RESUME_FORMAT, "")
    contents.pop("format")
    forged = [(tensors, {**contents, "log": log}) for log in LOGS]
    for name in tensors:
        without = {other: tensor for other, tensor in tensors.items() if other != name}
        forged.append((without, contents))
        forged.append(({**tensors, name: torch.ones(3, 1, 2)}, contents))
    entry = contents["log"][0]
    for changed in (
        {"seconds": "5"},
        {"train": {**entry["train"], "L_tot": "344"}},
        {"train": {"L_tot": 1.0}},
        {"more": {}},
    ):
        forged.append((tensors, {**contents, "log": [{**entry, **changed}]}))
    huge = torch.full_like(tensors["snapshot/1/codes"], 3e38)
    forged.append(({**tensors, "snapshot/1/codes": huge}, contents))
    for name in ("snapshot/-1/codes", "snapshot/1000000000/codes", "snapshot/x/codes", "best/more"):
        forged.append(({**tensors, name: torch.ones(3, 2)}, contents))
    assert len(forged) > 100
    for other_tensors, other_contents in forged:
        path.write_bytes(
            checkpoints.file_bytes(auto_encoder.RESUME_FORMAT, other_tensors, other_contents)
        )
        with pytest.raises(InputError, match="leave out --resume"):
            auto_encoder.restore(path, flags, model, optimizers, untrained)


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02"])
def test_a_header_of_any_length(tmp_path, start):
    """Its length is what the file begins with; of some lengths it looks like a zip file's start."""
    tensors = {"weight": torch.zeros(2)}
    needed = int.from_bytes(start, "little")
    for padding in range(needed):
        whole = checkpoints.file_bytes("form", tensors, {"log": "x" * padding})
        if whole.startswith(start):
            break
        # A byte more of text is a byte more of header, up to the next multiple of eight.
    assert whole.startswith(start)
    (tmp_path / "a").write_bytes(whole)
    assert torch.equal(
        checkpoints.read_file(tmp_path / "a", "form", "")[0]["weight"], torch.zeros(2)
    )


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(checkpoint_bytes(GridVAE(*SMALL)))
    monkeypatch.setattr(checkpoints, "MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="too large"):
        load_checkpoint(tmp_path / "a")
