"""The optimizers, Muon and AdamW, and the learning rate of each step."""

import math
from typing import NamedTuple

import torch

from lib.errors import InputError


class WeightGroup(NamedTuple):
    """Weights that are trained alike."""

    weights: list
    lr_scale: float  # their learning rate, as a multiple of the one that `set_learning_rate` sets
    weight_decay: float


def make_optimizers(hidden_matrices, other_weights):
    """Muon (Jordan et al. 2024) for the matrices of hidden layers, AdamW for all other weights.

    Both arguments are lists of `WeightGroup`. Muon makes the singular values of a matrix's update
    equal, so that it learns in all directions at once and in fewer steps. As its authors advise, it
    is not used for first and last layers, biases and embeddings. "match_rms_adamw" scales its steps
    to the root mean square of AdamW's, so that one learning rate serves both.
    Raises InputError: this version of PyTorch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"PyTorch 2.9 or newer is needed, not {torch.__version__}; install it")
    muon = torch.optim.Muon(parameter_groups(hidden_matrices), adjust_lr_fn="match_rms_adamw")
    # fused: one pass over the weights, which is faster.
    adamw = torch.optim.AdamW(parameter_groups(other_weights), fused=True)
    return [muon, adamw]


def parameter_groups(groups):
    """A list of `WeightGroup` in the form that PyTorch's optimizers take."""
    return [
        {"params": group.weights, "lr_scale": group.lr_scale, "weight_decay": group.weight_decay}
        for group in groups
    ]


def learning_rate(progress, highest, warmup_part):
    """The learning rate when `progress`, a part from 0 to 1, of all steps is done.

    It is the highest one times a warm-up from 0 to 1, in the first `warmup_part` of all steps,
    times half a cosine from 1 to 0.
    """
    warmup = min(progress / warmup_part, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return highest * warmup * cosine


def set_learning_rate(optimizers, lr):
    """Give each group of weights its multiple of a learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * lr
