"""Reads the arrays of an .npz file, without pickle, which could run code."""

import zipfile

import numpy as np

from lib.errors import InputError, explained

ZIP_MAGIC = b"PK\x03\x04"


def is_npz_with(path, names):
    """Whether a file is an .npz file with arrays of these names."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{name}.npy" for name in names} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_npz_array(path, name, item_shape, max_count, max_value):
    """An array of whole numbers from 0 to `max_value`, [N, *item_shape].

    Raises InputError: it is damaged, something else, or has more than `max_count` items.
    """
    with (
        explained(path, f"{name} cannot be read", "copy it again"),  # many kinds of errors
        zipfile.ZipFile(path) as archive,
        archive.open(f"{name}.npy") as file,
    ):
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
        if dtype.kind not in "ui" or len(shape) != 1 + len(item_shape) or shape[1:] != item_shape:
            needed = "x".join(["N", *map(str, item_shape)])
            raise InputError(f"{path}: {name} needs whole numbers in the shape {needed}")
        if not 0 < shape[0] <= max_count:
            raise InputError(f"{path}: {name} has {shape[0]} items; 1 to {max_count} can be read")
        count = int(np.prod(shape))
        body = file.read(count * dtype.itemsize + 1)
        if len(body) != count * dtype.itemsize:
            raise InputError(f"{path}: {name} is not as long as it promises; copy it again")
    array = np.frombuffer(body, dtype).reshape(shape, order="F" if is_fortran else "C")
    if array.min() < 0 or array.max() > max_value:
        raise InputError(f"{path}: {name} has values outside 0 to {max_value}")
    return array
