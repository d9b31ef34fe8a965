"""Files whole or not at all: kills, full disks, permissions, files in use, runs at once."""

import contextlib
import errno
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
from lib.files import MARK, check_outputs, one_run, replace_images, write_files

# --- Kills ------------------------------------------------------------------------------------

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


def test_killed_while_writing_files(tmp_path):
    """Each file is the old one or the new; the next run takes the lock that the killed one left."""
    old = {tmp_path / "a": b"old", tmp_path / "folder/b": b"old"}
    new = dict.fromkeys(old, b"new")
    left = set()

    def run(contents):
        with one_run(tmp_path):
            write_files(contents)

    run(old)
    for _ in killed_at_each_file_operation(lambda: run(new)):
        assert {path.read_bytes() for path in old} <= {b"old", b"new"}
        left |= {path.name for path in tmp_path.rglob(".*")}
        run(old)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "folder"]
    assert {".lock", ".a.tmp", ".b.tmp"} <= left
    assert {path.read_bytes() for path in old} == {b"new"}


def test_killed_while_replacing_images(tmp_path):
    """Each image is old or new, and they are numbered from 00; the next run leaves its own."""
    old = [MARK.encode() + b" old"] * 4
    new = [MARK.encode() + b" new"] * 2
    mine = {"mine.txt": b"mine"}
    replace_images(tmp_path, old, {})
    (tmp_path / "mine.txt").write_bytes(b"mine")
    for _ in killed_at_each_file_operation(lambda: replace_images(tmp_path, new, {})):
        found = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
        assert set(found.values()) <= {old[0], new[0]}
        assert sorted(found) == [f"{number:02d}.png" for number in range(len(found))]
        assert len(found) >= 2
        replace_images(tmp_path, old, {})
        assert contents(tmp_path) == {f"{n:02d}.png": old[0] for n in range(4)} | mine
    assert contents(tmp_path) == {"00.png": new[0], "01.png": new[0]} | mine


def test_replace_images(tmp_path, monkeypatch):
    """Older images of ours are replaced or removed, and nothing else; also in this folder."""
    folder = tmp_path / "images"
    ours = MARK.encode()
    others = dict.fromkeys(["007.png", "04.png", "2024.png", "02.txt"], ours)
    replace_images(folder, [ours] * 3, {})
    for name, content in others.items():
        (folder / name).write_bytes(content)
    (folder / "77.png").mkdir()
    monkeypatch.chdir(folder)
    for new in (folder, Path(".")):
        replace_images(new, [b"d", b"e"], {})
        assert contents(folder) == {"00.png": b"d", "01.png": b"e", **others}


# --- Disks and permissions --------------------------------------------------------------------


@contextlib.contextmanager
def no_room_for_the_third_file():
    """As a disk that is full after two files."""
    write_bytes = Path.write_bytes
    written = []

    def write(path, data):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        return write_bytes(path, data)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "write_bytes", write)
        yield


@pytest.mark.parametrize("limit", ["full", "a file's size"])
def test_all_files_or_none(tmp_path, limit):
    """What cannot be written keeps the others from being moved into place, too."""
    old = {tmp_path / name: b"old" for name in "abc"}
    new = {tmp_path / name: b"new" for name in "abc"}
    new[tmp_path / "c"] = b"new" * 1000
    write_files(old)
    trouble = no_room_for_the_third_file() if limit == "full" else no_file_larger_than(1000)
    line = "its disk is full; free some room" if limit == "full" else "cannot be written .*large"
    with trouble, pytest.raises(InputError, match=f"/c: {line}"):
        write_files(new)
    assert contents(tmp_path) == {name: b"old" for name in "abc"}
    write_files(new)
    assert contents(tmp_path)["c"] == b"new" * 1000


@pytest.fixture
def unprivileged():
    """A folder of a user who is not root, as whom the test runs."""
    me = os.getuid()
    user = me or 65534
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, user, -1)
        os.setresuid(user, user, me)
        yield Path(folder)
        os.setresuid(me, me, me)


def test_what_may_not_be_written(unprivileged):
    """A read-only file and a folder of somebody else's: one line that names it, no change."""
    protected = unprivileged / "protected"
    protected.write_bytes(b"mine")
    protected.chmod(0o444)
    locked = unprivileged / "locked"
    replace_images(locked, [b"mine"], {})
    locked.chmod(0o555)
    with pytest.raises(InputError, match="/protected: is read-only"):
        check_outputs([protected], [])
    not_written = f"{locked}: this folder may not be written; name another with --out"
    for act in (
        lambda: check_outputs([locked / "a"], []),
        lambda: write_files({locked / "00.png": b"new"}),
        lambda: replace_images(locked, [b"new"], {}),
        one_run(locked).__enter__,
        one_run(locked / "new").__enter__,
    ):
        with pytest.raises(InputError) as raised:
            act()
        assert str(raised.value) == not_written
    assert contents(unprivileged) == {"locked/00.png": b"mine", "protected": b"mine"}


def test_what_stands_in_an_outputs_place(tmp_path):
    """A folder, an input, or a file where a folder belongs: one line; a link's target is meant."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for output, line in {
        "folder": "/folder: is a folder",
        "file": "/file: is also an input",
        "link": "/link: is also an input",
        "./folder/../file": "is also an input",
        "file/a": "/file/a: cannot be written",
    }.items():
        with pytest.raises(InputError, match=line):
            check_outputs([tmp_path / output], [tmp_path / "file"])
    assert contents(tmp_path) == {"file": b"mine", "link": b"mine"}
    check_outputs([tmp_path / "link", tmp_path / "new/a"], [])
    write_files({tmp_path / "link": b"new"})
    assert contents(tmp_path) == {"file": b"new", "link": b"new"}
    assert (tmp_path / "link").is_symlink()


# --- Files that another program holds, as on Windows ------------------------------------------


class Refusing:
    """Stands in for os.replace or os.unlink: it is refused some times; records the pauses."""

    def __init__(self, monkeypatch, name, times, winerror):
        self.operation = getattr(os, name)
        self.left = times
        self.winerror = winerror
        self.pauses = []
        monkeypatch.setattr(os, name, self)
        monkeypatch.setattr(files.time, "sleep", self.pauses.append)

    def __call__(self, *paths):
        if self.left:
            self.left -= 1
            names = [str(paths[0]), self.winerror, str(paths[-1])]
            raise PermissionError(errno.EACCES, "Access is denied", *names)
        return self.operation(*paths)


@pytest.mark.parametrize("winerror", [5, 32])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", ["replace", "unlink"])
def test_a_file_that_is_held_for_a_moment(tmp_path, monkeypatch, name, times, winerror):
    """Moving and removing succeed after a pause for each refusal, ever longer ones."""
    replace_images(tmp_path, [MARK.encode()] * 2, {})
    refusing = Refusing(monkeypatch, name, times, winerror)
    replace_images(tmp_path, [b"new"], {})
    assert contents(tmp_path) == {"00.png": b"new"}
    assert len(refusing.pauses) == times
    assert refusing.pauses == sorted(refusing.pauses)


@pytest.mark.parametrize("number", range(3))
def test_a_file_that_is_held_for_ever(tmp_path, monkeypatch, number):
    """One line after about two seconds, no temporary file, all others whole."""
    paths = [tmp_path / name for name in "abc"]
    write_files(dict.fromkeys(paths, b"old"))
    replace = os.replace
    pauses = []

    def refuse_one(source, target):
        if Path(target) == paths[number]:
            raise PermissionError(errno.EACCES, "Access is denied", str(source), 5, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_one)
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    with pytest.raises(InputError, match=rf"/{paths[number].name}: .*Access is denied.*close"):
        write_files(dict.fromkeys(paths, b"new"))
    assert 1.5 < sum(pauses) < 3
    assert list(contents(tmp_path).values()) == [b"new"] * number + [b"old"] * (3 - number)


# --- Locks ------------------------------------------------------------------------------------


def test_one_run_at_a_time(tmp_path):
    """A second one into the same folder is refused, by whatever name; into another it is not."""
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with one_run(tmp_path / "a"):
        for name in ("a", "link", "./b/../a"):
            (tmp_path / "b").mkdir(exist_ok=True)
            with pytest.raises(InputError, match="another run"), one_run(tmp_path / name):
                pytest.fail("two runs")
        assert (tmp_path / "a/.lock").exists()
        with one_run(tmp_path / "b"):
            pass
    with one_run(tmp_path / "link"):
        pass
    assert not list(tmp_path.rglob(".lock"))


NO_LOCKS = {
    "ENOLCK": OSError(errno.ENOLCK, "No locks available"),
    "EOPNOTSUPP": OSError(errno.EOPNOTSUPP, "Operation not supported"),
    "EBADF": OSError(errno.EBADF, "Bad file descriptor"),
    "an old filelock": NotImplementedError("FileSystem does not appear to support flock"),
    "a new filelock": UserWarning("flock not supported, falling back to SoftFileLock"),
}


@pytest.mark.parametrize("kind", NO_LOCKS)
def test_a_disk_that_cannot_lock(tmp_path, monkeypatch, capsys, kind):
    """Work goes on with one line, also after an error inside, and no lock file is left."""

    def acquire(lock):
        Path(lock.lock_file).touch()  # as is done before flock is called
        if isinstance(NO_LOCKS[kind], Warning):
            warnings.warn(NO_LOCKS[kind], stacklevel=2)
        raise NO_LOCKS[kind]

    monkeypatch.setattr(files.FileLock, "_acquire", acquire)
    with one_run(tmp_path / "out"):
        write_files({tmp_path / "out/a": b"new"})
    assert capsys.readouterr().err == (
        f"{tmp_path / 'out'}: this folder's disk cannot lock files; "
        "do not start a second run into it\n"
    )
    with pytest.raises(ZeroDivisionError), one_run(tmp_path / "out"):
        raise ZeroDivisionError
    assert contents(tmp_path) == {"out/a": b"new"}
