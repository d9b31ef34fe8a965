"""Reads labelled images from a text table: numbers with commas between them, one image per line."""

import re

import numpy as np

from lib.errors import InputError
from lib.files import read_lines

LABEL_NAMES = {"label", "labels", "class", "digit", "target", "y"}  # of the label's column
MAX_PIXEL = 255
SPLIT_IN_NAME = re.compile(
    r"(?<![a-z])(train|test)(?=ing(?![a-z])|(?![a-z]))",  # as a word
    re.IGNORECASE,
)
NO_LABEL_NAMES = {
    "", "#", "id", "imageid", "index", "row", "unnamed: 0", "number", "no", "fold",
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
    Raises InputError: the other file of a pair is no table.
    """
    tables = [path for path in files if _columns(path) == 1 + pixels]
    by_name = {}  # {(folder above, folder and name without the split): {split: [path]}}
    for path in files:
        name = path.name.partition(".")[0]
        folder = path.parent.name
        splits = splits_in(name) or splits_in(folder)
        if len(splits) == 1:
            without_split = [SPLIT_IN_NAME.sub("*", word) for word in (folder, name)]
            key = (path.parent.parent, *without_split)
            by_name.setdefault(key, {}).setdefault(splits.pop(), []).append(path)
    pairs = []
    for same_name in by_name.values():
        train, test = same_name.get("train", []), same_name.get("test", [])
        if not (train and test and set(tables) & {*train, *test}):
            continue
        if len(train) == len(test) == 1 and _columns(test[0]) == pixels:
            continue
        for path in (*train, *test):
            if path not in tables:
                problem = f"its first line has not {1 + pixels} values, as that of its companion"
                raise InputError(f"{path}: is no table; {problem}")
        if len(train) == len(test) == 1:
            pairs.append({"train": train[0], "test": test[0]})
    in_pairs = {path for pair in pairs for path in pair.values()}
    return pairs, [path for path in tables if path not in in_pairs]


def splits_in(name):
    """Which of the words `train` and `test` a name has."""
    return {split.lower() for split in SPLIT_IN_NAME.findall(name)}


def _columns(path):
    """How many values the first line of a CSV file has; 0 if it is none."""
    if path.suffix.lower() != ".csv":
        return 0
    try:
        return 1 + next(read_lines(path), "").count(",")
    except InputError:
        return 0


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
    nor one that is named as a number of the line.
    """
    first = 0
    last = table.shape[1] - 1
    possible = []
    problems = []
    lines = []
    for name, column, other in (("first", first, last), ("last", last, first)):
        values = table[:, column]
        if names and names[column] in NO_LABEL_NAMES:
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
