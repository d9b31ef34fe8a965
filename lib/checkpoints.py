"""Tensors and JSON in one file: safetensors, as it can run no code, with a checksum added."""

import contextlib
import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch

from lib.errors import InputError, explained

MAX_FILE_BYTES = 2**28  # to continue the training of a model of 2 million weights takes 2**24
MAX_JSON_BYTES = 2**24  # of names, sizes and contents; a log of 20 epochs has a thousandth of it
OPTIMIZER_STATES = {  # what an optimizer keeps of each parameter
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "Muon": {"momentum_buffer"},
}
# How files of torch.save begin: a zip archive or, before PyTorch 1.6, a pickle. A safetensors file
# begins with the length of its header, and these bytes would mean an impossibly long one.
PICKLE_STARTS = b"PK\x03\x04", b"\x80\x02\x8a\x0a"


def file_bytes(file_format, tensors, contents):
    """A file with `tensors`, {name: float32}, and `contents`, a dict of what JSON can hold."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    contents = {"format": file_format, **contents}
    text = json.dumps({"sha256": _checksum(tensors, contents), **contents})
    # One key only: safetensors writes several in random order.
    return safetensors.torch.save(tensors, {"json": text})


def read_file(path, file_format, remedy):
    """Read what `file_bytes` made: the tensors and the contents.

    Raises InputError, which ends with the `remedy`: the file is missing, damaged, or of another
    format.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; {remedy}")
    if not path.is_file():
        raise InputError(f"{path}: is not an ordinary file; {remedy}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: is too large for a checkpoint; name another")
    with explained(path, "cannot be read", "allow reading or name another", OSError):
        data = path.read_bytes()  # mapped into memory it could not be replaced on Windows
    with explained(path, "not a checkpoint, or damaged", remedy):
        if data.startswith(PICKLE_STARTS):
            raise InputError(f"{path}: is a file of torch.save or a zip archive; {remedy}")
        tensors = _tensors(data)
        contents = _json(data)
        checksum = contents.pop("sha256")
        if contents["format"] != file_format:
            raise InputError(f"{path}: is not of the format {file_format}; {remedy}")
        if checksum != _checksum(tensors, contents):
            raise ValueError("not what was saved")
        for tensor in tensors.values():
            if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise ValueError("numbers that no model has")
    return tensors, contents


def format_of(path):
    """The format of a file, as `file_bytes` was given it; None if it is no such file."""
    with contextlib.suppress(Exception), open(path, "rb") as file:
        length = _header_length(file.read(8))
        if length <= MAX_JSON_BYTES:
            header = json.loads(file.read(length))
            return json.loads(header["__metadata__"]["json"])["format"]
    return None


def nested(tensors):
    """{"a/b/name": tensor} as {"a/b": {"name": tensor}}."""
    groups = {}
    for path, tensor in tensors.items():
        group, _, name = path.rpartition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


def flattened(groups):
    """The inverse of `nested`."""
    return {
        f"{group}/{name}": tensor
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }


def optimizer_groups(optimizer, name):
    """What an optimizer knows of each parameter, its moments say, for `flattened`."""
    states = optimizer.state_dict()["state"]
    return {f"{name}/{index}": state for index, state in states.items()}


def restore_optimizer(optimizer, name, groups):
    """Put back what `optimizer_groups` gave.

    Settings, such as the learning rate, stay those of `optimizer`. Raises KeyError or ValueError: a
    parameter's part is missing or of another shape.
    """
    state_dict = optimizer.state_dict()
    indices = [index for group in state_dict["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {}
    for index, parameter in zip(indices, parameters, strict=True):
        states[index] = groups[f"{name}/{index}"]
        if states[index].keys() != OPTIMIZER_STATES[type(optimizer).__name__]:
            raise ValueError("not what the optimizer keeps of a parameter")
        for key, tensor in states[index].items():
            if tensor.shape != (torch.Size() if key == "step" else parameter.shape):
                raise ValueError(f"{key} of another shape")
    state_dict["state"] = states
    optimizer.load_state_dict(state_dict)


def _header_length(data):
    """A safetensors file begins with the length of its JSON header, in 8 bytes."""
    return int.from_bytes(data[:8], "little")


def _tensors(data):
    if _header_length(data) > MAX_JSON_BYTES:
        raise ValueError("more text than a checkpoint has")
    return safetensors.torch.load(data)


def _json(data):
    header = json.loads(data[8 : 8 + _header_length(data)])
    return json.loads(header["__metadata__"]["json"])


def _checksum(tensors, contents):
    """SHA-256 of the JSON and of each tensor's name, shape and bytes."""
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} ".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
