"""Finds and reads the files in which labelled images are published: idx, tables, .npz.

An idx file begins with two zero bytes, the type of its numbers and its rank, a byte each. Then come
as many sizes as its rank says, of 4 bytes each, and then the numbers. It may be compressed.

A table has one image per line: a label, first or last, and the pixels, with commas between them.
The first line may have column names.
"""

import contextlib
import gzip
import hashlib
import itertools
import math
import re
import struct
import warnings
import zlib

import numpy as np

from lib.errors import InputError, as_input_error

IDX_TYPES = {8: np.dtype("u1"), 12: np.dtype(">i4")}  # the third byte of an idx file: its numbers
GZIP_MAGIC = b"\x1f\x8b"
QMNIST_COLUMNS = 8  # of its labels, which are in the first

# LeCun's train-images-idx3-ubyte and t10k-labels-idx1-ubyte, with dots for dashes (Kaggle), test
# for t10k, in any case, after a prefix that ends with no letter (emnist-digits-), with .gz.
IDX_NAME = re.compile(
    r"(?P<prefix>(?:.*[^a-z0-9])?)(?P<split>train|test|t10k)[-_.]?(?P<kind>images|labels)"
    r"[-_.]idx[123][-_.](?:ubyte|int)(?:\.gz)?",
    re.IGNORECASE,
)
SPLIT_WORD = re.compile(r"(?<![a-z])(train|test|t10k)(?:ing|set)?(?![a-z])", re.IGNORECASE)
NUMBER_OF_COPY = re.compile(r" ?\(\d+\)")  # a browser's second download: mnist_train (1).csv
TRANSPOSED = re.compile(r"(?<![a-z])emnist", re.IGNORECASE)  # EMNIST swaps rows and columns

TABLE_ENDING = re.compile(  # of what is meant as a table, also if packed or not fully downloaded
    r"\.(csv|tsv|txt|xlsx?|ods|parquet|arff|zip)(\.[a-z0-9]+)?$", re.IGNORECASE
)
ONLY_TEST = "is a test table, which is never used for training; its training table is missing"
LABEL_NAMES = {"label", "labels", "class", "digit", "target", "y"}  # of the label's column
UTF8_MARK = "\xef\xbb\xbf"  # at the beginning of a UTF-8 file, each byte read as a character
MAX_LINE = 100_000  # characters of a first line; 785 column names have fewer
FOREIGN = {  # how files begin that are often found instead of what their names say
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
    b"PK\x03\x04": "a spreadsheet or another zip archive; save it as CSV or unpack it",
    b"<": "a web page; download the file again",
    GZIP_MAGIC: "a compressed file; unpack it",
}


# --- Find -------------------------------------------------------------------------------------


def files_below(folder, depth):
    """The files in a folder and `depth` levels of folders below it, sorted.

    Left out is what is not the user's: hidden files, and what macOS puts beside copies.
    """
    files = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if entry.is_file():
            files.append(entry)
        elif entry.is_dir() and depth > 0:
            with contextlib.suppress(PermissionError):  # lost+found, at the top of a disk
                files += files_below(entry, depth - 1)
    return files


def split_in(name):
    """Of which split a name speaks: "train", "test", or "" if of none or of both."""
    words = {word.lower() for word in SPLIT_WORD.findall(name)}
    if words == {"train"}:
        return "train"
    if words and "train" not in words:
        return "test"
    return ""


def without_split(path):
    """A path with a star for each word train or test: the same for files that belong together."""
    return SPLIT_WORD.sub("*", str(path))


def is_transposed(path):
    """Whether an idx file or a table is of EMNIST, as its name says."""
    return path.suffix != ".npz" and bool(TRANSPOSED.search(path.name))


def parse_idx_name(name):
    """What the name of an idx file says: (prefix, split, kind); None if it is no such name.

    The split is "train" or "test", the kind "images" or "labels".
    """
    match = IDX_NAME.fullmatch(name)
    if not match:
        return None
    split = "train" if match["split"].lower() == "train" else "test"
    return match["prefix"].lower(), split, match["kind"].lower()


def folder_of_set(path):
    """The folder of an idx file; Kaggle puts a folder of the file's own name between them."""
    folder = path.parent
    if parse_idx_name(folder.name):
        folder = folder.parent
    return folder


def find_idx_sets(files):
    """The sets of idx files, complete or not: a list of {(split, kind): [path and its copies]}.

    Files belong together if they have the same prefix and are in the same folder, or in folders
    whose paths differ only in the words train and test.
    """
    sets = {}
    for path in files:
        name = parse_idx_name(path.name)
        if name:
            prefix, split, kind = name
            key = (without_split(folder_of_set(path)), prefix)
            paths = sets.setdefault(key, {}).setdefault((split, kind), [])
            paths.append(path)
    return list(sets.values())


def files_beside(path):
    """The files among which the others of an idx file's set are."""
    folder = folder_of_set(path)
    files = []
    for other in sorted(folder.parent.iterdir()):
        if without_split(other) == without_split(folder) and other.is_dir():
            files += files_below(other, depth=1)
    return files


def one_of(copies):
    """The first of several files that hold the same.

    Raises InputError: they do not.
    """
    first, *others = copies
    for other in others:
        if unpacked(other) != unpacked(first):
            raise InputError(f"{first}: {other} is not the same; keep one of the two")
    return first


def find_tables(folder, files, columns):
    """The tables among the files of a folder: pairs of a train and a test table, and single ones.

    ([(train, test)], [path]). The paths of a pair differ only in the words train and test.
    Raises InputError: beside a table is a file that may be its other half, but cannot be read; or a
    test table has no other half.
    """
    groups = {}  # {path without the split: {split: [path and its copies]}}
    unread = []
    for path in files:
        if not TABLE_ENDING.search(path.name):
            continue
        if path.suffix.lower() != ".csv" or first_line_fault(path, columns):
            unread.append(path)
            continue
        key = NUMBER_OF_COPY.sub("", without_split(path.with_suffix("")))
        split = _split_of_table(folder, path)
        groups.setdefault(key, {}).setdefault(split, []).append(path)
    pairs = []
    single = []
    for group in groups.values():
        tables = {split: one_of(copies) for split, copies in group.items()}
        if "train" in tables and "test" in tables:
            pairs.append((tables["train"], tables["test"]))
            continue
        for split, path in tables.items():
            fault = _fault_of_other_half(folder, unread, path, split, columns)
            if split == "test":
                raise InputError(f"{path}: {ONLY_TEST}{fault}")
            if fault:
                raise InputError(f"{path}: its test table cannot be read{fault}")
            single.append(path)
    return pairs, single


def _split_of_table(folder, path):
    """As `split_in`, of a table's name, or else of those of the folders below the given one."""
    return split_in(path.name) or split_in(str(path.parent.relative_to(folder)))


def _fault_of_other_half(folder, unread, table, split, columns):
    """Words for a message: which file may be a table's other half, and why it is none; "" if none.

    A test table without labels, as Kaggle's digit recognizer has one, is not meant.
    """
    other_split = {"train": "test", "test": "train"}.get(split)
    for path in unread:
        is_near = without_split(path.parent) == without_split(table.parent)
        if not is_near or _split_of_table(folder, path) != other_split:
            continue
        has_no_labels = first_line(path).count(",") + 1 == columns - 1
        if has_no_labels and other_split == "test":
            continue
        fault = first_line_fault(path, columns) or "is it whole? Its name does not end in .csv"
        return f"; {path}: {fault}"
    return ""


# --- Read -------------------------------------------------------------------------------------


def reading(path):
    """Turn errors of reading inside into an InputError that names the file."""
    return as_input_error(path, "cannot be read", "copy it again", (OSError, EOFError, zlib.error))


def unpacked(path):
    """The bytes of a file, unpacked if its first bytes, not its name, say that it is compressed."""
    with reading(path):
        content = path.read_bytes()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
    return content


def foreign(start):
    """What a file is instead of what its name says, by its first bytes; "" if that is unknown."""
    for magic, words in FOREIGN.items():
        if start.startswith(magic):
            return words
    return ""


def read_idx(path):
    """The array of an idx file: images [N, H, W], upright, or labels [N].

    Raises InputError: the file is unreadable, damaged or no idx file.
    """
    content = unpacked(path)
    magic = content[:4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES:
        found = foreign(content) or f"it begins with {magic!r}"
        raise InputError(f"{path}: is no idx file; found {found}")
    dtype = IDX_TYPES[magic[2]]
    rank = magic[3]
    header_bytes = 4 + 4 * rank
    if len(content) < header_bytes:
        raise InputError(f"{path}: is too short for an idx file; copy it again")
    sizes = struct.unpack(f">{rank}I", content[4:header_bytes])
    promised = math.prod(sizes) * dtype.itemsize
    found = len(content) - header_bytes
    if found != promised:
        raise InputError(
            f"{path}: is damaged; found {found} bytes of numbers, but its sizes "
            f"{list(sizes)} need {promised}; copy it again"
        )
    array = np.frombuffer(content, dtype, offset=header_bytes).reshape(sizes)
    if array.ndim == 2 and array.shape[1] == QMNIST_COLUMNS:
        array = array[:, 0]
    if array.ndim == 3 and is_transposed(path):
        array = array.transpose(0, 2, 1)
    return array.copy()  # PyTorch warns of one that cannot be written


def idx_md5(array):
    """The MD5 of the uncompressed idx file of an array of numbers from 0 to 255.

    That of MNIST's four files is published, so a reader can check which data a run used.
    """
    digest = hashlib.md5(usedforsecurity=False)
    digest.update(struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape))
    digest.update(np.ascontiguousarray(array, np.uint8))
    return digest.hexdigest()


def read_npz(path, names):
    """The arrays of these names in an .npz file, {name: array}; no pickle, which could run code.

    Raises InputError: it is damaged, or one is missing.
    """
    damaged = as_input_error(path, "is no whole .npz file", "copy it again")  # errors of many kinds
    with damaged, open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        if not set(names) <= set(arrays.files):
            needed = ", ".join(names)
            found = ", ".join(arrays.files)
            raise InputError(f"{path}: needs the arrays {needed}; found {found}")
        return {name: arrays[name] for name in names}


# --- Tables -----------------------------------------------------------------------------------


def first_line(path):
    """The first line of a file, a character per byte."""
    with reading(path), open(path, encoding="latin-1") as file:
        return file.readline(MAX_LINE)


def first_line_fault(path, columns):
    """Why a file is no table with so many columns, by its first line; "" if it may be one."""
    line = first_line(path)
    values = line.count(",") + 1
    is_text = "\0" not in line
    if values == columns and is_text:
        return ""
    needed = f"{columns} values per line needed, with commas between; found"
    if not line:
        return f"{needed} an empty file"
    if foreign(line.encode("latin-1")):
        return f"{needed} {foreign(line.encode('latin-1'))}"
    if not is_text:
        return f"{needed} bytes that are no text"
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if line.count(separator) + 1 >= columns - 1:
            return f"{needed} {name}"
    if values == columns + 1:
        return f"{needed} {values}; pandas' index column? (index=False leaves it out)"
    if values == columns - 1:
        return f"{needed} {values}; are the labels missing?"
    return f"{needed} {values} in line 1"


def read_table(path, columns, classes):
    """The pixels uint8 [N, columns - 1] and the labels int64 [N] of a table.

    Raises InputError: a line is something else, or which column is the label cannot be told.
    """
    fault = first_line_fault(path, columns)
    if fault:
        raise InputError(f"{path}: {fault}")
    # With UTF-8 NumPy would read the digits of other scripts as numbers.
    with reading(path), open(path, encoding="latin-1") as file:
        first = file.readline().removeprefix(UTF8_MARK)
        names = _column_names(first)
        lines = file if names else itertools.chain([first], file)
        try:
            with warnings.catch_warnings():
                # NumPy 1.26 only warns of 256 and 1.5, and every release only warns of no lines.
                warnings.simplefilter("error")
                rows = np.loadtxt(lines, np.uint8, comments=None, delimiter=",", ndmin=2)
            if rows.shape[1] != columns:
                raise ValueError("not as many values as names")
        except (ValueError, Warning) as error:
            raise InputError(f"{path}{_line_fault(path, names, columns, error)}") from error
    column = _label_column(path, names, rows, classes)
    labels = rows[:, column].astype(np.int64)
    return np.delete(rows, column, axis=1), labels


def _column_names(line):
    """The column names in a first line, in lower case; [] if it is an image.

    Column names all differ. The values of an image cannot: there are more of them than 256.
    """
    names = [word.strip().strip("\"'").lower() for word in line.split(",")]
    return names if len(set(names)) == len(names) else []


def _line_fault(path, names, columns, reason):
    """Where a table has something else than numbers from 0 to 255, and what: ", line 3: ..."."""
    has_images = False
    with open(path, encoding="latin-1") as file:
        for number, line in enumerate(file, start=1):
            if (number == 1 and names) or not line.strip("\r\n"):
                continue
            has_images = True
            words = [word.strip() for word in line.removeprefix(UTF8_MARK).split(",")]
            if len(words) != columns:
                return f", line {number}: {columns} values needed; found {len(words)}"
            for column, word in enumerate(words, start=1):
                is_short_number = word.isascii() and word.isdigit() and len(word) <= 3
                if not is_short_number or int(word) > 255:
                    found = repr(word[:20]) if word else "an empty cell"
                    return f", line {number}, column {column}: 0 to 255 needed; found {found}"
    return f": {reason}" if has_images else ": has no images"


def _label_column(path, names, rows, classes):
    """The column, first or last, that is named as the label, or else whose values are labels.

    A column of zeros is none if the other varies: it may be a corner that is always empty.
    """
    last = rows.shape[1] - 1
    named = [column for column in (0, last) if names and names[column] in LABEL_NAMES]
    if len(named) == 1:
        return named[0]
    possible = []
    for column, other in ((0, last), (last, 0)):
        is_label = rows[:, column].max() < classes
        is_empty = rows[:, column].max() == 0 and np.ptp(rows[:, other]) > 0
        if is_label and not is_empty:
            possible.append(column)
    if len(possible) == 1:
        return possible[0]
    edges = f"{path}: the labels, 0 to {classes - 1}, must be the first or the last column"
    if possible:
        raise InputError(f"{edges}, and both may be; add a first line of names, with `label`")
    highest_first = rows[:, 0].max()
    highest_last = rows[:, last].max()
    raise InputError(
        f"{edges}; found up to {highest_first} in the first, {highest_last} in the last"
    )
