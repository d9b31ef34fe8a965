"""The idx reader, the reader of tables, and the download."""

import gzip
import hashlib
import http.server
import shutil
import struct
import sys
import threading
from collections import Counter
from functools import partial

import numpy as np
import pytest
from conftest import MNIST, idx_bytes, part_of_mnist, table_of, write_lines

import data
from data import load_digits
from lib.errors import InputError

MD5 = {  # of the uncompressed files, as published with the data set's usual readers
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
IMAGES, LABELS = data.FILES["train"]
READER = "lambda path: data.load_digits(path, 'train')"


@pytest.fixture
def folder(tmp_path, mnist):
    """A folder of 30 training and 20 test images, to be spoilt."""
    return part_of_mnist(tmp_path / "digits", mnist, 30, -20)


def test_shipped_mnist_has_the_published_checksums():
    for split, names in data.FILES.items():
        images, labels = load_digits(MNIST, split)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        sums = [hashlib.md5(idx_bytes(array)).hexdigest() for array in (images, labels)]
        assert sums == [MD5[name] for name in names]


def test_same_digits_as_torchvision(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets", exc_type=Exception)
    (raw := tmp_path / "MNIST/raw").mkdir(parents=True)
    for name in MD5:
        (raw / name).write_bytes(gzip.decompress((MNIST / f"{name}.gz").read_bytes()))
    for split in data.FILES:
        theirs = datasets.MNIST(tmp_path, train=split == "train")
        known = theirs.data.numpy(), theirs.targets.numpy()
        assert all(map(np.array_equal, load_digits(tmp_path, split), known))


@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("compressed", [False, True])
def test_layouts(folder, mnist, tmp_path, layout, compressed):
    target = tmp_path / "elsewhere" / layout
    shutil.copytree(folder, target)
    for file in list(target.iterdir()) * compressed:
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    known = mnist.test_images[-20:], mnist.test_labels[-20:]
    assert all(map(np.array_equal, load_digits(tmp_path / "elsewhere", "test"), known))


NUMBERS = ",".join(map(str, range(785)))
HEADERS = {"none": [], "names": [NUMBERS.replace(",", ",column ")], "numbers": [NUMBERS]}


@pytest.mark.parametrize("label", ["first", "last"])
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("greys", [1, 15], ids=["like MNIST", "like Fashion-MNIST"])
def test_table(tmp_path, mnist, label, header, greys):
    """Every image is in one of the two splits with its own label; a fifth of each digit in test.

    Though the table is sorted by its labels, the training images are not. Corner pixels that are
    not empty do not pass for labels.
    """
    order = np.argsort(mnist.train_labels[:500])
    images, labels = mnist.train_images[order], mnist.train_labels[order]
    images[:, [0, -1], [0, -1]] = np.random.default_rng(0).integers(0, greys, (500, 2))
    path = write_lines(tmp_path / "a.csv", HEADERS[header] + table_of(images, labels, label))
    train, test = load_digits(path, "train"), load_digits(path, "test")
    assert {part[0].dtype for part in (train, test)} == {np.dtype(np.uint8)}
    found, known = Counter(), Counter()
    for count, pairs in (found, train), (found, test), (known, (images, labels)):
        count.update((image.tobytes(), int(digit)) for image, digit in zip(*pairs, strict=True))
    assert found == known
    assert (np.abs(np.bincount(test[1]) - np.bincount(labels) / 5) <= 0.5).all()
    assert np.array_equal(load_digits(path, "test")[0], test[0])
    assert len(set(train[1][-50:])) >= 8


@pytest.mark.parametrize("column", [0, 784])
def test_label_column_by_name(tmp_path, mnist, column):
    """With one digit only a corner pixel looks like a label too; a name decides."""
    images = mnist.train_images[mnist.train_labels == 5][:30]
    lines = table_of(images, np.full(30, 5), "last" if column else "first")
    path = write_lines(tmp_path / "a.csv", lines)
    with pytest.raises(InputError, match="first column or the last"):
        load_digits(path, "train")
    names = ",".join(f"pixel{n}" if n != column else '"Label"' for n in range(785))
    write_lines(path, [names, *lines])
    assert (load_digits(path, "train")[1] == 5).all()
    write_lines(path, [names, lines[0]])
    with pytest.raises(InputError, match="too few"):
        load_digits(path, "test")


WORDS = ["ink", "0.5", "", "256", "-1", "1000000000005", "9" * 10_000, "1_0"]
WORDS += ["\U0010ffff", "③", "³", "٣", "\uff13", "\xa03", "é"]


def spoilt_table(lines):
    """Ways to spoil a table: name -> (new lines, line of the mistake)."""
    pixels = [(word, lines[8].replace(",0,", f",{word},", 1)) for word in WORDS]
    two_in_one = lines[0][:-1].ljust(99_999) + "12" + lines[1][1:]  # cut after 100,000 characters
    return {ascii(word)[:12]: ([*lines[:8], line], 9) for word, line in pixels} | {
        "empty": ([], 1),
        "names alone": (HEADERS["names"], 2),
        "too short": ([*lines[:6], lines[6].rpartition(",")[0]], 7),
        "too long": ([*lines[:6], lines[6] + ",0", lines[7]], 7),
        "label 10": ([*lines[:4], "10" + lines[4][1:], *lines[5:]], 5),
        "two lines in one": ([*lines[:5], two_in_one, *lines[5:]], 6),
        "a line of 5 MB": ([*lines[:5], lines[0] + " " * 5 * 10**6, *lines[5:]], 6),
        "a first line of 5 MB": (["0," * 2_500_000 + "0", *lines], 1),
    }


@pytest.mark.parametrize("kind", spoilt_table([",0," * 9] * 9))
def test_spoilt_table(tmp_path, mnist, complaint, kind):
    whole = table_of(mnist.train_images[:40], mnist.train_labels[:40])
    lines, line = spoilt_table(whole)[kind]
    path = write_lines(tmp_path / "a.csv", lines)
    assert complaint(READER, path, megabytes=10).startswith(f"{path}, line {line}: ")


def sized(*sizes):
    return struct.pack(">4I", 2051, *sizes)


def million_images(promised):
    """A gzip file that unpacks to a million images, whatever it promises."""
    return gzip.compress(sized(promised, 28, 28)) + gzip.compress(bytes(2**20)) * 748


SPOILT = {  # the new contents of files, from those of images and labels; the complaint
    "header cut": (lambda x, y: {IMAGES: x[:10]}, "too short"),
    "truncated": (lambda x, y: {IMAGES: x[:-1]}, "truncated"),
    "too long": (lambda x, y: {IMAGES: x + b"\0"}, "too long"),
    "wrong magic": (lambda x, y: {IMAGES: b"\0\0\x0b\3" + x[4:]}, "not an idx file"),
    "a billion images": (lambda x, y: {IMAGES: sized(10**9, 28, 28) + x[16:]}, "1000000000 images"),
    "32x32": (lambda x, y: {IMAGES: sized(30, 32, 32) + bytes(30 * 32 * 32)}, "32x32"),
    "fewer images": (lambda x, y: {IMAGES: sized(29, 28, 28) + x[16:-784]}, "has 30 labels"),
    "swapped": (lambda x, y: {IMAGES: y, LABELS: x}, "swapped"),
    "label 10": (lambda x, y: {LABELS: idx_bytes(np.full(30, 10))}, "label 10"),
    "no labels": (lambda x, y: {LABELS: None}, f"no {LABELS}"),  # none are downloaded
    "gz, a million": (lambda x, y: {IMAGES + ".gz": million_images(10**6)}, IMAGES),
    "gz, a million, hidden": (lambda x, y: {IMAGES + ".gz": million_images(30)}, "too long"),
    "gz, a million labels": (lambda x, y: {LABELS + ".gz": million_images(30)}, LABELS),
    "gz, checksum": (lambda x, y: {IMAGES + ".gz": gzip.compress(x)[:-8] + bytes(8)}, IMAGES),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_idx_files(folder, complaint, kind, compressed):
    make, part = SPOILT[kind]
    for name, content in make(*((folder / name).read_bytes() for name in (IMAGES, LABELS))).items():
        (folder / name.removesuffix(".gz")).unlink()
        if compressed and content is not None and not name.endswith(".gz"):
            name, content = f"{name}.gz", gzip.compress(content)
        if content is not None:
            (folder / name).write_bytes(content)
    message = complaint(READER, folder, megabytes=10)
    assert message.startswith(str(folder))
    assert part in message


@pytest.mark.parametrize("error", ["ImportError('none')", "RuntimeError('nms does not exist')"])
def test_without_torchvision_the_error_says_what_is_missing(tmp_path, monkeypatch, error):
    (tmp_path / "torchvision.py").write_text(f"raise {error}")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as caught:
        load_digits(tmp_path / "no", "train")
    assert "\n" not in str(caught.value)
    for part in (*MD5, str(tmp_path / "no"), "MNIST/raw", "torchvision", error.split("'")[1]):
        assert part in str(caught.value)
    assert not (tmp_path / "no").exists()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """torchvision pointed at a local mirror of the shipped files; gives the mirror's folder."""
    datasets = pytest.importorskip("torchvision.datasets", exc_type=Exception)
    served = tmp_path / "served"
    shutil.copytree(MNIST, served)
    # The shipped files hold LeCun's bytes, but are compressed anew: their own checksums.
    sums = {f.name: hashlib.md5(f.read_bytes()).hexdigest() for f in served.glob("*.gz")}
    monkeypatch.setattr(datasets.MNIST, "resources", list(sums.items()))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield served
        server.shutdown()


def test_download(tmp_path, mirror, mnist):
    assert np.array_equal(load_digits(tmp_path / "new", "test")[0], mnist.test_images)
    assert {file.name for file in (tmp_path / "new/MNIST/raw").iterdir()} == set(MD5)
    shutil.rmtree(mirror)
    assert len(load_digits(tmp_path / "new", "train")[0]) == 60000  # not fetched again


@pytest.mark.parametrize("damage", ["spoilt", "absent"])
def test_failed_download_leaves_nothing(tmp_path, mirror, damage):
    file = mirror / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(b"not digits")) if damage == "spoilt" else file.unlink()
    with pytest.raises(InputError, match="download failed") as caught:
        load_digits(tmp_path / "new", "test")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
