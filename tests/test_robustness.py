"""The scripts under kills, full disks, other runs at once, and in other people's environments.

The long version is tests/stress.py; damaged input has a file of its own, test_damage.py.
"""

import ast
import contextlib
import graphlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    PROJECT,
    assert_one_line,
    call,
    command,
    contents,
    digests,
    flags,
    no_file_larger_than,
    start,
)
from test_files import unprivileged  # noqa: F401 (a fixture)

import auto_encoder
import cli
import decoder_generate
from files import replace_images
from models import load_checkpoint


def test_killed_twice_and_resumed(tmp_path, tiny_mnist):
    """Killed in the second epoch and after the last one; --resume ends as an unbroken run."""
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    options = {"model": "ae", "epochs": 3, "batch_size": 50}
    assert call(auto_encoder, *flags(unbroken, tiny_mnist, **options)).status == 0
    arguments = flags(killed, tiny_mnist, **options)
    for epoch, options in ((0, []), (2, ["--resume"])):
        process = start("auto_encoder.py", *arguments, *options)
        while not process.stdout.readline().startswith(f"epoch {epoch}:"):
            assert process.poll() is None
        process.kill()
        process.communicate()
        assert load_checkpoint(killed / "vae.safetensors").metadata["epochs"] > epoch
    assert (killed / ".vae.safetensors.lock").exists()
    assert call(auto_encoder, *arguments, "--resume").status == 0
    assert digests(killed) == digests(unbroken)
    assert not list(killed.rglob(".*"))


def test_two_runs_at_once(tmp_path, tiny_mnist):
    """The same outputs are refused; others in the same folder are not; the first run ends well."""
    arguments = flags(tmp_path, tiny_mnist, model="ae")
    first = start("auto_encoder.py", *arguments)
    assert first.stdout.readline().startswith("epoch 0:")
    first.send_signal(signal.SIGSTOP)
    before = contents(tmp_path)
    assert_one_line(call(auto_encoder, *arguments), "vae.safetensors", "another run")
    same_scatter = {"checkpoint": tmp_path / "other", "model": "ae"}
    assert_one_line(call(auto_encoder, *flags(tmp_path, tiny_mnist, **same_scatter)), "encoder.png")
    assert contents(tmp_path) == before
    others = same_scatter | {"scatter": tmp_path / "other.png"}
    assert call(auto_encoder, *flags(tmp_path, tiny_mnist, **others)).status == 0
    first.send_signal(signal.SIGCONT)
    stdout, stderr = first.communicate(timeout=100)
    assert (first.returncode, stderr) == (0, "")
    assert stdout.startswith("epoch 1:")
    written = ["encoder.png", "vae.json", "vae.resume.safetensors", "vae.safetensors"]
    written += ["other", "other.json", "other.png", "other.resume.safetensors"]
    assert sorted(os.listdir(tmp_path)) == sorted(written)


@pytest.fixture
def finished(tmp_path, trained):
    """A copy of a finished run, with generated images."""
    shutil.copytree(trained, tmp_path / "finished")
    replace_images(tmp_path / "finished/images", [b"an older image"])
    return tmp_path / "finished"


def test_full_disk_is_found_before_training(finished, tiny_mnist, monkeypatch):
    before = contents(finished)
    generate = "--checkpoint", finished / "vae.safetensors", "--out", finished / "images"
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
        arguments = flags(finished, tiny_mnist, figures=finished / "figures")
        assert_one_line(call(auto_encoder, *arguments), finished / "vae.safetensors", "MB")
        patched.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        assert_one_line(call(decoder_generate, *generate), finished / "images", "MB")
    with no_file_larger_than(100):
        assert_one_line(call(decoder_generate, *generate), finished / "images", "too large")
    assert contents(finished) == before


def test_disk_that_fills_up_in_training(tmp_path, tiny_mnist, monkeypatch):
    """The files of the last epoch for which there was room stay, and --resume goes on."""
    train_epoch = auto_encoder.train_epoch
    with contextlib.ExitStack() as full, monkeypatch.context() as patched:

        def filling(*arguments):
            if arguments[4] == 1:
                full.enter_context(no_file_larger_than(5 * 10**6))
            return train_epoch(*arguments)

        patched.setattr(auto_encoder, "train_epoch", filling)
        result = call(auto_encoder, *flags(tmp_path, tiny_mnist))
    assert_one_line(result, "vae.resume.safetensors", "too large")
    assert load_checkpoint(tmp_path / "vae.safetensors").metadata["epochs"] == 1
    assert not list(tmp_path.rglob(".*"))
    assert call(auto_encoder, *flags(tmp_path, tiny_mnist), "--resume").status == 0


@pytest.mark.parametrize("flag", ["checkpoint", "scatter", "figures"])
def test_folder_without_permission(unprivileged, tiny_mnist, monkeypatch, flag):  # noqa: F811
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    locked = unprivileged / "locked"
    locked.mkdir()
    (locked / "encoder.png").write_bytes(b"mine")
    locked.chmod(0o555)
    path = locked if flag == "figures" else locked / "encoder.png"
    result = call(auto_encoder, *flags(unprivileged, tiny_mnist, **{flag: path}))
    assert_one_line(result, path, "Permission denied")
    assert contents(locked) == {"encoder.png": b"mine"}


def test_out_of_memory(capsys):
    """One line that says so; other errors of the kind are not hidden."""

    def fails(error):
        raise error

    allocator = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 10 bytes")
    for error in (MemoryError(), allocator):
        with pytest.raises(SystemExit):
            cli.run(lambda error=error: fails(error))
        assert "not enough memory" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a bug"):
        cli.run(lambda: fails(RuntimeError("a bug")))


HOSTILE = {
    "LC_ALL": "C",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONUTF8": "0",
    "MPLBACKEND": "none-such",
    "PYTHONOPTIMIZE": "2",  # no docstrings
}


def test_hostile_environment(tmp_path, tiny_mnist, monkeypatch):
    """Relative non-ASCII paths in an ASCII locale, no display, an odd matplotlibrc, python -OO."""
    folder, options = tmp_path / "Übung 4, 数字", {"model": "ae", "epochs": 1}
    folder.mkdir()
    (folder / "matplotlibrc").write_text("text.usetex: True\nfigure.facecolor: red\nno: such\n")
    arguments = flags(Path("out 'é"), tiny_mnist, **options)
    result = command("auto_encoder.py", *arguments, cwd=folder, env=HOSTILE)
    assert (result.returncode, result.stderr) == (0, "")
    assert call(auto_encoder, *flags(tmp_path / "usual", tiny_mnist, **options)).status == 0
    usual, here = tmp_path / "usual/encoder.png", folder / "out 'é/encoder.png"
    assert here.read_bytes() == usual.read_bytes()
    monkeypatch.chdir(folder)
    arguments = ("--checkpoint", "out 'é/vae.safetensors", "--out", "20 Bilder für dich")
    result = call(decoder_generate, *arguments)
    assert (result.status, result.stderr) == (0, "")
    assert len(list((folder / "20 Bilder für dich").iterdir())) == 20


@pytest.mark.parametrize("script", ["auto_encoder.py", "decoder_generate.py"])
def test_help(script):
    """Also without docstrings."""
    result = command(script, "--help", env=os.environ | {"PYTHONOPTIMIZE": "2"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "--seed" in result.stdout


WINDOWS = """
import os, shutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
shutil.disk_usage = lambda path, statvfs=os.statvfs: shutil._ntuple_diskusage(
    *(lambda status: (0, 0, status.f_bavail * status.f_frsize))(statvfs(path))
)
for name in '''O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC O_DSYNC O_CLOEXEC O_NOCTTY fork forkpty
        statvfs fstatvfs chown fchown lchown fchmod getuid geteuid getgid getegid setuid getpgid
        killpg mkfifo mknod nice openpty pread pwrite sched_getaffinity sched_setaffinity sendfile
        setsid sync sysconf'''.split():
    delattr(os, name)
"""


def test_without_what_windows_lacks(tmp_path, tiny_mnist):
    """A start as there: POSIX modules cannot be imported, and os has but the names it has there."""
    (tmp_path / "sitecustomize.py").write_text(WINDOWS)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONWARNINGS": "ignore:only soft"}
    proof = "import os; assert not hasattr(os, 'O_DIRECTORY'); import fcntl"
    proof = subprocess.run([sys.executable, "-c", proof], env=environment, capture_output=True)
    assert b"No module named 'fcntl'" in proof.stderr
    folder = tmp_path / "out"
    arguments = flags(folder, tiny_mnist, model="ae", epochs=1, figures=folder / "figures")
    result = command("auto_encoder.py", *arguments, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(digests(folder)) == 7
    arguments = ("--checkpoint", folder / "vae.safetensors", "--out", folder / "images")
    result = command("decoder_generate.py", *arguments, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(os.listdir(folder / "images")) == [f"{n:02d}.png" for n in range(20)]
    assert not list(folder.rglob(".*"))


SAY = "import cli; cli.run(lambda: [print('a line', flush=True) for _ in range(3)])"
HELP = "import cli; cli.run(lambda: cli.Parser('').parse_args(['--help']))"
CLOSED = "-c: standard output was closed; what was written before is whole\n"


FULL = "-c: input or output: No space left on device\n"


@pytest.mark.parametrize(
    ("program", "redirection", "status", "complaint"),
    [
        (SAY, "| true", 2, CLOSED),
        (SAY, "> /dev/full", 2, FULL),
        (SAY, ">&-", 0, ""),
        (SAY, "2>&-", 0, ""),
        (SAY, ">&- 2>&- <&-", 0, ""),
        (HELP, "| true", 2, CLOSED),
        (HELP, "> /dev/full", 2, FULL),
        (HELP, "2>&-", 0, ""),
    ],
)
def test_standard_output_that_nobody_reads(program, redirection, status, complaint):
    shell = f'set -o pipefail; "$0" -c "$1" {redirection}'
    result = subprocess.run(
        ["bash", "-c", shell, sys.executable, program],
        cwd=PROJECT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (status, complaint)


def test_import_from_elsewhere(tmp_path):
    """It runs nothing, needs no torchvision, and draws nothing yet."""
    program = (
        "import sys, auto_encoder, decoder_generate, plots; "
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


def test_data_flows_one_way():
    """No module imports a script, and none imports itself by way of others."""
    imports = {}
    for path in [*PROJECT.glob("*.py"), *PROJECT.glob("benchmarks/*.py")]:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        imports[path.stem] = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        for node in nodes:
            if isinstance(node, ast.Import):
                imports[path.stem] |= {alias.name for alias in node.names}
    assert not {"auto_encoder", "decoder_generate"} & set().union(*imports.values())
    assert {"data", "models", "plots"} <= set(graphlib.TopologicalSorter(imports).static_order())


@pytest.mark.parametrize(
    "options", [{}, {"latent_dim": 5}, {"model": "ae", "latent_dim": 8}, {"encoder": "network"}]
)
@pytest.mark.parametrize("lr", [10, 1e6])
def test_diverging_loss(finished, small_mnist, options, lr):
    """Exit 2 before anything is replaced."""
    before = contents(finished)
    assert_one_line(call(auto_encoder, *flags(finished, small_mnist, lr=lr, **options)), "--lr")
    assert contents(finished) == before


def test_diverging_in_a_later_epoch(tmp_path, tiny_mnist, monkeypatch):
    """The checkpoint of the last good epoch stays."""
    train_epoch = auto_encoder.train_epoch

    def poisoned(model, *arguments):
        if arguments[3] == 1:
            model.decoder.net[0].weight.data[0, 0] = torch.nan
        return train_epoch(model, *arguments)

    monkeypatch.setattr(auto_encoder, "train_epoch", poisoned)
    assert_one_line(call(auto_encoder, *flags(tmp_path, tiny_mnist, epochs=3)), "nan nats")
    assert load_checkpoint(tmp_path / "vae.safetensors").metadata["epochs"] == 1


def test_run_reports_what_a_name_holds():
    """A name may hold a line break; the complaint stays one line."""
    program = "import cli; cli.run(lambda: open('no\\nsuch\\udcff'))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert_one_line(
        SimpleNamespace(status=result.returncode, stderr=result.stderr), "no\\nsuch\\udcff"
    )
