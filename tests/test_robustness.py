"""The scripts under kills, full disks, other runs at once, and in other people's environments.

What lasts longer is in tests/stress.py.
"""

import ast
import contextlib
import errno
import graphlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import (
    FILES,
    PROJECT,
    assert_one_line,
    call,
    command,
    contents,
    digests,
    flags,
    program,
    start,
)

import auto_encoder
import decoder_generate
from models import load_checkpoint

# --- Kills and --resume -----------------------------------------------------------------------


def until(process, epoch):
    """Read what it prints until the line of that epoch."""
    while not process.stdout.readline().startswith(f"epoch {epoch}:"):
        assert process.poll() is None


def test_stopped_in_every_way_and_resumed(tmp_path, tiny_mnist):
    """Another run is refused; after kill -9, Ctrl-C and kill -9 it ends as an unbroken one does."""
    options = {"epochs": 8, "batch_size": 50, "validation": 50}
    broken = flags(tmp_path / "broken", tiny_mnist, **options)
    checkpoint = tmp_path / "broken/checkpoints/vae.safetensors"
    assert call(auto_encoder, *flags(tmp_path / "whole", tiny_mnist, **options)).status == 0

    first = start("auto_encoder.py", *broken)
    until(first, 0)
    first.send_signal(signal.SIGSTOP)
    before = contents(tmp_path)
    assert_one_line(call(auto_encoder, *broken), tmp_path / "broken", "another run")
    assert contents(tmp_path) == before
    first.kill()
    first.communicate()
    assert (tmp_path / "broken/.lock").exists()

    second = start("auto_encoder.py", *broken, "--resume")
    until(second, 1)
    second.send_signal(signal.SIGINT)
    _, stderr = second.communicate(timeout=100)
    assert second.returncode == 130
    saved = re.fullmatch(r"auto_encoder.py: interrupted after (\d+) epochs; .*--resume.*\n", stderr)
    assert 2 <= load_checkpoint(checkpoint).metadata["epochs"] <= int(saved[1]) + 1
    assert not list(tmp_path.rglob(".*"))

    third = start("auto_encoder.py", *broken, "--resume")
    until(third, 2)
    third.kill()
    third.communicate()
    assert call(auto_encoder, *broken, "--resume").status == 0
    assert {"checkpoints/vae.safetensors", "encoder.png"} < set(digests(tmp_path / "broken"))
    assert digests(tmp_path / "broken") == digests(tmp_path / "whole")
    assert not list(tmp_path.rglob(".*"))
    assert not list(tmp_path.rglob("*.resume.*"))  # nothing is left to continue


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, tiny_mnist):
    """The folder of a run that was interrupted after its last epoch."""
    folder = tmp_path_factory.mktemp("interrupted")

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(auto_encoder, "final_metrics", interrupt)
        assert call(auto_encoder, *flags(folder, tiny_mnist)).status == 130
    return folder


@pytest.fixture
def no_training(monkeypatch):
    """A training that begins is a failure."""
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))


OTHER_FLAGS = ["--batch-size 7", "--seed 3", "--latent-dim 4", "--epochs 9", "--lr 0.1"]
OTHER_FLAGS += ["--validation 50"]


@pytest.mark.parametrize("other", OTHER_FLAGS)
def test_resume_with_other_flags(interrupted, tiny_mnist, no_training, other):
    """One line that names the flag, and the run can still be resumed."""
    before = contents(interrupted)
    result = call(auto_encoder, *flags(interrupted, tiny_mnist), "--resume", *other.split())
    assert_one_line(result, "--resume", "another " + other.split()[0])
    assert contents(interrupted) == before


@pytest.mark.parametrize("name", [*FILES["train"], *FILES["test"]])
def test_resume_with_other_data(interrupted, tmp_path, tiny_mnist, no_training, name):
    """One pixel or one label of either split is another."""
    digits = shutil.copytree(tiny_mnist, tmp_path / "digits")
    changed = bytearray((digits / name).read_bytes())
    changed[20] = (changed[20] + 1) % 10
    (digits / name).write_bytes(changed)
    result = call(auto_encoder, *flags(interrupted, digits), "--resume")
    assert_one_line(result, "another --data")


def test_resume_of_nothing(interrupted, tmp_path, tiny_mnist, no_training):
    """Where no run was, or one of another model: one line that says to leave out the flag."""
    result = call(auto_encoder, *flags(tmp_path, tiny_mnist), "--resume")
    assert_one_line(result, "vae.resume.pt", "leave out --resume")
    result = call(auto_encoder, *flags(interrupted, tiny_mnist, model="ae"), "--resume")
    assert_one_line(result, "ae.resume.pt", "leave out --resume")


def test_resume_of_a_finished_run(trained, small_mnist, no_training):
    """One line that says where the results are; nothing changes."""
    before = contents(trained)
    result = call(auto_encoder, *flags(trained, small_mnist), "--resume")
    assert_one_line(result, "finished", trained / "checkpoints/vae.json", "--out")
    assert contents(trained) == before


def test_the_resume_file_is_written_first(tmp_path, tiny_mnist, monkeypatch):
    """And the pictures before the checkpoint and the metrics, when the run is finished."""
    moved = []
    replace = os.replace

    def record(source, target):
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    monkeypatch.setattr(auto_encoder, "draw_pictures", lambda shown: {"scatter": b""})
    options = {"model": "ae", "epochs": 1}
    assert call(auto_encoder, *flags(tmp_path, tiny_mnist, **options)).status == 0
    at_the_end = ["encoder.png", "ae.safetensors", "ae.json"]
    assert moved == ["ae.resume.pt", "ae.safetensors", "ae.json", *at_the_end]


# --- Full disks, loss and memory --------------------------------------------------------------


@contextlib.contextmanager
def full_disk():
    """Each write of bytes fails as on a full disk."""

    def refuse(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "write_bytes", refuse)
        yield


@pytest.mark.parametrize("trouble", ["its disk is full", "--lr"])
def test_trouble_in_the_second_epoch(tmp_path, tiny_mnist, monkeypatch, trouble):
    """A full disk, or a diverging loss: what the first epoch left stays, and --resume goes on."""
    save_epoch = auto_encoder.save_epoch
    train_epoch = auto_encoder.train_epoch
    monkeypatch.setattr(auto_encoder, "draw_pictures", lambda shown: {})
    arguments = flags(tmp_path, tiny_mnist, model="ae")

    def diverge(model, optimizers, x, epoch, *others):
        train_epoch(model, optimizers, x, epoch, *others)
        if epoch == 1:
            model.decoder.net[0].weight.data[0, 0] = torch.nan

    def save_on_a_full_disk(model, optimizers, history, *others):
        if len(history.log) == 1:
            save_epoch(model, optimizers, history, *others)
        else:
            with full_disk():
                save_epoch(model, optimizers, history, *others)

    with monkeypatch.context() as patched:
        if trouble == "--lr":
            patched.setattr(auto_encoder, "train_epoch", diverge)
        else:
            patched.setattr(auto_encoder, "save_epoch", save_on_a_full_disk)
        assert_one_line(call(auto_encoder, *arguments), trouble)
    assert load_checkpoint(tmp_path / "checkpoints/ae.safetensors").metadata["epochs"] == 1
    assert not list(tmp_path.rglob(".*"))
    assert call(auto_encoder, *arguments, "--resume").status == 0


def test_older_outputs_stay(trained, tmp_path, small_mnist):
    """When the loss diverges from the start, and when there is no room for new images."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    generate = "--checkpoint", tmp_path / "checkpoints/vae.safetensors", "--out", tmp_path / "im"
    assert call(decoder_generate, *generate).status == 0
    before = contents(tmp_path)
    assert_one_line(call(auto_encoder, *flags(tmp_path, small_mnist, lr=1e6)), "--lr")
    with full_disk():
        result = call(decoder_generate, *generate, "--seed", 5)
        assert_one_line(result, tmp_path / "im", "its disk is full")
    assert contents(tmp_path) == before


TOO_LARGE = {  # as Python tells it and as PyTorch does
    "Python": lambda *_: bytearray(10**15),
    "PyTorch": lambda *_: torch.empty(10**15),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
@pytest.mark.parametrize("script", [auto_encoder, decoder_generate])
def test_memory_that_runs_out(tmp_path, monkeypatch, script, kind):
    """One line, and it is no damage of a file."""
    monkeypatch.setattr("safetensors.torch.load", TOO_LARGE[kind])
    monkeypatch.setattr(auto_encoder, "load_both_splits", TOO_LARGE[kind])
    assert_one_line(call(script, "--out", tmp_path), "not enough memory")


# --- Other environments -----------------------------------------------------------------------

WINDOWS = """
import os, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
for name in '''O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC O_CLOEXEC fork statvfs chown fchmod getuid
        geteuid killpg mkfifo pread pwrite sendfile setsid sched_getaffinity sysconf'''.split():
    delattr(os, name)
"""


def test_another_machine(tmp_path, tiny_mnist):
    """As on Windows POSIX modules cannot be imported, and os has but the names it has there.

    An ASCII locale, no display, an odd matplotlibrc, neither docstrings nor assertions, relative
    paths that are not ASCII. The usual bytes come out.
    """
    folder, out, images = tmp_path / "Übung 4, 数字", Path("out 'é"), Path("20 Bilder für dich")
    folder.mkdir()
    (folder / "matplotlibrc").write_text("text.usetex: True\nfigure.facecolor: red\nno: such\n")
    (tmp_path / "sitecustomize.py").write_text(WINDOWS)
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment |= {
        "PYTHONOPTIMIZE": "2",
        "MPLBACKEND": "module://none.such",
        "PYTHONPATH": str(tmp_path),
    }
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:only soft"}
    environment["HOME"] = str(tmp_path)  # where old versions of matplotlib look for settings
    proof = "import os; hasattr(os, 'O_DIRECTORY') or __import__('fcntl')"
    proof = subprocess.run([sys.executable, "-c", proof], env=environment, capture_output=True)
    assert b"No module named 'fcntl'" in proof.stderr
    there, options = {"cwd": folder, "env": environment}, {"model": "ae", "epochs": 1}
    assert call(auto_encoder, *flags(tmp_path / "usual", tiny_mnist, **options)).status == 0
    train = "auto_encoder.py", *flags(out, tiny_mnist, **options)
    checkpoint = out / "checkpoints/ae.safetensors"
    generate = "decoder_generate.py", "--checkpoint", checkpoint, "--out", images
    for line in (train, generate):
        result = command(*line, **there)
        assert result.status == 0, result.stderr
        locking = [line for line in result.stderr.splitlines() if "cannot lock" in line]
        assert result.stderr.splitlines() == locking  # on this machine nothing else can lock
    assert digests(folder / out) == digests(tmp_path / "usual")
    assert sorted(os.listdir(folder / images)) == [f"{n:02d}.png" for n in range(20)]
    assert not list(folder.rglob(".*"))


def in_bash(redirection, script, *arguments):
    """A script's exit status and what reaches standard error, with its streams redirected."""
    line = f'"$0" "$@" {redirection}'
    words = ["bash", "-c", line, *program(script), *arguments]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=200)


def test_without_standard_streams(tmp_path, tiny_mnist):
    """As under pythonw, where sys.stdout and sys.stderr are None: the work is done."""
    arguments = flags(tmp_path, tiny_mnist, model="ae", epochs=1)
    assert in_bash("<&- >&- 2>&-", "auto_encoder.py", *arguments).returncode == 0
    assert (tmp_path / "encoder.png").exists()
    checkpoint = tmp_path / "checkpoints/ae.safetensors"
    arguments = "--checkpoint", checkpoint, "--out", tmp_path / "images"
    assert in_bash("2>&-", "decoder_generate.py", *arguments).returncode == 0
    assert len(contents(tmp_path / "images")) == 20


@pytest.mark.parametrize("script", ["auto_encoder.py", "decoder_generate.py"])
def test_a_full_standard_output(tmp_path, tiny_mnist, script):
    """One line, and status 2."""
    digits = ["--data", tiny_mnist] if script == "auto_encoder.py" else []
    result = in_bash("> /dev/full", script, "--out", tmp_path, *digits)
    assert result.returncode == 2
    assert result.stderr == f"{script}: standard output: No space left on device\n"


def test_an_interactive_session_goes_on(tmp_path):
    """After `python -i` Ctrl-C does what it usually does, and the script's names are there."""
    script = PROJECT / "decoder_generate.py"
    words = [sys.executable, "-i", script, "--count", "1", "--out", tmp_path]
    asked = "import signal\nprint(signal.getsignal(2) is signal.default_int_handler, OUT.name)\n"
    result = subprocess.run(words, input=asked, capture_output=True, text=True, timeout=200)
    assert result.stdout.splitlines()[-1] == "True imgs_generated"
    assert "Traceback" not in result.stderr


def test_what_an_import_loads():
    """Neither torchvision, nor, before something is drawn, Matplotlib."""
    line = "import sys, auto_encoder, decoder_generate, lib.figures; "
    line += "print({'matplotlib', 'torchvision'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", line], cwd=PROJECT, capture_output=True, text=True
    )
    assert (result.stdout, result.stderr) == ("set()\n", "")


# --- The source -------------------------------------------------------------------------------

HOMEWORK = {"auto_encoder", "decoder_generate", "models", "data"}


def test_data_flows_one_way():
    """Scripts -> models, data -> lib; nothing imports a script, and no module itself."""
    assert {path.stem for path in PROJECT.glob("*.py")} == HOMEWORK
    imports = {}
    for path in [*PROJECT.glob("*.py"), *PROJECT.glob("lib/*.py")]:
        module = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
        imports[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imports[module] |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imports[module] |= {node.module, *(f"{node.module}.{n.name}" for n in node.names)}
    assert len(imports) > 10
    for module, imported in imports.items():
        assert not {"auto_encoder", "decoder_generate"} & imported
        if module not in ("auto_encoder", "decoder_generate"):
            assert not HOMEWORK & imported
    list(graphlib.TopologicalSorter(imports).static_order())  # raises an error if there is a circle
