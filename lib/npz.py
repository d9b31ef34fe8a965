"""Reads the arrays of an .npz file, without pickle, which could run code."""

import io
import math
import warnings
import zipfile

import numpy as np

from lib.errors import InputError, explained

MAX_HEADER_BYTES = 10_000  # of an array's description; NumPy has the same limit
MAX_ARRAY_BYTES = 2**29
LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}  # of a header's length, in each version of NumPy's


def array_names(path):
    """The names of the arrays in an .npz file; None if it is damaged or no such file.

    Raises InputError: it may not be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); allow reading") from error
    except Exception:  # damaged archives raise errors of many kinds
        return None
    return {name.removesuffix(".npy") for name in members if name.endswith(".npy")}


def read_npz_array(path, name, item_shape, max_count, max_value):
    """An array of whole numbers from 0 to `max_value`, [N, *item_shape].

    Raises InputError: it is damaged, something else, or has more than `max_count` items.
    """
    with (
        explained(path, f"{name} cannot be read", "copy it again"),  # errors of many kinds
        zipfile.ZipFile(path) as archive,
        archive.open(f"{name}.npy") as file,
    ):
        shape, is_fortran, dtype = _read_header(file)
        if dtype.kind not in "ui" or len(shape) != 1 + len(item_shape) or shape[1:] != item_shape:
            needed = "x".join(["N", *map(str, item_shape)])
            raise InputError(f"{path}: {name} needs whole numbers in the shape {needed}")
        if not 0 < shape[0] <= max_count:
            raise InputError(f"{path}: {name} has {shape[0]} items; 1 to {max_count} can be read")
        array_bytes = math.prod(shape) * dtype.itemsize
        if array_bytes > MAX_ARRAY_BYTES:
            raise InputError(f"{path}: {name} is too large; save it with the type uint8")
        body = file.read(array_bytes + 1)  # one more, to notice one that is too long
        if len(body) != array_bytes:
            raise InputError(f"{path}: {name} is not as long as it promises; copy it again")
    array = np.frombuffer(body, dtype).reshape(shape, order="F" if is_fortran else "C")
    array = np.ascontiguousarray(array)
    if array.min() < 0 or array.max() > max_value:
        raise InputError(f"{path}: {name} has values outside 0 to {max_value}")
    return array


def _read_header(file):
    """The shape, whether the order is Fortran's, and the type of an array in a file.

    It begins with 6 magic bytes, 2 of the version and 2 or 4 that say how long the header is.
    """
    start = file.read(8)
    version = tuple(start[6:])
    length_bytes = LENGTH_BYTES[version]
    length = file.read(length_bytes)
    header_bytes = int.from_bytes(length, "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueError("a header that no array has")
    whole_header = io.BytesIO(start + length + file.read(header_bytes))
    np.lib.format.read_magic(whole_header)
    read = np.lib.format.read_array_header_1_0
    if length_bytes == 4:
        read = np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of files that Python 2 wrote
        try:
            return read(whole_header)
        except MemoryError:  # so Python says that text is nested too deeply
            raise ValueError("a header that no array has") from None
