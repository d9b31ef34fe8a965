"""The idx reader, the reader of tables, and the download."""

import gzip
import hashlib
import http.server
import io
import os
import re
import shutil
import struct
import sys
import threading
import time
import zipfile
from collections import Counter
from functools import partial

import numpy as np
import pytest
from conftest import FILES, MNIST, idx_bytes, part_of_mnist, table_of, write_lines

import data
from data import load_digits
from lib.errors import InputError

MD5 = {  # of the uncompressed files, as published with the data set's usual readers
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
IMAGES, LABELS = FILES["train"]
READER = "lambda path: data.load_digits(path, 'train')"


@pytest.fixture
def folder(tmp_path, mnist):
    """A folder of 30 training and 20 test images, to be spoilt."""
    return part_of_mnist(tmp_path / "digits", mnist, 30, -20)


def test_shipped_mnist_has_the_published_checksums():
    for split, names in FILES.items():
        images, labels = load_digits(MNIST, split)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        sums = [hashlib.md5(idx_bytes(array)).hexdigest() for array in (images, labels)]
        assert sums == [MD5[name] for name in names]


def test_same_digits_as_torchvision(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets", exc_type=Exception)
    (raw := tmp_path / "MNIST/raw").mkdir(parents=True)
    for name in MD5:
        (raw / name).write_bytes(gzip.decompress((MNIST / f"{name}.gz").read_bytes()))
    for split in FILES:
        theirs = datasets.MNIST(tmp_path, train=split == "train")
        known = theirs.data.numpy(), theirs.targets.numpy()
        assert all(map(np.array_equal, load_digits(tmp_path, split), known))


# --- How digits are distributed ---------------------------------------------------------------


def rename(folder, names, compress=False):
    """Put the four files of a folder under other names, {canonical name: path in the folder}."""
    for name, new in names.items():
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        path = folder / new
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if compress else content)


def dotted(name):
    return name.replace("-idx", ".idx")


def emnist(name):
    return "emnist-digits-" + name.replace("t10k", "test")


def transpose_images(folder):
    """As EMNIST stores them."""
    for split in FILES:
        path = folder / FILES[split][0]
        array = np.frombuffer(path.read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
        path.write_bytes(idx_bytes(array.transpose(0, 2, 1)))


def qmnist(name):
    return f"qmnist-{name}.gz".replace("t10k", "test").replace("idx1-ubyte", "idx2-int")


def qmnist_labels(folder):
    """32-bit numbers in eight columns, of which the first is the label."""
    for split in FILES:
        path = folder / FILES[split][1]
        labels = np.frombuffer(path.read_bytes(), np.uint8, offset=8)
        columns = np.arange(8) + np.zeros((len(labels), 8), ">i4")
        columns[:, 0] = labels
        path.write_bytes(
            struct.pack(">3I", 0x0C02, *columns.shape) + columns.astype(">i4").tobytes()
        )


def renamed(new_name, compress=False, change=None):
    """A way to distribute the files: under names that `new_name` makes from LeCun's."""

    def distribute(folder):
        if change:
            change(folder)
        rename(folder, {name: new_name(name) for name in MD5}, compress)
        return folder

    return distribute


def as_tables(names, header=True):
    def distribute(folder):
        for split, name in zip(FILES, names, strict=True):
            images, labels = load_digits(folder, split)
            first = [",".join(["label", *(f"{1 + n // 28}x{1 + n % 28}" for n in range(784))])]
            lines = table_of(images, labels)
            yield folder / name, first * header + lines

    def write(folder):
        for path, lines in list(distribute(folder)):
            path.parent.mkdir(exist_ok=True)
            write_lines(path, lines)
        for name in MD5:
            (folder / name).unlink()
        return folder

    return write


def emnist_tables(folder):
    transpose_images(folder)
    return as_tables(["emnist-digits-train.csv", "emnist-digits-test.csv"], header=False)(folder)


def as_npz(folder):
    (x_train, y_train), (x_test, y_test) = (load_digits(folder, split) for split in FILES)
    for name in MD5:
        (folder / name).unlink()
    labels = {"y_train": y_train.astype(np.uint8), "y_test": y_test.astype(np.uint8)}
    np.savez_compressed(folder / "mnist.npz", x_train=x_train, x_test=x_test, **labels)
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
        for shadow in (folder / f"._{name}", folder / "__MACOSX" / f"._{name}"):
            shadow.write_bytes(b"Mac OS X")
    return folder


DISTRIBUTIONS = {
    "LeCun": renamed(lambda name: f"{name}.gz", compress=True),
    "LeCun, unpacked": renamed(lambda name: name),
    "LeCun, unpacked by a browser that kept .gz": renamed(lambda name: f"{name}.gz"),
    "LeCun, compressed without .gz": renamed(lambda name: name, compress=True),
    "torchvision": renamed(lambda name: f"MNIST/raw/{name}"),
    "7-Zip, dots": renamed(dotted),
    "Kaggle, a folder of each name": renamed(lambda name: f"{dotted(name)}/{dotted(name)}"),
    "Kaggle, both": both_kaggle_forms,
    "Kaggle, two tables": as_tables(["mnist_train.csv", "mnist_test.csv"]),
    "two tables without names": as_tables(["Train.CSV", "TEST.csv"], header=False),
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
    "tables in train/ and test/": as_tables(["train/mnist.csv", "test/mnist.csv"]),
    "train/ and test/": renamed(lambda name: f"{'train' if 'train' in name else 'test'}/{name}"),
    "three levels below": renamed(lambda name: f"a/b/c/{name}"),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions(folder, mnist, name):
    path = DISTRIBUTIONS[name](folder)
    known = {
        "train": (mnist.train_images[:30], mnist.train_labels[:30]),
        "test": (mnist.test_images[-20:], mnist.test_labels[-20:]),
    }
    for split, (images, labels) in known.items():
        loaded_images, loaded_labels = load_digits(path, split)
        assert np.array_equal(loaded_images, images)
        assert np.array_equal(loaded_labels, labels)
        assert (loaded_images.dtype, loaded_labels.dtype) == (np.uint8, np.int64)
    assert data.find_source(path).test_name == "test"


def test_readme_names_the_distributions():
    text = (MNIST.parent / "README.md").read_text(encoding="utf-8")
    for name in ("LeCun", "torchvision", "Kaggle", "Keras", "OpenML", "Fashion-MNIST", "KMNIST",
                 "EMNIST", "QMNIST"):  # fmt: skip
        assert name in text


def test_openmls_table(tmp_path, mnist):
    """Its label is last, and named class."""
    names = ",".join([*(f"pixel{n}" for n in range(1, 785)), "class"])
    lines = table_of(mnist.train_images[:50], mnist.train_labels[:50], "last")
    path = write_lines(tmp_path / "mnist_784.csv", [names, *lines])
    both = [load_digits(path, split) for split in FILES]
    found = {(image.tobytes(), label) for pair in both for image, label in zip(*pair, strict=True)}
    known = zip(mnist.train_images[:50], mnist.train_labels[:50], strict=True)
    assert found == {(image.tobytes(), label) for image, label in known}


def test_a_file_of_a_set_stands_for_it(folder, tmp_path, mnist):
    """So that one of several sets in a folder can be named."""
    target = tmp_path / "several"
    for prefix in ("", "other-"):
        shutil.copytree(folder, tmp_path / f"copy{prefix}")
        rename(tmp_path / f"copy{prefix}", {name: f"{prefix}{name}" for name in MD5})
        shutil.copytree(tmp_path / f"copy{prefix}", target, dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"several sets: .*several/\*, .*several/other-\*"):
        load_digits(target, "train")
    for name in ("other-t10k-labels-idx1-ubyte", "train-images-idx3-ubyte"):
        assert np.array_equal(load_digits(target / name, "test")[1], mnist.test_labels[-20:])


# --- A clear no -------------------------------------------------------------------------------


def test_several_sets(folder, tmp_path, mnist):
    """A parent of two, a set and a table, EMNIST's splits: a line that lists them."""
    parent = tmp_path / "parent"
    shutil.copytree(folder, parent / "MNIST/raw")
    shutil.copytree(folder, parent / "FashionMNIST/raw")
    with pytest.raises(InputError, match=r"several sets: .*FashionMNIST/raw/\*, .*MNIST/raw/\*"):
        load_digits(parent, "train")
    shutil.rmtree(parent / "FashionMNIST")
    assert len(load_digits(parent, "train")[0]) == 30
    line = ["0" + ",0" * 784]
    for name in ("my_train.csv", "my_test.csv"):
        write_lines(parent / name, line)
    with pytest.raises(InputError, match=r"several sets: .*my_train\.csv and .*my_test\.csv"):
        load_digits(parent, "train")
    (parent / "my_test.csv").unlink()
    with pytest.raises(InputError, match=r"several sets: .*MNIST/raw/\*, .*/my_train\.csv;"):
        load_digits(parent, "train")  # a table alone counts as well, however far above
    emnist_folder = tmp_path / "emnist"
    for split in ("digits", "letters"):
        renamed_folder = shutil.copytree(folder, tmp_path / f"of {split}")
        rename(renamed_folder, {name: f"emnist-{split}-{name}" for name in MD5})
        shutil.copytree(renamed_folder, emnist_folder, dirs_exist_ok=True)
    with pytest.raises(
        InputError, match=r"several sets: .*/emnist-digits-\*, .*/emnist-letters-\*"
    ):
        load_digits(emnist_folder, "train")


PIECES = {  # two halves that do not belong together, by their folders or names
    "other words": ("mnist_train/", "fashion_test/"),
    "one of them": ("", "fashion_test/"),
    "parts of words": ("constrained/", "latest/"),
    "another case": ("MNIST_train/", "mnist_test/"),
}


@pytest.mark.parametrize("kind", PIECES)
def test_halves_of_two_sets_are_not_joined(folder, kind):
    train, test = PIECES[kind]
    rename(folder, {name: (train if "train" in name else test) + name for name in MD5})
    with pytest.raises(InputError, match="several sets"):
        load_digits(folder, "train")


@pytest.mark.parametrize(
    "names", [("train.csv", "latest.csv"), ("fashion_train.csv", "mnist_test.csv")]
)
def test_tables_that_do_not_belong_together(folder, names):
    folder = as_tables(names)(folder)
    with pytest.raises(InputError, match="several sets"):
        load_digits(folder, "train")


OTHER_HALVES = {  # of a training table: a file that is no table, but may be meant
    "mnist_test.csv": b"",
    "mnist_test.CSV": b"5" + b";0" * 784,
    "mnist_test.txt": b"5" + b",0" * 784,
    "mnist_test.csv.gz": gzip.compress(b"5" + b",0" * 784),
}


@pytest.mark.parametrize("name", OTHER_HALVES)
def test_a_test_table_is_never_ignored(tmp_path, mnist, name):
    lines = table_of(mnist.train_images[:50], mnist.train_labels[:50])
    write_lines(tmp_path / "mnist_train.csv", lines)
    (tmp_path / name).write_bytes(OTHER_HALVES[name])
    with pytest.raises(InputError, match=rf"/{name}: is no table"):
        load_digits(tmp_path, "train")


UNPAIRED = {  # names of a training and of a test table, and what the test table holds
    "another word": ("mnist_training.csv", "mnist_test.csv", b"5" + b";0" * 784),
    "other names": ("train.csv", "testset.csv", b""),
    "a row without its label": ("train.csv", "test.csv", b"0" + b",0" * 783 + b"\n0" + b",0" * 784),
}


@pytest.mark.parametrize("kind", UNPAIRED)
def test_a_test_table_beside_is_never_ignored(tmp_path, mnist, kind):
    train, test, content = UNPAIRED[kind]
    write_lines(tmp_path / train, table_of(mnist.train_images[:50], mnist.train_labels[:50]))
    (tmp_path / test).write_bytes(content)
    with pytest.raises(InputError, match=rf"/{test}: is no table"):
        load_digits(tmp_path, "train")


@pytest.mark.parametrize("name", ["train.json", "train.py", "test.txt.md", "test.safetensors"])
def test_other_files_beside_tables(tmp_path, folder, name):
    """Such as those that a run writes into the folder of its data."""
    folder = as_tables(["train.csv", "test.csv"])(folder)
    (folder / name).write_text("{}")
    assert len(load_digits(folder, "test")[0]) == 20


@pytest.mark.parametrize(
    ("names", "is_pair"),
    [
        (("train.mnist.csv", "test.fashion.csv"), False),
        (("mnist.train.csv", "mnist.test.csv"), True),
        (("training.csv", "testing.csv"), True),
        (("trainset.csv", "testset.csv"), True),
    ],
)
def test_which_tables_are_a_pair(folder, names, is_pair):
    folder = as_tables(names)(folder)
    if is_pair:
        assert len(load_digits(folder, "train")[0]) == 30
    else:
        with pytest.raises(InputError, match="several sets"):
            load_digits(folder, "train")


def test_a_table_is_read_once(tmp_path, mnist):
    """So that both splits are of the same, also if a program writes it meanwhile."""
    path = write_lines(
        tmp_path / "a.csv", table_of(mnist.train_images[:50], mnist.train_labels[:50])
    )
    source = data.find_source(path)
    train = source.load("train")[0]
    write_lines(path, table_of(mnist.train_images[50:100], mnist.train_labels[50:100]))
    both = [*train, *source.load("test")[0]]
    assert {image.tobytes() for image in both} == {i.tobytes() for i in mnist.train_images[:50]}


def test_pixels_of_zero_and_one(tmp_path, mnist):
    """They would be nearly white, as 255 is ink."""
    pixels, labels = mnist.train_images[:50] // 128, mnist.train_labels[:50]
    path = write_lines(tmp_path / "a.csv", table_of(pixels, labels))
    with pytest.raises(InputError, match="multiply by 255"):
        load_digits(path, "train")


def test_arrays_in_the_order_of_matlab(folder):
    """By columns; both readers take them."""
    (x_train, y_train), (x_test, y_test) = (load_digits(folder, split) for split in FILES)
    path = folder.parent / "a.npz"
    np.savez(path, x_train=np.asfortranarray(x_train), y_train=y_train,
             x_test=np.asfortranarray(x_test), y_test=y_test)  # fmt: skip
    digits = data.load_both_splits(data.find_source(path), "cpu")
    assert np.array_equal(digits.x_train, data.as_input(x_train))
    assert np.array_equal(load_digits(path, "test")[0], x_test)


def test_an_npz_file_with_other_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros(3), images=np.zeros(3))
    with pytest.raises(InputError, match=r"a\.npz: needs the arrays x_train.*holds arr_0, images"):
        load_digits(tmp_path / "a.npz", "train")


def test_what_was_read_is_said(folder):
    """The files, not the folder that was given; and whether images were turned."""
    shutil.copytree(folder, folder / "older")
    for name in MD5:
        (folder / name).unlink()
    assert str(data.find_source(folder)) == str(folder / "older")
    rename(folder / "older", {name: emnist(name) for name in MD5})
    place = folder / "older/emnist-digits-*"
    assert str(data.find_source(folder)) == f"{place}, turned upright"


def test_many_sets(folder):
    for number in range(12):
        shutil.copytree(folder, folder.parent / f"several/{number}")
    with pytest.raises(InputError, match=r"several sets: .* and 2 more; name"):
        load_digits(folder.parent / "several", "train")


def test_a_damaged_npz_file_is_never_ignored(folder, tmp_path):
    whole = as_npz(shutil.copytree(folder, tmp_path / "other")).read_bytes()
    (folder / "mnist.npz").write_bytes(whole[: len(whole) // 2])
    for path in (folder, folder / "mnist.npz"):
        with pytest.raises(InputError, match=r"mnist\.npz: is a damaged \.npz file"):
            load_digits(path, "train")


def test_too_many_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_IMAGES", 29)
    path = write_lines(tmp_path / "a.csv", columns_of(i % 10, 0 * i))
    with pytest.raises(InputError, match="line 30: more than 29 images"):
        load_digits(path, "train")


def test_a_file_in_a_folder_of_its_split_stands_for_the_set(folder, mnist):
    rename(folder, {n: f"{'train' if 'train' in n else 'test'}ing/{n}" for n in MD5})
    for name in (f"training/{IMAGES}", "testing/t10k-labels-idx1-ubyte"):
        assert np.array_equal(load_digits(folder / name, "test")[1], mnist.test_labels[-20:])
    with pytest.raises(InputError, match="training: no t10k-images"):
        load_digits(folder / "training", "train")


def test_a_folder_with_one_table(tmp_path, mnist):
    """As Kaggle's digit recognizer, whose test.csv has no labels."""
    lines = table_of(mnist.train_images[:50], mnist.train_labels[:50])
    write_lines(tmp_path / "train.csv", [",".join(["label", *map(str, range(784))]), *lines])
    write_lines(tmp_path / "test.csv", [line.partition(",")[2] for line in lines])
    write_lines(tmp_path / "sample_submission.csv", ["ImageId,Label", "1,0"])
    assert sum(len(load_digits(tmp_path, split)[0]) for split in FILES) == 50
    assert data.find_source(tmp_path).test_name == "held-out"


def test_a_file_of_kaggles_set_stands_for_it(folder, mnist):
    folder = both_kaggle_forms(folder)
    for path in (folder / IMAGES / IMAGES, folder / dotted(LABELS)):
        assert np.array_equal(load_digits(path, "test")[1], mnist.test_labels[-20:])


def test_what_is_no_file(folder):
    """A pipe in the place of a file, and a folder that may not be searched."""
    (folder / LABELS).unlink()
    os.mkfifo(folder / LABELS)
    for path in (folder, folder / IMAGES):
        with pytest.raises(InputError, match=f"no {LABELS}"):
            load_digits(path, "train")


def test_an_archive_beside_the_set_is_not_looked_into(folder):
    """Whatever is wrong with it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "a")
    content = bytearray(buffer.getvalue())
    start = content.find(b"PK\1\2")
    for place, value in ((start + 6, 99), (start + 46, 0xFF)):
        spoilt = content.copy()
        spoilt[place] = value
        spoilt[start + 9] = 8
        (folder / "other.zip").write_bytes(spoilt)
        assert len(load_digits(folder, "train")[0]) == 30


def test_two_gzip_bombs(folder):
    """That claim to be the same file are not unpacked for ever."""
    (folder / IMAGES).unlink()
    for name in (IMAGES, dotted(IMAGES)):
        with open(folder / f"{name}.gz", "wb") as file:
            file.write(gzip.compress(sized(30, 28, 28)))
            file.write(gzip.compress(bytes(2**26), 1) * 40)
    started = time.monotonic()
    with pytest.raises(InputError, match="too long"):
        load_digits(folder, "train")
    assert time.monotonic() - started < 10


def test_two_files_that_claim_to_be_the_same(folder):
    content = bytearray((folder / IMAGES).read_bytes())
    (folder / dotted(IMAGES)).write_bytes(content)
    assert len(load_digits(folder, "train")[0]) == 30
    content[-1] ^= 1
    (folder / dotted(IMAGES)).write_bytes(content)
    with pytest.raises(InputError, match="is not the same; keep one of the two"):
        load_digits(folder, "train")


@pytest.mark.parametrize("name", sorted(MD5))
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    for split in FILES:
        with pytest.raises(InputError, match=f"no {name} "):
            load_digits(folder, split)


NO_DIGITS = {
    "empty": ({}, "it is empty"),
    "others": ({"a.txt": b"", "b/c.txt": b""}, "it holds a.txt, b/"),
    "many": ({f"{n}.txt": b"" for n in range(9)}, "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 4 more"),
    "too deep": ({f"a/b/c/d/{name}": b"" for name in MD5}, "it holds a/"),
    "one table": ({"digits.csv": b"0"}, "it holds digits.csv"),
    "another prefix": ({f"x{name}": b"" for name in MD5}, f"x{IMAGES}"),
}


@pytest.mark.parametrize("kind", NO_DIGITS)
def test_a_folder_without_digits(tmp_path, kind):
    """It says what is looked for, and what lies there; nothing is downloaded into it."""
    files, part = NO_DIGITS[kind]
    for name, content in files.items():
        path = tmp_path / "digits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "digits").mkdir(exist_ok=True)
    with pytest.raises(InputError) as caught:
        load_digits(tmp_path / "digits", "train")
    assert str(caught.value).startswith(
        f"{tmp_path / 'digits'}: no digits; looked for train-images"
    )
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["digts", "digits.csv", "a/b"])
def test_a_path_that_does_not_exist(tmp_path, name):
    with pytest.raises(InputError, match=rf"/{name}: no such file or folder$"):
        load_digits(tmp_path / name, "train")
    assert not list(tmp_path.iterdir())


OTHER_FORMATS = {
    "a.arff": (b"% MNIST\n@RELATION mnist\n", "ARFF"),
    "b": (b"@RELATION mnist\n", "ARFF"),
    "a.parquet": (b"PAR1....", "Parquet"),
    "c": (b"PAR1....", "Parquet"),
    "a.mat": (b"MATLAB 5.0 MAT-file", "MATLAB"),
    "a.png": (b"\x89PNG\r\n", "picture"),
    "a.JPG": (b"\xff\xd8\xff", "picture"),
    "a.zip": (b"PK\x03\x04", "archive"),
    "a.csv.gz": (gzip.compress(b"1,2,3"), "archive"),
    "a.npz": (b"PK\x03\x04", "a damaged .npz file"),
    "a.pkl": (b"\x80\x04", "pickle"),
    "a.h5": (b"\x89HDF\r\n", "HDF5"),
    "a.xlsx": (b"", "spreadsheet"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_other_formats(tmp_path, complaint, name):
    """A line that says what it is, and what to do."""
    content, what = OTHER_FORMATS[name]
    (tmp_path / name).write_bytes(content)
    message = complaint(READER, tmp_path / name, megabytes=10)
    assert message.startswith(f"{tmp_path / name}: is a")
    assert what in message
    assert re.search("convert|unpack|table|copy it again", message)


def test_npz_files_that_are_something_else(tmp_path, complaint):
    whole = {
        "x_train": np.zeros((9, 28, 28), np.uint8), "y_train": np.zeros(9, np.uint8),
        "x_test": np.zeros((3, 28, 28), np.uint8), "y_test": np.zeros(3, np.uint8),
    }  # fmt: skip
    for name, value, part in (
        ("x_train", np.zeros((9, 784), np.uint8), "Nx28x28"),
        ("x_train", np.zeros((8, 28, 28), np.uint8), "8 images in x_train, but 9 labels"),
        ("x_train", np.zeros((9, 28, 28)), "whole numbers"),
        ("x_train", np.full((9, 28, 28), 256), "outside 0 to 255"),
        ("x_train", np.full((9, 28, 28), None), "whole numbers"),
        ("x_train", np.zeros((0, 28, 28), np.uint8), "0 items"),
        ("y_train", np.full(9, 10), "outside 0 to 9"),
        ("y_train", np.full(9, -1), "outside 0 to 9"),
    ):
        np.savez(tmp_path / "a.npz", **{**whole, name: value})
        message = complaint(READER, tmp_path / "a.npz", megabytes=10)
        assert message.startswith(f"{tmp_path / 'a.npz'}: ")
        assert part in message
    headers = [
        b"{'descr': ",
        b"{[]: 1}",
        b"{1:2,'a':3}",
        b"if 1:\n  a\n b",
        b"{'descr': ()}",
        b"\\",
        b"-" * 9000,  # Python says that memory runs out
    ]
    for header in [*headers, b" " * 10**7]:
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in whole:
                length = struct.pack("<I", len(header))
                archive.writestr(f"{name}.npy", b"\x93NUMPY\2\0" + length + header)
        assert "cannot be read" in complaint(READER, tmp_path / "a.npz", megabytes=30)
    huge = np.zeros((240_000, 28, 28), "<i8")
    np.savez_compressed(tmp_path / "a.npz", **{**whole, "x_train": huge})
    del huge
    assert "too large" in complaint(READER, tmp_path / "a.npz", megabytes=10)
    np.savez(tmp_path / "a.npz", **whole)
    content = (tmp_path / "a.npz").read_bytes()
    for cut in (100, len(content) // 2, len(content) - 30):
        (tmp_path / "a.npz").write_bytes(content[:cut])
        assert complaint(READER, tmp_path / "a.npz", megabytes=10)


def test_a_folder_with_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_FILES", 20)
    for number in range(21):
        (tmp_path / str(number)).write_bytes(b"")
    with pytest.raises(InputError, match="too many files"):
        load_digits(tmp_path, "train")


def test_a_folder_that_goes_round_in_a_circle(folder):
    (folder / "again").symlink_to(folder)
    assert len(load_digits(folder, "train")[0]) == 30


# --- Tables -----------------------------------------------------------------------------------


NUMBERS = ",".join(map(str, range(785)))
HEADERS = {
    "none": [],
    "names": ["column " + NUMBERS.replace(",", ",column ")],
    "numbers": [NUMBERS],
}


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


def columns_of(first, last):
    """A table whose first and last column are these, zeros between: its lines."""
    return [",".join([str(a), *["0"] * 783, str(b)]) for a, b in zip(first, last, strict=True)]


i = np.arange(30)
COLUMNS = {  # first and last column without names: which is the label, or part of a message
    "two that may be": (i % 2, i % 3, "first column or the last"),
    "one class, zeros": (0 * i + 5, 0 * i, "first column or the last"),
    "zeros, one class": (0 * i, 0 * i + 5, "first column or the last"),
    "only zeros": (0 * i, 0 * i, "first column or the last"),
    "the same twice": (i % 3, i % 3, "first column or the last"),
    "two classes, zeros": (i % 2, 0 * i, 0),
    "zeros, two classes": (0 * i, i % 2, 784),
    "classes, pixels": (i % 10, 17 * i % 256, 0),
    "one class, pixels": (0 * i + 3, 17 * i % 256, 0),
    "pixels, classes": (17 * i % 256, i % 10, 784),
    "pixels, one class": (17 * i % 256, 0 * i + 3, 784),
    "pixels, zeros": (
        17 * i % 256,
        0 * i,
        "17 in the first column and only zeros in the last",
    ),
    "pixels, pixels": (
        17 * i % 256,
        19 * i % 256,
        "17 in the first column and 19 in the last",
    ),
    "a label 38": (np.where(i == 7, 38, i % 10), 0 * i, "line 8: 38 in the first column"),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_label_column_is_never_guessed(tmp_path, kind):
    first, last, known = COLUMNS[kind]
    path = write_lines(tmp_path / "a.csv", columns_of(first, last))
    if isinstance(known, str):
        with pytest.raises(InputError, match=known):
            load_digits(path, "train")
    else:
        counts = sum(np.bincount(load_digits(path, split)[1], minlength=10) for split in FILES)
        assert np.array_equal(counts, np.bincount(first if known == 0 else last, minlength=10))


def test_a_first_row_on_the_line_of_the_names(tmp_path):
    """It is not lost without a word, although the line has as many different words as columns."""
    names = ",".join(["label", *map(str, range(784))])
    first, *others = columns_of(i % 10, 0 * i)
    path = write_lines(tmp_path / "a.csv", [names + first, *others])
    with pytest.raises(InputError, match="line 1: needs a label"):
        load_digits(path, "train")


@pytest.mark.parametrize("name", ["id", "index", "Unnamed: 0", "", "fold", "split", "is_test"])
def test_numbers_of_the_lines_are_no_labels(tmp_path, name):
    names = ",".join([name, *(f"pixel{n}" for n in range(784))])
    path = write_lines(tmp_path / "a.csv", [names, *columns_of(i % 10, 17 * i % 256)])
    with pytest.raises(InputError, match=r"the name .* of the first column"):
        load_digits(path, "train")


def test_a_pixel_is_no_label(tmp_path):
    """Its column has a name like all pixels, and the other one has not."""
    names = [f"pixel{n}" for n in range(784)]
    lines = columns_of(17 * i % 256, i % 3)
    path = write_lines(tmp_path / "a.csv", [",".join(["writer's age", *names]), *lines])
    with pytest.raises(InputError, match=r"the name 'pixel783' of the last column"):
        load_digits(path, "train")
    lines = columns_of(i % 10, i % 3)
    write_lines(path, [",".join(["Ziffer", *names]), *lines])
    labels = np.concatenate([load_digits(path, split)[1] for split in FILES])
    assert sorted(labels) == sorted(i % 10)


def test_two_columns_named_as_labels(tmp_path):
    names = ",".join(["label", *(f"pixel{n}" for n in range(783)), "class"])
    path = write_lines(tmp_path / "a.csv", [names, *columns_of(i % 10, i % 10)])
    with pytest.raises(InputError, match="columns 1 and 785 are named as the label"):
        load_digits(path, "train")


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
    with pytest.raises(InputError) as caught:
        load_digits(missing_mnist, "train")
    assert "\n" not in str(caught.value)
    for part in (*MD5, str(missing_mnist), "torchvision", error.split("'")[1]):
        assert part in str(caught.value)
    assert not missing_mnist.exists()


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


def test_download(tmp_path, missing_mnist, mirror, mnist, capsys):
    """Only into the default folder; it says so first, and is not done again."""
    with pytest.raises(InputError, match="no such file or folder"):
        load_digits(tmp_path / "elsewhere", "test")
    assert np.array_equal(load_digits(missing_mnist, "test")[0], mnist.test_images)
    assert capsys.readouterr().out == f"MNIST is not in {missing_mnist}; downloading it ...\n"
    raw = [file.name for file in (missing_mnist / "MNIST/raw").iterdir()]
    assert {name.removesuffix(".gz") for name in raw} == set(MD5)
    shutil.rmtree(mirror)
    assert len(load_digits(missing_mnist, "train")[0]) == 60000  # not fetched again


def test_the_default_folder_with_a_file_missing(missing_mnist, tmp_path, mnist, mirror):
    """Whoever removed it meant something; nothing is fetched beside the others."""
    part_of_mnist(missing_mnist, mnist, 30, -20)
    (missing_mnist / IMAGES).unlink()
    with pytest.raises(InputError, match=f"no {IMAGES}"):
        load_digits(missing_mnist, "train")


@pytest.mark.parametrize("damage", ["spoilt", "absent"])
def test_failed_download_leaves_nothing(missing_mnist, mirror, damage):
    file = mirror / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(b"not digits")) if damage == "spoilt" else file.unlink()
    with pytest.raises(InputError, match="download failed") as caught:
        load_digits(missing_mnist, "test")
    assert "\n" not in str(caught.value)
    assert not missing_mnist.exists()
