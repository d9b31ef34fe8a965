"""The idx reader, the download and the file writing of data.py."""

import gzip
import hashlib
import http.server
import shutil
import struct
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
from conftest import MNIST, PROJECT, contents, idx_bytes, table_of, write_idx_folder, write_lines

import data
from data import InputError, load_digits, replace_images

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


def spoilt_table(lines):
    """Ways to spoil a table: name -> (new lines, line and column of the mistake)."""

    def changed(number, old, new):
        line = lines[number - 1]
        assert old in line
        return [*lines[: number - 1], line.replace(old, new, 1), *lines[number:]]

    return {
        "empty": ([], 1, 1),
        "names alone": (HEADERS["names"], 2, 1),
        "blank lines alone": (["", "", ""], 4, 1),
        "too short": ([*lines[:6], lines[6].rpartition(",")[0]], 7, 785),
        "too long": ([*lines[:6], lines[6] + ",0", lines[7]], 7, 786),
        "all too short": ([line.rpartition(",")[0] for line in lines], 1, 785),
        "a word": (changed(9, ",0,", ",ink,"), 9, 2),
        "a fraction": (changed(9, ",0,", ",0.5,"), 9, 2),
        "nothing": (changed(9, ",0,", ",,"), 9, 2),
        "256": (changed(9, ",0,", ",256,"), 9, 2),
        "minus one": (changed(9, ",0,", ",-1,"), 9, 2),
        "1000000000005": (changed(9, ",0,", ",1000000000005,"), 9, 2),
        "spaces": ([*lines[:5], "   ", *lines[5:]], 6, 1),
        "many digits": (changed(9, ",0,", f",{'9' * 10_000},"), 9, 2),
        "semicolons": ([line.replace(",", ";") for line in lines], 1, 1),
        "label 10": (["10" + line[1:] if n == 4 else line for n, line in enumerate(lines)], 5, 1),
    }


@pytest.mark.parametrize("kind", spoilt_table([",0," * 9] * 9))
def test_spoilt_table(tmp_path, mnist, kind):
    lines = table_of(mnist.train_images[:40], mnist.train_labels[:40])
    lines, line, column = spoilt_table(lines)[kind]
    path = write_lines(tmp_path / "a.csv", lines)
    with pytest.raises(InputError) as caught:
        load_digits(path, "train")
    assert f"{path}, line {line}, column {column}: " in str(caught.value)
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


def test_swapped_files(folder):
    images, labels = folder / IMAGES, folder / LABELS
    images.rename(folder / "aside")
    labels.rename(images)
    (folder / "aside").rename(labels)
    with pytest.raises(InputError, match="swapped"):
        load_digits(folder, "train")


def test_label_above_nine(folder):
    (folder / LABELS).write_bytes(idx_bytes(np.full(30, 10)))
    with pytest.raises(InputError, match="label 10"):
        load_digits(folder, "train")


def test_one_file_missing_is_not_made_up_for_by_a_download(folder):
    (folder / LABELS).unlink()
    with pytest.raises(InputError, match=f"no {LABELS}"):
        load_digits(folder, "train")


def test_data_is_a_file(folder):
    with pytest.raises(InputError, match="is not text"):
        load_digits(folder / IMAGES, "train")


@pytest.mark.parametrize("error", ["ImportError('none')", "RuntimeError('nms does not exist')"])
def test_without_torchvision_the_error_says_what_is_missing(tmp_path, error):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text(f"raise {error}")
    program = f"import data; data.run(lambda: data.load_digits({str(tmp_path / 'no')!r}, 'train'))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    for part in (*MD5, str(tmp_path / "no"), "MNIST/raw", "torchvision"):
        assert part in result.stderr


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


@pytest.mark.parametrize("others", [[], ["mine.txt"]])
def test_replace_images(tmp_path, others):
    folder = tmp_path / "images"
    assert replace_images(folder, [b"a", b"b", b"c"]) == []
    for name in others:
        (folder / name).write_bytes(b"mine")
    assert replace_images(folder, [b"d", b"e"]) == others
    assert contents(folder) == {"00.png": b"d", "01.png": b"e"} | {n: b"mine" for n in others}
    assert [entry.name for entry in tmp_path.iterdir()] == ["images"]


def test_a_folder_named_like_an_image_is_left_alone(tmp_path):
    folder = tmp_path / "images"
    (folder / "77.png").mkdir(parents=True)
    assert replace_images(folder, [b"a"]) == ["77.png"]
    assert (folder / "77.png").is_dir()
    (folder / "00.png").unlink()
    (folder / "00.png").mkdir()
    with pytest.raises(InputError, match=r"00\.png: is a folder"):
        replace_images(folder, [b"a"])


def test_images_are_replaced_together(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    replace_images(folder, [b"a", b"b"])
    written = data.Path.write_bytes

    def fails_on_the_second(self, content):
        if self.name == "01.png":
            raise KeyboardInterrupt
        return written(self, content)

    monkeypatch.setattr(data.Path, "write_bytes", fails_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        replace_images(folder, [b"c", b"d"])
    assert contents(folder) == {"00.png": b"a", "01.png": b"b"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["images"]


def test_replace_images_in_the_working_folder_and_without_exchange(tmp_path, monkeypatch):
    replace_images(tmp_path / "images", [b"a", b"b", b"c"])
    monkeypatch.chdir(tmp_path / "images")
    replace_images(".", [b"d"])
    assert contents(tmp_path / "images") == {"00.png": b"d"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        data, "_exchange", lambda *folders: (_ for _ in ()).throw(OSError(22, "no"))
    )
    replace_images("images", [b"e", b"f"])
    assert contents(tmp_path / "images") == {"00.png": b"e", "01.png": b"f"}
