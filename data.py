"""Digits in: the idx files of MNIST and of sets in its format, or a table of digits."""

import contextlib
import gzip
import hashlib
import math
import re
import socket
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from errors import InputError, explained
from files import PROJECT, read_lines, reserved, write_files

MNIST = PROJECT / "mnist"  # the copy that is shipped
IMAGE_SHAPE = (28, 28)
COLUMNS = 1 + math.prod(IMAGE_SHAPE)  # of a table of digits: the label and the pixels
LABEL_NAMES = {"label", "labels", "class", "digit", "target", "y"}  # of that column
FILES = {  # split: (images, labels), the names that LeCun gave them
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
ROW = re.compile(r"(?: *\d+ *,){784} *\d+\s*", re.ASCII)  # of such a table
FILE_NAMES = sum(FILES.values(), ())
SUBFOLDERS = ("", "raw", "MNIST/raw")  # flat, or torchvision's layout
MOST_IMAGES = 240_000  # in a file: what EMNIST has, the largest set of ten classes in this format
SCATTERED = 1000  # the homework asks for the last 1000 test images


class Digits(NamedTuple):
    """All that is read. Images are float32 [N, 784] in [0, 1] on the device, labels int64 [N]."""

    x: torch.Tensor
    labels: np.ndarray
    x_train: torch.Tensor  # the first of x
    x_validation: torch.Tensor  # the last of x, held out
    x_test: torch.Tensor
    test_labels: np.ndarray
    x_shown: torch.Tensor  # the first ten test images of each digit; if there are fewer, repeated
    identity: dict  # names the training images: their number and MD5
    which: str  # the images that are not for training: "test" or, of a table, "held-out"


def read_digits(path, device, validation=0):
    """Both splits of what `load_digits` reads, the last `validation` training images held out."""
    images, labels = load_digits(path, "train")
    test_images, test_labels = load_digits(path, "test")
    if validation >= len(images):
        raise InputError(f"--validation {validation}: there are {len(images)} images in all")
    x, x_test = as_input(images, device), as_input(test_images, device)
    x_train, x_validation = x.split([len(x) - validation, validation])
    shown = [np.resize(np.flatnonzero(test_labels == d), 10) for d in np.unique(test_labels)]
    # The MD5 of the uncompressed idx file: MNIST's is known, so it names the data.
    md5 = hashlib.md5(struct.pack(">4I", 2051, *images.shape), usedforsecurity=False)
    md5.update(images)
    identity = {"count": len(images), "md5": md5.hexdigest()}
    x_shown = x_test[np.concatenate(shown)]
    which = "held-out" if Path(path).is_file() else "test"
    return Digits(x, labels, x_train, x_validation, x_test, test_labels, x_shown, identity, which)


def as_input(images, device="cpu"):
    """uint8 images [N, 28, 28] -> float32 [N, 784] in [0, 1] on the device."""
    return torch.from_numpy(images).to(device).flatten(1).float().div_(255)


def load_digits(path, split):
    """A split, "train" or "test": images uint8 [N, 28, 28], 255 is ink, labels int64 [N], 0 to 9.

    `path` is a folder of idx files, raw or gzip-compressed, flat or in torchvision's `MNIST/raw/`
    (if it has none, torchvision downloads MNIST into it), or a table with one image a line: the
    label, first or last, and 784 pixels with commas between them, with or without column names. A
    fifth of each digit in a table, drawn with a fixed seed, is its test split.
    Raises InputError: a file is missing, unreadable or not what its name says.
    """
    path = Path(path)
    if path.suffix and not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        images, labels = _read_table(path)
        chosen = _held_out(labels) == (split == "test")
        if not chosen.any():
            raise InputError(f"{path}: {len(labels)} lines are too few to hold out a fifth")
        return images[chosen], labels[chosen]
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is neither a folder nor a file")
    images_file, labels_file = _find(path, split) or _download(path, split)
    labels = _read_idx(labels_file, "labels").astype(np.int64)
    images = _read_idx(images_file, "images")
    if len(images) != len(labels):
        counts = f"{len(images)} images, but the labels' file has {len(labels)} labels"
        raise InputError(f"{images_file}: {counts}; the two files must belong together")
    if labels.max() > 9:
        raise InputError(f"{labels_file}: label {labels.max()} found, but digits are 0 to 9")
    return images, labels


def _find(path, split):
    """The images file and the labels file of a split, or None if the folder has no data at all."""
    for folder in (path / subfolder for subfolder in SUBFOLDERS):
        files = [folder / f"{name}{end}" for name in FILE_NAMES for end in (".gz", "")]  # raw wins
        found = {file.name.removesuffix(".gz"): file for file in files if file.is_file()}
        missing = " and no ".join(name for name in FILES[split] if name not in found)
        if found and missing:
            raise InputError(f"{folder}: no {missing} (or .gz); put it beside those that are there")
        if found:
            return tuple(found[name] for name in FILES[split])
    return None


def _read_idx(path, kind):
    """Read an idx file: two zero bytes, 8 for unsigned bytes, the rank, the sizes, the bytes."""
    ranks = {"labels": 1, "images": 3}
    length = 4 + 4 * ranks[kind]
    unreadable = explained(path, "cannot be read", "copy it again", (OSError, EOFError, zlib.error))
    with unreadable, (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        header = file.read(length)
        if len(header) < length:
            raise InputError(f"{path}: too short for an idx file of {kind}; copy it again")
        magic, (count, *sizes) = header[:4], struct.unpack(f">{ranks[kind]}I", header[4:])
        if magic in (bytes([0, 0, 8, rank]) for rank in ranks.values() if rank != ranks[kind]):
            raise InputError(f"{path}: does not hold {kind}; are two files swapped?")
        if magic != bytes([0, 0, 8, ranks[kind]]):
            raise InputError(f"{path}: not an idx file of {kind} (magic number {magic.hex()})")
        if not 0 < count <= MOST_IMAGES:
            raise InputError(f"{path}: promises {count} {kind}; 1 to {MOST_IMAGES} can be read")
        if sizes and tuple(sizes) != IMAGE_SHAPE:
            raise InputError(f"{path}: images are {sizes[0]}x{sizes[1]}, but 28x28 is needed")
        size = count * math.prod(sizes)
        body = file.read(size + 1)
    if len(body) != size:
        problem = "truncated, fewer" if len(body) < size else "too long, more"
        raise InputError(f"{path}: {problem} than the {size} bytes it promises; copy it again")
    return np.frombuffer(bytearray(body), np.uint8).reshape(count, *sizes)


def _read_table(path):
    """All images uint8 [N, 28, 28] and labels int64 [N] of a table of digits."""
    names, rows, lines, number = [], [], [], 0
    needed = "needs a label and 784 whole numbers from 0 to 255, with commas between them"
    for number, line in enumerate(read_lines(path), start=1):
        if number == 1:
            if "\0" in line:
                raise InputError(f"{path}: is not text; give a table, or the idx files' folder")
            names = [word.strip().strip("\"'").lower() for word in line.split(",")]
            names = names if len(set(names)) == COLUMNS else []  # 785 values to 255 cannot differ
        if line.strip("\r\n") and not (number == 1 and names):
            # np.fromstring alone would read a blank as 0
            row = np.fromstring(line, np.int64, sep=",") if ROW.fullmatch(line) else None
            if row is None or row.max() > 255:
                raise InputError(f"{path}, line {number}: {needed}")
            rows.append(row.astype(np.uint8))
            lines.append(number)
    if not rows:
        raise InputError(f"{path}, line {number + 1}: {needed}")
    table = np.stack(rows)
    column = _label_column(path, table, names)
    labels = table[:, column].astype(np.int64)
    if labels.max() > 9:
        line, label = lines[labels.argmax()], labels.max()
        raise InputError(f"{path}, line {line}: label {label}, but digits are 0 to 9")
    order = np.random.default_rng(0).permutation(len(table))  # a table may be sorted by its labels
    return np.delete(table, column, axis=1)[order].reshape(-1, *IMAGE_SHAPE), labels[order]


def _label_column(path, table, names):
    """The first column or the last: that named so, or more like digits than a corner pixel."""
    named = [column for column, name in enumerate(names) if name in LABEL_NAMES]
    if named and not {0, COLUMNS - 1} & set(named):
        raise InputError(f"{path}: column {named[0] + 1} is named as the label; put it first")
    first, last = (
        (column in named, len(np.unique(values[values <= 9])), -np.count_nonzero(values > 9))
        for column, values in ((0, table[:, 0]), (COLUMNS - 1, table[:, -1]))
    )
    if first == last and (table[:, 0] != table[:, -1]).any():
        problem = "either the first column or the last may be the label"
        raise InputError(f"{path}: {problem}; add a first line of column names, one of them label")
    return COLUMNS - 1 if last > first else 0


def _held_out(labels):
    """True for a fifth of the images of each digit, always the same ones: bool [N]."""
    rng = np.random.default_rng(0)
    held_out = np.zeros(len(labels), bool)
    for digit in range(10):
        own = rng.permutation(np.flatnonzero(labels == digit))
        held_out[own[: round(len(own) / 5)]] = True
    return held_out


def _download(path, split):
    """Have torchvision fetch and verify MNIST, move it to `path/MNIST/raw`, and find the split."""
    problem, raw = "torchvision, which can fetch them, does not load here", Path("MNIST/raw")
    try:
        from torchvision import datasets  # only here: beside another PyTorch's build it cannot load

        problem = "the download failed"
        socket.setdefaulttimeout(30)  # seconds; torchvision would wait for ever
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is the training log
                datasets.MNIST(folder, download=True)
            contents = {path / raw / n: (Path(folder) / raw / n).read_bytes() for n in FILE_NAMES}
    except Exception as error:  # ImportError, RuntimeError, URLError ..., depending on the release
        reason = " ".join(str(error).split()) or type(error).__name__
        files = f"none of {', '.join(FILE_NAMES)} (or .gz) found there or in MNIST/raw"
        cure = "put them there, or leave out --data to use the copy in mnist/"
        raise InputError(f"{path}: {files}; {cure} ({problem}: {reason})") from error
    with reserved(contents, room=sum(map(len, contents.values()))):
        write_files(contents)
    return _find(path, split)
