"""Kills, full disks, folders without permission, runs at once, and other people's environments.

The long version, with the scripts themselves, is tests/stress.py; damaged input has a file of its
own, test_damage.py.
"""

import contextlib
import fcntl
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PROJECT, assert_one_line, contents, digests, flags, start

import auto_encoder
import data
import decoder_generate
from data import InputError, check_writable, replace_images, write_files
from models import load_checkpoint

FILE_EVENTS = ("open", "os.", "shutil.", "ctypes.dlsym")  # Python's audit events of such names


def in_a_child(action, kill_at=None):
    """Run `action` in a forked process, which SIGKILLs itself at its n-th file operation, if any.

    Returns:
        Whether it came to that.
    """
    child = os.fork()
    if not child:
        countdown = itertools.count(kill_at or 0, -1)

        def hook(event, _):
            if event.startswith(FILE_EVENTS) and next(countdown) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            if kill_at is not None:
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


def test_killed_while_writing_files(tmp_path):
    """Each file is the old one or the new; the next run removes what the killed one left."""
    old = {tmp_path / "a": b"old", tmp_path / "folder/b": b"old"}
    new = {path: b"new" for path in old}
    write_files(old)
    left = set()
    for _ in killed_at_each_file_operation(lambda: write_files(new)):
        assert {path.read_bytes() for path in old} <= {b"old", b"new"}
        left |= {path.suffix for path in tmp_path.rglob("*")}
        write_files(old)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "folder"]
    assert ".tmp" in left
    assert {path.read_bytes() for path in old} == {b"new"}


@pytest.mark.parametrize("others", [[], ["mine.txt"]])
def test_killed_while_replacing_images(tmp_path, others):
    """The old set or the new; where other things are in the folder, each image old or new."""
    folder = tmp_path / "images"
    old, new = [b"old"] * 3, [b"new"] * 2
    sets = [{f"{n:02d}.png": image for n, image in enumerate(images)} for images in (old, new)]
    replace_images(folder, old)
    for name in others:
        (folder / name).write_bytes(b"mine")
    for _ in killed_at_each_file_operation(lambda: replace_images(folder, new)):
        found = {path.name: path.read_bytes() for path in folder.glob("*.png")}
        assert found in sets if not others else set(found.values()) <= {b"old", b"new"}
        assert {"00.png", "01.png"} <= set(found)
        assert replace_images(folder, old) == others
        assert set(contents(folder)) == {*sets[0], *others}
        assert os.listdir(tmp_path) == ["images"]
    assert contents(folder) == sets[1] | dict.fromkeys(others, b"mine")


def test_killed_twice_and_resumed(tmp_path, tiny_mnist, call):
    """Killed in the second epoch and after the last one; --resume ends as an unbroken run."""
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"

    def arguments(folder):
        return flags(folder, tiny_mnist, epochs=3, batch_size=50)

    assert call(auto_encoder, *arguments(unbroken)).status == 0
    for epoch, options in ((0, []), (2, ["--resume"])):
        process = start("auto_encoder.py", *arguments(killed), *options)
        while not process.stdout.readline().startswith(f"epoch {epoch}:"):
            assert process.poll() is None
        process.kill()
        process.communicate()
        assert load_checkpoint(killed / "vae.pt").metadata["epochs"] > epoch
    assert call(auto_encoder, *arguments(killed), "--resume").status == 0
    assert digests(killed) == digests(unbroken)
    assert not list(killed.rglob("*.tmp"))


@contextlib.contextmanager
def no_file_larger_than(size):
    """The kernel refuses to write more, as on a full disk, but with another error."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def finished(tmp_path, trained):
    """A copy of a finished run, with generated images."""
    shutil.copytree(trained, tmp_path / "finished")
    replace_images(tmp_path / "finished/images", [b"an older image"])
    return tmp_path / "finished"


def test_full_disk_is_found_before_training(finished, tiny_mnist, call, monkeypatch):
    before = contents(finished)
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    with no_file_larger_than(5 * 10**6):  # the checkpoint fits, the resume file does not
        result = call(auto_encoder, *flags(finished, tiny_mnist, figures=finished / "figures"))
    assert_one_line(result, finished / "vae.resume.pt", "too large")
    assert contents(finished) == before
    with no_file_larger_than(100):
        arguments = ("--checkpoint", finished / "vae.pt", "--out", finished / "images")
        result = call(decoder_generate, *arguments)
    assert_one_line(result, finished / "images", "too large")
    assert contents(finished) == before


def test_disk_that_fills_up_in_training(tmp_path, tiny_mnist, call, monkeypatch):
    """The files of the last epoch for which there was room stay, and --resume goes on."""
    train_epoch = auto_encoder.train_epoch
    with contextlib.ExitStack() as full, monkeypatch.context() as patched:

        def filling(*arguments):
            if arguments[4] == 1:
                full.enter_context(no_file_larger_than(5 * 10**6))
            return train_epoch(*arguments)

        patched.setattr(auto_encoder, "train_epoch", filling)
        result = call(auto_encoder, *flags(tmp_path, tiny_mnist))
    assert_one_line(result, "vae.resume.pt", "too large")
    assert load_checkpoint(tmp_path / "vae.pt").metadata["epochs"] == 1
    assert not list(tmp_path.rglob("*.tmp"))
    assert call(auto_encoder, *flags(tmp_path, tiny_mnist), "--resume").status == 0


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


@pytest.mark.parametrize("flag", ["checkpoint", "scatter", "figures"])
def test_folder_without_permission(unprivileged, tiny_mnist, call, monkeypatch, flag):
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    locked = unprivileged / "locked"
    locked.mkdir()
    (locked / "encoder.png").write_bytes(b"mine")
    locked.chmod(0o555)
    path = locked if flag == "figures" else locked / "encoder.png"
    result = call(auto_encoder, *flags(unprivileged, tiny_mnist, **{flag: path}))
    assert_one_line(result, path, "Permission denied")
    assert contents(locked) == {"encoder.png": b"mine"}


def test_images_without_permission(unprivileged):
    """A folder that may not be written is not exchanged; one in such a folder is filled."""
    folder = unprivileged / "parent/images"
    replace_images(folder, [b"old"])
    folder.parent.chmod(0o555)
    assert replace_images(folder, [b"new", b"new"]) == []
    assert contents(folder) == {"00.png": b"new", "01.png": b"new"}
    folder.parent.chmod(0o755)
    folder.chmod(0o555)
    with pytest.raises(InputError, match=r"images: cannot be written .*read-only"):
        replace_images(folder, [b"newer"])
    assert contents(folder) == {"00.png": b"new", "01.png": b"new"}


def test_files_that_are_not_replaced(unprivileged):
    """A file without write permission, and what is no file: a device, a pipe, a folder."""
    (unprivileged / "protected").write_bytes(b"mine")
    (unprivileged / "protected").chmod(0o444)
    os.mkfifo(unprivileged / "pipe")
    others = {"protected": "read-only", "pipe": "not an ordinary file", "": "is a folder"}
    for name, complaint in others.items():
        with pytest.raises(InputError, match=complaint):
            write_files({unprivileged / name: b"new"})
        with pytest.raises(InputError, match=complaint):
            check_writable({unprivileged / name: 1})
    assert (unprivileged / "protected").read_bytes() == b"mine"
    with pytest.raises(InputError, match="not an ordinary file"):
        write_files({"/dev/null": b""})


def test_images_of_other_names_are_left_alone(tmp_path):
    replace_images(tmp_path, [b"old"] * 3)
    own = {name: b"mine" for name in ("007.png", "04.png", "2024.png", "notes")}
    for name, content in own.items():
        (tmp_path / name).write_bytes(content)
    assert replace_images(tmp_path, [b"new"]) == sorted(own)
    assert contents(tmp_path) == {"00.png": b"new"} | own


def test_a_file_that_comes_while_images_are_exchanged_is_kept(tmp_path, monkeypatch):
    replace_images(tmp_path / "images", [b"old"])
    exchange = data._exchange

    def late(new, target):
        (target / "notes").write_bytes(b"mine")
        exchange(new, target)

    monkeypatch.setattr(data, "_exchange", late)
    replace_images(tmp_path / "images", [b"new"])
    assert contents(tmp_path) == {"images/00.png": b"new", "images/notes": b"mine"}


def test_leftovers_beside_and_inside_are_removed(tmp_path):
    for folder in (tmp_path / ".images.0123abcd.tmp", tmp_path / "images/.images.0123abcd.tmp"):
        folder.mkdir(parents=True)
        (folder / "00.png").write_bytes(b"left")
    (tmp_path / "images/notes").write_bytes(b"mine")
    assert replace_images(tmp_path / "images", [b"new"]) == ["notes"]
    assert contents(tmp_path) == {"images/00.png": b"new", "images/notes": b"mine"}


def test_a_lock_is_not_awaited_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LONGEST_WAIT", 0.02)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another run"):
        write_files({tmp_path / "a": b""})
    os.close(holder)
    write_files({tmp_path / "a": b""})


def test_outputs_in_the_way_of_each_other_or_of_the_data(tmp_path, tiny_mnist, call, monkeypatch):
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    before = contents(tiny_mnist)
    for changed in (
        {"scatter": tmp_path / "a", "figures": tmp_path / "a"},
        {"checkpoint": tmp_path / "a", "scatter": tmp_path / "a/s.png"},
        {"scatter": tiny_mnist / "train-labels-idx1-ubyte"},
    ):
        result = call(auto_encoder, *flags(tmp_path, tiny_mnist, **changed))
        assert_one_line(result, "name another output")
    assert contents(tiny_mnist) == before


def test_each_checkpoint_has_metrics_of_its_own(tmp_path):
    for name, metrics in (("a.pt", "a.json"), ("lr0.1", "lr0.1.json"), ("a.b.pth", "a.b.json")):
        options = {"checkpoint": tmp_path / name, "scatter": tmp_path / "s.png", "figures": None}
        arguments = SimpleNamespace(data=tmp_path, **options)
        assert auto_encoder.output_files(arguments)["metrics"] == tmp_path / metrics


def test_out_of_memory(capsys):
    """One line that says so; other errors of the kind are not hidden."""

    def fails(error):
        raise error

    allocator = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 10 bytes")
    for error in (MemoryError(), allocator):
        with pytest.raises(SystemExit):
            data.run(lambda error=error: fails(error))
        assert "not enough memory" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a bug"):
        data.run(lambda: fails(RuntimeError("a bug")))


def test_symbolic_links_lead_to_the_file(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real/file")
    write_files({tmp_path / "link": b"written"})
    assert (tmp_path / "real/file").read_bytes() == b"written"
    assert (tmp_path / "link").is_symlink()


def test_all_files_or_none(tmp_path):
    """What cannot be written keeps the others from being moved into place, too."""
    paths = {tmp_path / name: name.encode() * 1000 for name in "abc"}
    with no_file_larger_than(1000):
        write_files(paths)
        with pytest.raises(InputError, match=r"/c: "):
            write_files({path: b"more" * (1 + 1000 * (path.name == "c")) for path in paths})
    assert contents(tmp_path) == {name: name.encode() * 1000 for name in "abc"}


def test_runs_at_once_write_one_after_the_other(tmp_path):
    """Two processes that write the same files all the time: at the end all are of one of them."""
    paths = [tmp_path / "b/one", tmp_path / "a/two", tmp_path / "b/three"]
    images = tmp_path / "images"

    def write(name):
        for _ in range(100):
            write_files({path: name * 10**5 for path in paths[:: 1 if name == b"x" else -1]})
            replace_images(images, [name] * (5 if name == b"x" else 9))

    for _ in range(3):
        children = []
        for name in (b"x", b"y"):
            children.append(os.fork())
            if not children[-1]:
                with contextlib.suppress(BaseException):
                    write(name)
                    os._exit(0)
                os._exit(1)
        while children and os.waitpid(children[0], os.WNOHANG)[0] == 0:
            with contextlib.suppress(FileNotFoundError):  # in the first moments
                assert all(len(path.read_bytes()) == 10**5 for path in paths)
        assert os.waitpid(children[1], 0)[1] == 0
        (own,) = {path.read_bytes() for path in paths}
        assert own in (b"x" * 10**5, b"y" * 10**5)
        assert len(os.listdir(images)) in (5, 9)
        assert len(set(contents(images).values())) == 1
        assert not list(tmp_path.rglob("*.tmp"))


def test_two_trainings_at_once(tmp_path, tiny_mnist):
    """The last to finish leaves its whole set."""
    processes = [
        start("auto_encoder.py", *flags(tmp_path, tiny_mnist, seed=seed, threads=1))
        for seed in (0, 1)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=100)
        assert (process.returncode, stderr) == (0, "")
    metadata = load_checkpoint(tmp_path / "vae.pt").metadata
    metrics = contents(tmp_path)["vae.json"].decode()
    assert f'"seed": {metadata["settings"]["seed"]}' in metrics
    assert f'"L_tot": {metadata["results"]["test"]["L_tot"]}' in metrics
    assert not list(tmp_path.rglob("*.tmp"))


HOSTILE = {
    "LC_ALL": "C",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONUTF8": "0",
    "MPLBACKEND": "none-such",
}


def test_hostile_environment(tmp_path, tiny_mnist, call, monkeypatch):
    """Relative non-ASCII paths in an ASCII locale, no display, an odd matplotlibrc, no reader."""
    folder = tmp_path / "Übung 4, 数字"
    folder.mkdir()
    (folder / "matplotlibrc").write_text("text.usetex: True\nfigure.facecolor: red\nno: such\n")
    assert call(auto_encoder, *flags(tmp_path / "usual", tiny_mnist)).status == 0
    arguments = flags(Path("out 'é"), tiny_mnist)
    process = start("auto_encoder.py", *arguments, cwd=folder, env=HOSTILE)
    assert process.stdout.readline().startswith("epoch 0:")
    process.stdout.close()  # as `| head -1` does
    assert process.stderr.read() == ""
    assert process.wait() == 0
    usual, here = tmp_path / "usual/encoder.png", folder / "out 'é/encoder.png"
    assert here.read_bytes() == usual.read_bytes()
    monkeypatch.chdir(folder)
    arguments = ("--checkpoint", "out 'é/vae.pt", "--out", "20 Bilder für dich")
    result = call(decoder_generate, *arguments)
    assert (result.status, result.stderr) == (0, "")
    assert len(list((folder / "20 Bilder für dich").iterdir())) == 20


SAY = "import data; data.run(lambda: [data.say('a line') for _ in range(3)])"
HELP = "import data; data.run(lambda: data.Parser().parse_args(['--help']))"


@pytest.mark.parametrize(
    ("redirection", "status", "complaint"),
    [
        ("| true", 0, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        ("> /dev/full", 2, "-c: standard output: cannot be written (No space left on device)\n"),
    ],
)
@pytest.mark.parametrize("program", [SAY, HELP])
def test_standard_output_that_nobody_reads(redirection, status, complaint, program):
    shell = f'set -o pipefail; "$0" -c "$1" {redirection}'
    result = subprocess.run(
        ["bash", "-c", shell, sys.executable, program],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (status, complaint)


def test_import_from_elsewhere(tmp_path):
    """It runs nothing, needs no torchvision, and draws nothing yet."""
    program = (
        "import sys, auto_encoder, decoder_generate, models, data, plots; "
        "assert not {'matplotlib', 'torchvision'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    result = subprocess.run(
        [sys.executable, "-c", program, "--bogus"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "options", [{}, {"latent_dim": 5}, {"model": "ae", "latent_dim": 8}, {"encoder": "network"}]
)
@pytest.mark.parametrize("lr", [10, 1e6])
def test_diverging_loss(finished, small_mnist, call, options, lr):
    """Exit 2 before anything is replaced."""
    before = contents(finished)
    assert_one_line(call(auto_encoder, *flags(finished, small_mnist, lr=lr, **options)), "--lr")
    assert contents(finished) == before


def test_diverging_in_a_later_epoch(tmp_path, tiny_mnist, call, monkeypatch):
    """The checkpoint of the last good epoch stays."""
    train_epoch = auto_encoder.train_epoch

    def poisoned(model, *arguments):
        if arguments[3] == 1:
            model.decoder.net[0].weight.data[0, 0] = torch.nan
        return train_epoch(model, *arguments)

    monkeypatch.setattr(auto_encoder, "train_epoch", poisoned)
    assert_one_line(call(auto_encoder, *flags(tmp_path, tiny_mnist, epochs=3)), "nan nats")
    assert load_checkpoint(tmp_path / "vae.pt").metadata["epochs"] == 1


def test_run_reports_what_a_name_holds():
    """A name may hold a line break; the complaint stays one line."""
    program = "import data; data.run(lambda: open('no\\nsuch\\udcff'))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert_one_line(
        SimpleNamespace(status=result.returncode, stderr=result.stderr), "no\\nsuch\\udcff"
    )
