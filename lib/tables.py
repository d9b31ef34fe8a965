"""Reads labelled images from a text table: numbers with commas between them, one image per line."""

import itertools
import os
import re
from pathlib import Path

import numpy as np

from lib.errors import InputError
from lib.files import read_lines

LABEL_NAMES = {"label", "labels", "class", "digit", "target", "y"}  # of the label's column
MAX_PIXEL = 255
SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|test)(ing|set)?(?![a-z])", re.IGNORECASE)  # a word
NO_LABEL_NAMES = {
    "", "#", "id", "imageid", "index", "row", "unnamed: 0", "number", "no", "fold", "split", "set",
    "is_test", "usage", "writer",
}  # fmt: skip
TABLE_ENDINGS = {  # of files that may be meant as a table, also if they cannot be read here
    ".csv", ".tsv", ".txt", ".gz", ".zip", ".xls", ".xlsx", ".ods", ".arff", ".parquet",
}  # fmt: skip


def read_table(path, pixels, classes, max_rows):
    """The pixels uint8 [N, pixels] and the labels int64 [N] of a table, in the order of its lines.

    A line has the label, first or last, and the pixels, 0 to 255. The first line may have column
    names. Without a name the label's column is told by its values, if only one can be it.
    Raises InputError: a line is something else, there are more than `max_rows`, or which column is
    the label cannot be told.
    """
    names, table, line_numbers = _read_rows(path, 1 + pixels, max_rows)
    column = _named_column(path, names)
    if column is None:
        column = _column_of_labels(path, names, table, line_numbers, classes)
    labels = table[:, column].astype(np.int64)
    if labels.max() >= classes:
        line = line_numbers[labels.argmax()]
        raise InputError(
            f"{path}, line {line}: label {labels.max()}, but labels are 0 to {classes - 1}"
        )
    return np.delete(table, column, axis=1), labels


def find_tables(files, pixels):
    """The tables of images among files: pairs of a train and a test table, and single ones.

    ([{"train": path, "test": path}], [path]). The files of a pair have the words `train` and `test`
    in their names, or in those of their folders, and the same names otherwise. If the test table
    has no labels, as Kaggle's, the other one is single.
    Raises InputError: beside a training table is a test table that cannot be read, or is none.
    """
    tables = [path for path in files if _columns(path) == 1 + pixels]
    pairs = []
    for train, test in _by_split(files):
        if not (train and test and set(tables) & {*train, *test}):
            continue
        if len(train) == len(test) == 1 and _has_no_labels(test[0], pixels):
            continue
        for path in (*train, *test):
            if path not in tables:
                raise InputError(_no_table(path, pixels))
        if len(train) == len(test) == 1:
            pairs.append({"train": train[0], "test": test[0]})
    in_pairs = {path for pair in pairs for path in pair.values()}
    single = [path for path in tables if path not in in_pairs]
    for table in single:
        if splits_in(table.name) == {"train"}:
            _check_no_test_table_beside(table, files, tables, pixels)
    return pairs, single


def _by_split(files):
    """Files whose names differ only in the split: pairs of lists, for training and for testing."""
    groups = {}  # {(folder above, folder and name without the split): {split: [path]}}
    for path in files:
        name = path.name
        while Path(name).suffix.lower() in TABLE_ENDINGS:
            name = Path(name).stem
        folder = path.parent.name
        splits = splits_in(name) or splits_in(folder)
        if name != path.name and len(splits) == 1:
            without_split = [SPLIT_IN_NAME.sub("*", word) for word in (folder, name)]
            key = (path.parent.parent, *without_split)
            groups.setdefault(key, {}).setdefault(splits.pop(), []).append(path)
    return [(group.get("train", []), group.get("test", [])) for group in groups.values()]


def _check_no_test_table_beside(table, files, tables, pixels):
    """Raise an InputError if a file beside a training table may be meant for testing."""
    for path in files:
        if path.parent != table.parent or path.suffix.lower() not in TABLE_ENDINGS:
            continue
        is_for_testing = splits_in(path.name) == {"test"} and path not in tables
        if is_for_testing and not _has_no_labels(path, pixels):
            raise InputError(_no_table(path, pixels))


def _no_table(path, pixels):
    return (
        f"{path}: is no table; its first line has not {1 + pixels} values, as a table of images has"
    )


def splits_in(name):
    """Which of the words `train` and `test` a name has."""
    return {match[1].lower() for match in SPLIT_IN_NAME.finditer(name)}


def _columns(path):
    """How many values the first line of a CSV file has; 0 if it is none.

    Raises InputError: it may not be read.
    """
    if path.suffix.lower() != ".csv":
        return 0
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: cannot be read; allow reading or move it")
    try:
        return 1 + next(read_lines(path), "").count(",")
    except InputError:
        return 0


def _has_no_labels(path, pixels):
    """Whether the first two lines of a table have pixels only."""
    if path.suffix.lower() != ".csv":
        return False
    try:
        lines = list(itertools.islice(read_lines(path), 2))
    except InputError:
        return False
    return len(lines) > 0 and all(1 + line.count(",") == pixels for line in lines)


def _read_rows(path, columns, max_rows):
    """The column names (none: []), the table uint8 [N, columns], and each row's line number."""
    number_then_comma = r" *\d+ *,"
    valid_row = re.compile(rf"(?:{number_then_comma}){{{columns - 1}}} *\d+\s*", re.ASCII)
    needed = (
        f"needs a label and {columns - 1} whole numbers from 0 to {MAX_PIXEL}, "
        "with commas between them"
    )
    names = []
    rows = []
    line_numbers = []
    number = 0
    for number, line in enumerate(read_lines(path), start=1):
        if number == 1:
            if "\0" in line:
                raise InputError(f"{path}: is not text; give a table, or the idx files' folder")
            names = _column_names(line, columns)
            if names:
                continue
        if not line.strip("\r\n"):
            continue
        if not valid_row.fullmatch(line):  # np.fromstring alone would read a blank as 0
            raise InputError(f"{path}, line {number}: {needed}")
        row = np.fromstring(line, np.int64, sep=",")
        if row.max() > MAX_PIXEL:
            raise InputError(f"{path}, line {number}: {needed}")
        if len(rows) == max_rows:
            raise InputError(f"{path}, line {number}: more than {max_rows:,} images")
        rows.append(row.astype(np.uint8))
        line_numbers.append(number)
    if not rows:
        raise InputError(f"{path}, line {number + 1}: {needed}")
    return names, np.stack(rows), line_numbers


def _column_names(line, columns):
    """The names in a first line of column names, in lower case; [] if it is a row of the table.

    Column names all differ. The values of a row cannot: there are more columns than values.
    """
    names = [word.strip().strip("\"'").lower() for word in line.split(",")]
    all_differ = len(set(names)) == len(names)
    return names if all_differ and len(names) == columns else []


def _named_column(path, names):
    """The column, the first or the last, that is named as the label; None if none is."""
    named = [column for column, name in enumerate(names) if name in LABEL_NAMES]
    if not named:
        return None
    if len(named) > 1:
        columns = " and ".join(str(column + 1) for column in named)
        raise InputError(f"{path}: columns {columns} are named as the label; name one of them so")
    (column,) = named
    if column not in (0, len(names) - 1):
        raise InputError(f"{path}: column {column + 1} is named as the label; put it first")
    return column


def _column_of_labels(path, names, table, line_numbers, classes):
    """The column, the first or the last, whose values can be labels if those of the other cannot.

    A column with a value that is no label is none, nor is a column of zeros if the other varies,
    nor one that is named as something else.
    """
    first = 0
    last = table.shape[1] - 1
    possible = []
    problems = []
    lines = []
    for name, column, other in (("first", first, last), ("last", last, first)):
        values = table[:, column]
        if names and _is_no_label_name(names, column, other):
            problems.append(f"the name {names[column]!r} of the {name} column")
        elif values.max() >= classes:
            line = line_numbers[(values >= classes).argmax()]
            lines.append(line)
            problems.append(f"{values[values >= classes][0]} in the {name} column")
        elif values.max() == 0 and len(np.unique(table[:, other])) > 1:
            problems.append(f"only zeros in the {name} column")
        else:
            possible.append(column)
    if len(possible) == 1:
        return possible[0]
    if not possible:
        place = f"{path}, line {lines[0]}" if lines else path
        raise InputError(
            f"{place}: {' and '.join(problems)}, so neither can be the labels, "
            f"0 to {classes - 1}; put them first or last"
        )
    raise InputError(
        f"{path}: either the first column or the last may be the label; "
        "add a first line of column names, one of them label"
    )


def _is_no_label_name(names, column, other):
    """Whether a column is named as a number of the line, or as the pixels are and not the other."""
    if names[column] in NO_LABEL_NAMES:
        return True
    of_pixel = _without_numbers(names[1])
    is_as_pixels = _without_numbers(names[column]) == of_pixel
    return is_as_pixels and _without_numbers(names[other]) != of_pixel


def _without_numbers(name):
    return re.sub(r"\d+", "#", name)
