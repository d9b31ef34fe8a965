"""Output files that are never half-written: a temporary name first, one run at a time."""

import contextlib
import errno
import itertools
import math
import os
import re
import shutil
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from lib.errors import InputError, explained

LEFT_BY_A_KILLED_RUN = re.compile(r"\.\d\d+\.png\.tmp")
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
                temporary = _hidden_name(_prepare_target(path), ".tmp")
                _check_not_in_the_way(temporary)
                temporary.unlink(missing_ok=True)  # if it is a link, its target stays as it is
                temporaries[path] = temporary
                with open(temporary, "xb") as file:
                    file.write(data)
        for path, temporary in temporaries.items():
            with _writing(path):
                os.replace(temporary, _prepare_target(path))
    finally:
        for temporary in temporaries.values():
            remove_if_there(temporary)


@contextlib.contextmanager
def reserved(paths, needed_bytes):
    """Keep these output files for this run, and make their folders.

    Raises InputError: one cannot be written, another run is writing it, or its disk has less than
    `needed_bytes` free: better known before the work than after. Folders that were made are removed
    in the end if they are still empty.
    """
    with contextlib.ExitStack() as stack:
        for path in paths:
            with _writing(path):
                for folder in _missing_folders(path):
                    stack.callback(_remove_if_empty, folder)
                target = _prepare_target(path)  # which makes these folders
                _check_not_in_the_way(_hidden_name(target, ".tmp"))
                _lock(stack, path, _hidden_name(target, ".lock"))
                free_bytes = shutil.disk_usage(target.parent).free
                if free_bytes < needed_bytes:
                    megabytes = math.ceil(needed_bytes / 1e6)
                    raise InputError(f"{path}: {megabytes} MB are needed; free some room")
        yield


def _check_not_in_the_way(temporary):
    """Raise an InputError if a folder stands where a temporary file is needed."""
    if temporary.is_dir():
        raise InputError(f"{temporary}: is in the way; remove it")


def _lock(stack, path, lock_path):
    """Hold the lock of an output file until the stack is left."""
    if lock_path.is_symlink() or (lock_path.exists() and not lock_path.is_file()):
        raise InputError(f"{lock_path}: is in the way; remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # newer releases of filelock warn that they cannot lock
            stack.enter_context(FileLock(lock_path, timeout=0))
    except PermissionError as error:
        raise InputError(f"{lock_path}: cannot be opened ({error.strerror}); remove it") from error
    except Timeout:
        another = "another run is writing it; wait for its end, or name another"
        raise InputError(f"{path}: {another}") from None
    except (NotImplementedError, Warning):
        remove_if_there(lock_path)
        raise InputError(
            f"{path}: its disk cannot lock files (flock); name a file on another one"
        ) from None
    stack.callback(remove_if_there, lock_path)


def _missing_folders(path):
    """The folders around a file that are not there yet, the outermost first."""
    folders = []
    folder = Path(os.path.realpath(path)).parent
    while not folder.exists():
        folders.append(folder)
        folder = folder.parent
    return folders[::-1]


def _remove_if_empty(folder):
    with contextlib.suppress(OSError):
        folder.rmdir()


def replace_images(folder, images, others=None):
    """Make `folder` hold these images, as bytes, as 00.png, 01.png, ..., in place of older ones.

    `others`, {path: bytes}, are written with them: all of these files, or none.
    """
    older = numbered_images(folder)
    files = {folder / f"{number:02d}.png": image for number, image in enumerate(images)}
    for temporary in folder.glob(".*.png.tmp"):
        if is_left_by_a_killed_run(temporary):
            remove_if_there(temporary)
    write_files({**files, **(others or {})})
    surplus = older[len(files) :]
    for path in reversed(surplus):  # if it is stopped, the rest is still numbered from 00
        with _writing(path):
            path.unlink()


def is_left_by_a_killed_run(path):
    """Whether a file has the name under which `replace_images` first writes an image."""
    return bool(LEFT_BY_A_KILLED_RUN.fullmatch(path.name))


def numbered_images(folder):
    """The files 00.png, 01.png, ... in a folder, as far as they follow each other."""
    numbered = (folder / f"{number:02d}.png" for number in itertools.count())
    return list(itertools.takewhile(Path.is_file, numbered))


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


def files_below(folder, depth, max_files):
    """The files in a folder and some levels of folders below it, sorted level by level.

    Hidden ones are left out.
    Raises InputError: the folder cannot be read, or there are more than `max_files`.
    """
    files = []
    level = [folder]
    visited = set()  # a link may lead back
    for _ in range(depth + 1):
        next_level = []
        for place in level:
            if place.resolve() in visited:
                continue
            visited.add(place.resolve())
            try:
                entries = list(itertools.islice(place.iterdir(), max_files + 1))
                entries = [entry for entry in sorted(entries) if not is_hidden(entry)]
                files += [entry for entry in entries if entry.is_file()]
                next_level += [entry for entry in entries if entry.is_dir()]
            except OSError as error:
                if place == folder:
                    raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
                continue  # not the user's, so it is not what the user means
            if len(files) + len(next_level) > max_files:
                raise InputError(f"{folder}: has too many files; name a folder below it")
        level = next_level
    return files


def is_hidden(path):
    """Whether a file or folder is not the user's: hidden, or what macOS puts beside copies."""
    return path.name.startswith((".", "__MACOSX"))


def describe_folder(folder, shown=5):
    """Words that say what a folder holds."""
    entries = sorted(folder.iterdir())
    if not entries:
        return "it is empty"
    names = [entry.name + ("/" if entry.is_dir() else "") for entry in entries[:shown]]
    more = f" and {len(entries) - shown} more" if len(entries) > shown else ""
    return f"it holds {', '.join(names)}{more}"


def check_replaceable(path, is_ours, may_be_link=False):
    """Raise an InputError if an output would replace a file that no earlier run made.

    `is_ours`, of a path, says whether one did. A link is only followed if it `may_be_link`.
    """
    if path.is_symlink() and not may_be_link:
        raise InputError(f"{path}: is a link; remove it or name another output")
    if not path.is_file():
        return
    if not is_ours(path):
        raise InputError(f"{path}: was made by something else; move it or name another output")
    if not os.access(path, os.W_OK):
        raise InputError(f"{path}: is read-only; allow writing or name another")


def remove_if_there(path):
    """Delete a file; leave it if that cannot be done."""
    with contextlib.suppress(OSError):
        path.unlink()


@contextlib.contextmanager
def _writing(path):
    """Turn an OSError inside into an InputError that names the output file."""
    remedy = "close what has it open, or name another"
    try:
        with explained(path, "cannot be written", remedy, OSError):
            yield
    except InputError as error:
        if getattr(error.__cause__, "errno", None) == errno.ENOSPC:
            raise InputError(f"{path}: its disk is full; free some room") from error
        raise


def _prepare_target(path):
    """Check that a file can be written at `path`, and make its folder.

    Returns where `path` leads through symbolic links. Raises InputError: no file can be written.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError(f"{path}: is a link that leads to itself; name another")
    if target.parent.exists() and not target.parent.is_dir():
        raise InputError(f"{path}: {target.parent} is a file, but must be a folder; name another")
    if not Path(path).name or target.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: is not an ordinary file; name another")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"{path}: is read-only; allow writing or name another")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def hidden_neighbours(path):
    """The files beside an output file that `write_files` and `reserved` make and remove."""
    target = Path(os.path.realpath(path))
    return [_hidden_name(target, suffix) for suffix in (".tmp", ".lock")]


def _hidden_name(target, suffix):
    """The hidden file beside `target` that holds its lock or its new contents."""
    return target.with_name(f".{target.name}{suffix}")
