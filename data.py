"""Digits in, files out: read idx files or a table of digits, write files whole or not at all.

Also what both scripts need to answer a mistake with one line instead of a traceback.
Nothing here imports PyTorch, and torchvision is imported only if MNIST must be downloaded.
"""

import argparse
import contextlib
import ctypes
import gzip
import math
import os
import re
import shutil
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent
IMAGE_SHAPE = (28, 28)
COLUMNS = 1 + math.prod(IMAGE_SHAPE)  # of a table of digits: the label and the pixels
LABEL_NAMES = ("label", "labels", "class", "digit", "target", "y")  # of that column
FILES = {  # split: (images, labels), the names that LeCun gave them
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SUBFOLDERS = ("", "raw", "MNIST/raw")  # flat, or torchvision's layout
IMAGE_NAME = re.compile(r"\d{2,}\.png")  # what replace_images writes and replaces
MAX_ITEMS = 1_000_000  # a header may promise anything; the largest set of the kind has 814,255


class InputError(ValueError):
    """The user gave something that cannot work; the message is one line that says what to do."""


def load_digits(path, split):
    """Read one split of MNIST, or of any data set in its format, from a folder or a table.

    A folder holds the four canonical idx files, raw or gzip-compressed, flat or in
    torchvision's `MNIST/raw/`. If it holds none of the four, torchvision downloads MNIST into it.
    A table is a text file with one image a line: the label and 784 pixels from 0 to 255 with
    commas between them, the label first or last, with or without a line of column names. A fifth
    of each digit, drawn with a fixed seed, is its test split.

    Args:
        path: the folder or the file.
        split: "train" or "test".

    Returns:
        images: uint8 array `[N, 28, 28]`, 0 is paper and 255 is ink.
        labels: int64 array `[N]`, 0 to 9.

    Raises:
        InputError: a file is missing, unreadable or not what its name says.
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
    images_file, labels_file = _find(path, split) or _download(path, split)
    images = _read_idx(images_file, dimensions=3)
    labels = _read_idx(labels_file, dimensions=1).astype(np.int64)
    if len(images) != len(labels):
        raise InputError(
            f"{labels_file}: {len(labels)} labels, but {len(images)} images in "
            f"{images_file.name}; the two files must belong together"
        )
    if labels.max() > 9:
        raise InputError(f"{labels_file}: label {labels.max()} found, but digits are 0 to 9")
    return images, labels


def _find(path, split):
    """The images file and the labels file of a split, or None if the folder has no data at all."""
    for subfolder in SUBFOLDERS:
        found = {
            name: file
            for name in sum(FILES.values(), ())
            for file in (path / subfolder / f"{name}.gz", path / subfolder / name)  # raw wins
            if file.is_file()
        }
        if found:
            missing = [name for name in FILES[split] if name not in found]
            if missing:
                raise InputError(
                    f"{path / subfolder}: no {' and no '.join(missing)} (or .gz); "
                    "put it beside the files that are there"
                )
            return tuple(found[name] for name in FILES[split])
    return None


def _read_idx(path, dimensions):
    """Read an idx file of unsigned bytes; the format is described at the foot of LeCun's page."""
    open_file = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rb") as file:
            shape = _idx_shape(path, file.read(4 + 4 * dimensions), dimensions)
            size = math.prod(shape)
            body = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy it again") from error
    if len(body) != size:
        problem = "truncated, fewer" if len(body) < size else "too long, more"
        raise InputError(f"{path}: {problem} than the {size} bytes it promises; copy it again")
    return np.frombuffer(body, np.uint8).reshape(shape).copy()  # the copy is writable


def _idx_shape(path, header, dimensions):
    """Check an idx header (two zero bytes, type 8 for bytes, rank, sizes) and return the sizes."""
    kinds = {1: "labels", 3: "images"}
    if len(header) < 4 + 4 * dimensions:
        raise InputError(f"{path}: too short for an idx file of {kinds[dimensions]}; copy it again")
    rank = header[3]
    if header[:3] != b"\x00\x00\x08" or rank not in kinds:
        magic = header[:4].hex()
        raise InputError(f"{path}: not an idx file of {kinds[dimensions]} (magic number {magic})")
    if rank != dimensions:
        raise InputError(
            f"{path}: holds {kinds[rank]} where {kinds[dimensions]} belong; are two files swapped?"
        )
    shape = [int(size) for size in np.frombuffer(header, ">u4", offset=4)]
    if not 0 < shape[0] <= MAX_ITEMS:
        raise InputError(
            f"{path}: header promises {shape[0]} {kinds[rank]}; 1 to {MAX_ITEMS} can be read"
        )
    if rank == 3 and tuple(shape[1:]) != IMAGE_SHAPE:
        size = "x".join(map(str, shape[1:]))
        raise InputError(f"{path}: images are {size} pixels, but 28x28 is needed")
    return shape


def _read_table(path):
    """All images uint8 [N, 28, 28] and labels int64 [N] of a table of digits."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            line = file.readline()
            if "\0" in line:
                raise InputError(
                    f"{path}: is not text; --data takes a table, or the idx files' folder"
                )
            names = _column_names(line)
            if not names:
                file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy's word on an empty table; ours is below
                warnings.simplefilter("error", DeprecationWarning)  # numpy 1 would round 0.5 to 0
                table = np.loadtxt(file, np.uint8, comments=None, delimiter=",", ndmin=2)
            if table.shape[1] != COLUMNS:
                raise ValueError(f"{table.shape[1]} columns")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}, {_first_mistake(path)}") from error
    column = _label_column(path, table, names)
    labels = table[:, column].astype(np.int64)
    if labels.max() > 9:
        raise InputError(f"{path}, {_first_mistake(path, column)}")
    pixels = np.delete(table, column, axis=1).reshape(-1, *IMAGE_SHAPE)
    order = np.random.default_rng(0).permutation(len(table))  # a table may be sorted by its labels
    return pixels[order], labels[order]


def _column_names(line):
    """The names in a table's first line, or None if it holds an image.

    Names differ from each other; 785 values from 0 to 255 cannot.
    """
    names = [word.strip().strip("\"'").lower() for word in line.split(",")]
    return names if len(set(names)) == COLUMNS else None


def _label_column(path, table, names):
    """The first column or the last: that named so, or more like digits than a corner pixel."""

    def likeness(column):
        named = bool(names) and names[column] in LABEL_NAMES
        values = table[:, column]
        return named, len(np.unique(values[values <= 9])), -np.count_nonzero(values > 9)

    first, last = 0, COLUMNS - 1
    if likeness(first) == likeness(last) and (table[:, first] != table[:, last]).any():
        raise InputError(
            f"{path}: either the first column or the last may be the label; add a first line with "
            "column names, one of them label"
        )
    return max((first, last), key=likeness)


def _first_mistake(path, label_column=None):
    """Where a table is wrong, and how: only once it is known to be, as this reads slowly."""
    needed = f"a line needs a label and {COLUMNS - 1} pixels, with commas between them"
    number = 0
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.rstrip("\r\n") or (number == 1 and _column_names(line)):
                continue
            words = [word.strip() for word in line.split(",")]
            for column, word in enumerate(words[:COLUMNS], start=1):
                where = f"line {number}, column {column}"
                if not re.fullmatch(r"\+?[0-9]+", word) or int(word.lstrip("+0")[:4] or 0) > 255:
                    return f"{where}: {word[:20]!r} is not a whole number from 0 to 255; {needed}"
                if column - 1 == label_column and int(word) > 9:
                    return f"{where}: label {word}, but digits are 0 to 9"
            if len(words) != COLUMNS:
                problem = "missing" if len(words) < COLUMNS else "one too many"
                column = min(len(words), COLUMNS) + 1
                return f"line {number}, column {column}: {problem}; {needed}"
    return f"line {number + 1}, column 1: nothing there; {needed}"


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
    names = ", ".join(sum(FILES.values(), ()))
    places = ", ".join(str(path / subfolder) for subfolder in SUBFOLDERS)
    missing = f"{path}: none of {names} (or .gz) found in {places}"
    try:
        from torchvision import datasets  # only here: beside another PyTorch's build it cannot load
    except Exception as error:  # ImportError without it, RuntimeError or OSError on a mismatch
        raise InputError(
            f"{missing}; put them there (torchvision, which can fetch them, does not load here: "
            f"{_one_line(error)})"
        ) from error
    print(f"{missing}; downloading MNIST", file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is the training log
                datasets.MNIST(temporary, download=True)
            for name in sum(FILES.values(), ()):
                source = Path(temporary, "MNIST/raw", name)
                write_file(path / "MNIST/raw" / name, source.read_bytes())
    except InputError:
        raise
    except Exception as error:  # RuntimeError, URLError and others, depending on the release
        raise InputError(
            f"{missing}, and the download failed ({_one_line(error)}); "
            "put the four files there, or leave out --data to use the copy in mnist/"
        ) from error
    return _find(path, split)


def _one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _beside(path):
    """Give a temporary name beside `path`, and report what goes wrong there as an InputError."""
    if not path.name:
        raise InputError(f"{path}: is a folder; name a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file")
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another") from error


def write_file(path, data):
    """Write bytes under a temporary name, then move them into place: whole or not at all.

    Raises:
        InputError: the file cannot be written; what stood there before is untouched.
    """
    with _beside(Path(path)) as temporary:
        temporary.write_bytes(data)
        temporary.replace(path)


def check_writable(path):
    """Find out, before the long work, whether `write_file` can write `path`.

    Raises:
        InputError: it cannot.
    """
    with _beside(Path(path)) as temporary:
        temporary.touch()


def replace_images(folder, images):
    """Make `folder` hold exactly these images as 00.png, 01.png, ..., in place of older ones.

    The new set is written beside the folder and the two are exchanged in one system call, so that
    an interruption leaves the old set or the new. Where that cannot be (the folder holds other
    things, which must not move; it is a mount point; Windows) the images go in one by one.

    Args:
        folder: made if it is not there.
        images: the contents of the PNG files, as bytes.

    Returns:
        The names of other things in the folder, which are left alone.

    Raises:
        InputError: the images cannot be written; what stood there before is untouched unless they
            went in one by one.
    """
    folder = Path(folder)
    if not folder.resolve().name:
        raise InputError(f"{folder}: give a folder of its own")
    names = [f"{number:02d}.png" for number in range(len(images))]
    new = folder.resolve().with_name(f".{folder.resolve().name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = {entry.name for entry in folder.iterdir()}
        ours = {name for name in before if IMAGE_NAME.fullmatch(name) and (folder / name).is_file()}
        kept = sorted(before - ours)
        for name in names:
            if (folder / name).is_dir():
                raise InputError(f"{folder / name}: is a folder; move it or give another --out")
        try:
            new.mkdir()
            for name, image in zip(names, images, strict=True):
                (new / name).write_bytes(image)
            if not (kept or Path.cwd().is_relative_to(folder.resolve())):
                shutil.copymode(folder, new)
                with contextlib.suppress(OSError, AttributeError, TypeError):
                    _exchange(new, folder.resolve())
                    return kept
            for name in names:
                (new / name).replace(folder / name)
            for name in ours - set(names):
                (folder / name).unlink()
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another") from error
    return kept


def _exchange(one, other):
    """Swap two folders in one step; Python has no name for these system calls."""
    library = ctypes.CDLL(None, use_errno=True)
    one, other = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        failed = library.renamex_np(one, other, 2)  # RENAME_SWAP
    else:
        failed = library.renameat2(-100, one, -100, other, 2)  # AT_FDCWD, RENAME_EXCHANGE
    if failed:
        raise OSError(ctypes.get_errno(), "cannot be exchanged")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message):
        raise InputError(message)


def whole_number(minimum, maximum=2**31 - 1):
    """An argparse type: an integer from `minimum` to `maximum`."""

    def parse(text):
        if not re.fullmatch(r"-?[0-9]{1,19}", text) or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {minimum} to {maximum}"
            )
        return int(text)

    return parse


def positive_number(text):
    """An argparse type: a finite float above zero."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def run(main):
    """Run a script's `main()`; one line and exit 2 if the input is bad, exit 130 on Ctrl-C."""
    try:
        main()
    except InputError as error:
        status, line = 2, error
    except OSError as error:  # such as a name that is too long, or a folder that may not be read
        status, line = 2, f"{error.filename or 'input or output'}: {error.strerror}"
    except KeyboardInterrupt as interrupt:
        status, line = 130, f"interrupted{interrupt}"
    else:
        return
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    sys.exit(status)
