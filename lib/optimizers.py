"""The optimizers, Muon and AdamW, and the learning rate of each step."""

import math
from typing import NamedTuple

import torch


class WeightGroup(NamedTuple):
    """Weights that are trained alike."""

    weights: list
    lr_scale: float  # their learning rate, as a multiple of the one that `set_learning_rate` sets
    weight_decay: float


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalised (Jordan et al. 2024, "Muon"), for matrices.

    A step is near the orthogonal matrix U V^T, where U S V^T are the singular values and vectors of
    the momentum. So it learns in all directions at once, and needs fewer steps. As its authors
    advise, it is not for first and last layers, biases and embeddings. A step is scaled to the root
    mean square of AdamW's, 0.2, so that one learning rate serves both (Liu et al. 2025, "Muon is
    scalable for LLM training").

    torch.optim.Muon does the same in bfloat16. Most processors have no instructions for that, and
    are ten times slower with it than with float32.
    """

    MOMENTUM = 0.95
    STEP_SIZE = 0.2  # the root mean square of a step, in learning rates

    def __init__(self, groups):
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr = group["lr"]
            for weight in group["params"]:
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                momentum.lerp_(weight.grad, 1 - self.MOMENTUM)
                nesterov = weight.grad.lerp(momentum, self.MOMENTUM)
                # An orthogonal matrix has a root mean square of 1 / sqrt(its longer side).
                size = self.STEP_SIZE * math.sqrt(max(weight.shape))
                weight.mul_(1 - lr * group["weight_decay"])
                weight.sub_(lr * size * orthogonalize(nesterov))


# Of the polynomial a s + b s^3 + c s^5, which five times over brings a singular value s from 0 to 1
# near 1 (Jordan et al. 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalize(matrix):
    """A matrix with the singular vectors of the given one, its singular values near 1: [M, N]."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix  # the products below are smaller
    x = x / x.norm().clamp_min(1e-7)  # no singular value is above 1
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def make_optimizers(hidden_matrices, other_weights):
    """`Muon` for the matrices of hidden layers, AdamW for all other weights.

    Both arguments are lists of `WeightGroup`.
    """
    muon = Muon(parameter_groups(hidden_matrices))
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
