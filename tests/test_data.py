"""The idx reader, the reader of tables, and the download."""

import gzip
import hashlib
import http.server
import shutil
import struct
import sys
import threading
from functools import partial

import numpy as np
import pytest
from conftest import MNIST, cheaply, idx_bytes, table_of, write_idx_folder, write_lines

import data
from data import load_digits
from errors import InputError

MD5 = {  # of the uncompressed files, as published with the data set's usual readers
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
IMAGES, LABELS = data.FILES["train"]


def torchvision_datasets():
    """torchvision.datasets, or a skipped test where it does not load beside this PyTorch."""
    try:
        from torchvision import datasets
    except Exception as error:
        pytest.skip(f"torchvision does not load here: {error}")
    return datasets


@pytest.fixture
def folder(tmp_path, mnist):
    """A folder of 30 training and 20 test images, to be spoilt."""
    return write_idx_folder(
        tmp_path / "digits",
        (mnist.train_images[:30], mnist.train_labels[:30]),
        (mnist.test_images[:20], mnist.test_labels[:20]),
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_shipped_mnist_has_the_published_checksums(split):
    images, labels = load_digits(MNIST, split)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    count = {"train": 60000, "test": 10000}[split]
    headers = struct.pack(">4I", 2051, count, 28, 28), struct.pack(">2I", 2049, count)
    arrays = images, labels.astype(np.uint8)
    for name, header, array in zip(data.FILES[split], headers, arrays, strict=True):
        assert hashlib.md5(header + array.tobytes()).hexdigest() == MD5[name]


def test_same_digits_as_torchvision(tmp_path):
    datasets = torchvision_datasets()
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name in MD5:
        (raw / name).write_bytes(gzip.decompress((MNIST / f"{name}.gz").read_bytes()))
    for split in data.FILES:
        theirs = datasets.MNIST(tmp_path, train=split == "train")
        images, labels = load_digits(tmp_path, split)
        assert np.array_equal(images, theirs.data.numpy())
        assert np.array_equal(labels, theirs.targets.numpy())


@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("compressed", [False, True])
def test_layouts(folder, mnist, tmp_path, layout, compressed):
    target = tmp_path / "elsewhere" / layout
    shutil.copytree(folder, target)
    if compressed:
        for file in list(target.iterdir()):
            file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    images, labels = load_digits(tmp_path / "elsewhere", "test")
    assert np.array_equal(images, mnist.test_images[:20])
    assert np.array_equal(labels, mnist.test_labels[:20])


HEADERS = {
    "none": [],
    "names": [",".join(f"column {n}" for n in range(785))],
    "numbers": [",".join(map(str, range(785)))],
}


@pytest.mark.parametrize("label", ["first", "last"])
@pytest.mark.parametrize("header", HEADERS)
def test_table(tmp_path, mnist, label, header):
    """Every image is in one of the two splits with its own label; a fifth of each digit in test."""
    images, labels = mnist.train_images[:500], mnist.train_labels[:500]
    path = write_lines(tmp_path / "a.csv", HEADERS[header] + table_of(images, labels, label))
    train, test = load_digits(path, "train"), load_digits(path, "test")
    whole = {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
    for part_images, part_labels in (train, test):
        assert part_images.dtype == np.uint8
        assert part_labels.dtype == np.int64
        assert part_images.shape[1:] == (28, 28)
    both = [*zip(*train, strict=True), *zip(*test, strict=True)]
    assert len(both) == 500
    assert {(image.tobytes(), int(label)) for image, label in both} == whole
    for digit in range(10):
        assert abs((test[1] == digit).sum() - (labels == digit).sum() / 5) <= 0.5
    assert np.array_equal(load_digits(path, "test")[0], test[0])


def test_table_whose_label_is_in_the_middle(tmp_path, mnist):
    names = [f"pixel{n}" for n in range(785)]
    names[400] = "label"
    lines = table_of(mnist.train_images[:50], mnist.train_labels[:50])
    path = write_lines(tmp_path / "a.csv", [",".join(names), *lines])
    with pytest.raises(InputError, match="column 401"):
        load_digits(path, "train")


def test_table_of_fashion_like_images(tmp_path):
    """Corner pixels that are not empty do not pass for labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 28, 28))
    images[:, -1, -1] = rng.integers(0, 15, 100)
    labels = rng.integers(0, 10, 100)
    for label in ("first", "last"):
        path = write_lines(tmp_path / "a.csv", table_of(images, labels, label))
        read = np.concatenate([load_digits(path, split)[1] for split in ("train", "test")])
        assert np.array_equal(np.bincount(read), np.bincount(labels))


def two_in_one(line):
    """A line with the values of two, of which a number's digits stand at 99,999 and 100,000."""
    first, second = line.rpartition(",")[0], line.partition(",")[2]
    return f"{first},{' ' * (99_998 - len(first))}12,{second}"


def spoilt_table(lines):
    """Ways to spoil a table: name -> (new lines, line of the mistake)."""

    def changed(number, old, new):
        line = lines[number - 1]
        assert old in line
        return [*lines[: number - 1], line.replace(old, new, 1), *lines[number:]]

    pixels = {"a word": "ink", "a fraction": "0.5", "nothing": "", "256": "256", "minus one": "-1"}
    pixels |= {"large": "1000000000005", "many digits": "9" * 10_000, "underscore": "1_0"}
    pixels |= {ascii(word): word for word in ("\U0010ffff", "③", "³", "٣", "\uff13", "\xa03", "é")}
    return {name: (changed(9, ",0,", f",{word},"), 9) for name, word in pixels.items()} | {
        "empty": ([], 1),
        "names alone": (HEADERS["names"], 2),
        "blank lines alone": (["", "", ""], 4),
        "too short": ([*lines[:6], lines[6].rpartition(",")[0]], 7),
        "too long": ([*lines[:6], lines[6] + ",0", lines[7]], 7),
        "all too short": ([line.rpartition(",")[0] for line in lines], 1),
        "spaces": ([*lines[:5], "   ", *lines[5:]], 6),
        "semicolons": ([line.replace(",", ";") for line in lines], 1),
        "label 10": (["10" + line[1:] if n == 4 else line for n, line in enumerate(lines)], 5),
        "two lines in one": ([*lines[:5], two_in_one(lines[0]), *lines[5:]], 6),
        "a line of 5 MB": ([*lines[:5], lines[0] + " " * 5 * 10**6, *lines[5:]], 6),
        "a first line of 5 MB": (["0," * 2_500_000 + "0", *lines], 1),
    }


@pytest.mark.parametrize("kind", spoilt_table([",0," * 9] * 9))
def test_spoilt_table(tmp_path, mnist, kind):
    lines = table_of(mnist.train_images[:40], mnist.train_labels[:40])
    lines, line = spoilt_table(lines)[kind]
    path = write_lines(tmp_path / "a.csv", lines)
    with pytest.raises(InputError) as caught:
        load_digits(path, "train")
    assert f"{path}, line {line}: " in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", [0, 784])
def test_label_column_by_name(tmp_path, mnist, column):
    """With one digit only a corner pixel looks like a label too; a name decides."""
    images = mnist.train_images[mnist.train_labels == 5][:30]
    lines = table_of(images, np.full(30, 5), "last" if column else "first")
    path = write_lines(tmp_path / "a.csv", lines)
    with pytest.raises(InputError, match="first column or the last"):
        load_digits(path, "train")
    names = [f"pixel{n}" for n in range(785)]
    names[column] = '"Label"'
    write_lines(path, [",".join(names), *lines])
    assert (load_digits(path, "train")[1] == 5).all()


def test_sorted_table_is_shuffled(tmp_path, mnist):
    order = np.argsort(mnist.train_labels[:500])
    lines = table_of(mnist.train_images[order], mnist.train_labels[order])
    labels = load_digits(write_lines(tmp_path / "a.csv", lines), "train")[1]
    assert len(set(labels[-50:])) >= 8


def test_table_with_one_image(tmp_path, mnist):
    header = ",".join(["label", *map(str, range(784))])
    lines = [header, *table_of(mnist.train_images[:1], mnist.train_labels[:1])]
    path = write_lines(tmp_path / "a.csv", lines)
    with pytest.raises(InputError, match="too few"):
        load_digits(path, "test")


def spoil(content):
    """Ways to spoil the images file: name -> (new content, what the complaint must say)."""
    header, body = content[:16], content[16:]
    sized = lambda *sizes: struct.pack(">4I", 2051, *sizes)  # noqa: E731
    return {
        "empty": (b"", "too short"),
        "header cut": (header[:10], "too short"),
        "truncated": (content[:-1], "truncated"),
        "too long": (content + b"\0", "too long"),
        "wrong magic": (b"\x00\x00\x0b\x03" + content[4:], "not an idx file"),
        "no images": (sized(0, 28, 28), "0 images"),
        "a billion images": (sized(10**9, 28, 28) + body, "1000000000 images"),
        "32x32": (sized(30, 32, 32) + bytes(30 * 32 * 32), "32x32"),
        "labels": (idx_bytes(np.zeros(784 * 30 + 8)), "swapped"),
        "fewer images": (sized(29, 28, 28) + body[:-784], "29 images, .* 30 labels"),
    }


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", spoil(bytes(16)))
def test_spoilt_images(folder, kind, compressed):
    file = folder / IMAGES
    content, complaint = spoil(file.read_bytes())[kind]
    file.unlink()
    if compressed:
        file = folder / f"{IMAGES}.gz"
        content = gzip.compress(content)
    file.write_bytes(content)
    with pytest.raises(InputError, match=complaint) as caught:
        load_digits(folder, "train")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("promised", [10**6, 30])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_gzip_files_of_a_million_images(folder, name, promised):
    """They are refused by their headers, or as soon as there is more than the header promises."""
    (folder / name).unlink()
    sizes = (promised, 28, 28) if name == IMAGES else (promised,)
    header = struct.pack(f">{1 + len(sizes)}I", 2048 + len(sizes), *sizes)
    million = gzip.compress(bytes(2**20)) * (748 if name == IMAGES else 1)
    (folder / f"{name}.gz").write_bytes(gzip.compress(header) + million)
    with cheaply(megabytes=10), pytest.raises(InputError, match=name):
        load_digits(folder, "train")


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_corrupt_gzip(folder, damage):
    packed = bytearray(gzip.compress((folder / IMAGES).read_bytes()))
    (folder / IMAGES).unlink()
    if damage == "cut":
        packed = packed[: len(packed) // 2]
    elif damage == "flipped":
        packed[len(packed) // 2] ^= 0xFF
    else:
        packed = b"<html>moved</html>"
    (folder / f"{IMAGES}.gz").write_bytes(packed)
    with pytest.raises(InputError, match=IMAGES):
        load_digits(folder, "train")


def test_spoilt_folders(folder):
    images, labels = ((folder / name).read_bytes() for name in (IMAGES, LABELS))
    for changed, complaint in (
        ({IMAGES: labels, LABELS: images}, "swapped"),
        ({LABELS: idx_bytes(np.full(30, 10))}, "label 10"),
        ({LABELS: None}, f"no {LABELS}"),  # not made up for by a download
    ):
        for name, content in ({IMAGES: images, LABELS: labels} | changed).items():
            (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=complaint):
            load_digits(folder, "train")
    with pytest.raises(InputError, match="is not text"):
        load_digits(folder / IMAGES, "train")


@pytest.mark.parametrize("error", ["ImportError('none')", "RuntimeError('nms does not exist')"])
def test_without_torchvision_the_error_says_what_is_missing(tmp_path, monkeypatch, error):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text(f"raise {error}")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as caught:
        load_digits(tmp_path / "no", "train")
    assert "\n" not in str(caught.value)
    for part in (*MD5, str(tmp_path / "no"), "MNIST/raw", "torchvision", error.split("'")[1]):
        assert part in str(caught.value)
    assert not (tmp_path / "no").exists()


class Mirror(http.server.ThreadingHTTPServer):
    """An HTTP server on 127.0.0.1 with the files of a folder."""

    def __init__(self, folder):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

        super().__init__(("127.0.0.1", 0), partial(Quiet, directory=folder))
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """torchvision pointed at a local mirror of the shipped files; gives the mirror's folder."""
    datasets = torchvision_datasets()
    served = tmp_path / "served"
    shutil.copytree(MNIST, served)
    server = Mirror(served)
    # The shipped files hold LeCun's bytes, but are compressed anew: their own checksums.
    resources = [
        (f"{name}.gz", hashlib.md5((MNIST / f"{name}.gz").read_bytes()).hexdigest()) for name in MD5
    ]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    yield served
    server.shutdown()


def test_download(tmp_path, mirror, mnist):
    images, labels = load_digits(tmp_path / "new", "test")
    assert np.array_equal(images, mnist.test_images)
    assert np.array_equal(labels, mnist.test_labels)
    assert {file.name for file in (tmp_path / "new/MNIST/raw").iterdir()} == set(MD5)
    shutil.rmtree(mirror)
    assert len(load_digits(tmp_path / "new", "train")[0]) == 60000  # not fetched again


@pytest.mark.parametrize("damage", ["spoilt", "absent"])
def test_failed_download_leaves_nothing(tmp_path, mirror, damage):
    file = mirror / "t10k-images-idx3-ubyte.gz"
    if damage == "spoilt":
        file.write_bytes(gzip.compress(b"not digits"))
    else:
        file.unlink()
    with pytest.raises(InputError, match="download failed") as caught:
        load_digits(tmp_path / "new", "test")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
