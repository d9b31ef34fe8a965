"""Whole files: written under a temporary name, moved into place, by one run at a time."""

import contextlib
import itertools
import os
import shutil
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from errors import InputError, explained

PROJECT = Path(__file__).resolve().parent
UNWRITABLE = "cannot be written", "close what has it open, or name another", OSError
LONGEST_LINE = 100_000  # characters; a table's 785 columns have at most a long name each


def write_files(contents):
    """Write files, {path: bytes}, each whole or not at all.

    All are written under temporary names before the first is moved into place, so that a full disk
    changes none of them: it is an InputError. What a killed run left there is overwritten.
    """
    temporaries = {}
    try:
        for path, data in contents.items():
            with explained(path, *UNWRITABLE):
                temporaries[path] = _beside(path, ".tmp")
                temporaries[path].write_bytes(data)
        for path, temporary in temporaries.items():
            with explained(path, *UNWRITABLE):
                os.replace(temporary, _target(path))
    finally:
        for temporary in temporaries.values():
            _remove(temporary)


@contextlib.contextmanager
def reserved(paths, room):
    """Keep these output files for this run, and make their folders.

    Raises InputError: one cannot be written, another run is writing it, or its disk does not have
    `room`, in bytes: better known before the work than after.
    """
    with contextlib.ExitStack() as stack:
        for path in paths:
            with explained(path, *UNWRITABLE):
                lock = _beside(path, ".lock")
                try:
                    stack.enter_context(FileLock(lock, timeout=0))
                except Timeout:
                    another = "another run is writing it; wait for its end, or name another"
                    raise InputError(f"{path}: {another}") from None
                stack.callback(_remove, lock)
                if shutil.disk_usage(lock.parent).free < room:
                    raise InputError(f"{path}: {room / 1e6:.0f} MB are needed; free some room")
        yield


def replace_images(folder, images):
    """Make `folder` hold these images, as bytes, as 00.png, 01.png, ..., in place of older ones."""
    numbered = (folder / f"{number:02d}.png" for number in itertools.count())
    older = list(itertools.takewhile(Path.is_file, numbered))
    files = {folder / f"{number:02d}.png": image for number, image in enumerate(images)}
    for left in folder.glob(".[0-9]*.png.tmp"):  # by a run that was killed
        _remove(left)
    write_files(files)
    for path in reversed(older[len(files) :]):  # so that a rest is still numbered from 00
        with explained(path, *UNWRITABLE):
            path.unlink()


def read_lines(path):
    """Yield the lines of a text file, a character a byte; InputError if one is longer than any."""
    unreadable = explained(path, "cannot be read", "name another", OSError)
    with unreadable, open(path, encoding="latin-1") as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), ""), start=1):
            if len(line) == LONGEST_LINE:
                raise InputError(f"{path}, line {number}: is longer than any of ours")
            yield line.removeprefix("\xef\xbb\xbf") if number == 1 else line  # a UTF-8 mark


def _target(path):
    """Where `path` leads, through symbolic links, if a file can be there; its folder is made."""
    target = Path(os.path.realpath(path))
    if not Path(path).name or target.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: is not an ordinary file; name another")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"{path}: is read-only; allow writing or name another")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _beside(path, suffix):
    target = _target(path)
    return target.with_name(f".{target.name}{suffix}")


def _remove(path):
    with contextlib.suppress(OSError):
        path.unlink()
