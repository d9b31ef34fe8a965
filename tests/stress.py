"""What test_robustness.py does in seconds, at length and with the scripts themselves.

    python tests/stress.py kills     # 200 SIGKILLs at random times: about 20 minutes
    python tests/stress.py disks     # full and read-only ones; on Linux, as root: 5 minutes

Each stops with a traceback at the first thing that is wrong, and else puts what it counted into
tests/stress.json. For damaged input there is a long version of test_damage.py.
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

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import assert_one_line, command, contents, digests, flags, start, write_idx_folder

from auto_encoder import RESUME_FORMAT
from data import MNIST, load_digits
from lib import checkpoints
from models import load_checkpoint

EPOCHS, KILLS, KILLS_IN_A_ROW = 12, 200, 8
CHECKPOINT, RESUME = "vae.safetensors", "vae.resume.safetensors"


def small_data(folder):
    images, labels = load_digits(MNIST, "train")
    pairs = [(images[part], labels[part]) for part in (slice(0, 2000), slice(2000, 2300))]
    return write_idx_folder(folder / "data", *pairs)


def training(folder, data, *options):
    """auto_encoder.py's command line for a short training whose outputs are in `folder`."""
    arguments = flags(folder, data, figures=folder / "figures", epochs=EPOCHS, threads=1)
    return "auto_encoder.py", *arguments, *options


def generating(folder, checkpoint, count=20, seed=0):
    files = ("--checkpoint", checkpoint, "--out", folder / "images")
    return "decoder_generate.py", *files, "--count", count, "--seed", seed


def succeed(*arguments):
    """Run a script to its end; the seconds it took."""
    started, result = time.monotonic(), command(*arguments)
    assert (result.status, result.stderr) == (0, ""), result.stderr
    return time.monotonic() - started


def check_whole(folder):
    """Load every file that is at its final name."""
    readers = {".png": lambda path: Image.open(path).load(), CHECKPOINT: load_checkpoint}
    readers |= {".json": lambda path: json.loads(path.read_text())}
    readers |= {".html": check_page}
    readers |= {RESUME: lambda path: checkpoints.read_file(path, RESUME_FORMAT, "train anew")}
    for path in map(folder.joinpath, contents(folder)):
        if path.suffix not in (".tmp", ".lock") and path.name != "filler":
            (readers.get(path.name) or readers[path.suffix])(path)


def check_page(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.endswith("</html>\n")


def killed(seconds, *arguments):
    """SIGKILL a script some seconds after its start; what it did, or None if it was done."""
    process = start(*arguments)
    try:
        _, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, _ = process.communicate()
        later = "evaluating, drawing and writing" if "evaluating" in stdout else "training"
        return later if stdout else "starting"
    assert (process.returncode, stderr) == (0, "")
    return None


def kills():
    """Kill trainings and generations, a few in a row; then let one end as if nothing had been."""
    count, chance = Counter(), random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary), Path(temporary, "out")
        data, checkpoint, sets = small_data(folder), folder / "unbroken" / CHECKPOINT, {}
        longest = succeed(*training(folder / "unbroken", data))
        unbroken = digests(folder / "unbroken")
        for size in (20, 30):
            shorter = succeed(*generating(folder / f"{size}", checkpoint, size))
            sets[size] = contents(folder / f"{size}/images")

        def after_a_kill(doing):
            check_whole(out)
            for path in out.glob("images/*.png"):  # each whole, of one set or the other
                assert path.read_bytes() in [images.get(path.name) for images in sets.values()]
            left = any(out.rglob(".*.tmp"))
            count.update(["kills", doing] + ["temporary files left for the next run"] * left)

        while count["kills"] < KILLS:
            options = ()
            for _ in range(KILLS_IN_A_ROW):
                seconds = chance.uniform(0.2, 1) * longest
                if doing := killed(seconds, *training(out, data, *options)):
                    after_a_kill(doing)
                options = ("--resume",) * (out / RESUME).exists()
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
    (folder / "filler").write_bytes(bytes(max(shutil.disk_usage(folder).free - leave, 0)))


def run_on(disk, arguments, whole=None):
    """Run it; either it is refused before it begins and changes nothing, or it is whole."""
    before, result = contents(disk), command(*arguments)
    check_whole(disk)
    assert not any(disk.rglob(".*"))
    if result.status == 0:
        assert whole in (None, digests(disk))
        return "room enough"
    assert_one_line(result)
    assert (result.stdout, contents(disk)) == ("", before)
    return "refused before training"


def disks():
    count = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, out, checkpoint = small_data(folder), folder / "disk", folder / "whole" / CHECKPOINT
        succeed(*training(folder / "whole", data))
        whole = digests(folder / "whole")
        for megabytes in (1, 8, 16, 32, 48, 64, 72, 80, 96, 120):
            with disk(out, megabytes):
                count["empty disk: " + run_on(out, training(out, data), whole)] += 1
        for kilobytes in (0, 4, 100, 1000, 10_000, 40_000, 70_000, 85_000, 90_000):
            with disk(out, 120):
                succeed(*training(out, data))
                fill(out, 1024 * kilobytes)
                done = run_on(out, training(out, data, "--seed", 1))
                count["older outputs: " + done.replace("training", "training, untouched")] += 1
        with disk(out, 120):
            process = start(*training(out, data))
            assert process.stdout.readline().startswith("data: ")
            assert process.stdout.readline().startswith("placing ")
            assert process.stdout.readline().startswith("epoch 0:")
            fill(out)
            _, stderr = process.communicate(timeout=100)
            assert (process.returncode, stderr.count("\n")) == (2, 1)
            check_whole(out)
            (out / "filler").unlink()
            succeed(*training(out, data, "--resume"))
            assert digests(out) == whole
            count["filled up in training, resumed to the same end"] += 1
        for place in (out, out / "images"):
            with disk(place, 1):
                succeed(*generating(out, checkpoint))
                fill(place)
                assert "refused" in run_on(out, generating(out, checkpoint, 200, 1))
                count["generating: refused, older images untouched"] += 1
        with disk(out, 120, "ro"):
            for arguments in (training(out, data), generating(out, checkpoint)):
                assert "refused" in run_on(out, arguments)
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
