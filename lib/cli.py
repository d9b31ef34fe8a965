"""The command line: argument types, and one line where the user would see a traceback."""

import argparse
import contextlib
import sys
from pathlib import Path

from lib.errors import InputError, is_out_of_memory


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that complains in one line; a docstring's first paragraph describes it."""

    def __init__(self, docstring):
        description = None
        if docstring:  # python -OO leaves none
            description = docstring.split("\n\n")[0]
        super().__init__(description=description)

    def error(self, message):
        raise InputError(message)


class Replaced(argparse.Action):
    """The action of a flag that was replaced by another one; its `help` says by which.

    It is not listed by --help.
    """

    def __init__(self, help, **options):
        super().__init__(nargs="?", help=argparse.SUPPRESS, **options)
        self.replacement = help

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string}: was replaced by {self.replacement}")


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
        with contextlib.suppress(AttributeError):  # a notebook has its own, pythonw has none
            stream.reconfigure(errors="backslashreplace")  # the terminal may not know a letter
    try:
        main()
        return
    except InputError as error:
        status = 2
        message = str(error)
    except OSError as error:  # such as a name that is too long, or a folder that may not be read
        status = 2
        message = f"{error.filename or 'standard output'}: {error.strerror or error}"
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        status = 2
        message = f"not enough memory; {memory_advice}"
    except KeyboardInterrupt as interrupt:
        status = 130
        message = f"interrupted{interrupt}"
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)
