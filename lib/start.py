"""What a script does first, before it imports PyTorch, which takes seconds.

This module imports next to nothing, so that little can happen before `prepare`.
"""

import os
import signal
import sys


def prepare():
    """Make what may happen during the imports end with one line.

    Ctrl-C ends the script with exit status 130, a package that is missing or cannot be loaded with
    exit status 2. Standard streams that are closed are opened on the null device, so that no other
    file gets their numbers. `cli.run` then takes over.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_at_once)
    open_closed_streams()
    sys.excepthook = _explain_failed_import


def exit_at_once(*_):
    """A signal handler: nothing has been done yet that must be put in order."""
    _end("interrupted", status=130)


def open_closed_streams():
    """Open standard streams that are closed on the null device."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null_device = open(os.devnull, mode)  # noqa: SIM115  it stays open
            setattr(sys, name, null_device)


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
    try:
        os.write(2, f"{os.path.basename(sys.argv[0])}: {message}\n".encode())
    finally:
        os._exit(status)
