"""Reads digits: finds the files, reads them, checks them. The formats themselves are in lib/.

- `find_source` finds what lies at a path: idx files, tables, an .npz file.
- `load_digits` reads one split of it, as arrays.
- `load_both_splits` reads all of it, as tensors.
"""

import contextlib
import functools
import hashlib
import math
import socket
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lib import idx, npz
from lib.errors import InputError
from lib.files import describe_folder, files_below, reserved, write_files
from lib.formats import CONVERSIONS, other_format
from lib.tables import find_tables, read_table

MNIST = Path(__file__).resolve().parent / "mnist"  # the copy that is shipped
IMAGE_SHAPE = (28, 28)
PIXELS = math.prod(IMAGE_SHAPE)
DIGITS = 10  # labels are 0 to 9
MAX_IMAGES = 240_000  # in a file; EMNIST's digits, the largest set of this kind, have as many
LAST_TEST_IMAGES = 1000  # the homework asks for the codes of the last 1000
DOWNLOAD_TIMEOUT = 30  # seconds without an answer; torchvision alone would wait for ever
DEPTH = 3  # levels of folders below the one that is given
MAX_FILES = 20_000  # with more in a folder none is read; a folder of one set has far fewer
MAX_NAMES = 10  # sets or arrays that a message names
NPZ_NAMES = {  # in Keras's file, for each split: (images, labels)
    "train": ("x_train", "y_train"),
    "test": ("x_test", "y_test"),
}
LOOKED_FOR = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, or two tables (train and test in their names, .csv), or Keras's .npz"
)
TABLE_LINE = f"one image per line: its label and {PIXELS} pixels, with commas between them"


# --- Sources: where digits come from ----------------------------------------------------------


class Source:
    """Files from which digits are read; a subclass knows how."""

    test_name = "test"  # what the images are called that are not for training

    def __init__(self, files):
        self.files = files

    def __str__(self):
        """Where the images are, and what is done with them."""
        upright = ", turned upright" if idx.is_transposed(self.files[0]) else ""
        return self.place() + upright

    def place(self):
        return " and ".join(str(path) for path in self.files)

    def load(self, split):
        """The images and labels of a split, "train" or "test", as `load_digits` gives them."""
        images, labels = self._read_split(split)
        if images.max() == 1:
            raise InputError(f"{self.place()}: pixels are 0 or 1, but 255 is ink; multiply by 255")
        return images, labels

    def _read_split(self, split):
        """As `load`, but the range of the pixels is unchecked."""
        raise NotImplementedError


class IdxSource(Source):
    """Four idx files."""

    def __init__(self, idx_set):
        super().__init__(list(idx_set.files.values()))
        self.idx_set = idx_set

    def place(self):
        return str(self.idx_set if self.idx_set.prefix else self.idx_set.folder)

    def _read_split(self, split):
        images_path = self.idx_set.files[split, idx.IMAGES]
        labels_path = self.idx_set.files[split, idx.LABELS]
        labels = idx.read_idx(labels_path, idx.LABELS, IMAGE_SHAPE, MAX_IMAGES)
        images = idx.read_idx(images_path, idx.IMAGES, IMAGE_SHAPE, MAX_IMAGES)
        if len(images) != len(labels):
            raise InputError(
                f"{images_path}: {len(images)} images, but the labels' file has {len(labels)} "
                "labels; the two files must belong together"
            )
        check_labels(labels_path, labels)
        return images, labels


class TableSource(Source):
    """One table, of which a fifth is the test split.

    A table may be sorted by its labels, and then the last images would be of one digit. So its
    lines are put in a random order, always the same one.
    """

    test_name = "held-out"

    def __init__(self, path):
        super().__init__([path])
        self.path = path

    @functools.cached_property
    def table(self):
        """The images and labels of the whole table."""
        return read_images(self.path)

    def _read_split(self, split):
        images, labels = self.table
        order = np.random.default_rng(0).permutation(len(labels))
        images = images[order]
        labels = labels[order]
        chosen = in_test_split(labels)
        if split == "train":
            chosen = ~chosen
        if not chosen.any():
            raise InputError(f"{self.path}: {len(labels)} lines are too few to hold out a fifth")
        return images[chosen], labels[chosen]


class TwoTablesSource(Source):
    """A table of training images and one of test images, their lines in order."""

    def __init__(self, paths):
        super().__init__([paths["train"], paths["test"]])
        self.paths = paths

    def _read_split(self, split):
        return read_images(self.paths[split])


class NpzSource(Source):
    """An .npz file, as Keras ships MNIST."""

    def __init__(self, path):
        super().__init__([path])
        self.path = path

    def _read_split(self, split):
        images_name, labels_name = NPZ_NAMES[split]
        images = npz.read_npz_array(self.path, images_name, IMAGE_SHAPE, MAX_IMAGES, max_value=255)
        labels = npz.read_npz_array(self.path, labels_name, (), MAX_IMAGES, max_value=DIGITS - 1)
        if len(images) != len(labels):
            raise InputError(
                f"{self.path}: {len(images)} images in {images_name}, but {len(labels)} labels in "
                f"{labels_name}"
            )
        return images.astype(np.uint8), labels.astype(np.int64)


def read_images(path):
    """The images and labels of a table, in the order of its lines."""
    pixels, labels = read_table(path, PIXELS, DIGITS, MAX_IMAGES)
    images = pixels.reshape(-1, *IMAGE_SHAPE)
    if idx.is_transposed(path):
        images = idx.upright(images)
    return images, labels


def check_labels(path, labels):
    """Raise an InputError if a label is no digit."""
    wrong = labels[(labels < 0) | (labels >= DIGITS)]
    if len(wrong):
        raise InputError(f"{path}: label {wrong.max()} found, but digits are 0 to 9")


def in_test_split(labels):
    """True for a fifth of the images of each digit, always the same ones: bool [N]."""
    rng = np.random.default_rng(0)
    chosen = np.zeros(len(labels), bool)
    for digit in range(DIGITS):
        places = rng.permutation(np.flatnonzero(labels == digit))
        chosen[places[: round(len(places) / 5)]] = True
    return chosen


# --- Find -------------------------------------------------------------------------------------


def find_source(path):
    """The source of digits at a path: a folder, one of a set's idx files, a table, an .npz file.

    Only the shipped copy's folder is filled by a download, if its files are missing.
    Raises InputError: there is none, or there are several.
    """
    path = Path(path)
    if path == MNIST and not _has_idx_files(path):
        _download(path)
    if path.is_dir():
        return _find_in_folder(path)
    if path.is_file():
        return _source_of_file(path)
    if path.exists():
        raise InputError(f"{path}: is neither a folder nor a file")
    raise InputError(f"{path}: no such file or folder")


def _find_in_folder(folder):
    """The one source of digits in a folder and up to three levels below it."""
    files = files_below(folder, DEPTH, MAX_FILES)
    for path in files:
        _check_npz(path)
    pairs, tables = find_tables(files, PIXELS)
    sources = [
        *idx.find_idx_sets(files),
        *[TwoTablesSource(pair) for pair in pairs],
        *[TableSource(path) for path in tables],
        *[NpzSource(path) for path in files if _is_keras_file(path)],
    ]
    if not sources:
        raise InputError(f"{folder}: no digits; looked for {LOOKED_FOR}; {describe_folder(folder)}")
    if len(sources) > 1:
        names = sorted(str(source) for source in sources)
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        shown = ", ".join(names[:MAX_NAMES]) + more
        raise InputError(f"{folder}: several sets: {shown}; name the folder or a file of one")
    (source,) = sources
    return _complete(source) if isinstance(source, idx.IdxSet) else source


def _source_of_file(path):
    """The source of digits that a file is, or belongs to."""
    idx_set = _idx_set_of(path)
    if idx_set:
        return _complete(idx_set)
    if _is_keras_file(path):
        return NpzSource(path)
    _check_npz(path)
    if path.suffix.lower() == ".npz":
        held = ", ".join(sorted(npz.array_names(path))[:MAX_NAMES]) or "nothing"
        needed = "x_train, y_train, x_test and y_test"
        raise InputError(f"{path}: needs the arrays {needed}, but holds {held}; rename them")
    what = other_format(path)
    if what:
        raise InputError(f"{path}: is {what}; {CONVERSIONS[what]}; a table has {TABLE_LINE}")
    return TableSource(path)


def _idx_set_of(path):
    """The set of idx files to which a file belongs, or None."""
    name = idx.parse_name(path)
    if not name:
        return None
    prefix, split, kind = name
    folder = idx.folder_of_set(path)
    # A folder such as train/ holds one split; the other one is in a folder beside it.
    top = folder.parent if idx.is_split_folder(folder) else folder
    for idx_set in idx.find_idx_sets(files_below(top, 2, MAX_FILES)):
        # The set may hold another copy of this file, say an uncompressed one. So what the two files
        # are is compared, not their names.
        kept = idx_set.files.get((split, kind))
        if kept and idx_set.prefix == prefix and idx.folder_of_set(kept) == folder:
            return idx_set
    return None


def _complete(idx_set):
    """The source of a set of idx files; InputError if one of the four is missing."""
    missing = idx_set.missing()
    if missing:
        names = " and no ".join(missing)
        raise InputError(
            f"{idx_set.folder}: no {names} (or .gz); put it beside those that are there"
        )
    return IdxSource(idx_set)


def _has_idx_files(folder):
    """Whether a folder, which may be missing, has idx files in it or below."""
    if not folder.is_dir():
        return False
    return any(idx.parse_name(path) for path in files_below(folder, DEPTH, MAX_FILES))


def _check_npz(path):
    """Raise an InputError if a file is named .npz, but is damaged: it may be what is meant."""
    if path.suffix.lower() == ".npz" and npz.array_names(path) is None:
        raise InputError(f"{path}: is a damaged .npz file; copy it again")


def _is_keras_file(path):
    """Whether a file is an .npz file as Keras ships MNIST."""
    needed = {*NPZ_NAMES["train"], *NPZ_NAMES["test"]}
    return needed <= (npz.array_names(path) or set())


def _download(folder):
    """Have torchvision fetch and verify MNIST, and move it to `folder`/MNIST/raw."""
    print(f"MNIST is not in {folder}; downloading it ...", flush=True)
    raw = folder / "MNIST/raw"
    problem = "torchvision cannot be imported"  # if the next line fails
    try:
        from torchvision import datasets  # only here: built for another PyTorch it cannot load

        problem = "the download failed"  # if one of the next lines does
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        with tempfile.TemporaryDirectory() as temporary:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is the training log
                datasets.MNIST(temporary, download=True)
            (idx_set,) = idx.find_idx_sets(Path(temporary, "MNIST/raw").iterdir())
            contents = {raw / path.name: path.read_bytes() for path in idx_set.files.values()}
    except Exception as error:  # ImportError, RuntimeError, URLError ..., depending on the release
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{folder}: no digits; looked for {LOOKED_FOR}; put them there ({problem}: {reason})"
        ) from error
    total_bytes = sum(len(content) for content in contents.values())
    with reserved(contents, needed_bytes=total_bytes):
        write_files(contents)


# --- Read -------------------------------------------------------------------------------------


def load_digits(path, split):
    """A split, "train" or "test": images uint8 [N, 28, 28], 255 is ink, labels int64 [N], 0 to 9.

    `path` is one of these:
    - a folder with one set of idx files in it or up to three levels below: under LeCun's names or
      others that are usual, compressed or not. EMNIST's images, which are stored transposed, are
      turned upright.
    - a folder with two tables, with `train` and `test` in their names.
    - one of a set's idx files.
    - an .npz file as Keras ships MNIST.
    - a table with one image per line: the label, first or last, and 784 pixels, with commas between
      them, with or without column names. A fifth of the images of each digit, drawn with a fixed
      seed, is its test split.
    Raises InputError: there is no set, or several; a file is missing, unreadable or not what its
    name says.
    """
    return find_source(path).load(split)


class Digits(NamedTuple):
    """All that is read. Images are float32 [N, 784] in [0, 1] on the device, labels int64 [N]."""

    x_train: torch.Tensor
    train_labels: np.ndarray
    x_test: torch.Tensor
    test_labels: np.ndarray
    x_shown: torch.Tensor  # the first ten test images of each digit; if there are fewer, repeated
    identity: dict  # of the training images: their number and MD5
    fingerprint: str  # of all images and labels
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
    """Both splits of what `find_source` found."""
    images, labels = source.load("train")
    test_images, test_labels = source.load("test")
    x_test = as_input(test_images, device)
    return Digits(
        x_train=as_input(images, device),
        train_labels=labels,
        x_test=x_test,
        test_labels=test_labels,
        x_shown=x_test[first_ten_of_each_digit(test_labels)],
        identity={"count": len(images), "md5": idx_md5(images)},
        fingerprint=fingerprint(images, labels, test_images, test_labels),
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
        indices.append(np.resize(all_of_digit, 10))  # which repeats them if they are fewer
    return np.concatenate(indices)


def fingerprint(*arrays):
    """A checksum of arrays, for --resume to see whether they are the same as before."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def idx_md5(images):
    """The MD5 of the uncompressed idx file of these images.

    That of MNIST's is published, so a reader can check which data a run used.
    """
    digest = hashlib.md5(usedforsecurity=False)
    digest.update(idx.image_idx_header(images.shape))
    digest.update(images)
    return digest.hexdigest()
