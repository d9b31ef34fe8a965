"""The command line: argument types, and one line where the user would see a traceback."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from errors import InputError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that complains in one line; a docstring's first paragraph describes it."""

    def __init__(self, docstring):
        super().__init__(description=docstring and docstring.split("\n\n")[0])  # None with -OO

    def error(self, message):
        raise InputError(message)


def between(kind, minimum, maximum):
    """An argparse type: an int or a float, `kind`, from `minimum` to `maximum`."""

    def parse(text):
        with contextlib.suppress(ValueError):
            if minimum <= kind(text) <= maximum:
                return kind(text)
        name = {int: "whole number", float: "number"}[kind]
        raise argparse.ArgumentTypeError(f"{text!r} is not a {name} from {minimum} to {maximum}")

    return parse


def nonempty_path(text):
    """An argparse type: a path; an empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a file or a folder")
    return Path(text)


def run(main):
    """Run a script's `main()`; one line and exit 2 if the input is bad, exit 130 on Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # None if closed; a notebook has its own
            stream.reconfigure(errors="backslashreplace")  # the terminal may not know a letter
    try:
        try:
            return main()
        finally:
            print(end="", flush=True)  # what --help left in the buffer
    except InputError as error:
        status, line = 2, error
    except OSError as error:  # such as a name that is too long, or a folder that may not be read
        status, line = 2, f"{error.filename or 'standard output'}: {error.strerror or error}"
        with contextlib.suppress(OSError, AttributeError):  # for Python's last flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MemoryError, RuntimeError) as error:  # PyTorch raises a RuntimeError
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        status, line = 2, "not enough memory; give a smaller --batch-size or close other programs"
    except KeyboardInterrupt as interrupt:
        status, line = 130, f"interrupted{interrupt}"
    line = str(line).replace("\n", "\\n")  # as in the name of a file
    if sys.stderr:
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    sys.exit(status)
