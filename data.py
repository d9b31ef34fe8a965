"""Reads digits: finds the files, reads them, checks them. The formats are in lib/digit_files.py.

`--data` and the functions below take a path to one of these, just as downloaded:
- a folder with LeCun's four idx files in it or up to three folder levels below: MNIST by LeCun,
  torchvision or Kaggle, Fashion-MNIST, KMNIST, EMNIST digits (they are turned upright), QMNIST;
  compressed or not. Naming any one of the four files is enough.
- a folder with a train and a test table (CSV), as Kaggle has them: `mnist_train.csv` and
  `mnist_test.csv`, or in folders train/ and test/.
- one table: each line has a label, first or last, and 784 pixels, with commas between them; the
  first line may name the columns. Examples are OpenML's table and the folder of Kaggle's digit
  recognizer (its `test.csv` has no labels and is not used). A fifth of the images of each digit is
  held out for testing.
- Keras's `mnist.npz`.

Pixels are 0 (paper) to 255 (ink).
"""

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lib import digit_files
from lib.errors import InputError, as_input_error
from lib.files import write_files

MNIST = Path(__file__).resolve().parent / "mnist"  # the copy that is shipped
IMAGE_SHAPE = (28, 28)
COLUMNS = 1 + 28 * 28  # of a table: a label and the pixels
DIGITS = 10  # labels are 0 to 9
LAST_TEST_IMAGES = 1000  # the homework asks for the codes of the last 1000
DOWNLOAD_TIMEOUT = 30  # seconds without an answer; torchvision alone would wait for ever
DEPTH = 3  # levels of folders below the one that is given
BRIGHT = 127  # if the mean pixel is higher, it is probably dark ink on bright paper; MNIST's is 33
LECUN = {  # the names of the four idx files
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
KERAS = ("x_train", "y_train", "x_test", "y_test")
READABLE_FORMS = (
    f"what can be read: {', '.join(LECUN.values())}; or tables (.csv) with train and test in their "
    "names, or one table; or Keras's mnist.npz"
)


class Source(NamedTuple):
    """Files from which digits are read."""

    place: str  # where they are
    files: list
    read: Callable  # gives four arrays and their places, in the order of LECUN
    test_name: str = "test"  # the name of the second split in messages: "test" or "held-out"

    def __str__(self):
        """Where the images are. Of EMNIST's it adds that they were turned upright."""
        upright = ", turned upright" if digit_files.is_transposed(self.files[0]) else ""
        return self.place + upright

    def load(self):
        """Both splits, checked: {"train": (images, labels), "test": (images, labels)}."""
        # Each is a pair: an array, and the place that a message names if it is wrong.
        train_images, train_labels, test_images, test_labels = self.read()
        return {
            "train": checked(*train_images, *train_labels),
            "test": checked(*test_images, *test_labels),
        }


# --- Find -------------------------------------------------------------------------------------


def find_source(path):
    """The source of digits at a path; the forms are those at the top of this file.

    If the files of the shipped copy are missing, they are downloaded; only there.
    Raises InputError: there is none, or there are several.
    """
    path = Path(path)
    with as_input_error(path, "cannot be read", "name another", OSError):
        if path == MNIST:
            files = digit_files.files_below(path, DEPTH) if path.is_dir() else []
            if not digit_files.find_idx_sets(files):
                _download(path)
        if path.is_dir():
            return _find_in_folder(path)
        if path.is_file():
            return _source_of_file(path)
    raise InputError(f"{path}: no such file or folder")


def _find_in_folder(folder):
    """The one source of digits in a folder and up to three levels below it."""
    files = digit_files.files_below(folder, DEPTH)
    pairs, tables = digit_files.find_tables(folder, files, COLUMNS)
    sources = [
        *[_idx_source(idx_set) for idx_set in digit_files.find_idx_sets(files)],
        *[_source_of_two_tables(train, test) for train, test in pairs],
        *[_source_of_one_table(path) for path in tables],
        *[_npz_source(path) for path in files if path.suffix.lower() == ".npz"],
    ]
    if len(sources) > 1:
        places = ", ".join(sorted(source.place for source in sources))
        raise InputError(f"{folder}: several sets: {places}; name one of them")
    if sources:
        return sources[0]
    # None of the tables that are there could be a source: say why of the first.
    other_tables = [path for path in files if path.suffix.lower() == ".csv"]
    if other_tables:
        path = other_tables[0]
        raise InputError(f"{path}: {digit_files.first_line_fault(path, COLUMNS)}")
    names = [path.name for path in sorted(folder.iterdir())]
    found = ", ".join(names[:5]) or "nothing"
    raise InputError(f"{folder}: no digits; found {found}; {READABLE_FORMS}")


def _source_of_file(path):
    """The source of digits that a file is, or belongs to."""
    if digit_files.parse_idx_name(path.name):
        path = path.absolute()
        for idx_set in digit_files.find_idx_sets(digit_files.files_beside(path)):
            # Of each of the four there may be several files, say a plain and a compressed one.
            if any(path in same_files for same_files in idx_set.values()):
                return _idx_source(idx_set)
    if path.suffix.lower() == ".npz":
        return _npz_source(path)
    if digit_files.split_in(path.name) == "test":
        raise InputError(f"{path}: {digit_files.ONLY_TEST}; name the folder of both, or rename it")
    return _source_of_one_table(path)


def _idx_source(idx_set):
    """The source of a set of idx files, as `find_idx_sets` gives it.

    Its place is the folder. If the names have a prefix, it is added, as "gzip/emnist-digits-*".
    """
    files = [same_files[0] for same_files in idx_set.values()]
    folder = Path(os.path.commonpath([digit_files.folder_of_set(path) for path in files]))
    prefix, _, _ = digit_files.parse_idx_name(files[0].name)
    place = str(folder / f"{prefix}*") if prefix else str(folder)
    return Source(place, files, lambda: _read_idx_set(idx_set, place))


def _source_of_two_tables(train, test):
    place = f"{train} and {test}"
    return Source(place, [train, test], lambda: [*_read_table(train), *_read_table(test)])


def _source_of_one_table(path):
    return Source(str(path), [path], lambda: _read_and_hold_out(path), test_name="held-out")


def _npz_source(path):
    return Source(str(path), [path], lambda: _read_keras(path))


def _download(folder):
    """Have torchvision fetch and verify MNIST, and move it to `folder`/MNIST/raw."""
    print(f"MNIST is not in {folder}; downloading it ...", flush=True)
    attempt = "importing torchvision"
    try:
        # Imported only here, as a torchvision that was built for another PyTorch cannot be.
        from torchvision import datasets

        attempt = "the download"
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        with tempfile.TemporaryDirectory() as temporary:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is the training log
                datasets.MNIST(temporary, download=True)
            fetched = [Path(temporary, "MNIST/raw", name) for name in LECUN.values()]
            contents = {folder / "MNIST/raw" / path.name: path.read_bytes() for path in fetched}
    except Exception as error:  # ImportError, RuntimeError, URLError ..., depending on the release
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{folder}: no digits ({attempt} failed: {reason}); {READABLE_FORMS}"
        ) from error
    write_files(contents)


# --- Read -------------------------------------------------------------------------------------


def _read_idx_set(idx_set, place):
    """The arrays of four idx files; InputError if one of them is missing."""
    missing = [name for role, name in LECUN.items() if role not in idx_set]
    if missing:
        names = " and no ".join(missing)
        raise InputError(f"{place}: no {names} (or .gz); put it beside those that are there")
    paths = [digit_files.one_of(idx_set[role]) for role in LECUN]
    return [(digit_files.read_idx(path), path) for path in paths]


def _read_keras(path):
    """The arrays of Keras's .npz file."""
    arrays = digit_files.read_npz(path, KERAS)
    return [(arrays[name], f"{path}, {name}") for name in KERAS]


def _read_table(path):
    """The images and labels of a table, in the order of its lines."""
    pixels, labels = digit_files.read_table(path, COLUMNS, DIGITS)
    images = pixels.reshape(-1, *IMAGE_SHAPE)
    if digit_files.is_transposed(path):  # `read_idx` does the same
        images = images.transpose(0, 2, 1)
    return [(images, path), (labels, path)]


def _read_and_hold_out(path):
    """The arrays of one table, of which a fifth of the images of each digit is for testing.

    The table may be sorted by its labels, and then the last images would be of one digit. So its
    lines are put in a random order, always the same one.
    """
    (images, _), (labels, _) = _read_table(path)
    order = np.random.default_rng(0).permutation(len(labels))
    images = images[order]
    labels = labels[order]
    held_out = np.zeros(len(labels), bool)
    for digit in np.unique(labels):
        places = np.flatnonzero(labels == digit)
        held_out[places[: round(len(places) / 5)]] = True
    if not held_out.any():
        raise InputError(f"{path}: {len(labels)} images are too few to hold out a fifth")
    train = [(images[~held_out], path), (labels[~held_out], path)]
    test = [(images[held_out], path), (labels[held_out], path)]
    return train + test


def checked(images, images_place, labels, labels_place):
    """Images as uint8 [N, 28, 28] and labels as int64 [N].

    Raises InputError, which names an array's place: the arrays are not images and their labels.
    """
    if images.ndim == 1 or labels.ndim == 3:
        raise InputError(f"{images_place}: holds no images; are images and labels swapped?")
    if images.ndim != 3 or images.shape[1:] != IMAGE_SHAPE or labels.ndim != 1:
        found = f"{list(images.shape)} and {list(labels.shape)}"
        raise InputError(f"{images_place}: images [N, 28, 28] and labels [N] needed; found {found}")
    if len(images) != len(labels) or len(images) == 0:
        found = f"{len(images)} images, but {len(labels)} labels in {labels_place}"
        raise InputError(f"{images_place}: found {found}; there must be as many")
    for array, place, highest in (
        (images, images_place, 255),
        (labels, labels_place, DIGITS - 1),
    ):
        needed = f"whole numbers from 0 to {highest} needed"
        if array.dtype.kind not in "iu":  # integers, signed and unsigned
            raise InputError(f"{place}: {needed}; found the type {array.dtype}")
        if array.min() < 0 or array.max() > highest:
            raise InputError(f"{place}: {needed}; found {array.min()} to {array.max()}")
    if images.max() == 1:
        raise InputError(f"{images_place}: found only 0 and 1, but 255 is ink; multiply by 255")
    return np.ascontiguousarray(images, np.uint8), labels.astype(np.int64)


def load_digits(path, split):
    """A split, "train" or "test": images uint8 [N, 28, 28], 255 is ink, labels int64 [N], 0 to 9.

    For use from Python, as in the README; the scripts call `load_both_splits`.
    Raises InputError: there is no set, or several; a file is missing, unreadable or not what its
    name says.
    """
    return find_source(path).load()[split]


class Digits(NamedTuple):
    """All that is read. Images are float32 [N, 784] in [0, 1] on the device, labels int64 [N]."""

    x_train: torch.Tensor
    train_labels: np.ndarray
    x_test: torch.Tensor
    test_labels: np.ndarray
    x_shown: torch.Tensor  # the first ten test images of each digit; if there are fewer, repeated
    # The MD5 that each of the four arrays would have as an idx file: --resume compares them, and
    # MNIST's are published.
    checksums: dict
    test_name: str  # "test", or "held-out" if it was split off a table

    @property
    def last_x_test(self):
        """The last 1000 test images."""
        return self.x_test[-LAST_TEST_IMAGES:]

    @property
    def last_test_labels(self):
        """The labels of the last 1000 test images."""
        return self.test_labels[-LAST_TEST_IMAGES:]


def load_both_splits(source, device):
    """Both splits of what `find_source` found; a line on stderr if ink and paper may be swapped."""
    splits = source.load()
    images, labels = splits["train"]
    test_images, test_labels = splits["test"]
    if images.mean() > BRIGHT:
        print(
            f"{source.place}: the mean pixel is {images.mean():.0f}, but 0 should be paper and 255 "
            "ink; invert the images (255 - pixel) if they are dark on bright",
            file=sys.stderr,
        )
    x_test = as_input(test_images, device)
    return Digits(
        x_train=as_input(images, device),
        train_labels=labels,
        x_test=x_test,
        test_labels=test_labels,
        x_shown=x_test[first_ten_of_each_digit(test_labels)],
        checksums={
            "train_images": digit_files.idx_md5(images),
            "train_labels": digit_files.idx_md5(labels),
            "test_images": digit_files.idx_md5(test_images),
            "test_labels": digit_files.idx_md5(test_labels),
        },
        test_name=source.test_name,
    )


def as_input(images, device="cpu"):
    """uint8 images [N, 28, 28] -> float32 [N, 784] in [0, 1] on the device."""
    return torch.from_numpy(images).to(device).flatten(1).float().div_(255)


def first_ten_of_each_digit(labels):
    """The indices of the first ten labels of each digit, digit by digit."""
    indices = []
    for digit in np.unique(labels):
        all_of_digit = np.flatnonzero(labels == digit)
        indices.append(np.resize(all_of_digit, 10))  # it repeats them if there are fewer
    return np.concatenate(indices)
