"""Which weights Muon and AdamW have, how large their steps are, and the learning rate."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import auto_encoder
from auto_encoder import GRID_SETTINGS, PLAIN_SETTINGS
from lib.optimizers import (
    Muon,
    WeightGroup,
    learning_rate,
    make_optimizers,
    orthogonalize,
    set_learning_rate,
)
from models import VAE, AutoEncoder, GridVAE, HiddenLayer

SMALL = (8, 8), (8, 8)  # widths of an encoder and a decoder
THREE_LAYERS = (8, 8, 8), (8, 8, 8)


def names_in(model, optimizer):
    """The names of the parameters in each of an optimizer's groups."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        groups.append([name_of[id(parameter)] for parameter in group["params"]])
    return groups


@pytest.mark.parametrize(
    "model",
    [
        GridVAE(*THREE_LAYERS, readout_width=8),
        VAE(20, *THREE_LAYERS),
        AutoEncoder(2, *THREE_LAYERS),
    ],
)
def test_muon_has_the_matrices_of_hidden_layers(model):
    """AdamW has all others, and each has the decoder's weights in one group, the encoder's next."""
    settings = auto_encoder.default_settings(model)
    muon, adamw = auto_encoder.optimizers_for(model, settings)
    assert isinstance(muon, Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    decoder_matrices, encoder_matrices = names_in(model, muon)
    assert decoder_matrices == ["decoder.net.1.weight", "decoder.net.2.weight"]
    if isinstance(model, GridVAE):
        body = ["encoder.body.1.weight", "encoder.body.2.weight"]
        assert encoder_matrices == [*body, "encoder.readout.weight"]
    else:
        assert encoder_matrices == ["encoder.1.weight", "encoder.2.weight"]
    decoder_others, encoder_others = names_in(model, adamw)
    assert all(name.startswith("decoder.") for name in decoder_others)
    assert all(name.startswith("encoder.") for name in encoder_others)
    chosen = [*decoder_matrices, *encoder_matrices, *decoder_others, *encoder_others]
    assert sorted(chosen) == sorted(name for name, _ in model.named_parameters())


def test_another_body_of_the_encoder_goes_to_adamw():
    """The weights of a convolution, which is no hidden layer; the reader may try one."""
    vae = GridVAE(*SMALL, readout_width=8)
    vae.encoder.body = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 4, 5),
        nn.Flatten(),
        HiddenLayer(2304, 8),
        HiddenLayer(8, 8),
    )
    muon, adamw = auto_encoder.optimizers_for(vae, GRID_SETTINGS)
    assert names_in(vae, muon)[1] == ["encoder.body.4.weight", "encoder.readout.weight"]
    others = names_in(vae, adamw)[1]
    assert {"encoder.body.1.weight", "encoder.body.1.bias", "encoder.body.3.weight"} <= set(others)


@pytest.mark.parametrize("model", [GridVAE(*SMALL), VAE(3, *SMALL)])
def test_weight_decay_and_the_encoders_learning_rate(model):
    """Without a gradient a step shrinks a weight by lr * decay, and by nothing else."""
    settings = dataclasses.replace(
        PLAIN_SETTINGS,
        decoder_hidden_decay=0.1,
        encoder_hidden_decay=0.2,
        encoder_decay=0.3,
        encoder_lr_scale=0.5,
    )
    optimizers = auto_encoder.optimizers_for(model, settings)
    set_learning_rate(optimizers, 0.01)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    decoder_matrices, encoder_matrices = names_in(model, optimizers[0])
    for name, weight in model.named_parameters():
        if name in decoder_matrices:
            shrinks = 0.01 * 0.1
        elif name in encoder_matrices:
            shrinks = 0.5 * 0.01 * 0.2
        elif name.startswith("encoder."):
            shrinks = 0.5 * 0.01 * 0.3
        else:
            shrinks = 0.0
        expected = before[name] * (1 - shrinks)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-9)


def test_both_optimizers_take_steps_of_one_size():
    """AdamW's first step is lr for each weight; Muon's has a root mean square of 0.2 lr."""
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(64, 32))
    other = nn.Parameter(torch.randn(50))
    matrix_before = matrix.detach().clone()
    other_before = other.detach().clone()
    optimizers = make_optimizers([WeightGroup([matrix], 1.0, 0.0)], [WeightGroup([other], 2.0, 0)])
    set_learning_rate(optimizers, 0.01)
    matrix.grad = torch.randn_like(matrix)
    other.grad = torch.randn_like(other)
    for optimizer in optimizers:
        optimizer.step()
    matrix_step = (matrix.detach() - matrix_before).square().mean().sqrt()
    other_step = (other.detach() - other_before).abs()
    assert matrix_step.item() == pytest.approx(0.2 * 0.01, rel=0.3)
    torch.testing.assert_close(other_step, torch.full((50,), 2 * 0.01), rtol=1e-3, atol=0)


def test_muons_step_has_equal_singular_values():
    """Of a gradient in which one direction is a hundred times stronger than another."""
    torch.manual_seed(0)
    left = torch.linalg.qr(torch.randn(16, 16)).Q
    right = torch.linalg.qr(torch.randn(16, 16)).Q
    matrix = nn.Parameter(torch.zeros(16, 16))
    muon, _ = make_optimizers([WeightGroup([matrix], 1.0, 0.0)], [WeightGroup([], 1.0, 0.0)])
    set_learning_rate([muon], 0.01)
    matrix.grad = left @ torch.logspace(0, -2, 16).diag() @ right.T
    muon.step()
    singular_values = torch.linalg.svdvals(matrix.detach())
    assert singular_values.max() < 2.5 * singular_values.min()


@pytest.mark.parametrize("shape", [(12, 12), (12, 30), (30, 12)])
def test_singular_values_go_through_the_polynomial(shape):
    """Five times, in float64 NumPy; singular vectors stay as they are."""
    torch.manual_seed(0)
    matrix = torch.randn(*shape)
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    known = left * values @ right
    assert orthogonalize(matrix).numpy() == pytest.approx(known, abs=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (32, 64), (64, 32)])
def test_muons_steps_are_those_of_pytorch(shape):
    """Which multiplies in bfloat16: that is good to about 1 %."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(*shape))
    theirs = nn.Parameter(ours.detach().clone())
    before = ours.detach().clone()
    known = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    muon = Muon([{"params": [ours], "lr": 0.02, "weight_decay": 0.3}])
    for _ in range(4):
        ours.grad = torch.randn(*shape)
        theirs.grad = ours.grad.clone()
        muon.step()
        known.step()
    difference = (ours - theirs).norm() / (theirs - before).norm()
    assert difference < 0.02


def test_the_learning_rate_rises_and_falls():
    """From 0 in a twentieth of all steps, times half a cosine, to 0."""
    known = {
        0: 0,
        0.025: 0.5 * (1 + math.cos(0.025 * math.pi)),  # half of the warm-up
        0.05: 1 + math.cos(0.05 * math.pi),
        0.5: 1,
        0.75: 1 - 0.5**0.5,
        1: 0,
    }
    for progress, rate in known.items():
        assert learning_rate(progress, 2.0, 0.05) == pytest.approx(rate, abs=1e-9)
