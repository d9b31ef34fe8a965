"""Settings of PyTorch that hold inside a `with` block, and are put back after it."""

import contextlib
import warnings

import torch


@contextlib.contextmanager
def matmul_precision(precision):
    """Inside, PyTorch multiplies float32 matrices with this precision."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings")  # PyTorch 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def one_thread():
    """Inside, PyTorch computes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def flush_denormal():
    """Inside, PyTorch computes 0 instead of a number below 1e-38.

    Most of a grid posterior is so small, and processors are many times slower with such numbers.
    Outside they are kept: versions of NumPy before 2 warn, as Matplotlib draws, when they are gone.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
