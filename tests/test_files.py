"""Files whole or not at all: kills, full disks, permissions, runs at once."""

import itertools
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import contents, no_file_larger_than

from errors import InputError
from files import replace_images, reserved, write_files

FILE_EVENTS = ("open", "os.", "shutil.", "fcntl.")  # Python's audit events of such names


def in_a_child(action, kill_at):
    """Run `action` in a forked process, which SIGKILLs itself at its n-th file operation.

    Returns:
        Whether it came to that.
    """
    child = os.fork()
    if not child:
        countdown = itertools.count(kill_at, -1)

        def hook(event, _):
            if event.startswith(FILE_EVENTS) and next(countdown) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def killed_at_each_file_operation(action):
    for number in itertools.count():
        if not in_a_child(action, number):
            assert number > 5
            return
        yield


def reserve_and_write(files):
    with reserved(files, room=1):
        write_files(files)


def test_killed_while_writing_files(tmp_path):
    """Each file is the old one or the new; the next run removes what the killed one left."""
    old = {tmp_path / "a": b"old", tmp_path / "folder/b": b"old"}
    new = {path: b"new" for path in old}
    write_files(old)
    left = set()
    for _ in killed_at_each_file_operation(lambda: reserve_and_write(new)):
        assert {path.read_bytes() for path in old} <= {b"old", b"new"}
        left |= {path.suffix for path in tmp_path.rglob("*")}
        reserve_and_write(old)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "folder"]
    assert {".tmp", ".lock"} <= left
    assert {path.read_bytes() for path in old} == {b"new"}


@pytest.mark.parametrize("others", [[], ["mine.txt"]])
def test_killed_while_replacing_images(tmp_path, others):
    """Each image is old or new, and they are numbered from 00; the next run leaves its own."""
    old, new = [b"old"] * 4, [b"new"] * 2
    replace_images(tmp_path, old)
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    for _ in killed_at_each_file_operation(lambda: replace_images(tmp_path, new)):
        found = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
        assert set(found.values()) <= {b"old", b"new"}
        assert sorted(found) == [f"{number:02d}.png" for number in range(len(found))]
        assert len(found) >= 2
        assert replace_images(tmp_path, old) == others
        assert set(contents(tmp_path)) == {f"{number:02d}.png" for number in range(4)} | {*others}
    assert contents(tmp_path) == {"00.png": b"new", "01.png": b"new"} | dict.fromkeys(
        others, b"mine"
    )


def test_what_a_killed_run_left_is_in_nobodys_way(tmp_path):
    for name in (".a.lock", ".a.tmp", ".00.png.tmp", ".00.png.lock", ".77.png.tmp"):
        (tmp_path / name).write_bytes(b"left")
    reserve_and_write({tmp_path / "a": b"new"})
    with reserved([tmp_path / "00.png"], room=1):
        assert replace_images(tmp_path, [b"image"]) == ["a"]
    assert contents(tmp_path) == {"00.png": b"image", "a": b"new"}


@pytest.mark.parametrize("others", [[], ["007.png", "04.png", "2024.png", "mine.txt", "notes"]])
def test_replace_images(tmp_path, others):
    folder = tmp_path / "images"
    assert replace_images(folder, [b"a", b"b", b"c"]) == []
    for name in others:
        (folder / name).write_bytes(b"mine")
    assert replace_images(folder, [b"d", b"e"]) == others
    assert contents(folder) == {"00.png": b"d", "01.png": b"e"} | {n: b"mine" for n in others}
    assert os.listdir(tmp_path) == ["images"]


def test_replace_images_in_the_working_folder(tmp_path, monkeypatch):
    replace_images(tmp_path / "images", [b"a", b"b"])
    monkeypatch.chdir(tmp_path / "images")
    replace_images(Path("."), [b"c"])
    assert contents(tmp_path) == {"images/00.png": b"c"}


def test_a_folder_named_like_an_image_is_left_alone(tmp_path):
    (tmp_path / "77.png").mkdir()
    assert replace_images(tmp_path, [b"a"]) == ["77.png"]
    assert (tmp_path / "77.png").is_dir()
    (tmp_path / "00.png").unlink()
    (tmp_path / "00.png").mkdir()
    with pytest.raises(InputError, match=r"00\.png: is a folder"):
        replace_images(tmp_path, [b"a"])


def test_interrupted_before_all_are_written(tmp_path, monkeypatch):
    replace_images(tmp_path, [b"a", b"b"])
    write = Path.write_bytes

    def fails_on_the_second(path, content):
        if "01" in path.name:
            write(path, content[:1])
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fails_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        replace_images(tmp_path, [b"cc", b"dd"])
    assert contents(tmp_path) == {"00.png": b"a", "01.png": b"b"}


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
    paths = [tmp_path / name for name in "abc"]
    write_files(dict.fromkeys(paths, b"old"))
    replace = os.replace

    def refuses_one(source, target):
        if Path(target) == paths[number]:
            raise PermissionError(13, "Access is denied", str(source), 5, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuses_one)
    with pytest.raises(InputError, match=rf"/{paths[number].name}: .*Access is denied.*close"):
        write_files(dict.fromkeys(paths, b"new"))
    assert list(contents(tmp_path).values()) == [b"new"] * number + [b"old"] * (3 - number)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with reserved([tmp_path / "a"], room=10**6):
        pass
    with pytest.raises(InputError, match=r"/a: .*1 MB"), reserved([tmp_path / "a"], 10**6 + 1):
        pytest.fail("began")
    assert os.listdir(tmp_path) == []


def test_one_run_at_a_time(tmp_path):
    """The same file is refused, by whatever name; another in the same folder is not."""
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with reserved([tmp_path / "a"], room=1):
        for name in ("a", "link", "./a"):
            paths = [tmp_path / "b", tmp_path / name]
            with pytest.raises(InputError, match="another run"), reserved(paths, room=1):
                pytest.fail("began")
        with reserved([tmp_path / "b"], room=1):
            write_files({tmp_path / "a": b"one", tmp_path / "b": b"two"})
    with reserved([tmp_path / "a", tmp_path / "b"], room=1):
        pass
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "link"]


@pytest.fixture
def unprivileged():
    """A folder of a user who is not root, as whom the test runs."""
    folder = Path(tempfile.mkdtemp())
    nobody, me = 65534, os.getuid()
    if me == 0:
        os.chown(folder, nobody, nobody)
        os.setresuid(nobody, nobody, 0)
    yield folder
    if me == 0:
        os.setresuid(0, 0, 0)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_images_without_permission(unprivileged):
    folder = unprivileged / "parent/images"
    replace_images(folder, [b"old"])
    folder.parent.chmod(0o555)
    assert replace_images(folder, [b"new", b"new"]) == []
    folder.chmod(0o555)
    with pytest.raises(InputError, match=r"00\.png: cannot be written .*Permission denied"):
        replace_images(folder, [b"newer"])
    assert contents(folder) == {"00.png": b"new", "01.png": b"new"}


def test_files_that_are_not_replaced(unprivileged):
    """A file without write permission, and what is no file: a device, a pipe, a folder."""
    (unprivileged / "protected").write_bytes(b"mine")
    (unprivileged / "protected").chmod(0o444)
    (unprivileged / "locked").mkdir(mode=0o555)
    os.mkfifo(unprivileged / "pipe")
    others = {"protected": "read-only", "pipe": "not an ordinary file", "": "is a folder"}
    for name, complaint in others.items() | {("locked/a", "Permission denied")}:
        with pytest.raises(InputError, match=complaint):
            write_files({unprivileged / name: b"new"})
        with pytest.raises(InputError, match=complaint), reserved([unprivileged / name], room=1):
            pytest.fail("began")
    assert contents(unprivileged / "locked") == {}
    assert (unprivileged / "protected").read_bytes() == b"mine"
    with pytest.raises(InputError, match="not an ordinary file"):
        write_files({Path("/dev/null"): b""})


def test_symbolic_links_lead_to_the_file(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real/file")
    write_files({tmp_path / "link": b"written"})
    assert (tmp_path / "real/file").read_bytes() == b"written"
    assert (tmp_path / "link").is_symlink()
