"""The reader of digits: every form in which they are published, and a line for what is none."""

import gzip
import hashlib
import http.server
import io
import pickle
import shutil
import struct
import sys
import threading
from collections import Counter
from functools import partial

import numpy as np
import pytest
from conftest import FILES, MNIST, idx_bytes, part_of_mnist, table_of, write_lines
from hypothesis import given
from hypothesis import strategies as st

import data
from data import find_source, load_both_splits, load_digits
from lib.errors import InputError

MD5 = {  # of the uncompressed files, as published with the data set's usual readers
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
IMAGES, LABELS = FILES["train"]
TEST_IMAGES, TEST_LABELS = FILES["test"]
COLUMN_NAMES = ",".join(["label", *(f"{1 + n // 28}x{1 + n % 28}" for n in range(784))])


@pytest.fixture
def folder(tmp_path, mnist):
    """A folder of 30 training and 20 test images, to be changed."""
    return part_of_mnist(tmp_path / "digits", mnist, 30, -20)


def assert_small_mnist(path, mnist):
    """What a path leads to is what `folder` holds."""
    known = {
        "train": (mnist.train_images[:30], mnist.train_labels[:30]),
        "test": (mnist.test_images[-20:], mnist.test_labels[-20:]),
    }
    for split, (images, labels) in known.items():
        loaded_images, loaded_labels = load_digits(path, split)
        assert np.array_equal(loaded_images, images)
        assert np.array_equal(loaded_labels, labels)
        assert (loaded_images.dtype, loaded_labels.dtype) == (np.uint8, np.int64)
        assert loaded_images.flags.writeable
        assert loaded_images.flags.c_contiguous


def refuse(path, *parts):
    """The path is refused with one line that has all of these parts."""
    with pytest.raises(InputError) as caught:
        load_digits(path, "train")
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message


def both_splits(path):
    """The images and labels of both splits, as a count of (image, label)."""
    pairs = Counter()
    for split in FILES:
        images, labels = load_digits(path, split)
        pairs.update(zip([image.tobytes() for image in images], labels.tolist(), strict=True))
    return pairs


def test_shipped_mnist_has_the_published_checksums():
    digits = load_both_splits(find_source(MNIST), "cpu")
    assert list(digits.checksums.values()) == list(MD5.values())
    assert list(digits.checksums) == ["train_images", "train_labels", "test_images", "test_labels"]
    for split, names in FILES.items():
        for name, array in zip(names, load_digits(MNIST, split), strict=True):
            assert hashlib.md5(idx_bytes(array)).hexdigest() == MD5[name]


def test_same_digits_as_torchvision(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets", exc_type=Exception)
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name in MD5:
        (raw / name).write_bytes(gzip.decompress((MNIST / f"{name}.gz").read_bytes()))
    for split in FILES:
        theirs = datasets.MNIST(tmp_path, train=split == "train")
        images, labels = load_digits(tmp_path, split)
        assert np.array_equal(images, theirs.data.numpy())
        assert np.array_equal(labels, theirs.targets.numpy())


def test_both_splits_as_tensors(folder, mnist):
    digits = load_both_splits(find_source(folder), "cpu")
    for x, images in (digits.x_train, mnist.train_images[:30]), (digits.x_test, mnist.test_images):
        images = images[-len(x) :].reshape(len(x), 784)
        assert np.array_equal(x.numpy(), images.astype("f4") / 255)
    labels = mnist.test_labels[-20:]
    expected = []
    for digit in sorted(set(labels)):
        places = [n for n in range(20) if labels[n] == digit]
        expected += (10 * places)[:10]
    assert np.array_equal(digits.x_shown, digits.x_test[expected])


def test_the_last_thousand():
    digits = load_both_splits(find_source(MNIST), "cpu")
    assert np.array_equal(digits.last_x_test, digits.x_test[9000:])
    assert np.array_equal(digits.last_test_labels, digits.test_labels[9000:])


def test_a_label_changes_the_checksums(folder):
    """So that --resume notices it."""
    before = load_both_splits(find_source(folder), "cpu").checksums
    content = (folder / TEST_LABELS).read_bytes()
    (folder / TEST_LABELS).write_bytes(content[:-1] + bytes([(content[-1] + 1) % 10]))
    after = load_both_splits(find_source(folder), "cpu").checksums
    assert [key for key in before if before[key] != after[key]] == ["test_labels"]


# --- How digits are published -----------------------------------------------------------------


def rename(folder, names, compress=False):
    """Put the four files of a folder under other names, {canonical name: path in the folder}."""
    for name, new in names.items():
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        path = folder / new
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content, 1) if compress else content)


def dotted(name):
    return name.replace("-idx", ".idx")


def emnist(name):
    return "emnist-digits-" + name.replace("t10k", "test")


def transpose_images(folder):
    """As EMNIST stores them."""
    for name in (IMAGES, TEST_IMAGES):
        array = np.frombuffer((folder / name).read_bytes(), np.uint8, offset=16)
        (folder / name).write_bytes(idx_bytes(array.reshape(-1, 28, 28).transpose(0, 2, 1)))


def qmnist(name):
    return f"qmnist-{name}.gz".replace("t10k", "test").replace("idx1-ubyte", "idx2-int")


def qmnist_labels(folder):
    """32-bit numbers in eight columns, of which the first is the label."""
    for name in (LABELS, TEST_LABELS):
        labels = np.frombuffer((folder / name).read_bytes(), np.uint8, offset=8)
        columns = np.arange(8) + np.zeros((len(labels), 8), ">i4")
        columns[:, 0] = labels
        header = struct.pack(">3I", 0x0C02, *columns.shape)
        (folder / name).write_bytes(header + columns.astype(">i4").tobytes())


def renamed(new_name, compress=False, change=None):
    """A way to publish the files: under names that `new_name` makes from LeCun's."""

    def publish(folder):
        if change:
            change(folder)
        rename(folder, {name: new_name(name) for name in MD5}, compress)
        return folder

    return publish


def as_tables(train, test, header=True):
    """A way to publish the files: as two tables of these names."""

    def publish(folder):
        for name, split in (train, "train"), (test, "test"):
            lines = table_of(*read_small(folder, split))
            (folder / name).parent.mkdir(exist_ok=True)
            write_lines(folder / name, [COLUMN_NAMES, *lines] if header else lines)
        for name in MD5:
            (folder / name).unlink()
        return folder

    return publish


def read_small(folder, split):
    """A split of four idx files, read without what is tested."""
    images, labels = ((folder / name).read_bytes() for name in FILES[split])
    images = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return images, np.frombuffer(labels, np.uint8, offset=8)


def emnist_tables(folder):
    transpose_images(folder)
    return as_tables("emnist-digits-train.csv", "emnist-digits-test.csv", header=False)(folder)


def keras_arrays(folder):
    x_train, y_train = read_small(folder, "train")
    x_test, y_test = read_small(folder, "test")
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def as_npz(folder):
    np.savez_compressed(folder / "mnist.npz", **keras_arrays(folder))
    for name in MD5:
        (folder / name).unlink()
    return folder / "mnist.npz"


def both_kaggle_forms(folder):
    for name in MD5:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / dotted(name)).write_bytes(content)
        (folder / name).mkdir()
        (folder / name / name).write_bytes(content)
    return folder


def macos(folder):
    """With a shadow of each file."""
    (folder / "__MACOSX").mkdir()
    for name in MD5:
        (folder / f"._{name}").write_bytes(b"Mac OS X")
        (folder / "__MACOSX" / name).write_bytes(b"Mac OS X")
    return folder


def split_folder(name):
    return "train" if "train" in name else "test"


FORMS = {
    "LeCun": renamed(lambda name: f"{name}.gz", compress=True),
    "LeCun, unpacked": renamed(lambda name: name),
    "LeCun, unpacked by a browser that kept .gz": renamed(lambda name: f"{name}.gz"),
    "LeCun, compressed without .gz": renamed(lambda name: name, compress=True),
    "torchvision": renamed(lambda name: f"MNIST/raw/{name}"),
    "7-Zip, dots": renamed(dotted),
    "dots alone": renamed(lambda name: name.replace("-", ".")),
    "Kaggle, a folder of each name": renamed(lambda name: f"{dotted(name)}/{dotted(name)}"),
    "Kaggle, both": both_kaggle_forms,
    "Kaggle, two tables": as_tables("mnist_train.csv", "mnist_test.csv"),
    "two tables without names": as_tables("Train.CSV", "TEST.csv", header=False),
    "EMNIST, two tables": emnist_tables,
    "a second download": as_tables("mnist_train (1).csv", "mnist_test.csv"),
    "t10k for test": as_tables("train.csv", "t10k.csv"),
    "training and testing": as_tables("mnist.training.csv", "mnist.testing.csv"),
    "a run's files beside them": lambda folder: as_tables("train.csv", "test.csv")(
        write_lines(folder / "train.json", ["{}"]).parent
    ),
    "Keras": as_npz,
    "Keras, the folder": lambda folder: as_npz(folder).parent,
    "Fashion-MNIST": renamed(lambda name: f"FashionMNIST/raw/{name}.gz", compress=True),
    "KMNIST": renamed(lambda name: f"KMNIST/raw/{name}"),
    "EMNIST digits": renamed(lambda n: f"gzip/{emnist(n)}.gz", True, transpose_images),
    "EMNIST digits, torchvision": renamed(
        lambda n: f"EMNIST/raw/{emnist(n)}", False, transpose_images
    ),
    "QMNIST": renamed(qmnist, True, qmnist_labels),
    "upper case": renamed(str.upper),
    "unpacked by macOS": macos,
    "tables in train/ and test/": as_tables("train/mnist.csv", "test/mnist.csv"),
    "train/ and test/": renamed(lambda name: f"{split_folder(name)}/{name}"),
    "mnist_training/ and mnist_testing/": renamed(
        lambda name: f"mnist_{split_folder(name)}ing/{name}"
    ),
    "three levels below": renamed(lambda name: f"a/b/c/{name}"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(folder, mnist, form):
    path = FORMS[form](folder)
    assert_small_mnist(path, mnist)
    source = find_source(path)
    assert source.test_name == "test"
    content = [file for file in folder.rglob("*") if file.is_file()]
    assert source.files
    assert set(source.files) <= set(content)


def test_the_description_names_what_is_published():
    for name in ("LeCun", "torchvision", "Kaggle", "Keras", "OpenML", "Fashion-MNIST", "KMNIST",
                 "EMNIST", "QMNIST", "(they are turned upright)"):  # fmt: skip
        assert name in data.__doc__


def test_openmls_table(tmp_path, mnist):
    """Its label is last, and named class."""
    images, labels = mnist.train_images[:50], mnist.train_labels[:50]
    names = ",".join([*(f"pixel{n}" for n in range(1, 785)), "class"])
    path = write_lines(tmp_path / "mnist_784.csv", [names, *table_of(images, labels, "last")])
    assert both_splits(path) == Counter(
        zip([image.tobytes() for image in images], labels.tolist(), strict=True)
    )
    assert both_splits(tmp_path) == both_splits(path)


def test_kaggles_digit_recognizer(tmp_path, mnist):
    """Its test.csv has no labels."""
    lines = table_of(mnist.train_images[:50], mnist.train_labels[:50])
    write_lines(tmp_path / "train.csv", [COLUMN_NAMES, *lines])
    write_lines(tmp_path / "test.csv", [line.partition(",")[2] for line in lines])
    write_lines(tmp_path / "sample_submission.csv", ["ImageId,Label", "1,0"])
    assert sum(both_splits(tmp_path).values()) == 50
    assert find_source(tmp_path).test_name == "held-out"
    assert find_source(tmp_path).files == [tmp_path / "train.csv"]


def test_one_of_the_four_files_stands_for_its_set(folder, tmp_path, mnist):
    """So that one of several sets in a folder can be named, also with a path from where one is."""
    other = part_of_mnist(tmp_path / "other", mnist, 5, -4)
    rename(other, {name: f"other-{name}" for name in MD5})
    shutil.copytree(other, folder, dirs_exist_ok=True)
    refuse(folder, "several sets: ", f"{folder}, {folder}/other-*")
    assert_small_mnist(folder / TEST_LABELS, mnist)
    assert len(load_digits(folder / f"other-{IMAGES}", "test")[0]) == 4


@pytest.mark.parametrize(
    "form", ["Kaggle, both", "train/ and test/", "Kaggle, a folder of each name"]
)
def test_a_file_in_a_folder_of_its_own_stands_for_its_set(folder, mnist, form, monkeypatch):
    FORMS[form](folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        assert_small_mnist(path, mnist)
    monkeypatch.chdir(files[0].parent)
    assert_small_mnist(files[0].name, mnist)


def test_what_was_read_is_said(folder):
    """The files' folder, not the one that was given; the prefix; whether images were turned."""
    FORMS["torchvision"](folder)
    raw = folder / "MNIST/raw"
    assert str(find_source(folder)) == str(raw)
    rename(raw, {name: emnist(name) for name in MD5})
    assert str(find_source(folder)) == f"{raw}/emnist-digits-*, turned upright"


def test_tables_and_npz_are_named(folder):
    path = as_npz(folder)
    assert str(find_source(folder)) == str(path)
    path = path.rename(folder / "emnist.npz")  # EMNIST does not publish one, so none is turned
    assert str(find_source(path)) == str(path)


# --- One table --------------------------------------------------------------------------------

NUMBERS = ",".join(map(str, range(785)))
HEADERS = {
    "none": [],
    "a mark of UTF-8": [],
    "names": ["column " + NUMBERS.replace(",", ",column ")],
    "numbers": [NUMBERS],
}


@pytest.mark.parametrize("label", ["first", "last"])
@pytest.mark.parametrize("header", HEADERS)
def test_one_table(tmp_path, mnist, label, header):
    """Every image is in one of the two splits with its own label; a fifth of each digit in test.

    Though the table is sorted by its labels, the training images are not. Corner pixels that are
    not empty do not pass for labels.
    """
    order = np.argsort(mnist.train_labels[:500])
    images, labels = mnist.train_images[order], mnist.train_labels[order]
    images[:, [0, -1], [0, -1]] = np.random.default_rng(0).integers(0, 15, (500, 2))
    path = write_lines(tmp_path / "a.csv", [*HEADERS[header], *table_of(images, labels, label)])
    if "UTF-8" in header:
        path.write_text("\n\n".join(path.read_text().split("\n")), encoding="utf-8-sig")
    known = Counter(zip([image.tobytes() for image in images], labels.tolist(), strict=True))
    assert both_splits(path) == known
    train_labels, test_labels = load_digits(path, "train")[1], load_digits(path, "test")[1]
    assert (np.abs(np.bincount(test_labels) - np.bincount(labels) / 5) <= 0.5).all()
    for part in train_labels[:50], train_labels[-50:], test_labels[-50:]:
        assert len(set(part)) >= 8
    first_of_each = [images[labels == digit][: np.sum(labels == digit) // 5] for digit in range(10)]
    test_set = {image.tobytes() for image in load_digits(path, "test")[0]}
    assert test_set != {image.tobytes() for part in first_of_each for image in part}


def columns_of(first, last):
    """A table whose first and last column are these, zeros between: its lines."""
    return [",".join([str(a), *["0"] * 783, str(b)]) for a, b in zip(first, last, strict=True)]


N = np.arange(30)
PIXELS = 17 * N % 256
EDGES = {  # first and last column without names: which is the label, or part of a message
    "two that may be": (N % 2, N % 3, "and both may be; add a first line of names, with `label`"),
    "one class, zeros": (0 * N + 5, 0 * N, "both may be"),
    "only zeros": (0 * N, 0 * N, "both may be"),
    "the same twice": (N % 3, N % 3, "both may be"),
    "two classes, zeros": (N % 2, 0 * N, 0),
    "zeros, two classes": (0 * N, N % 2, 784),
    "classes, pixels": (N % 10, PIXELS, 0),
    "one class, pixels": (0 * N + 3, PIXELS, 0),
    "pixels, classes": (PIXELS, N % 10, 784),
    "pixels, zeros": (PIXELS, 0 * N, "found up to 255 in the first, 0 in the last"),
    "ten, pixels": (N % 11, PIXELS, "found up to 10 in the first, 255 in the last"),
    "nine, ten": (N % 10, N % 11, 0),
}
assert PIXELS.max() == 255


@pytest.mark.parametrize("kind", EDGES)
def test_the_label_column_is_never_guessed(tmp_path, kind):
    first, last, known = EDGES[kind]
    path = write_lines(tmp_path / "a.csv", columns_of(first, last))
    if isinstance(known, str):
        refuse(path, f"{path}: the labels, 0 to 9, must be the first or the last column", known)
    else:
        labels = np.concatenate([load_digits(path, split)[1] for split in FILES])
        assert sorted(labels) == sorted(first if known == 0 else last)


@pytest.mark.parametrize("name", ["label", "Labels", '"class"', " digit ", "'target'", "y"])
def test_a_name_tells_the_label_column(tmp_path, name):
    pixels = [f"pixel{n}" for n in range(784)]
    for names, column in (["p", *pixels[1:], name], 784), ([name, *pixels], 0):
        first, last = (N % 10, N % 3) if column == 0 else (N % 3, N % 10)
        path = write_lines(tmp_path / "a.csv", [",".join(names), *columns_of(first, last)])
        labels = np.concatenate([load_digits(path, split)[1] for split in FILES])
        assert sorted(labels) == sorted(N % 10)


def test_two_names_tell_nothing(tmp_path):
    names = ",".join(["label", *(f"pixel{n}" for n in range(783)), "class"])
    path = write_lines(tmp_path / "a.csv", [names, *columns_of(N % 10, N % 3)])
    refuse(path, "both may be")


# --- A clear no: what is found in a table -----------------------------------------------------

ROW = "5" + ",0" * 784


def with_cell(cell):
    """Three lines, of which the second has this cell in column 3."""
    return f"{ROW}\n5,0,{cell}{',0' * 782}\n{ROW}\n"


TWELVES = f"12{ROW[1:]}\n" * 5
FOUND = {  # the contents of a table, the line or column if they are known, and what was found
    "pandas' index": (f"0,{ROW}", "785 values per line needed, with commas between; found 786;"),
    "no labels": (ROW[2:], "found 784; are the labels missing?"),
    "another size": ("5" + ",0" * 1024, "found 1025 in line 1"),
    "semicolons": (ROW.replace(",", ";"), "found semicolons"),
    "tabs": (ROW.replace(",", "\t"), "found tabs"),
    "nothing": ("", "found an empty file"),
    "a spreadsheet": (b"PK\3\4\x14\0", "found a spreadsheet or another zip archive; save"),
    "Git LFS": ("version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer; fetch"),
    "a web page": ("<!DOCTYPE html>\n", "found a web page; download the file again"),
    "compressed": (gzip.compress(ROW.encode()), "found a compressed file; unpack it"),
    "UTF-16": (ROW.encode("utf-16"), "found bytes that are no text"),
    "a float": (with_cell("5.0"), ", line 2, column 3: 0 to 255 needed; found '5.0'"),
    "an empty cell": (with_cell(""), ", line 2, column 3: 0 to 255 needed; found an empty cell"),
    "256": (with_cell("256"), ", line 2, column 3: 0 to 255 needed; found '256'"),
    "-1": (with_cell("-1"), ", line 2, column 3: 0 to 255 needed; found '-1'"),
    "1.5": (with_cell("1.5"), ", line 2, column 3: 0 to 255 needed; found '1.5'"),
    "not a number": (with_cell("nan"), "column 3: 0 to 255 needed; found 'nan'"),
    "1_0": (with_cell("1_0"), "column 3: 0 to 255 needed; found '1_0'"),
    "9999 digits": (with_cell("9" * 9999), "found '99999999999999999999'"),
    "an Arabic three": (with_cell("\u0663"), "column 3: 0 to 255 needed; found '\xd9\xa3'"),
    "superscript": (with_cell("\xb3").encode("latin-1"), "column 3: 0 to 255 needed; found '\xb3'"),
    "a comment": (f"{ROW}#1\n", ", line 1, column 785: 0 to 255 needed; found '0#1'"),
    "a line cut short": (f"{ROW}\n\n5,0,0", ", line 3: 785 values needed; found 3"),
    "a longer line": (f"{ROW}\n{ROW},0\n", ", line 2: 785 values needed; found 786"),
    "a shorter header": (f"{NUMBERS}\n{ROW[:-2]}\n", ", line 2: 785 values needed; found 784"),
    "names, two alike": ("label" + ",p" * 784, "line 1, column 1: 0 to 255 needed; found 'label'"),
    "names alone": (f"{COLUMN_NAMES}\n", ": has no images"),
    "labels beyond 9": (f"{COLUMN_NAMES}\n{TWELVES}", "whole numbers from 0 to 9 needed; found 12"),
    "too few": (f"{COLUMN_NAMES}\n{ROW}\n{ROW}\n", ": 2 images are too few to hold out a fifth"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOUND)
def test_what_is_found_in_a_table_is_said(tmp_path, kind):
    content, part = FOUND[kind]
    path = tmp_path / "digits.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for given_path in (path, tmp_path):
        assert refuse(given_path, part).startswith(str(path))


def test_a_blank_line_is_no_image(tmp_path):
    lines = columns_of(N % 10, PIXELS)
    path = write_lines(tmp_path / "a.csv", [*lines[:3], "", *lines[3:], "", ""])
    assert sum(both_splits(path).values()) == 30


# --- A clear no: tables and their other halves ------------------------------------------------

UNFINISHED = ("mnist_train.csv.part", "mnist_train.csv.crdownload", "mnist_train (1).csv")


@pytest.mark.parametrize("name", [*UNFINISHED, "train_mnist.xlsx", None])
def test_a_test_table_is_never_the_training_set(folder, name):
    """Beside the unfinished download of the other one, or alone, or if it is given itself."""
    as_tables("mnist_train.csv", "mnist_test.csv")(folder)
    whole = (folder / "mnist_train.csv").read_bytes()
    (folder / "mnist_train.csv").unlink()
    if name:
        (folder / name).write_bytes(whole[:1000])  # ends within the first line
    parts = ["is a test table, which is never used for training; its training table is missing"]
    message = refuse(folder, folder / "mnist_test.csv", *parts)
    assert message.endswith("missing") or str(folder / name) in message
    refuse(folder / "mnist_test.csv", *parts, "name the folder of both, or rename it")
    if name == "mnist_train.csv.part":
        (folder / name).write_bytes(whole)
        refuse(folder, *parts, f"{folder / name}: is it whole? Its name does not end in .csv")


def test_a_cut_second_download_is_no_training_set(folder):
    as_tables("mnist_train (1).csv", "mnist_test.csv")(folder)
    path = folder / "mnist_train (1).csv"
    path.write_bytes(path.read_bytes()[:-500])
    refuse(folder, f"{path}, line 31: 785 values needed; found ")


def test_a_test_folder_is_never_the_training_set(folder):
    as_tables("train/mnist.csv", "test/mnist.csv")(folder)
    (folder / "train/mnist.csv").unlink()
    refuse(folder, folder / "test/mnist.csv", "its training table is missing")
    assert find_source(folder / "test").files == [folder / "test/mnist.csv"]  # which was given


HALVES = {  # the name of a training table, and what may be its test table: its name and content
    "empty": ("mnist_train.csv", "mnist_test.csv", "", "found an empty file"),
    "semicolons": ("mnist_training.csv", "mnist_test.CSV", ROW.replace(",", ";"), "semicolons"),
    "packed": ("train.csv", "test.csv.gz", gzip.compress(ROW.encode()), "a compressed file"),
    "another ending": ("train.csv", "test.txt", ROW, "Its name does not end in .csv"),
    "a spreadsheet": ("train.csv", "testset.xlsx", b"PK\3\4", "found a spreadsheet"),
    "folders": ("train/a.csv", "test/a.csv", "0," + ROW, "found 786"),
}


@pytest.mark.parametrize("kind", HALVES)
def test_an_unreadable_test_table_is_never_ignored(tmp_path, mnist, kind):
    train, test, content, part = HALVES[kind]
    for name in (train, test):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    write_lines(tmp_path / train, table_of(mnist.train_images[:50], mnist.train_labels[:50]))
    (tmp_path / test).write_bytes(content if isinstance(content, bytes) else content.encode())
    refuse(tmp_path, f"{tmp_path / train}: its test table cannot be read; {tmp_path / test}", part)
    assert sum(both_splits(tmp_path / train).values()) == 50  # that it is given itself


@pytest.mark.parametrize("name", ["test.py", "latest.csv.gz", "b/test.csv.gz", "contest.txt"])
def test_other_files_are_no_other_half(tmp_path, mnist, name):
    lines = table_of(mnist.train_images[:50], mnist.train_labels[:50])
    write_lines(tmp_path / "train.csv", lines)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    assert sum(both_splits(tmp_path).values()) == 50


@pytest.mark.parametrize("name", ["train_and_test.csv", "digits.csv"])
def test_a_table_of_no_split_has_no_other_half(tmp_path, name):
    """Its name has both words, or none."""
    path = write_lines(tmp_path / name, columns_of(N % 10, PIXELS))
    (tmp_path / "test.txt").write_text("")
    for given_path in (path, tmp_path):
        assert sum(both_splits(given_path).values()) == 30


# --- A clear no: sets and folders -------------------------------------------------------------


def two_folders(folder):
    rename(folder, {name: f"MNIST/raw/{name}" for name in MD5})
    shutil.copytree(folder / "MNIST", folder / "FashionMNIST")
    return "FashionMNIST/raw", "MNIST/raw"


def set_and_table(folder):
    write_lines(folder / "my_train.csv", columns_of(N % 10, PIXELS))
    return "", "my_train.csv"


def set_and_npz(folder):
    arrays = keras_arrays(folder)
    (folder / "a").mkdir()
    np.savez(folder / "a/mnist.npz", **arrays)
    return "", "a/mnist.npz"


def two_prefixes(folder):
    for name in MD5:
        shutil.copy(folder / name, folder / f"emnist-letters-{name}")
    rename(folder, {name: f"emnist-digits-{name}" for name in MD5})
    return "emnist-digits-*", "emnist-letters-*"


def halves_of(train, test):
    """Two halves that do not belong together, by their folders."""

    def write(folder):
        rename(folder, {name: (train if "train" in name else test) + name for name in MD5})
        return train.rstrip("/"), test.rstrip("/")

    return write


def tables_of(*names):
    def write(folder):
        rename(folder, {name: f".{name}" for name in MD5})  # hidden
        for name in names:
            write_lines(folder / name, columns_of(N % 10, PIXELS))
        return names

    return write


SEVERAL = {
    "two folders": two_folders,
    "a set and a table": set_and_table,
    "a set and an npz file": set_and_npz,
    "two prefixes": two_prefixes,
    "halves, other words": halves_of("mnist_train/", "fashion_test/"),
    "halves, one folder": halves_of("", "fashion_test/"),
    "halves, parts of words": halves_of("constrained/", "latest/"),
    "tables, parts of words": tables_of("constrained.csv", "latest.csv"),
    "tables, longer words": tables_of("tester.csv", "trainer.csv"),
    "tables, other words": tables_of("fashion_train.csv", "mnist.csv"),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_sets(folder, kind):
    first, second = sorted(str(folder / place) for place in SEVERAL[kind](folder))
    message = refuse(folder, f"{folder}: several sets: {first}, {second}; name one of them")
    assert message.count(", ") == 1


@pytest.mark.parametrize("name", sorted(MD5))
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refuse(folder, f"{folder}: no {name} (or .gz)")
    other = TEST_IMAGES if name != TEST_IMAGES else IMAGES
    refuse(folder / other, f"{folder}: no {name} (or .gz)")


@pytest.mark.parametrize("compress", [False, True])
def test_copies_of_a_file(folder, mnist, compress):
    """Of the same content they count once; if it differs, none of them is preferred."""
    content = bytearray((folder / IMAGES).read_bytes())
    copy = folder / (f"{IMAGES}.gz" if compress else dotted(IMAGES))
    copy.write_bytes(gzip.compress(content) if compress else content)
    assert_small_mnist(folder, mnist)
    content[-1] ^= 1
    copy.write_bytes(gzip.compress(content) if compress else content)
    refuse(folder, "is not the same; keep one of the two", folder / IMAGES, copy)


NO_DIGITS = {
    "nothing": ([], "found nothing;"),
    "others": (["a.txt", "b/c.txt"], "found a.txt, b;"),
    "many": ([f"{n}.txt" for n in range(9)], "found 0.txt, 1.txt, 2.txt, 3.txt, 4.txt;"),
    "too deep": ([f"a/b/c/d/{name}" for name in MD5], "found a;"),
    "a letter before the name": ([f"x{IMAGES}"], f"found x{IMAGES};"),
    "a letter after the name": ([f"{IMAGES}x"], f"found {IMAGES}x;"),
}


@pytest.mark.parametrize("kind", NO_DIGITS)
def test_a_folder_without_digits(tmp_path, kind):
    """It says what lies there, and what can be read; nothing is downloaded into it."""
    names, part = NO_DIGITS[kind]
    folder = tmp_path / "digits"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    message = refuse(folder, part, "what can be read: ", *MD5, ".csv", "mnist.npz")
    assert message.startswith(f"{folder}: no digits; ")


@pytest.mark.parametrize("name", ["digts", "digits.csv", "a/b", IMAGES])
def test_a_path_that_does_not_exist(tmp_path, name):
    assert refuse(tmp_path / name) == f"{tmp_path / name}: no such file or folder"
    assert not list(tmp_path.iterdir())


def test_a_folder_below_that_may_not_be_read(folder, mnist, monkeypatch):
    """As lost+found, at the top of a disk."""
    (folder / "lost+found").mkdir()
    iterdir = data.Path.iterdir
    forbidden = {"lost+found"}

    def refusing(path):
        if path.name in forbidden:
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(data.Path, "iterdir", refusing)
    assert_small_mnist(folder, mnist)
    forbidden.add(folder.name)
    refuse(folder, f"{folder}: cannot be read (Permission denied)")


# --- A clear no: idx files, .npz files and what they hold -------------------------------------


def sized(magic, *sizes):
    return struct.pack(f">{1 + len(sizes)}I", magic, *sizes)


SPOILT = {  # the new contents of files, from those of images and labels; the complaint
    "nothing": (lambda x, y: {IMAGES: b""}, "is no idx file; found it begins with b''"),
    "three bytes": (lambda x, y: {IMAGES: x[:3]}, "is no idx file; found it begins with"),
    "Git LFS": (lambda x, y: {IMAGES: b"version https://git-lfs..."}, "found a Git LFS pointer"),
    "header cut": (lambda x, y: {IMAGES: x[:15]}, "too short for an idx file"),
    "truncated": (lambda x, y: {IMAGES: x[:-1]}, "23519 bytes of numbers"),
    "too long": (lambda x, y: {IMAGES: x + b"\0"}, "23521 bytes of numbers"),
    "floats": (lambda x, y: {IMAGES: b"\0\0\x0d\3" + x[4:]}, "is no idx file"),
    "not zero": (lambda x, y: {IMAGES: b"\0\1\x08\3" + x[4:]}, "is no idx file"),
    "a billion": (lambda x, y: {IMAGES: sized(2051, 10**9, 28, 28) + x[16:]}, "is damaged"),
    "28x29": (lambda x, y: {IMAGES: sized(2051, 30, 28, 29) + bytes(24360)}, "[30, 28, 29]"),
    "fewer": (lambda x, y: {IMAGES: sized(2051, 29, 28, 28) + x[16:-784]}, "29 images, but 30"),
    "none": (lambda x, y: {IMAGES: sized(2051, 0, 28, 28), LABELS: sized(2049, 0)}, "found 0 im"),
    "swapped": (lambda x, y: {IMAGES: y, LABELS: x}, "are images and labels swapped?"),
    "labels twice": (lambda x, y: {IMAGES: y}, "are images and labels swapped?"),
    "images twice": (lambda x, y: {LABELS: x}, "are images and labels swapped?"),
    "7 columns": (lambda x, y: {LABELS: sized(2050, 30, 7) + bytes(210)}, "28, 28] and [30, 7]"),
    "label 10": (lambda x, y: {LABELS: y[:-1] + b"\x0a"}, "from 0 to 9 needed; found 0 to 10"),
    "0 and 1": (lambda x, y: {IMAGES: x[:16] + bytes([0, 1]) * 11760}, "multiply by 255"),
}  # fmt: skip


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_idx_files(folder, kind, compress):
    make, part = SPOILT[kind]
    originals = (folder / IMAGES).read_bytes(), (folder / LABELS).read_bytes()
    spoilt = make(*originals)
    for name, content in spoilt.items():
        (folder / name).write_bytes(gzip.compress(content) if compress else content)
    named = LABELS if kind == "label 10" else IMAGES
    assert refuse(folder, part).startswith(f"{folder / named}: ")


@pytest.mark.parametrize("cut", [slice(-9), slice(30), slice(2)])
def test_gzip_files_cut_short(folder, cut):
    packed = gzip.compress((folder / IMAGES).read_bytes())
    (folder / IMAGES).write_bytes(packed[cut])
    refuse(folder, f"{folder / IMAGES}: cannot be read (EOFError); copy it again")


IMAGE = np.full((9, 28, 28), 7, np.uint8)
NPZ = {  # arrays of an .npz file, the complaint
    "other names": ({"arr_0": IMAGE}, "needs the arrays x_train, y_train, x_test, y_test; "),
    "flat": ({"x_train": IMAGE.reshape(9, 784)}, "and labels [N] needed; found [9, 784]"),
    "one-hot": ({"y_train": np.eye(9)}, "found [9, 28, 28] and [9, 9]"),
    "fewer": ({"x_test": IMAGE[:8]}, "x_test: found 8 images, but 9 labels"),
    "floats": ({"x_train": IMAGE / 255}, "from 0 to 255 needed; found the type float64"),
    "objects": ({"y_train": np.full(9, None)}, "is no whole .npz file (ValueError)"),
    "256": ({"x_train": IMAGE.astype(int) * 256}, "found 1792 to 1792"),
    "negative": ({"y_test": np.full(9, -1)}, "y_test: whole numbers from 0 to 9 needed; found -1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NPZ)
def test_npz_files_of_something_else(tmp_path, kind):
    arrays, part = NPZ[kind]
    labels = np.zeros(9, np.uint8)
    whole = {"x_train": IMAGE, "y_train": labels, "x_test": IMAGE, "y_test": labels}
    path = tmp_path / "a.npz"
    np.savez(path, **({**whole, **arrays} if "arr_0" not in arrays else arrays))
    for given_path in (path, tmp_path):
        assert refuse(given_path, part).startswith(str(path))


class Ran:
    """Unpickled, it says so."""

    def __reduce__(self):
        return pytest.fail, ("code of a file ran",)


@pytest.mark.parametrize("kind", ["object array", "pickle"])
def test_no_code_of_an_npz_file_runs(tmp_path, kind):
    path = tmp_path / "mnist.npz"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Ran()))
    else:
        objects = np.array([Ran()], object)
        np.savez(path, x_train=objects, y_train=objects, x_test=objects, y_test=objects)
    refuse(path, "is no whole .npz file")


def test_wider_numbers_and_matlabs_order(folder, mnist):
    arrays = {
        name: array.astype(np.int64, order="F") for name, array in keras_arrays(folder).items()
    }
    np.savez(folder.parent / "a.npz", **arrays)
    assert_small_mnist(folder.parent / "a.npz", mnist)


def test_two_shades_that_are_not_0_and_1(folder, mnist):
    """They are a picture of ink and paper as 255 is one."""
    images = mnist.train_images[:30] // 128 * 2
    (folder / IMAGES).write_bytes(idx_bytes(images))
    assert np.array_equal(load_digits(folder, "train")[0], images)


@pytest.mark.parametrize(("grey", "is_bright"), [(127, False), (128, True)])
def test_a_bright_background(folder, capsys, grey, is_bright):
    """It is said, but does not stop the run. The test images do not count."""
    for name, count, value in (IMAGES, 30, grey), (TEST_IMAGES, 20, 255):
        (folder / name).write_bytes(idx_bytes(np.full((count, 28, 28), value)))
    digits = load_both_splits(find_source(folder), "cpu")
    assert len(digits.x_train) == 30
    output = capsys.readouterr()
    assert output.out == ""
    if is_bright:
        assert output.err == (
            f"{folder}: the mean pixel is 128, but 0 should be paper and 255 ink; "
            "invert the images (255 - pixel) if they are dark on bright\n"
        )
    else:
        assert output.err == ""


# --- Damage -----------------------------------------------------------------------------------

WORDS = [b"-1", b"256", b"10", b"1e3", b"0.5", b"nan", b"9" * 400, b"label", b"#", b",", b",,"]
WORDS += [b";", b" ", b"\n", b"\r", b"\n\n", b"\0", b'"', b"\xff", "\u0663".encode(), b"\x1c"]
PLACES = st.integers(0, 64) | st.integers(0, 2**20)  # headers are small, bodies are not
REMOVED = st.integers(0, 4) | st.sampled_from([784, 10**6])
DAMAGE = st.lists(
    st.tuples(PLACES, REMOVED, st.sampled_from(WORDS) | st.binary(max_size=4)),
    min_size=1,
    max_size=3,
)


def damaged(content, damage):
    content = bytearray(content)
    for place, removed, new in damage:
        place %= len(content) + 1
        content[place : place + removed] = new
    return bytes(content)


@pytest.fixture(scope="module")
def small(tmp_path_factory, mnist):
    return part_of_mnist(tmp_path_factory.mktemp("damage") / "digits", mnist, 12, -6)


def loads(path):
    """Whether a path can be read; if not, one line says why."""
    try:
        load_digits(path, "train")
    except InputError as error:
        message = str(error)
    else:
        return True
    assert "\n" not in message
    return False


@given(damage=DAMAGE)
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_damaged_idx_files(small, number, compress, damage):
    """What loads is the very file; what is compressed has a checksum, and loads as it was."""
    path = small / FILES["train"][number]
    original = path.read_bytes()
    content = damaged(gzip.compress(original, mtime=0) if compress else original, damage)
    try:
        path.write_bytes(content)
        if loads(small):
            array = load_digits(small, "train")[number]
            assert idx_bytes(array) == (original if compress else content)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("header", [[], [COLUMN_NAMES]], ids=["no names", "names"])
@given(damage=DAMAGE)
def test_damaged_tables(small, header, damage):
    """What loads has the numbers that Python reads in the lines, none more and none fewer."""
    lines = header + table_of(*read_small(small, "train"))
    path = small.parent / "a.csv"
    path.write_bytes(damaged("\n".join([*lines, ""]).encode(), damage))
    if loads(path):
        loaded = Counter()
        for image, label in both_splits(path).elements():
            loaded[(label, *image)] += 1
        rows = [line.split(",") for line in path.read_text(encoding="latin-1").split("\n")]
        is_header = len(set(rows[0])) == 785
        numbers = [
            tuple(int(word.strip()) for word in row) for row in rows[is_header:] if row != [""]
        ]
        last_first = [(row[-1], *row[:-1]) for row in numbers]
        assert loaded in (Counter(numbers), Counter(last_first))


@given(damage=DAMAGE)
def test_damaged_npz_files(small, damage):
    """Its parts have checksums: what loads is what it was."""
    arrays = keras_arrays(small)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = small.parent / "a.npz"
    path.write_bytes(damaged(buffer.getvalue(), damage))
    if loads(path):
        for split in FILES:
            images, labels = load_digits(path, split)
            assert np.array_equal(images, arrays[f"x_{split}"])
            assert np.array_equal(labels, arrays[f"y_{split}"])


# --- The download -----------------------------------------------------------------------------


@pytest.fixture
def missing_mnist(tmp_path, monkeypatch):
    """The default folder, moved to where there is nothing."""
    monkeypatch.setattr(data, "MNIST", tmp_path / "mnist")
    return tmp_path / "mnist"


@pytest.mark.parametrize("error", ["ImportError('none')", "RuntimeError('nms does not exist')"])
def test_without_torchvision_the_error_says_what_is_missing(
    tmp_path, missing_mnist, monkeypatch, error
):
    (tmp_path / "torchvision.py").write_text(f"raise {error}")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    refuse(missing_mnist, *MD5, missing_mnist, "importing torchvision failed", error.split("'")[1])
    assert not missing_mnist.exists()


class FakeMNIST:
    """Stands for torchvision's, and unpacks the shipped files, as it does."""

    def __init__(self, root, download):
        assert download
        print("as torchvision talks")
        raw = data.Path(root, "MNIST/raw")
        raw.mkdir(parents=True)
        for name in MD5:
            packed = (MNIST / f"{name}.gz").read_bytes()
            (raw / f"{name}.gz").write_bytes(packed)
            (raw / name).write_bytes(gzip.decompress(packed))


def test_where_a_download_goes(tmp_path, missing_mnist, monkeypatch, mnist, capsys):
    """Into the default folder alone, which may hold other files; it is not done again."""
    fake = type(sys)("torchvision")
    fake.datasets = type(sys)("torchvision.datasets")
    fake.datasets.MNIST = FakeMNIST
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    refuse(tmp_path / "elsewhere", "no such file or folder")
    missing_mnist.mkdir()
    (missing_mnist / "README.md").write_text("")
    assert np.array_equal(load_digits(missing_mnist, "test")[0], mnist.test_images)
    output = capsys.readouterr()
    assert output.out == f"MNIST is not in {missing_mnist}; downloading it ...\n"
    assert "as torchvision talks" in output.err
    assert {path.name for path in (missing_mnist / "MNIST/raw").iterdir()} == set(MD5)
    fake.datasets.MNIST = None
    assert len(load_digits(missing_mnist, "train")[0]) == 60000


def test_the_default_folder_with_a_file_missing(missing_mnist, mnist):
    """Whoever removed it meant something; nothing is fetched beside the others."""
    part_of_mnist(missing_mnist, mnist, 30, -20)
    (missing_mnist / IMAGES).unlink()
    refuse(missing_mnist, f"no {IMAGES}")


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


def test_download(missing_mnist, mirror, mnist):
    assert np.array_equal(load_digits(missing_mnist, "test")[0], mnist.test_images)


@pytest.mark.parametrize("damage", ["spoilt", "absent"])
def test_a_failed_download_leaves_nothing(missing_mnist, mirror, damage):
    file = mirror / f"{TEST_IMAGES}.gz"
    file.write_bytes(gzip.compress(b"not digits")) if damage == "spoilt" else file.unlink()
    refuse(missing_mnist, "the download failed")
    assert not missing_mnist.exists()
