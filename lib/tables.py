"""Reads labelled images from a text table: numbers with commas between them, one image per line."""

import re

import numpy as np

from lib.errors import InputError
from lib.files import read_lines

LABEL_NAMES = {"label", "labels", "class", "digit", "target", "y"}  # of the label's column
MAX_PIXEL = 255


def read_table(path, pixels, classes=10):
    """The pixels uint8 [N, pixels] and the labels int64 [N] of a table, in the order of its lines.

    A line has the label, first or last, and the pixels, 0 to 255. The first line may have column
    names. Without a name the label's column is told by its values.
    Raises InputError: a line is something else, or both columns may be the label.
    """
    names, table, line_numbers = _read_rows(path, columns=1 + pixels)
    column = _label_column(path, table, names, classes)
    labels = table[:, column].astype(np.int64)
    if labels.max() >= classes:
        line = line_numbers[labels.argmax()]
        raise InputError(
            f"{path}, line {line}: label {labels.max()}, but labels are 0 to {classes - 1}"
        )
    return np.delete(table, column, axis=1), labels


def _read_rows(path, columns):
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
    all_differ = len(set(names)) == columns
    return names if all_differ else []


def _label_column(path, table, names, classes):
    """The number of the label's column, the first or the last.

    It is the one that is named so; else the one with more different labels; else the one with
    fewer values that are no labels.
    """
    first = 0
    last = table.shape[1] - 1
    named = [column for column, name in enumerate(names) if name in LABEL_NAMES]
    if named and first not in named and last not in named:
        raise InputError(f"{path}: column {named[0] + 1} is named as the label; put it first")
    if (first in named) != (last in named):
        return first if first in named else last

    labels_in_first = _distinct_labels(table[:, first], classes)
    labels_in_last = _distinct_labels(table[:, last], classes)
    if labels_in_first != labels_in_last:
        return first if labels_in_first > labels_in_last else last

    others_in_first = np.count_nonzero(table[:, first] >= classes)
    others_in_last = np.count_nonzero(table[:, last] >= classes)
    if others_in_first != others_in_last:
        return first if others_in_first < others_in_last else last

    if (table[:, first] == table[:, last]).all():
        return first
    raise InputError(
        f"{path}: either the first column or the last may be the label; "
        "add a first line of column names, one of them label"
    )


def _distinct_labels(values, classes):
    """How many different labels, 0 to classes - 1, are among these values."""
    return len(np.unique(values[values < classes]))
