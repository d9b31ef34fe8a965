"""Reads digits: the idx files of MNIST and of sets in its format, or a table of digits."""

import contextlib
import gzip
import hashlib
import math
import socket
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lib.errors import InputError, explained
from lib.files import reserved, write_files
from lib.tables import read_table

MNIST = Path(__file__).resolve().parent / "mnist"  # the copy that is shipped
IMAGE_SHAPE = (28, 28)
FILES = {  # split: (images, labels), the names that LeCun gave them
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FILE_NAMES = FILES["train"] + FILES["test"]
SUBFOLDERS = ("", "raw", "MNIST/raw")  # flat, or as torchvision lays them out
MAX_IMAGES = 240_000  # in a file; EMNIST's digits, the largest set of this kind, have as many
# An idx file begins with two zero bytes, the type of its numbers and its rank, a byte each. Then
# come as many sizes as its rank says, of 4 bytes each, and then the numbers.
UNSIGNED_BYTE = 8  # the type
RANKS = {"labels": 1, "images": 3}
LAST_TEST_IMAGES = 1000  # the homework asks for the codes of the last 1000
DOWNLOAD_TIMEOUT = 30  # seconds without an answer; torchvision alone would wait for ever


class Digits(NamedTuple):
    """All that is read. Images are float32 [N, 784] in [0, 1] on the device, labels int64 [N]."""

    x_train: torch.Tensor
    train_labels: np.ndarray
    x_test: torch.Tensor
    test_labels: np.ndarray
    x_shown: torch.Tensor  # the first ten test images of each digit; if there are fewer, repeated
    identity: dict  # of the training images: their number and MD5
    test_name: str  # "test", or "held-out" if it was split off a table

    @property
    def last_x_test(self):
        """The last 1000 test images."""
        return self.x_test[-LAST_TEST_IMAGES:]

    @property
    def last_test_labels(self):
        """The labels of the last 1000 test images."""
        return self.test_labels[-LAST_TEST_IMAGES:]


def read_digits(path, device):
    """Both splits of what `load_digits` reads."""
    images, labels = load_digits(path, "train")
    test_images, test_labels = load_digits(path, "test")
    x_test = as_input(test_images, device)
    return Digits(
        x_train=as_input(images, device),
        train_labels=labels,
        x_test=x_test,
        test_labels=test_labels,
        x_shown=x_test[first_ten_of_each_digit(test_labels)],
        identity={"count": len(images), "md5": idx_md5(images)},
        test_name="held-out" if Path(path).is_file() else "test",
    )


def as_input(images, device="cpu"):
    """uint8 images [N, 28, 28] -> float32 [N, 784] in [0, 1] on the device."""
    return torch.from_numpy(images).to(device).flatten(1).float().div_(255)


def first_ten_of_each_digit(labels):
    """The indices of the first ten labels of each digit, digit by digit."""
    indices = []
    for digit in np.unique(labels):
        all_of_digit = np.flatnonzero(labels == digit)
        indices.append(np.resize(all_of_digit, 10))  # which repeats them if they are fewer
    return np.concatenate(indices)


def idx_md5(images):
    """The MD5 of the uncompressed idx file of these images, by which a run's data can be told.

    MNIST's is published.
    """
    digest = hashlib.md5(usedforsecurity=False)
    digest.update(idx_magic("images") + struct.pack(">3I", *images.shape))
    digest.update(images)
    return digest.hexdigest()


def load_digits(path, split):
    """A split, "train" or "test": images uint8 [N, 28, 28], 255 is ink, labels int64 [N], 0 to 9.

    `path` is one of these:
    - a folder of idx files, raw or gzip-compressed, flat or in torchvision's `MNIST/raw/`. If it
      has none, torchvision downloads MNIST into it.
    - a table with one image per line: the label, first or last, and 784 pixels, with commas between
      them, with or without column names. A fifth of the images of each digit, drawn with a fixed
      seed, is its test split.
    Raises InputError: a file is missing, unreadable or not what its name says.
    """
    path = Path(path)
    # With a suffix it is meant as a file; a folder that is not there is made by a download.
    if path.suffix and not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        return _load_table(path, split)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is neither a folder nor a file")

    images_path, labels_path = _find(path, split) or _download(path, split)
    labels = _read_idx(labels_path, "labels").astype(np.int64)
    images = _read_idx(images_path, "images")
    if len(images) != len(labels):
        raise InputError(
            f"{images_path}: {len(images)} images, but the labels' file has {len(labels)} labels; "
            "the two files must belong together"
        )
    if labels.max() > 9:
        raise InputError(f"{labels_path}: label {labels.max()} found, but digits are 0 to 9")
    return images, labels


# --- Tables -----------------------------------------------------------------------------------


def _load_table(path, split):
    """A split of a table.

    A table may be sorted by its labels, and then the last images would be of one digit. So its
    lines are put in a random order, always the same one.
    """
    pixels, labels = read_table(path, pixels=math.prod(IMAGE_SHAPE))
    order = np.random.default_rng(0).permutation(len(labels))
    images = pixels[order].reshape(-1, *IMAGE_SHAPE)
    labels = labels[order]
    chosen = _in_test_split(labels)
    if split == "train":
        chosen = ~chosen
    if not chosen.any():
        raise InputError(f"{path}: {len(labels)} lines are too few to hold out a fifth")
    return images[chosen], labels[chosen]


def _in_test_split(labels):
    """True for a fifth of the images of each digit, always the same ones: bool [N]."""
    rng = np.random.default_rng(0)
    chosen = np.zeros(len(labels), bool)
    for digit in range(10):
        places = rng.permutation(np.flatnonzero(labels == digit))
        chosen[places[: round(len(places) / 5)]] = True
    return chosen


# --- idx files --------------------------------------------------------------------------------


def _find(path, split):
    """The images file and the labels file of a split, or None if the folder has no data at all."""
    for subfolder in SUBFOLDERS:
        folder = path / subfolder
        found = {}
        for name in FILE_NAMES:
            for file in (folder / f"{name}.gz", folder / name):
                if file.is_file():
                    found[name] = file  # if both are there, the second, uncompressed one
        if not found:
            continue
        missing = [name for name in FILES[split] if name not in found]
        if missing:
            names = " and no ".join(missing)
            raise InputError(f"{folder}: no {names} (or .gz); put it beside those that are there")
        images_name, labels_name = FILES[split]
        return found[images_name], found[labels_name]
    return None


def idx_magic(kind):
    """The first four bytes of an idx file: two zeros, the type of its numbers, its rank."""
    return bytes([0, 0, UNSIGNED_BYTE, RANKS[kind]])


def _read_idx(path, kind):
    """Read an idx file of "images" or "labels": the magic bytes, the sizes, the numbers."""
    open_file = gzip.open if path.suffix == ".gz" else open
    read_errors = (OSError, EOFError, zlib.error)
    in_one_line = explained(path, "cannot be read", "copy it again", read_errors)
    with in_one_line, open_file(path, "rb") as file:
        header = file.read(4 + 4 * RANKS[kind])
        count, *sizes = _read_header(path, header, kind)
        promised = count * math.prod(sizes)  # bytes
        body = file.read(promised + 1)  # one more, to notice a file that is too long
    if len(body) != promised:
        problem = "truncated, fewer" if len(body) < promised else "too long, more"
        raise InputError(f"{path}: {problem} than the {promised} bytes it promises; copy it again")
    writable = bytearray(body)  # PyTorch warns of read-only arrays
    return np.frombuffer(writable, np.uint8).reshape(count, *sizes)


def _read_header(path, header, kind):
    """The sizes that an idx file's header gives, the number of images or labels first."""
    if len(header) < 4 + 4 * RANKS[kind]:
        raise InputError(f"{path}: too short for an idx file of {kind}; copy it again")
    magic = header[:4]
    other = "labels" if kind == "images" else "images"
    if magic == idx_magic(other):
        raise InputError(f"{path}: does not hold {kind}; are two files swapped?")
    if magic != idx_magic(kind):
        raise InputError(f"{path}: not an idx file of {kind} (magic number {magic.hex()})")
    count, *sizes = struct.unpack(f">{RANKS[kind]}I", header[4:])
    if not 0 < count <= MAX_IMAGES:
        raise InputError(f"{path}: promises {count} {kind}; 1 to {MAX_IMAGES} can be read")
    if kind == "images" and tuple(sizes) != IMAGE_SHAPE:
        raise InputError(f"{path}: images are {sizes[0]}x{sizes[1]}, but 28x28 is needed")
    return count, *sizes


def _download(path, split):
    """Have torchvision fetch and verify MNIST, move it to `path/MNIST/raw`, and find the split."""
    raw = Path("MNIST/raw")
    problem = "torchvision cannot be imported"  # if the next line fails
    try:
        from torchvision import datasets  # only here: built for another PyTorch it cannot load

        problem = "the download failed"  # if one of the next lines does
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is the training log
                datasets.MNIST(folder, download=True)
            contents = {path / raw / n: (Path(folder) / raw / n).read_bytes() for n in FILE_NAMES}
    except Exception as error:  # ImportError, RuntimeError, URLError ..., depending on the release
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: none of {', '.join(FILE_NAMES)} (or .gz) found there or in {raw.as_posix()}; "
            f"put them there, or use the copy in mnist/ ({problem}: {reason})"
        ) from error
    total_bytes = sum(len(content) for content in contents.values())
    with reserved(contents, needed_bytes=total_bytes):
        write_files(contents)
    return _find(path, split)
