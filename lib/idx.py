"""Reads idx files, the format of MNIST, and finds the four that make a set of images.

An idx file begins with two zero bytes, the type of its numbers and its rank, a byte each. Then come
as many sizes as its rank says, of 4 bytes each, and then the numbers. It may be compressed.
"""

import gzip
import hashlib
import math
import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.errors import InputError, explained

IMAGES, LABELS = "images", "labels"
MAGIC = {  # what may stand in the first four bytes: {kind: {magic bytes: type of the numbers}}
    IMAGES: {bytes([0, 0, 8, 3]): np.dtype("u1")},
    # QMNIST's labels are 32-bit numbers in eight columns, of which the first is the label.
    LABELS: {bytes([0, 0, 8, 1]): np.dtype("u1"), bytes([0, 0, 12, 2]): np.dtype(">i4")},
}
QMNIST_COLUMNS = 8
GZIP_MAGIC = b"\x1f\x8b"

# Names: LeCun's train-images-idx3-ubyte and t10k-labels-idx1-ubyte, with dots for dashes (Kaggle),
# test for t10k, in any case, after a prefix that ends with no letter (emnist-digits-), with .gz.
NAME = re.compile(
    r"(?P<prefix>(?:.*[^a-z0-9])?)(?P<split>train|test|t10k)[-_.]?(?P<kind>images|labels)"
    r"[-_.]idx[123][-_.](?:ubyte|int)(?:\.gz)?",
    re.IGNORECASE,
)
TRANSPOSED = re.compile(r"(?:.*[^a-z])?emnist", re.IGNORECASE)  # EMNIST swaps rows and columns
SPLIT_FOLDER = re.compile(r"(?<![a-z0-9])(train|test|t10k)(ing)?(?![a-z0-9])", re.IGNORECASE)
MAX_BYTES = 2**28  # that are compared of two files; 240,000 images have fewer


class IdxSet(NamedTuple):
    """The files of a set of images: {(split, kind): path}, "train" or "test", images or labels."""

    folder: Path
    prefix: str  # of the files' names, as "emnist-digits-"
    files: dict

    def __str__(self):
        return str(self.folder / f"{self.prefix}*")

    def missing(self):
        """The names of files that belong to the set, but are not there."""
        needed = {
            ("train", IMAGES): "train-images-idx3-ubyte",
            ("train", LABELS): "train-labels-idx1-ubyte",
            ("test", IMAGES): "t10k-images-idx3-ubyte",
            ("test", LABELS): "t10k-labels-idx1-ubyte",
        }
        return [f"{self.prefix}{name}" for role, name in needed.items() if role not in self.files]


def parse_name(path):
    """What a file's name says: (prefix, split, kind); None if it is no name of an idx file."""
    match = NAME.fullmatch(Path(path).name)
    if not match:
        return None
    split = "train" if match["split"].lower() == "train" else "test"
    return match["prefix"].lower(), split, match["kind"].lower()


def find_idx_sets(paths):
    """The sets that files make, [IdxSet], complete or not.

    Files belong together if they have the same prefix and are in one folder, or each in a folder of
    its own name there (as Kaggle packs them), or each split in a folder whose name has the word
    `train` or `test` in it, and is the same otherwise.
    Raises InputError: two files of different contents claim to be the same part of a set.
    """
    found = {}  # {(folder, prefix): {role: [path]}}
    for path in paths:
        parsed = parse_name(path)
        if parsed:
            prefix, split, kind = parsed
            roles = found.setdefault((folder_of_set(path), prefix), {})
            roles.setdefault((split, kind), []).append(path)
    sets = []
    for folder, prefix, roles in _splits_joined(found):
        files = {role: _the_one(same) for role, same in roles.items()}
        sets.append(IdxSet(folder, prefix, files))
    return sets


def folder_of_set(path):
    """The folder in which a file, or the folder of its own name around it, stands."""
    folder = path.parent
    while parse_name(folder):
        folder = folder.parent
    return folder


def is_split_folder(folder):
    """Whether a folder may hold one split alone, as its name says."""
    return bool(SPLIT_FOLDER.search(folder.name))


def _splits_joined(found):
    """[(folder, prefix, roles)], with the sets of folders like train/ and test/ joined."""
    groups = {}  # {(folder, its name without the split, prefix): [(folder, roles)]}
    for (folder, prefix), roles in found.items():
        splits = {split for split, _ in roles}
        words = {match[1].lower() for match in SPLIT_FOLDER.finditer(folder.name)}
        key = folder.parent, folder.name, prefix
        if len(splits) == len(words) == 1 and (splits == {"train"}) == (words == {"train"}):
            key = folder.parent, SPLIT_FOLDER.sub("/", folder.name), prefix  # no name has a slash
        groups.setdefault(key, []).append((folder, roles))
    joined = []
    for (parent, _, prefix), parts in groups.items():
        folder = parts[0][0] if len(parts) == 1 else parent
        roles = {}
        for _, part in parts:
            for role, paths in part.items():
                roles.setdefault(role, []).extend(paths)
        joined.append((folder, prefix, roles))
    return joined


def _the_one(paths):
    """One of several files that hold the same, if they do; an uncompressed one, if there is one."""
    first, *others = sorted(paths, key=lambda path: (path.suffix.lower() == ".gz", str(path)))
    if others:
        digest = _content_digest(first)
        for other in others:
            if _content_digest(other) != digest:
                raise InputError(f"{first}: {other} is not the same; keep one of the two")
    return first


def _content_digest(path):
    """A checksum of what a file holds, unpacked, up to MAX_BYTES."""
    digest = hashlib.sha256()
    with _reading(path), _open(path) as file:
        for _ in range(MAX_BYTES // 2**20):
            digest.update(file.read(2**20))
    return digest.digest()


def read_idx(path, kind, image_shape, max_count):
    """The images, uint8 [N, *image_shape], or the labels, int64 [N], of an idx file.

    Raises InputError: the file is unreadable, damaged, of another kind, or has more than
    `max_count` of them.
    """
    with _reading(path), _open(path) as file:
        magic = file.read(4)
        dtype = _check_magic(path, magic, kind)
        rank = magic[3]
        header = file.read(4 * rank)
        if len(header) < 4 * rank:
            raise InputError(f"{path}: too short for an idx file of {kind}; copy it again")
        sizes = struct.unpack(f">{rank}I", header)
        _check_sizes(path, kind, sizes, image_shape, max_count)
        promised = math.prod(sizes) * dtype.itemsize
        body = file.read(promised + 1)  # one more, to notice a file that is too long
    if len(body) != promised:
        problem = "truncated, fewer" if len(body) < promised else "too long, more"
        raise InputError(f"{path}: {problem} than the {promised} bytes it promises; copy it again")
    array = np.frombuffer(bytearray(body), dtype).reshape(sizes)  # PyTorch warns if it is read-only
    if kind == LABELS:
        array = array.reshape(len(array), -1)[:, 0].astype(np.int64)
    elif is_transposed(path):
        array = upright(array)
    return array


def is_transposed(path):
    """Whether a file is of EMNIST, which swaps rows and columns, as its name says."""
    return bool(TRANSPOSED.match(path.name))


def upright(images):
    """EMNIST's images [N, H, W] as they were written."""
    return np.ascontiguousarray(images.transpose(0, 2, 1))


def _check_magic(path, magic, kind):
    """The type of the numbers of a file that begins so."""
    if len(magic) < 4:
        raise InputError(f"{path}: too short for an idx file of {kind}; copy it again")
    other = LABELS if kind == IMAGES else IMAGES
    if magic in MAGIC[other]:
        raise InputError(f"{path}: does not hold {kind}; are two files swapped?")
    if magic not in MAGIC[kind]:
        raise InputError(f"{path}: not an idx file of {kind} (magic number {magic.hex()})")
    return MAGIC[kind][magic]


def _check_sizes(path, kind, sizes, image_shape, max_count):
    count, *others = sizes
    if not 0 < count <= max_count:
        raise InputError(f"{path}: promises {count} {kind}; 1 to {max_count} can be read")
    if kind == IMAGES and tuple(others) != image_shape:
        height, width = image_shape
        raise InputError(
            f"{path}: images are {others[0]}x{others[1]}, but {height}x{width} is needed"
        )
    if kind == LABELS and others not in ([], [QMNIST_COLUMNS]):
        raise InputError(
            f"{path}: has {others[0]} columns of labels; QMNIST's have {QMNIST_COLUMNS}"
        )


def _open(path):
    """A file, unpacked if its first bytes, not its name, say that it is compressed."""
    with open(path, "rb") as file:
        is_compressed = file.read(2) == GZIP_MAGIC
    return gzip.open(path, "rb") if is_compressed else open(path, "rb")


def _reading(path):
    """Turn errors of reading inside into an InputError that names the file."""
    read_errors = (OSError, EOFError, zlib.error)
    return explained(path, "cannot be read", "copy it again", read_errors)


def image_idx_header(shape):
    """The first bytes of an idx file of images of this shape, [N, H, W]."""
    (magic,) = MAGIC[IMAGES]
    return magic + struct.pack(">3I", *shape)
