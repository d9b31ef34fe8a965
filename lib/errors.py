"""Errors that the user can fix."""

import contextlib


class InputError(ValueError):
    """The user gave something that cannot work; the message is one line that says what to do."""


@contextlib.contextmanager
def explained(path, problem, remedy, kinds=Exception):
    """Turn errors of these kinds into an InputError: "path: problem (reason); remedy"."""
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"{path}: {problem} ({reason}); {remedy}") from error
