"""The scripts under kills, full disks, other runs at once, and in other people's environments.

The long version is tests/stress.py; damaged input has a file of its own, test_damage.py.
"""

import ast
import contextlib
import graphlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROJECT, assert_one_line, call, command, contents, digests, flags, start

# isort: split
from conftest import no_file_larger_than

import auto_encoder
import decoder_generate
from lib import plots
from lib.files import replace_images
from models import load_checkpoint


def until(process, epoch):
    """Read what it prints until the line of that epoch."""
    while not process.stdout.readline().startswith(f"epoch {epoch}:"):
        assert process.poll() is None


def test_stopped_in_every_way_and_resumed(tmp_path, tiny_mnist):
    """Another run is refused; after kill -9, Ctrl-C and kill -9 it ends as an unbroken one does."""
    options = {"epochs": 8, "batch_size": 100, "validation": 50}
    folders = tmp_path / "broken", tmp_path / "whole"
    broken, whole = (flags(f, tiny_mnist, figures=f / "figures", **options) for f in folders)
    checkpoint = tmp_path / "broken/vae.safetensors"
    assert call(auto_encoder, *whole).status == 0

    first = start("auto_encoder.py", *broken)
    until(first, 0)
    first.send_signal(signal.SIGSTOP)
    before = contents(tmp_path)
    assert_one_line(call(auto_encoder, *broken), checkpoint, "another run")
    assert contents(tmp_path) == before
    first.kill()
    first.communicate()
    assert checkpoint.with_name(".vae.safetensors.lock").exists()

    second = start("auto_encoder.py", *broken, "--resume")
    until(second, 1)
    second.send_signal(signal.SIGINT)
    _, stderr = second.communicate(timeout=60)
    assert second.returncode == 130
    saved = re.fullmatch(r"auto_encoder.py: interrupted after (\d+) epochs; .*--resume.*\n", stderr)
    assert 2 <= load_checkpoint(checkpoint).metadata["epochs"] <= int(saved[1]) + 1
    assert not list(tmp_path.rglob(".*"))

    third = start("auto_encoder.py", *broken, "--resume")
    until(third, 2)
    third.kill()
    third.communicate()
    assert call(auto_encoder, *broken, "--resume").status == 0
    assert {"vae.safetensors", "encoder.png", "figures/loss.png"} < set(digests(folders[0]))
    assert digests(folders[0]) == digests(folders[1])
    assert not list(tmp_path.rglob(".*"))
    assert not list(tmp_path.rglob("*.resume.*"))  # nothing is left to continue


def test_older_outputs_stay(tmp_path, trained, small_mnist, monkeypatch):
    """When the loss diverges from the start, and on a full disk, which is found before training."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    replace_images(tmp_path / "images", [plots.image_png_bytes(np.zeros(784))])
    generate = "--checkpoint", tmp_path / "vae.safetensors", "--out", tmp_path / "images"
    before, room = contents(tmp_path), SimpleNamespace(free=10**6)
    for options in ({"lr": 10}, {"lr": 1e6}, {"lr": 1e6, "model": "ae", "latent_dim": 8}):
        assert_one_line(call(auto_encoder, *flags(tmp_path, small_mnist, **options)), "--lr")
    with no_file_larger_than(100):
        assert_one_line(call(decoder_generate, *generate), tmp_path / "images", "too large")
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    assert_one_line(call(auto_encoder, *flags(tmp_path, small_mnist)), "vae.safetensors", "MB")
    room.free = 1000
    assert_one_line(call(decoder_generate, *generate), tmp_path / "images", "MB")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("model", "trouble"), [("vae", "too large"), ("ae", "--lr")])
def test_trouble_in_the_second_epoch(tmp_path, tiny_mnist, monkeypatch, model, trouble):
    """A full disk, or a diverging loss: what the first epoch left stays, and --resume goes on."""
    train_epoch, arguments = auto_encoder.train_epoch, flags(tmp_path, tiny_mnist, model=model)
    with contextlib.ExitStack() as full, monkeypatch.context() as patched:

        def troubled(model, *arguments):
            epoch = arguments[2]
            if epoch == 1 and trouble == "--lr":
                model.decoder.net[0].weight.data[0, 0] = torch.nan
            elif epoch == 1:
                full.enter_context(no_file_larger_than(5 * 10**6))
            return train_epoch(model, *arguments)

        patched.setattr(auto_encoder, "train_epoch", troubled)
        assert_one_line(call(auto_encoder, *arguments), trouble)
    assert load_checkpoint(tmp_path / "vae.safetensors").metadata["epochs"] == 1
    assert not list(tmp_path.rglob(".*"))
    assert call(auto_encoder, *arguments, "--resume").status == 0


BRIEF = {"model": "ae", "latent_dim": 2, "epochs": 1}
REDIRECTIONS = {  # of bash: the exit status of a good training, and of bad input
    "<&-": (0, 2),
    ">&-": (0, 2),
    "2>&-": (0, 2),
    ">&- 2>&-": (0, 2),
    "<&- >&- 2>&-": (0, 2),
    "> /dev/full": (2, 2),
    "2> /dev/full": (0, 2),
    "> /dev/full 2> /dev/full": (2, 2),
    "| true": (2, 2),
    "2>&1 | true": (2, 2),
}


def in_bash(redirection, script, *arguments):
    """A script's exit status and what reaches standard error, with its streams redirected."""
    line = f'set -o pipefail; "$0" "$@" {redirection}'
    command = ["bash", "-c", line, sys.executable, PROJECT / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("redirection", REDIRECTIONS)
def test_streams_that_are_closed_full_or_broken(tmp_path, tiny_mnist, redirection):
    """The work is done, or the status is 2, and never a traceback."""
    good, bad = REDIRECTIONS[redirection]
    arguments = flags(tmp_path, tiny_mnist, **BRIEF)
    result = in_bash(redirection, "auto_encoder.py", *arguments)
    # A pipe may be closed before or after the last line was written to it.
    assert result.returncode in ((good, 0) if "|" in redirection else (good,)), result.stderr
    assert "Traceback" not in result.stderr
    if result.returncode == 0:
        assert (tmp_path / "encoder.png").exists()
    missing = "--checkpoint", tmp_path / "none", "--out", tmp_path / "images"
    result = in_bash(redirection, "decoder_generate.py", *missing)
    assert result.returncode == bad
    assert "Traceback" not in result.stderr


FAILED_IMPORTS = {  # what a module that is missing or cannot be loaded does when it is imported
    "torch": "raise ImportError('libtorch_cpu.so: failed to map segment from shared object')",
    "numpy": "raise ModuleNotFoundError('No module named numpy')",
    "safetensors": "raise OSError('cannot open\\nshared object file')",
}


@pytest.mark.parametrize("module", FAILED_IMPORTS)
@pytest.mark.parametrize("script", ["auto_encoder.py", "decoder_generate.py"])
def test_a_package_that_cannot_be_imported(tmp_path, script, module):
    """As before the README's first command, or with too little memory."""
    (tmp_path / f"{module}.py").write_text(FAILED_IMPORTS[module])
    result = command(script, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert_one_line(result, "cannot be imported", "requirements.txt")


INTERRUPT_AT_IMPORT = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
"""


@pytest.mark.parametrize("module", ["numpy", "torch", "torch.nn", "torch.optim", "tqdm", "data"])
@pytest.mark.parametrize("script", ["auto_encoder.py", "decoder_generate.py"])
def test_ctrl_c_while_modules_are_imported(tmp_path, script, module):
    """One line, and exit status 130."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT_AT_IMPORT)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "INTERRUPT_AT": module}
    if script == "decoder_generate.py" and module in ("tqdm", "data"):
        module = environment["INTERRUPT_AT"] = "safetensors"
    result = command(script, "--data", "none" if script == "auto_encoder.py" else "x",
                     env=environment)  # fmt: skip
    assert (result.status, result.stdout) == (130, "")
    assert result.stderr == f"{script}: interrupted\n"


TWO_INTERRUPTIONS = """
import atexit, os, signal
from lib import cli, start

start.prepare()
again = lambda: os.kill(os.getpid(), signal.SIGINT)
atexit.register(again)

class Stream:
    def write(self, text):
        again()
        return os.write(2, text.encode())
    def flush(self):
        again()

def main():
    import sys
    sys.stderr = Stream()
    again()

cli.run(main)
"""


SOON_AGAIN = """
import os, signal
from lib import cli, start

start.prepare()

def main():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        print("put in order")

cli.run(main)
"""


@pytest.mark.parametrize("program", [TWO_INTERRUPTIONS, SOON_AGAIN])
def test_a_second_ctrl_c(program):
    """While things are put in order, while the line is written, and when Python ends."""
    options = {"cwd": PROJECT, "capture_output": True, "text": True}
    result = subprocess.run([sys.executable, "-c", program], **options)
    assert (result.returncode, result.stderr) == (130, "-c: interrupted\n")
    assert result.stdout == ("put in order\n" if program is SOON_AGAIN else "")


def test_a_run_in_the_background_ignores_ctrl_c(tmp_path):
    """As a shell without job control has it: then it is not for the scripts to answer."""
    program = (
        "import signal; signal.signal(2, signal.SIG_IGN); from lib import start; start.prepare();"
    )
    program += "assert signal.getsignal(2) is signal.SIG_IGN"
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True)


def test_settings_of_matplotlib_that_are_no_text(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"font.size: \xff\n")
    result = command("decoder_generate.py", "--out", "images", cwd=tmp_path)
    assert_one_line(result, "matplotlibrc", "cannot be read")


def test_memory_that_runs_out_is_no_damage(trained, tmp_path, monkeypatch):
    """Neither as Python tells it nor as PyTorch does."""
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):

        def fail(*_, error=error):
            raise error

        arguments = "--checkpoint", trained / "vae.safetensors", "--out", tmp_path
        with monkeypatch.context() as patched:
            patched.setattr("safetensors.torch.load", fail)
            assert_one_line(call(decoder_generate, *arguments), "not enough memory")


WINDOWS = """
import os, shutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(0, 0, 10**9)
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
    environment |= {"PYTHONOPTIMIZE": "2", "MPLBACKEND": "none-such", "PYTHONPATH": str(tmp_path)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:only soft"}
    environment["HOME"] = str(tmp_path)  # where old versions of matplotlib look for settings
    proof = "import os; hasattr(os, 'O_DIRECTORY') or __import__('fcntl')"
    proof = subprocess.run([sys.executable, "-c", proof], env=environment, capture_output=True)
    assert b"No module named 'fcntl'" in proof.stderr
    there, options = {"cwd": folder, "env": environment}, {"model": "ae", "epochs": 1}
    assert call(auto_encoder, *flags(tmp_path / "usual", tiny_mnist, **options)).status == 0
    train = "auto_encoder.py", *flags(out, tiny_mnist, **options)
    generate = "decoder_generate.py", "--checkpoint", out / "vae.safetensors", "--out", images
    for line in (train, generate):
        result = command(*line, **there)
        assert (result.status, result.stderr) == (0, "")
    assert digests(folder / out) == digests(tmp_path / "usual")
    assert sorted(os.listdir(folder / images)) == [f"{n:02d}.png" for n in range(20)]
    assert not list(folder.rglob(".*"))


SAY = "from lib import cli; cli.run(lambda: [print('a line', flush=True) for _ in range(3)])"
GENERATE = "from lib import cli; import decoder_generate; cli.run(decoder_generate.main)"


@pytest.mark.parametrize(
    ("program", "redirection", "status", "complaint"),
    [
        (SAY, "| true", 2, "-c: standard output: Broken pipe\n"),
        (SAY, ">&- 2>&- <&-", 0, ""),
        (GENERATE, "--help > /dev/full", 2,
         "-c: standard output: No space left on device\n"),
        ("from lib import cli; cli.run(lambda: open('no\\nsuch\\udcff'))", "", 2,
         "-c: no\\nsuch\\udcff: No such file or directory\n"),
        # What was wrong is said, not that nobody hears it on the other stream.
        (GENERATE, "--codes none --checkpoint missing > /dev/full", 2,
         "-c: missing: no such file; auto_encoder.py makes a new one\n"),
        # When the work is done, Ctrl-C says no more.
        ("import atexit, os; from lib import cli, start; start.prepare(); "
         "atexit.register(lambda: os.kill(os.getpid(), 2)); cli.run(lambda: print('done'))", "", 0,
         ""),
        ("from lib import cli; import torch; "
         "cli.run(lambda: torch.empty(10**15), memory_advice='take a rest')", "", 2,
         "-c: not enough memory; take a rest\n"),
        ("import sys, models; assert not {'matplotlib', 'torchvision'} & set(sys.modules)",
         "", 0, ""),
        # An import runs nothing, needs no torchvision, and draws nothing yet.
        ("import sys, auto_encoder, decoder_generate; from lib import cli, plots; "
         "assert not {'matplotlib', 'torchvision'} & set(sys.modules); cli.run(auto_encoder.main)",
         "--help | grep -q epochs", 0, ""),
    ],
)  # fmt: skip
def test_one_line_where_python_would_show_a_traceback(program, redirection, status, complaint):
    shell = f'set -o pipefail; "$0" -c "$1" {redirection}'
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON")}
    options = {"cwd": PROJECT, "env": environment, "capture_output": True, "text": True}
    result = subprocess.run(["bash", "-c", shell, sys.executable, program], **options)
    assert (result.returncode, result.stderr) == (status, complaint)


HOMEWORK = {"auto_encoder", "decoder_generate", "models", "data"}


def test_the_top_level_is_the_homework():
    assert {path.stem for path in PROJECT.glob("*.py")} == HOMEWORK


def test_data_flows_one_way():
    """Scripts -> models, data -> lib; nothing imports a script, and no module itself."""
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
        if module in ("models", "data"):
            assert not HOMEWORK & imported
        if module.startswith("lib"):
            assert not HOMEWORK & imported
    list(graphlib.TopologicalSorter(imports).static_order())  # raises an error if there is a circle


def test_the_library_names_no_flag_of_the_scripts():
    flags = re.findall(r"--[a-z-]{3,}", call(auto_encoder, "--help").stdout)
    assert "--epochs" in flags
    for path in PROJECT.glob("lib/*.py"):
        code = path.read_text(encoding="utf-8")
        assert not [flag for flag in flags if flag in code.replace("--help", "")], path


@pytest.mark.parametrize("module", sorted(path.stem for path in PROJECT.glob("lib/*.py")))
def test_each_file_of_the_library_works_without_the_homework(tmp_path, module):
    """It is copied elsewhere, with lib/ alone."""
    shutil.copytree(PROJECT / "lib", tmp_path / "lib")
    name = "lib" if module == "__init__" else f"lib.{module}"
    program = f"import sys, {name}; assert not {{'matplotlib', 'torchvision'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
