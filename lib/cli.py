"""The command line: argument types, and one line where the user would see a traceback."""

import argparse
import contextlib
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

from lib import start
from lib.errors import InputError, is_out_of_memory

CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_interrupted_at = -math.inf  # when Ctrl-C came last


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that complains in one line; a docstring's first paragraph describes it."""

    def __init__(self, docstring):
        description = None
        if docstring:  # python -OO leaves none
            description = docstring.split("\n\n")[0]
        super().__init__(description=description)

    def error(self, message):
        raise InputError(message)

    def parse_args(self, args=None, namespace=None):
        """As ArgumentParser's, which takes the value of `--flag=--` for an empty list."""
        parsed = super().parse_args(args, namespace)
        for action in self._actions:
            if getattr(parsed, action.dest, None) == []:
                self.error(f"argument {'/'.join(action.option_strings)}: expected one argument")
        return parsed


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
    start.open_closed_streams()
    sys.excepthook = sys.__excepthook__
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook has its own
            stream.reconfigure(errors="backslashreplace")  # the terminal may not know a letter
    is_prepared = signal.getsignal(signal.SIGINT) is start.exit_at_once
    try:
        if is_prepared:
            signal.signal(signal.SIGINT, _interrupt_once)
        try:
            main()
        except SystemExit:  # of --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        if is_prepared:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done
        return
    except InputError as error:
        status = 2
        message = str(error)
    except OSError as error:  # such as a name that is too long, or a folder that may not be read
        status = 2
        message = f"{error.filename or 'standard output'}: {error.strerror or error}"
        _discard(sys.stdout)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        status = 2
        message = f"not enough memory; {memory_advice}"
    except KeyboardInterrupt as interrupt:
        status = 130
        message = f"interrupted{interrupt}"
    if is_prepared:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends anyway
    # A file's name may hold line breaks and other control characters.
    one_line = CONTROL_CHARACTER.sub(lambda match: repr(match[0])[1:-1], message)
    try:
        print(f"{Path(sys.argv[0]).name}: {one_line}", file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)
    sys.exit(status)


def _interrupt_once(*_):
    """A signal handler: raise a KeyboardInterrupt; another Ctrl-C within a second does no more."""
    global _interrupted_at
    if time.monotonic() - _interrupted_at < 1:
        return
    _interrupted_at = time.monotonic()
    raise KeyboardInterrupt


def _discard(stream):
    """Let Python's last flush of a broken stream succeed; otherwise the exit status becomes 120."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
