"""Output files that are never half-written, and one run at a time in a folder."""

import contextlib
import errno
import itertools
import os
import sys
import time
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from lib.errors import InputError

# Stands in every picture and page that a run writes, so that a later run knows it as one of ours.
MARK = "auto-encoder homework"
MARK_WITHIN = 1000  # bytes, from the beginning of the file
# Seconds between attempts to move or remove a file. On Windows a virus scanner, an indexer or a
# synchronised folder may hold a new file for a moment, and both are refused then.
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def write_files(contents):
    """Write files, {path: bytes}, each whole or not at all, and make their folders.

    All are written under temporary names before the first is moved into place, so that a full disk
    changes none of them. They are moved in the order of `contents`.
    Raises InputError: one cannot be written.
    """
    temporaries = {}
    try:
        for path, data in contents.items():
            with writing(path):
                target = resolved(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                temporaries[path] = temporary_name(target)
                temporaries[path].write_bytes(data)
        for path, temporary in temporaries.items():
            with writing(path):
                persistently(os.replace, temporary, resolved(path))
    finally:
        for temporary in temporaries.values():
            remove_if_there(temporary)


def check_outputs(outputs, inputs):
    """Check before the work that files can be written, and make their folders.

    Raises InputError: an output is also one of the inputs, is a folder, is read-only, or cannot be
    written.
    """
    resolved_inputs = {resolved(path) for path in inputs}
    for path in outputs:
        target = resolved(path)
        if target in resolved_inputs:
            raise InputError(f"{path}: is also an input; name another folder with --out")
        if target.is_dir():
            raise InputError(f"{path}: is a folder, but a file is to be written; move it")
        if target.exists() and not os.access(target, os.W_OK):
            raise InputError(f"{path}: is read-only; allow writing or name another folder")
        with writing(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_name(target)
            temporary.write_bytes(b"")
            temporary.unlink()


@contextlib.contextmanager
def one_run(folder):
    """Make an output folder, and keep a second run out of it.

    Raises InputError: another run is writing into it, or it may not be written. On a disk that
    cannot lock files, as some network disks, work goes on without a lock, and a line says so.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: this folder may not be written; name another with --out")
    lock_path = folder / ".lock"
    lock = FileLock(lock_path, timeout=0)
    try:
        with warnings.catch_warnings():
            # Newer releases warn where older ones raise NotImplementedError, and leave a file.
            warnings.simplefilter("error")
            lock.acquire()
    except Timeout:
        another = "another run is writing into it; wait for its end, or name another with --out"
        raise InputError(f"{folder}: {another}") from None
    except (OSError, NotImplementedError, Warning):
        line = "this folder's disk cannot lock files; do not start a second run into it"
        print(f"{folder}: {line}", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()
        remove_if_there(lock_path)


def replace_images(folder, images, others):
    """Make `folder` hold these images, as bytes, as 00.png, 01.png, ..., in place of older ones.

    `others`, {path: bytes}, are written with them, as `write_files` does it.
    """
    older = numbered_images(folder)
    for left_by_a_killed_run in folder.glob(".[0-9][0-9]*.png.tmp"):
        remove_if_there(left_by_a_killed_run)
    files = {numbered_image(folder, number): image for number, image in enumerate(images)}
    write_files({**files, **others})
    surplus = older[len(files) :]
    for path in reversed(surplus):  # if it is stopped, the rest is still numbered from 00
        remove_if_ours(path)


def numbered_images(folder):
    """The files 00.png, 01.png, ... in a folder, as far as they follow each other."""
    numbered = (numbered_image(folder, number) for number in itertools.count())
    return list(itertools.takewhile(Path.is_file, numbered))


def numbered_image(folder, number):
    return folder / f"{number:02d}.png"


def remove_if_ours(path):
    """Delete a picture or page if a run wrote it, as its mark says; leave any other file."""
    if not path.is_file():
        return
    with writing(path):
        with open(path, "rb") as file:
            start = file.read(MARK_WITHIN)
        if MARK.encode() in start:
            persistently(os.unlink, path)


def remove_if_there(path):
    """Delete a file; leave it if that cannot be done."""
    with contextlib.suppress(OSError):
        persistently(os.unlink, path)


def persistently(operation, *paths):
    """Call os.replace or os.unlink; if it is refused, again for about two seconds."""
    for pause in PAUSES:
        try:
            return operation(*paths)
        except PermissionError:
            time.sleep(pause)
    return operation(*paths)


@contextlib.contextmanager
def writing(path):
    """Turn an OSError inside into an InputError that names the output file."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(f"{path}: its disk is full; free some room") from error
        folder = resolved(path).parent
        if folder.is_dir() and not os.access(folder, os.W_OK):
            problem = "this folder may not be written; name another with --out"
            raise InputError(f"{folder}: {problem}") from error
        reason = error.strerror or type(error).__name__
        remedy = "name another folder with --out"
        if isinstance(error, PermissionError):  # on Windows another program may have it open
            remedy = f"close what has it open, or {remedy}"
        raise InputError(f"{path}: cannot be written ({reason}); {remedy}") from error


def resolved(path):
    """Where a path leads through symbolic links; through one that is an output, too."""
    return Path(os.path.realpath(path))


def temporary_name(target):
    """The hidden file beside `target` that first gets its new contents."""
    return target.with_name(f".{target.name}.tmp")
