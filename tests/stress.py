"""What test_robustness.py does in seconds, at length and with the scripts themselves.

    python tests/stress.py kills     # 200 SIGKILLs at random times: about 10 minutes
    python tests/stress.py disks     # full and read-only ones; on Linux, as root: 5 minutes

Each stops with a traceback at the first thing that is wrong, and else puts what it counted into
tests/stress.json. For damaged input there is a long version of test_damage.py.
"""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import MNIST, PROJECT, command, contents, start, write_idx_folder

from data import load_digits
from files import write_files
from models import load_checkpoint
from tensor_files import read_tensors
from training import RESUME_FORMAT

EPOCHS = 12
KILLS = 200
KILLS_IN_A_ROW = 8
LAST_LINE = f"epoch {EPOCHS - 1}:"
AFTER_LAST = "evaluating, drawing and writing"
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def small_data(folder):
    images, labels = load_digits(MNIST, "train")
    pairs = [(images[part], labels[part]) for part in (slice(0, 2000), slice(2000, 2300))]
    return write_idx_folder(folder / "data", *pairs)


def training(folder, data, *options):
    """auto_encoder.py's command line for a short training whose outputs are in `folder`."""
    files = ("--checkpoint", folder / "vae.safetensors", "--scatter", folder / "encoder.png")
    files += ("--figures", folder / "figures", "--data", data)
    return "auto_encoder.py", *files, "--epochs", EPOCHS, "--threads", 1, *options


def generating(folder, checkpoint, count, seed):
    files = ("--checkpoint", checkpoint, "--out", folder / "images")
    return "decoder_generate.py", *files, "--count", count, "--seed", seed


def succeed(*arguments):
    result = command(*arguments, env=ONE_THREAD)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


def refuse(*arguments):
    """Run a script that must end with one line and exit status 2; return its standard output."""
    result = command(*arguments, env=ONE_THREAD)
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stdout


def digests(folder):
    """Of all that the same command leaves the same; the .json has times in it."""
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in contents(folder).items()
        if name.endswith((".png", "vae.safetensors"))
    }


def check_whole(folder):
    """Load every file that is at its final name."""
    for name in contents(folder):
        path = folder / name
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name == "vae.safetensors":
            load_checkpoint(path)
        elif path.name == "vae.resume.safetensors":
            read_tensors(path, RESUME_FORMAT)
        else:
            assert path.suffix in (".tmp", ".lock") or path.name == "filler", path


def temporaries(folder):
    return list(folder.rglob(".*"))


def killed(lines, seconds, *arguments):
    """SIGKILL a script some seconds after it printed so many lines, or that of the last epoch.

    Returns:
        What it did then, or None if it was done before.
    """
    process = start(*arguments, env=ONE_THREAD)
    line = ""
    for _ in range(lines):
        line = process.stdout.readline()
        if line.startswith(LAST_LINE):
            break
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        line += process.communicate()[0]
        return AFTER_LAST if LAST_LINE in line else "training" if line else "starting"
    assert (process.returncode, process.communicate()[1]) == (0, "")
    return None


def seconds_of_phases(folder, data):
    """Train; the seconds until the first epoch, of an epoch, and from the last one to the end."""
    process = start(*training(folder, data), env=ONE_THREAD)
    times = [time.monotonic()]
    for line in process.stdout:
        if line.startswith("epoch"):
            times.append(time.monotonic())
    assert process.wait() == 0
    epoch = (times[-1] - times[1]) / (EPOCHS - 1)
    return times[1] - times[0] - epoch, epoch, time.monotonic() - times[-1]


class Killer:
    """Kills trainings and generations in a folder of its own, and counts."""

    def __init__(self, folder, seed):
        self.folder, self.random = folder, random.Random(seed)
        self.data = small_data(folder)
        self.count, self.left = Counter(), 0
        self.out = folder / "out"
        self.starting, self.epoch, self.drawing = seconds_of_phases(folder / "unbroken", self.data)
        self.unbroken = digests(folder / "unbroken")
        self.sets = {}
        for count, seed in ((20, 0), (30, 1)):
            arguments = generating(
                folder / f"set{seed}", folder / "unbroken/vae.safetensors", count, seed
            )
            started = time.monotonic()
            succeed(*arguments)
            self.generating = time.monotonic() - started
            self.sets[count, seed] = contents(folder / f"set{seed}/images")
        succeed(*generating(self.out, folder / "unbroken/vae.safetensors", 20, 0))

    def run(self, kills):
        while self.count.total() < kills:
            self.kill_training()
            self.kill_generation()
        assert not temporaries(self.folder)

    def kill_training(self):
        """Kill a training a few times in a row, then let it end: as if nothing had been."""
        options, trained = (), False
        for number in range(KILLS_IN_A_ROW):
            lines = 0 if trained else self.random.randrange(4) if number < 4 else EPOCHS
            share = self.random.uniform(0.3, 1) if trained or lines == 0 else self.random.random()
            seconds = share * (self.drawing if trained or lines == EPOCHS else self.epoch)
            if lines == 0:
                seconds += self.starting
            doing = killed(lines, seconds, *training(self.out, self.data, *options))
            if doing is None:
                break
            trained = trained or doing == AFTER_LAST
            self.count[AFTER_LAST if trained else doing] += 1
            self.after_a_kill()
            if (self.out / "vae.resume.safetensors").exists():
                options = ("--resume",)
        else:
            succeed(*training(self.out, self.data, *options))
        found = digests(self.out)
        assert {name: found[name] for name in self.unbroken} == self.unbroken
        assert not temporaries(self.out)
        (self.out / "vae.resume.safetensors").unlink()

    def kill_generation(self):
        for count, seed in reversed(self.sets):
            arguments = generating(self.out, self.folder / "unbroken/vae.safetensors", count, seed)
            if killed(0, self.random.uniform(0.5, 1) * self.generating, *arguments) is not None:
                self.count["generating"] += 1
                self.after_a_kill()
        succeed(*generating(self.out, self.folder / "unbroken/vae.safetensors", 20, 0))
        assert not temporaries(self.out)

    def after_a_kill(self):
        check_whole(self.out)
        for path in (self.out / "images").glob("*.png"):  # each whole, of one set or the other
            assert path.read_bytes() in [images.get(path.name) for images in self.sets.values()]
        self.left += any(path.suffix == ".tmp" for path in temporaries(self.out))


def kills():
    with tempfile.TemporaryDirectory() as folder:
        killers = [Killer(Path(folder, name), name) for name in "ab"]
        with ThreadPoolExecutor() as pool:  # two at a time, each with one thread
            for half in [pool.submit(killer.run, KILLS / 2) for killer in killers]:
                half.result()
    count = sum((killer.count for killer in killers), Counter())
    left = sum(killer.left for killer in killers)
    return {"kills": count.total(), **count, "temporary files left for the next run": left}


@contextlib.contextmanager
def disk(folder, megabytes, *options):
    """A small file system in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    size = ",".join([f"size={megabytes}m", *options])
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder, leave=0):
    """Take all room on a disk but `leave` bytes."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_bsize
    (folder / "filler").write_bytes(bytes(max(free - leave, 0)))


def disks():
    count = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, out = small_data(folder), folder / "disk"
        succeed(*training(folder / "whole", data))
        whole = digests(folder / "whole")
        for megabytes in (1, 4, 8, 16, 24, 28, 32, 36, 40, 48):
            with disk(out, megabytes):
                result = command(*training(out, data), env=ONE_THREAD)
                check_whole(out)
                assert not temporaries(out)
                if result.returncode == 0:
                    assert digests(out) == whole
                    count["empty disk: room enough"] += 1
                    continue
                assert result.stderr.count("\n") == 1, result.stderr
                assert contents(out) == {}
                assert result.stdout == ""
                count["empty disk: refused before training"] += 1
        for kilobytes in (0, 4, 100, 1000, 3000, 10_000, 15_000, 20_000, 25_000):
            with disk(out, 50):
                succeed(*training(out, data))
                fill(out, 1024 * kilobytes)
                before = contents(out)
                result = command(*training(out, data, "--seed", 1), env=ONE_THREAD)
                if result.returncode == 0:
                    check_whole(out)
                    count["older outputs: room enough"] += 1
                else:
                    assert result.stderr.count("\n") == 1, result.stderr
                    assert result.stdout == ""
                    assert contents(out) == before
                    count["older outputs: refused before training, untouched"] += 1
                assert not temporaries(out)
        with disk(out, 50):
            process = start(*training(out, data), env=ONE_THREAD)
            assert process.stdout.readline().startswith("epoch 0:")
            fill(out)
            _, stderr = process.communicate(timeout=100)
            assert process.returncode == 2
            assert stderr.count("\n") == 1
            check_whole(out)
            (out / "filler").unlink()
            succeed(*training(out, data, "--resume"))
            assert digests(out) == whole
            count["filled up in training, resumed to the same end"] += 1
        for place in (out, out / "images"):
            with disk(place, 1):
                succeed(*generating(out, folder / "whole/vae.safetensors", 20, 0))
                before = contents(out / "images")
                fill(place)
                refuse(*generating(out, folder / "whole/vae.safetensors", 200, 1))
                found = contents(out / "images")
                found.pop("filler", None)
                assert found == before
                assert not temporaries(out)
                count["generating: refused, older images untouched"] += 1
        with disk(out, 50, "ro"):
            assert refuse(*training(out, data)) == ""
            assert refuse(*generating(out, folder / "whole/vae.safetensors", 20, 0)) == ""
            count["read-only disk: refused"] += 2
    return dict(count)


def main():
    stresses = {"kills": kills, "disks": disks}
    results = PROJECT / "tests/stress.json"
    for name in sys.argv[1:] or stresses:
        started = time.monotonic()
        found = stresses[name]()
        found["seconds"] = round(time.monotonic() - started)
        print(name, found, flush=True)
        recorded = json.loads(results.read_text()) if results.exists() else {}
        text = json.dumps(recorded | {name: found}, indent=1) + "\n"
        write_files({results: text.encode()})


if __name__ == "__main__":
    main()
