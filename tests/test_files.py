"""Files whole or not at all: kills, full disks, permissions, runs at once."""

import itertools
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from conftest import contents, no_file_larger_than

from lib import files
from lib.errors import InputError
from lib.files import replace_images, reserved, write_files

FILE_EVENTS = ("open", "os.", "shutil.", "fcntl.")  # Python's audit events of such names


def killed_at_each_file_operation(action):
    """Run `action` in forked processes, each SIGKILLed one file operation later than the last."""
    for number in itertools.count():
        child = os.fork()
        if not child:
            countdown = itertools.count(number, -1)

            def hook(event, _, countdown=countdown):
                if event.startswith(FILE_EVENTS) and next(countdown) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                sys.addaudithook(hook)
                action()
            finally:
                os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):  # it came to its end
            assert number > 5
            return
        yield


def reserve_and_write(files):
    with reserved(files, needed_bytes=1):
        write_files(files)


def test_killed_while_writing_files(tmp_path):
    """Each file is the old one or the new; the next run removes what the killed one left."""
    old = {tmp_path / "a": b"old", tmp_path / "folder/b": b"old"}
    new, left = dict.fromkeys(old, b"new"), set()
    write_files(old)
    for _ in killed_at_each_file_operation(lambda: reserve_and_write(new)):
        assert {path.read_bytes() for path in old} <= {b"old", b"new"}
        left |= {path.suffix for path in tmp_path.rglob("*")}
        reserve_and_write(old)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "folder"]
    assert {".tmp", ".lock"} <= left
    assert {path.read_bytes() for path in old} == {b"new"}


def test_killed_while_replacing_images(tmp_path):
    """Each image is old or new, and they are numbered from 00; the next run leaves its own."""
    old, new, mine = [b"old"] * 4, [b"new"] * 2, {"mine.txt": b"mine"}
    replace_images(tmp_path, old)
    (tmp_path / "mine.txt").write_bytes(b"mine")
    for _ in killed_at_each_file_operation(lambda: replace_images(tmp_path, new)):
        found = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
        assert set(found.values()) <= {b"old", b"new"}
        assert sorted(found) == [f"{number:02d}.png" for number in range(len(found))]
        assert len(found) >= 2
        replace_images(tmp_path, old)
        assert contents(tmp_path) == {f"{n:02d}.png": b"old" for n in range(4)} | mine
    assert contents(tmp_path) == {"00.png": b"new", "01.png": b"new"} | mine


def test_replace_images(tmp_path, monkeypatch):
    """Older images are replaced, and nothing else; also in the working folder."""
    folder, others = tmp_path / "images", ["007.png", "04.png", "2024.png", "mine.txt"]
    replace_images(folder, [b"a", b"b", b"c"])
    for name in others:
        (folder / name).write_bytes(b"mine")
    (folder / "77.png").mkdir()
    monkeypatch.chdir(folder)
    for new in (folder, Path(".")):
        replace_images(new, [b"d", b"e"])
        assert contents(folder) == {"00.png": b"d", "01.png": b"e"} | {n: b"mine" for n in others}


def test_all_files_or_none(tmp_path):
    """What cannot be written keeps the others from being moved into place, too."""
    paths = {tmp_path / name: name.encode() * 1000 for name in "abc"}
    with no_file_larger_than(1000):
        write_files(paths)
        with pytest.raises(InputError, match=r"/c: "):
            write_files({path: b"more" * (1 + 1000 * (path.name == "c")) for path in paths})
    assert contents(tmp_path) == {name: name.encode() * 1000 for name in "abc"}


@pytest.mark.parametrize("number", range(3))
def test_a_file_that_another_program_has_open(tmp_path, monkeypatch, number):
    """Windows then refuses to replace it: one line, no temporary file, all others whole."""
    paths, replace = [tmp_path / name for name in "abc"], os.replace
    write_files(dict.fromkeys(paths, b"old"))

    def refuses_one(source, target):
        if Path(target) == paths[number]:
            raise PermissionError(13, "Access is denied", str(source), 5, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuses_one)
    with pytest.raises(InputError, match=rf"/{paths[number].name}: .*Access is denied.*close"):
        write_files(dict.fromkeys(paths, b"new"))
    assert list(contents(tmp_path).values()) == [b"new"] * number + [b"old"] * (3 - number)


def test_what_stands_in_the_place_of_a_temporary_file(tmp_path):
    """A link's target stays as it is, a pipe does not hang, a folder is found before the work."""
    (tmp_path / "mine").write_bytes(b"mine")
    temporary, lock = tmp_path / ".a.tmp", tmp_path / ".a.lock"
    temporary.symlink_to(tmp_path / "mine")
    reserve_and_write({tmp_path / "a": b"one"})
    os.mkfifo(temporary)
    reserve_and_write({tmp_path / "a": b"two"})
    assert contents(tmp_path) == {"a": b"two", "mine": b"mine"}
    temporary.mkdir()
    with pytest.raises(InputError, match=r"\.a\.tmp: is in the way"), reserved([tmp_path / "a"], 1):
        pass
    temporary.rmdir()
    for make in (lambda: lock.symlink_to(tmp_path / "mine"), lambda: os.mkfifo(lock), lock.mkdir):
        make()
        with pytest.raises(InputError, match=r"\.a\.lock: is in the way"):
            reserve_and_write({tmp_path / "a": b"three"})
        lock.rmdir() if lock.is_dir() else lock.unlink()
    assert contents(tmp_path) == {"a": b"two", "mine": b"mine"}


@pytest.mark.parametrize("how", ["error", "warning"])
def test_a_disk_that_cannot_lock(tmp_path, monkeypatch, how):
    """As the oldest and the newest release of filelock tell it."""

    def acquire(self):
        if how == "error":
            raise NotImplementedError("FileSystem does not appear to support flock")
        warnings.warn("flock not supported, falling back to SoftFileLock", stacklevel=2)

    monkeypatch.setattr(files.FileLock, "_acquire", acquire)
    with pytest.raises(InputError, match=r"/a/b: its disk cannot lock files"):
        reserve_and_write({tmp_path / "a/b": b"new"})
    assert not list(tmp_path.iterdir())


def test_folders_that_were_made_for_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), reserved([tmp_path / "a/b/c"], needed_bytes=1):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with reserved([tmp_path / "a/b/c"], needed_bytes=1):
        write_files({tmp_path / "a/b/c": b"new"})
    assert contents(tmp_path) == {"a/b/c": b"new"}


def test_one_run_at_a_time(tmp_path):
    """The same file is refused, by whatever name; another in the same folder is not."""
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with reserved([tmp_path / "a"], needed_bytes=1):
        for name in ("a", "link", "./a"):
            with pytest.raises(InputError, match="another run"):
                reserve_and_write({tmp_path / "b": b"", tmp_path / name: b""})
        reserve_and_write({tmp_path / "b": b"two"})
    reserve_and_write({tmp_path / "link": b"one"})
    assert contents(tmp_path) == {"a": b"one", "b": b"two", "link": b"one"}
    assert (tmp_path / "link").is_symlink()


@pytest.fixture
def unprivileged():
    """A folder of a user who is not root, as whom the test runs."""
    me, user = os.getuid(), os.getuid() or 65534
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, user, -1)
        os.setresuid(user, user, me)
        yield Path(folder)
        os.setresuid(me, me, me)


def test_what_cannot_be_replaced(unprivileged):
    """A file without write permission, a locked folder, and what is no file."""
    (unprivileged / "protected").write_bytes(b"mine")
    (unprivileged / "protected").chmod(0o444)
    replace_images(unprivileged / "locked", [b"mine"])
    (unprivileged / "locked").chmod(0o555)
    os.mkfifo(unprivileged / "pipe")
    others = {"protected": "read-only", "pipe": "not an ordinary file", "": "is a folder"}
    for name, complaint in others.items() | {("locked/a", "Permission denied")}:
        for write in (write_files, reserve_and_write):
            with pytest.raises(InputError, match=complaint):
                write({unprivileged / name: b"new"})
    with pytest.raises(InputError, match=r"00\.png: cannot be written .*Permission denied"):
        replace_images(unprivileged / "locked", [b"new"])
    assert contents(unprivileged) == {"locked/00.png": b"mine", "protected": b"mine"}
