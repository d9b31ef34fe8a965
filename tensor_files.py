"""Tensors and JSON in one file: safetensors, as it can run no code, with a checksum added."""

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch

from errors import InputError, explained

DAMAGED = "not a checkpoint, or damaged", "auto_encoder.py makes a new one"
LARGEST_FILE = 2**28  # bytes; what --resume needs of the default model has 1/16 of it
LARGEST_TEXT = 2**24  # bytes of names, sizes and JSON; 20 epochs need a thousandth of it


def tensor_bytes(form, tensors, contents):
    """A file with `tensors`, {name: float32}, and `contents`, a dict of what JSON can hold."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    contents = {"format": form, **contents}
    text = json.dumps({"sha256": _checksum(tensors, contents), **contents})
    return safetensors.torch.save(tensors, {"json": text})  # more keys come in random order


def read_tensors(path, form):
    """Read what `tensor_bytes` made: the tensors and the contents.

    Raises InputError: the file is missing, damaged, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; auto_encoder.py makes one")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path}: is too large for a checkpoint; name another")
    with explained(path, *DAMAGED):
        data = path.read_bytes()  # mapped into memory it could not be replaced on Windows
        if data[:2] in (b"PK", b"\x80\x02"):
            raise InputError(f"{path}: is a PyTorch file of an older version; train anew")
        size = int.from_bytes(data[:8], "little")
        if size > LARGEST_TEXT:
            raise ValueError("more text than a checkpoint has")
        tensors = safetensors.torch.load(data)
        contents = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["json"])
        checksum = contents.pop("sha256")
        if contents["format"] != form:
            raise InputError(f"{path}: is not of the format {form}; auto_encoder.py makes one")
        if checksum != _checksum(tensors, contents):
            raise ValueError("not what was saved")
        if not all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors.values()):
            raise ValueError("numbers that no model has")
    return tensors, contents


def _checksum(tensors, contents):
    """SHA-256 of the JSON and of each tensor's name, shape and bytes."""
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} ".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
