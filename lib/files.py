"""Output files that are never half-written: a temporary name first, one run at a time."""

import contextlib
import itertools
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from lib.errors import InputError, explained

MAX_LINE_LENGTH = 100_000  # characters; 785 columns of a table have at most a long name each


def write_files(contents):
    """Write files, {path: bytes}, each whole or not at all.

    All are written under temporary names before the first is moved into place, so that a full disk
    changes none of them: it is an InputError. What a killed run left there is overwritten.
    """
    temporaries = {}
    try:
        for path, data in contents.items():
            with _writing(path):
                temporaries[path] = _hidden_neighbour(path, ".tmp")
                temporaries[path].write_bytes(data)
        for path, temporary in temporaries.items():
            with _writing(path):
                os.replace(temporary, _writable_target(path))
    finally:
        for temporary in temporaries.values():
            remove_if_there(temporary)


@contextlib.contextmanager
def reserved(paths, needed_bytes):
    """Keep these output files for this run, and make their folders.

    Raises InputError: one cannot be written, another run is writing it, or its disk has less than
    `needed_bytes` free: better known before the work than after.
    """
    with contextlib.ExitStack() as stack:
        for path in paths:
            with _writing(path):
                lock_path = _hidden_neighbour(path, ".lock")
                try:
                    stack.enter_context(FileLock(lock_path, timeout=0))
                except Timeout:
                    raise InputError(
                        f"{path}: another run is writing it; wait for its end, or name another"
                    ) from None
                stack.callback(remove_if_there, lock_path)
                free_bytes = shutil.disk_usage(lock_path.parent).free
                if free_bytes < needed_bytes:
                    megabytes = needed_bytes / 1e6
                    raise InputError(f"{path}: {megabytes:.0f} MB are needed; free some room")
        yield


def replace_images(folder, images):
    """Make `folder` hold these images, as bytes, as 00.png, 01.png, ..., in place of older ones."""
    numbered = (folder / f"{number:02d}.png" for number in itertools.count())
    older = list(itertools.takewhile(Path.is_file, numbered))
    files = {folder / f"{number:02d}.png": image for number, image in enumerate(images)}
    for temporary in folder.glob(".[0-9]*.png.tmp"):  # of a run that was killed
        remove_if_there(temporary)
    write_files(files)
    surplus = older[len(files) :]
    for path in reversed(surplus):  # if it is stopped, the rest is still numbered from 00
        with _writing(path):
            path.unlink()


def read_lines(path):
    """Yield the lines of a text file, one character per byte.

    Raises InputError: the file cannot be read, or a line has MAX_LINE_LENGTH characters or more.
    """
    unreadable = explained(path, "cannot be read", "name another", OSError)
    with unreadable, open(path, encoding="latin-1") as file:
        for number in itertools.count(start=1):
            line = file.readline(MAX_LINE_LENGTH)
            if not line:
                return
            if len(line) == MAX_LINE_LENGTH:
                raise InputError(f"{path}, line {number}: line too long")
            if number == 1:
                line = line.removeprefix("\xef\xbb\xbf")  # the mark of a UTF-8 file
            yield line


def remove_if_there(path):
    """Delete a file; leave it if that cannot be done."""
    with contextlib.suppress(OSError):
        path.unlink()


def _writing(path):
    """Turn an OSError inside into an InputError that names the output file."""
    return explained(path, "cannot be written", "close what has it open, or name another", OSError)


def _writable_target(path):
    """Where `path` leads through symbolic links, if a file can be written there.

    Its folder is made.
    """
    target = Path(os.path.realpath(path))
    if not Path(path).name or target.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: is not an ordinary file; name another")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"{path}: is read-only; allow writing or name another")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _hidden_neighbour(path, suffix):
    """The hidden file beside `path` that holds its lock or its new contents."""
    target = _writable_target(path)
    return target.with_name(f".{target.name}{suffix}")
