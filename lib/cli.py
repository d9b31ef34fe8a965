"""The command line: argument types, and one line where the user would see a traceback."""

import argparse
import contextlib
import math
import os
import signal
import sys
import time
from pathlib import Path

from lib.errors import InputError, is_out_of_memory

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


def prepare():
    """What a script does first, before it imports PyTorch, which takes seconds.

    Until `run`, Ctrl-C ends it with one line and exit status 130, and a package that is missing or
    cannot be loaded ends it with one line and exit status 2. Standard streams that are closed are
    opened on the null device, so that no other file gets their numbers.
    """
    _open_closed_streams()
    sys.excepthook = _explain_failed_import
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit_at_once)


def run(main, memory_advice="close other programs"):
    """Run a script's `main()`; one line and exit 2 if the input is bad, exit 130 on Ctrl-C.

    `memory_advice` says what to do if memory runs out.
    """
    _open_closed_streams()
    sys.excepthook = sys.__excepthook__
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook has its own
            stream.reconfigure(errors="backslashreplace")  # the terminal may not know a letter
    is_prepared = signal.getsignal(signal.SIGINT) is _exit_at_once
    try:
        if is_prepared:
            signal.signal(signal.SIGINT, _interrupt_once)
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
    one_line = message.replace("\n", "\\n")  # a file's name may hold a line break
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


def _exit_at_once(*_):
    """A signal handler: nothing has been done yet that must be put in order."""
    _end("interrupted", status=130)


def _explain_failed_import(kind, error, traceback):
    """A `sys.excepthook`: one line instead of a traceback if an import fails."""
    if not issubclass(kind, (ImportError, MemoryError, OSError)):
        sys.__excepthook__(kind, error, traceback)
        return
    reason = " ".join(str(error).split()) or kind.__name__
    _end(
        f"a package cannot be imported ({reason}); "
        "install what requirements.txt lists, as README.md says",
        status=2,
    )


def _end(message, status):
    """End the process at once with one line."""
    with contextlib.suppress(OSError):
        os.write(2, f"{Path(sys.argv[0]).name}: {message}\n".encode())
    os._exit(status)


def _open_closed_streams():
    """Open standard streams that are closed on the null device."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null_device = open(os.devnull, mode)  # noqa: SIM115  it stays open
            setattr(sys, name, null_device)


def _discard(stream):
    """Let Python's last flush of a broken stream succeed; otherwise the exit status becomes 120."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
