"""Chooses the device to compute on, after a trial."""

import sys
import textwrap
import warnings

import torch

from lib.errors import InputError


def choose_device(name, trial):
    """The torch.device of this name; "auto" means a CUDA GPU if one works, otherwise the CPU.

    `trial`, of a device, computes on it a little of all that will be needed. PyTorch may see a GPU
    for which it has no kernels, or a kind of device may lack an operation.
    Raises InputError: the trial fails on a device that was named.
    """
    if name == "cpu" or (name == "auto" and not has_cuda()):
        return torch.device("cpu")
    problem = problem_on("cuda" if name == "auto" else name, trial)
    if name == "auto":
        if problem:
            print(f"the GPU cannot be used ({problem}); the CPU is used", file=sys.stderr)
            return torch.device("cpu")
        return torch.device("cuda")
    if problem:
        raise InputError(f"--device {name}: cannot be used ({problem}); use --device cpu")
    return torch.device(name)


def has_cuda():
    """Whether PyTorch sees a CUDA GPU; of old drivers it warns in several lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def problem_on(name, trial):
    """What goes wrong in a trial on a device, in PyTorch's own words; None if nothing does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old GPUs
            trial(torch.device(name))
    except Exception as error:  # of many kinds, from one device to another
        lines = str(error).splitlines() or [type(error).__name__]
        return textwrap.shorten(lines[0], 160, placeholder=" ...")
    return None
