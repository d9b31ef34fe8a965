"""The command line: argument types, and one line where the user would see a traceback."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from lib.errors import InputError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that complains in one line; a docstring's first paragraph describes it."""

    def __init__(self, docstring):
        description = None
        if docstring:  # python -OO leaves none
            description = docstring.split("\n\n")[0]
        super().__init__(description=description)

    def error(self, message):
        raise InputError(message)


def between(kind, minimum, maximum):
    """An argparse type: a number of this kind, int or float, from `minimum` to `maximum`."""

    def parse(text):
        with contextlib.suppress(ValueError):
            number = kind(text)
            if minimum <= number <= maximum:
                return number
        name = {int: "whole number", float: "number"}[kind]
        raise argparse.ArgumentTypeError(f"{text!r} is not a {name} from {minimum} to {maximum}")

    return parse


def nonempty_path(text):
    """An argparse type: a path; an empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a file or a folder")
    return Path(text)


def run(main, memory_advice="close other programs"):
    """Run a script's `main()`; one line and exit 2 if the input is bad, exit 130 on Ctrl-C.

    `memory_advice` says what to do if memory runs out.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # None if closed; a notebook has its own
            stream.reconfigure(errors="backslashreplace")  # the terminal may not know a letter
    try:
        try:
            return main()
        finally:
            print(end="", flush=True)  # what --help left in the buffer
    except InputError as error:
        status = 2
        message = str(error)
    except OSError as error:  # such as a name that is too long, or a folder that may not be read
        status = 2
        message = f"{error.filename or 'standard output'}: {error.strerror or error}"
        _discard_standard_output()
    except (MemoryError, RuntimeError) as error:  # PyTorch raises a RuntimeError
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        status = 2
        message = f"not enough memory; {memory_advice}"
    except KeyboardInterrupt as interrupt:
        status = 130
        message = f"interrupted{interrupt}"
    if sys.stderr:
        one_line = message.replace("\n", "\\n")  # a file's name may hold a line break
        print(f"{Path(sys.argv[0]).name}: {one_line}", file=sys.stderr)
    sys.exit(status)


def _discard_standard_output():
    """Let Python's last flush succeed although standard output is broken."""
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
