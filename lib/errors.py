"""Errors that the user can fix."""

import contextlib
import re

OUT_OF_MEMORY = re.compile("out of memory|not enough memory|allocate memory")  # PyTorch's words


class InputError(ValueError):
    """The user gave something that cannot work; the message is one line that says what to do."""


def is_out_of_memory(error):
    """Whether an error says that memory ran out; PyTorch raises a RuntimeError then."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))


@contextlib.contextmanager
def as_input_error(path, problem, remedy, kinds=Exception):
    """Turn errors of these kinds into an InputError: "path: problem (reason); remedy".

    If memory ran out, that is no fault of the file, and the error stays what it is.
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        if is_out_of_memory(error):
            raise
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"{path}: {problem} ({reason}); {remedy}") from error
