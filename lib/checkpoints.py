"""Tensors and JSON in one file: safetensors, from which no code can run."""

import json
from pathlib import Path

import safetensors.torch

from lib.errors import InputError, as_input_error


def file_bytes(file_format, tensors, contents):
    """A file with `tensors`, {name: tensor}, and `contents`, a dict of what JSON can hold."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format": file_format, **contents})
    # One key only: safetensors writes several in random order.
    return safetensors.torch.save(tensors, {"json": text})


def read_file(path, file_format, remedy):
    """Read what `file_bytes` made: the tensors and the contents.

    Raises InputError, which ends with the `remedy`: the file is missing, damaged, or of another
    format.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remedy}")
    with as_input_error(path, "cannot be read", "allow reading or name another", OSError):
        data = path.read_bytes()  # mapped into memory it could not be replaced on Windows
    with as_input_error(path, "not a checkpoint, or damaged", remedy):
        tensors = safetensors.torch.load(data)
        # The file begins with the length of its JSON header, in 8 bytes, and the header.
        header_length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_length])
        contents = json.loads(header["__metadata__"]["json"])
        if contents["format"] != file_format:
            raise InputError(f"{path}: is not of the format {file_format}; {remedy}")
    return tensors, contents
