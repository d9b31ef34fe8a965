"""What test_robustness.py does in seconds, at length.

    python tests/stress.py kills     # 200 SIGKILLs at random times: about 20 minutes
    python tests/stress.py disks     # full and read-only ones; on Linux, as root: 6 minutes

Each stops with a traceback at the first thing that is wrong, and else puts what it counted into
tests/stress.json.
"""

import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import assert_one_line, command, contents, digests, flags, start, write_idx_folder

from data import MNIST, load_digits
from models import load_checkpoint

EPOCHS = 12
KILLS = 200
KILLS_IN_A_ROW = 8
CHECKPOINT = "checkpoints/vae.safetensors"
RESUME = "checkpoints/vae.resume.pt"
SMALL_DISKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)  # MB; a run needs up to 10
LARGE_DISK = 40
FILLER = "filler"


def small_data(folder):
    images, labels = load_digits(MNIST, "train")
    train = images[:2000], labels[:2000]
    test = images[2000:2300], labels[2000:2300]
    return write_idx_folder(folder / "data", train, test)


def training(folder, data, *options):
    """auto_encoder.py's command line for a short training whose outputs are in `folder`."""
    return "auto_encoder.py", *flags(folder, data, epochs=EPOCHS, threads=1), *options


def generating(folder, checkpoint, count=20, seed=0):
    files = ("--checkpoint", checkpoint, "--out", folder / "images")
    return "decoder_generate.py", *files, "--count", count, "--seed", seed


def succeed(*arguments):
    """Run a script to its end; the seconds it took."""
    started = time.monotonic()
    result = command(*arguments)
    assert (result.status, result.stderr) == (0, ""), result.stderr
    return time.monotonic() - started


def resuming(folder):
    """The option with which a training goes on, if one was stopped."""
    return ["--resume"] if (folder / RESUME).exists() else []


# --- What is whole ----------------------------------------------------------------------------


def check_page(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.endswith("</html>\n")


READERS = {
    ".png": lambda path: Image.open(path).load(),
    ".html": check_page,
    ".json": lambda path: json.loads(path.read_text()),
    ".safetensors": load_checkpoint,
    ".pt": lambda path: torch.load(path, weights_only=True),
}


def check_whole(folder):
    """Load every file that is at its final name."""
    for name in contents(folder):
        path = folder / name
        is_hidden = path.name.startswith(".")
        if not is_hidden and path.name != FILLER:
            READERS[path.suffix](path)


# --- Kills ------------------------------------------------------------------------------------


def killed(seconds, *arguments):
    """SIGKILL a script some seconds after its start; what it did, or None if it was done."""
    process = start(*arguments)
    try:
        _, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, _ = process.communicate()
        if not stdout:
            return "starting"
        return "evaluating, drawing and writing" if "evaluating" in stdout else "training"
    assert (process.returncode, stderr) == (0, "")
    return None


def kills():
    """Kill trainings and generations, a few in a row; then let one end as if nothing had been."""
    count = Counter()
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        out = folder / "out"
        data = small_data(folder)
        checkpoint = folder / "unbroken" / CHECKPOINT
        longest = succeed(*training(folder / "unbroken", data))
        unbroken = digests(folder / "unbroken")
        image_sets = []
        for size in (20, 30):
            shorter = succeed(*generating(folder / f"{size}", checkpoint, size))
            image_sets.append(contents(folder / f"{size}/images"))

        def after_a_kill(doing):
            check_whole(out)
            for path in out.glob("images/*.png"):  # each whole, of one set or the other
                assert path.read_bytes() in [images.get(path.name) for images in image_sets]
            count["kills"] += 1
            count[doing] += 1
            if any(out.rglob(".*.tmp")):
                count["temporary files left for the next run"] += 1
            if any(out.rglob(".lock")):
                count["locks left for the next run"] += 1

        while count["kills"] < KILLS:
            options = []
            for _ in range(KILLS_IN_A_ROW):
                seconds = chance.uniform(0.2, 1) * longest
                doing = killed(seconds, *training(out, data, *options))
                if doing:
                    after_a_kill(doing)
                options = resuming(out)
            succeed(*training(out, data, *options))
            assert unbroken.items() <= digests(out).items()
            assert not (out / RESUME).exists()
            for size in (30, 20):
                seconds = chance.uniform(0.5, 1) * shorter
                if killed(seconds, *generating(out, checkpoint, size)):
                    after_a_kill("generating")
            succeed(*generating(out, checkpoint))
            assert not any(out.rglob(".*"))
    return dict(count)


# --- Disks ------------------------------------------------------------------------------------


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


def make_room(folder):
    """Enlarge a disk, and take away what filled it."""
    subprocess.run(["mount", "-o", f"remount,size={LARGE_DISK}m", folder], check=True)
    (folder / FILLER).unlink(missing_ok=True)


def fill(folder, leave=0):
    """Take all room on a disk but `leave` bytes."""
    free = shutil.disk_usage(folder).free
    (folder / FILLER).write_bytes(bytes(max(free - leave, 0)))


def refused(folder, result):
    """A full disk got its one line, and nothing is half-written."""
    assert_one_line(result, "its disk is full")
    check_whole(folder)
    assert not any(folder.rglob(".*"))
    return "when it trained" if "epoch 0" in result.stdout else "before the first epoch was saved"


def train_on(folder, data, whole, *options):
    """Train on a small disk; if it gets full, make room and go on, to the usual end."""
    result = command(*training(folder, data, *options))
    done = "room enough"
    if result.status != 0:
        done = f"full {refused(folder, result)}, then as usual"
        make_room(folder)
        succeed(*training(folder, data, *options, *resuming(folder)))
    assert digests(folder) == whole
    return done


def disks():
    """Trainings and generations on disks of several sizes, with more or less room, read-only."""
    count = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = small_data(folder)
        out = folder / "disk"
        checkpoint = folder / "whole" / CHECKPOINT
        succeed(*training(folder / "whole", data))
        succeed(*training(folder / "other", data, "--seed", 1))
        whole = digests(folder / "whole")
        other = digests(folder / "other")
        for megabytes in SMALL_DISKS:
            with disk(out, megabytes):
                count["empty disk: " + train_on(out, data, whole)] += 1
        for kilobytes in (0, 4, 100, 1000, 3000, 6000):
            with disk(out, LARGE_DISK):
                shutil.copytree(folder / "whole", out, dirs_exist_ok=True)
                fill(out, 1024 * kilobytes)
                count["older outputs: " + train_on(out, data, other, "--seed", 1)] += 1
        with disk(out, LARGE_DISK):
            process = start(*training(out, data))
            while not process.stdout.readline().startswith("epoch 0:"):
                assert process.poll() is None
            fill(out)
            _, stderr = process.communicate(timeout=200)
            assert (process.returncode, stderr.count("\n")) == (2, 1)
            check_whole(out)
            make_room(out)
            succeed(*training(out, data, "--resume"))
            assert digests(out) == whole
            count["filled up in training, resumed to the same end"] += 1
        for place in (out, out / "images"):
            with disk(place, 1):
                succeed(*generating(out, checkpoint))
                fill(place)
                before = contents(out)
                result = command(*generating(out, checkpoint, 200, 1))
                refused(out, result)
                assert contents(out) == before
                count["generating: refused, older images untouched"] += 1
        with disk(out, LARGE_DISK, "ro"):
            for arguments in (training(out, data), generating(out, checkpoint)):
                assert_one_line(command(*arguments), out)
                assert not contents(out)
                count["read-only disk: refused"] += 1
    return dict(count)


def main():
    results = Path(__file__).with_name("stress.json")
    for name in sys.argv[1:] or ("kills", "disks"):
        started = time.monotonic()
        found = {"kills": kills, "disks": disks}[name]()
        found["seconds"] = round(time.monotonic() - started)
        print(name, found, flush=True)
        recorded = json.loads(results.read_text()) if results.exists() else {}
        results.write_text(json.dumps(recorded | {name: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
