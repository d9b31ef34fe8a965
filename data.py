"""Digits in, files out: read idx files or a table of digits, write files whole or not at all.

Also what both scripts need to answer a mistake with one line instead of a traceback.
Nothing here imports PyTorch, and torchvision is imported only if MNIST must be downloaded.
"""

import argparse
import contextlib
import ctypes
import errno
import fcntl
import gzip
import itertools
import math
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
import warnings
import zlib
from functools import partial
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
FILE_NAMES = sum(FILES.values(), ())
SUBFOLDERS = ("", "raw", "MNIST/raw")  # flat, or torchvision's layout
LONGEST_WAIT = 60  # seconds; a run writes for less than one at a time
LONGEST_LINE = 100_000  # characters: 785 columns, each with a long name
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
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: is neither a folder nor a file")
    if path.suffix and not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        images, labels = _read_table(path)
        chosen = _held_out(labels) == (split == "test")
        if not chosen.any():
            raise InputError(f"{path}: {len(labels)} lines are too few to hold out a fifth")
        return images[chosen], labels[chosen]
    images_file, labels_file = _find(path, split) or _download(path, split)
    labels = _read_idx(labels_file, dimensions=1).astype(np.int64)
    images = _read_idx(images_file, dimensions=3, count=len(labels))
    if labels.max() > 9:
        raise InputError(f"{labels_file}: label {labels.max()} found, but digits are 0 to 9")
    return images, labels


def _find(path, split):
    """The images file and the labels file of a split, or None if the folder has no data at all."""
    for subfolder in SUBFOLDERS:
        found = {
            name: file
            for name in FILE_NAMES
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


def _read_idx(path, dimensions, count=None):
    """Read an idx file of unsigned bytes; the format is described at the foot of LeCun's page.

    Its header is checked before memory is taken for what it promises, also against `count`.
    """
    open_file = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rb") as file:
            shape = _idx_shape(path, file.read(4 + 4 * dimensions), dimensions)
            if count not in (None, shape[0]):
                raise InputError(
                    f"{path}: {shape[0]} images, but the labels' file has {count} labels; the two "
                    "files must belong together"
                )
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
    with read_lines(path) as lines:
        line = next(lines, "")
        if "\0" in line:
            raise InputError(f"{path}: is not text; --data takes a table, or the idx files' folder")
        names = _column_names(line)
        lines = lines if names else itertools.chain([line], lines)
        try:
            table = _parse(lines)
        except ValueError as error:
            raise InputError(f"{path}, {_first_mistake(path)}") from error
    column = _label_column(path, table, names)
    labels = table[:, column].astype(np.int64)
    if labels.max() > 9:
        raise InputError(f"{path}, {_first_mistake(path, column)}")
    order = np.random.default_rng(0).permutation(len(table))  # a table may be sorted by its labels
    pixels = table[:, 1:] if column == 0 else table[:, :-1]
    return pixels[order].reshape(-1, *IMAGE_SHAPE), labels[order]


@contextlib.contextmanager
def read_lines(path):
    """The lines of a text file as an iterator; what is longer than any line of ours, in parts.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            yield iter(partial(file.readline, LONGEST_LINE), "")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _parse(lines):
    """Lines of numbers as uint8 [N, 785]; ValueError if they are not that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's word on an empty table
        warnings.simplefilter("error", DeprecationWarning)  # numpy 1 would round 0.5 to 0
        table = np.loadtxt(lines, np.uint8, comments=None, delimiter=",", ndmin=2)
    if table.shape[1] != COLUMNS:
        raise ValueError(f"{table.shape[1]} columns")
    return table


def _column_names(line):
    """The names in a table's first line, or None if it holds an image.

    Names differ from each other; 785 values from 0 to 255 cannot.
    """
    names = [word.strip().strip("\"'").lower() for word in line.split(",")]
    return names if len(set(names)) == COLUMNS else None


def _label_column(path, table, names):
    """The first column or the last: that named so, or more like digits than a corner pixel."""
    first, last = 0, COLUMNS - 1
    named = {column for column, name in enumerate(names or []) if name in LABEL_NAMES}
    if named and not named & {first, last}:
        raise InputError(f"{path}: column {min(named) + 1} is named as the label; put it first")

    def likeness(column):
        values = table[:, column]
        return column in named, len(np.unique(values[values <= 9])), -np.count_nonzero(values > 9)

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
    with read_lines(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.rstrip("\r\n") or (number == 1 and _column_names(line)):
                continue
            with contextlib.suppress(ValueError):
                (row,) = _parse([line])
                if label_column is None or row[label_column] <= 9:
                    continue
            words = [word.strip() for word in line.split(",")]
            for column, word in enumerate(words[:COLUMNS], start=1):
                where = f"line {number}, column {column}"
                if not re.fullmatch(r"\+?[0-9]+", word) or int(word.lstrip("+0")[:4] or 0) > 255:
                    return f"{where}: {word[:20]!r} is not a whole number from 0 to 255; {needed}"
                if column - 1 == label_column and int(word.lstrip("+0") or 0) > 9:
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
    names = ", ".join(FILE_NAMES)
    places = ", ".join(str(path / subfolder) for subfolder in SUBFOLDERS)
    missing = f"{path}: none of {names} (or .gz) found in {places}"
    try:
        from torchvision import datasets  # only here: beside another PyTorch's build it cannot load
    except Exception as error:  # ImportError without it, RuntimeError or OSError on a mismatch
        raise InputError(
            f"{missing}; put them there (torchvision, which can fetch them, does not load here: "
            f"{_one_line(error)})"
        ) from error
    try:
        socket.setdefaulttimeout(30)  # seconds; torchvision would wait for ever
        with tempfile.TemporaryDirectory() as temporary:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is the training log
                datasets.MNIST(temporary, download=True)
            raw = Path("MNIST/raw")
            fetched = {name: Path(temporary) / raw / name for name in FILE_NAMES}
            write_files({path / raw / name: file.read_bytes() for name, file in fetched.items()})
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
def _reported(path):
    """Report what goes wrong with `path` as an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); mend that or name another"
        ) from error


@contextlib.contextmanager
def _beside(paths):
    """Give each of `paths` a temporary name beside it: {path: temporary}.

    Their folders are locked meanwhile, so that runs at the same time write one after the other. A
    temporary file that is there nevertheless was left by a run that was killed, and is removed.
    """
    temporaries = {
        path: path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") for path in paths
    }
    with contextlib.ExitStack() as stack:
        for folder in _in_one_order({path.parent for path in paths}):
            with contextlib.suppress(OSError):  # some network file systems lock no folders
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                _lock(descriptor, folder)
                for name in os.listdir(folder):
                    left = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.tmp", name)
                    if left and folder / left[1] in temporaries:
                        _remove(folder / name)
        try:
            yield temporaries
        finally:
            for temporary in temporaries.values():
                _remove(temporary)


def _lock(descriptor, folder):
    """Wait for the lock, but not for ever; it is freed when the process ends, however that is."""
    started = time.monotonic()
    while time.monotonic() < started + LONGEST_WAIT:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.002)
    raise InputError(f"{folder}: another run does not end writing there; end it or name another")


def _in_one_order(folders):
    """Each folder once, in an order all processes share: else two could wait for each other."""
    identities = {}
    for folder in folders:
        status = folder.stat()
        identities[status.st_dev, status.st_ino] = folder
    return [folder for _, folder in sorted(identities.items())]


def _remove(path):
    """Remove a file or a folder, if it is there and may be removed."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _target(path):
    """Where `path` leads, through symbolic links, if a file can be there; its folder is made."""
    target = Path(os.path.realpath(path))
    with _reported(path):
        if not path.name or target.is_dir():
            raise InputError(f"{path}: is a folder; name a file")
        if target.exists() and not target.is_file():
            raise InputError(f"{path}: is not an ordinary file; name another")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
        target.parent.mkdir(parents=True, exist_ok=True)
    return target


def write_files(contents):
    """Write files, {path: bytes}, each whole or not at all.

    All are first written under temporary names, so that a full disk changes none of them, and then
    moved into place.

    Raises:
        InputError: a file cannot be written; what stood there before is untouched.
    """
    contents = {_target(Path(path)): data for path, data in contents.items()}
    with _beside(contents) as temporaries:
        _fill(temporaries, contents)
        _move(temporaries)


def _fill(temporaries, contents):
    for path, temporary in temporaries.items():
        with _reported(path):
            temporary.write_bytes(contents[path])


def _move(temporaries):
    for path, temporary in temporaries.items():
        with _reported(path):
            temporary.replace(path)


def check_writable(sizes):
    """Find out before the long work whether `write_files` can: {path: bytes that it will need}.

    Raises:
        InputError: a file cannot be written there, or there is no room for all of them.
    """
    contents = {_target(Path(path)): bytes(size) for path, size in sizes.items()}
    with _beside(contents) as temporaries:
        _fill(temporaries, contents)


def replace_images(folder, images):
    """Make `folder` hold exactly these images as 00.png, 01.png, ..., in place of older ones.

    The new set is written beside the folder and the two are exchanged in one system call, so that
    an interruption leaves the old set or the new. Where that cannot be (the folder holds other
    things, which must not move; it is a mount point; its parent is read-only) the images are moved
    in one by one.

    Args:
        folder: made if it is not there.
        images: the contents of the PNG files, as bytes.

    Returns:
        The names of other things in the folder, which are left alone.

    Raises:
        InputError: the images cannot be written; what stood there before is untouched.
    """
    target = Path(os.path.realpath(folder))
    if not target.name:
        raise InputError(f"{folder}: give a folder of its own")
    with _reported(folder):
        target.mkdir(parents=True, exist_ok=True)
        if not os.access(target, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
    files = {f"{number:02d}.png": image for number, image in enumerate(images)}
    inside = target / "images"
    with _beside([target, inside]) as temporaries, _reported(folder):
        for name in files:
            _target(target / name)
        if not (_others(target) or Path.cwd().is_relative_to(target)):
            new = temporaries[target]
            with contextlib.suppress(OSError, AttributeError):
                _write_folder(new, files)
                shutil.copymode(target, new)
                _exchange(new, target)
                for name in _others(new):  # came in the meantime
                    (new / name).replace(target / name)
                return []
        new = temporaries[inside]
        _write_folder(new, files)
        older = _images(target)
        for name in files:
            (new / name).replace(target / name)
        for name in older - set(files):
            (target / name).unlink()
    return _others(target)


def _write_folder(folder, files):
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _images(folder):
    """The names of what replace_images wrote: 00.png, 01.png and so on, as far as they go."""
    names = (f"{number:02d}.png" for number in itertools.count())
    return set(itertools.takewhile(lambda name: (folder / name).is_file(), names))


def _others(folder):
    return sorted({path.name for path in folder.iterdir()} - _images(folder))


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

    def print_help(self, file=None):
        say(self.format_help().rstrip(), file)


def whole_number(minimum, maximum=2**31 - 1):
    """An argparse type: an integer from `minimum` to `maximum`."""

    def parse(text):
        if not re.fullmatch(r"-?[0-9]{1,19}", text) or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {minimum} to {maximum}"
            )
        return int(text)

    return parse


def nonempty_path(text):
    """An argparse type: a path; an empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a file or a folder")
    return Path(text)


def positive_number(text):
    """An argparse type: a float above zero, up to a million."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to a million")
    return number


def say(line, stream=None):
    """Print a line on standard output, or on another stream, at once.

    When nobody reads it any more, as with `| head -1`, go on in silence: the files count.

    Raises:
        InputError: the line cannot be written, say on a full disk.
    """
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError as error:
        silence = os.open(os.devnull, os.O_WRONLY)  # else Python complains again when it ends
        os.dup2(silence, stream.fileno())
        os.close(silence)
        if not isinstance(error, BrokenPipeError):
            raise InputError(f"standard output: cannot be written ({error.strerror})") from error


def run(main):
    """Run a script's `main()`; one line and exit 2 if the input is bad, exit 130 on Ctrl-C."""
    _open_standard_streams()
    status, line = 0, None
    try:
        main()
    except InputError as error:
        status, line = 2, error
    except OSError as error:  # such as a name that is too long, or a folder that may not be read
        status, line = 2, f"{error.filename or 'input or output'}: {error.strerror or error}"
    except (MemoryError, RuntimeError) as error:  # PyTorch raises a RuntimeError
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        status, line = 2, "not enough memory; give a smaller --batch-size or close other programs"
    except KeyboardInterrupt as interrupt:
        status, line = 130, f"interrupted{interrupt}"
    if status:
        line = str(line).replace("\n", "\\n")  # as in the name of a file
        with contextlib.suppress(InputError):
            say(f"{Path(sys.argv[0]).name}: {line}", sys.stderr)
        sys.exit(status)


def _open_standard_streams():
    """Let them take any character, and open those that the caller closed (`>&-`).

    A file of ours would else get the number of a closed one, and what libraries write there.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (stays open)
        with contextlib.suppress(AttributeError):  # a notebook has streams of its own
            getattr(sys, name).reconfigure(errors="backslashreplace")
