"""What each choice buys: train without it, on a validation split of the training images.

    python benchmarks/ablation.py       # about 20 minutes on two cores; writes ablation.json
    python benchmarks/ablation.py NAME  # some rows only, by their names; prints, writes nothing

Trains on the first 55,000 training images for 10 epochs, on one thread, and evaluates on the last
5,000.
"""

import contextlib
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partialmethod
from multiprocessing import get_context
from unittest.mock import patch

import torch
import torch.nn.functional as F
from common import digits, write_json
from torch import nn

import exact
import models
import training
from evaluation import evaluate
from models import VAE

EPOCHS, TRAINED = 10, 55_000


def coarser(decoder, side=45, decode_plane=exact.decode_plane):
    return decode_plane(decoder, side)


def plain_code(decoder, z):
    waves = [wave(f * z) for f in decoder.FREQUENCIES for wave in (torch.sin, torch.cos)]
    return decoder.net(torch.cat([z, *waves], dim=1))


def adam_only(vae):
    return [torch.optim.Adam(vae.parameters(), fused=True)]


def without_skip(layer, h):
    return F.gelu(nn.Linear.forward(layer, h))


def with_layernorm(layer, h):
    out = F.gelu(F.layer_norm(nn.Linear.forward(layer, h), [layer.out_features]))
    return h + out if h.shape == out.shape else out


NO_SKIP = (models.Layer, "forward", without_skip)
RELU = (models.F, "gelu", F.relu)
NO_DECAY = {"exact": 0.0, "network": 0.0}


def latents(number):
    return (VAE, "__init__", partialmethod(VAE.__init__, latent_dim=number))


VARIANTS = {  # name: what stands in for attributes of modules and classes
    "default": [],
    "encoder network": [(VAE, "__init__", partialmethod(VAE.__init__, encoder="network"))],
    "Adam for all, no Muon": [(training, "make_optimizers", adam_only)],
    "float32 products": [(torch, "set_float32_matmul_precision", lambda precision: None)],
    "grid twice as coarse": [(models, "decode_plane", coarser)],
    "one codebook an epoch": [(training, "REFRESH", 10**9)],
    "decoder sees codes, not quantiles": [(models.Decoder, "forward", plain_code)],
    "no sines and cosines": [(models.Decoder, "FREQUENCIES", ())],
    "sines and cosines to 4 v": [(models.Decoder, "FREQUENCIES", (0.5, 1.0, 2.0, 4.0))],
    "constant learning rate": [(training, "learning_rate", lambda progress, highest: highest)],
    "no skip connections": [NO_SKIP],
    "ReLU for GELU": [RELU],
    "LayerNorm added": [(models.Layer, "forward", with_layernorm)],
    **{f"{number} latents": [latents(number)] for number in (5, 10, 15, 20, 30, 50)},
    "20 latents, no skip connections": [latents(20), NO_SKIP],
    "20 latents, ReLU for GELU": [latents(20), RELU],
    "20 latents, no weight decay": [latents(20), (training, "WEIGHT_DECAYS", NO_DECAY)],
}


def run_variant(name):
    """Train, and give the figures on the validation split."""
    torch.set_num_threads(1)
    x, labels = digits("train")
    labels = labels.numpy()
    train, held_out = x[:TRAINED], x[TRAINED:]
    with contextlib.ExitStack() as stack:
        for change in VARIANTS[name]:
            stack.enter_context(patch.object(*change))
        torch.manual_seed(0)
        vae = VAE()
        optimizers = training.make_optimizers(vae)
        lr = training.LEARNING_RATES[models.encoder_kind(vae)]
        settings = {"seed": 0, "epochs": EPOCHS, "batch_size": 256, "lr": lr}
        started = time.perf_counter()
        for epoch in range(EPOCHS):
            training.train_epoch(vae, optimizers, train, {}, epoch, settings)
        seconds = time.perf_counter() - started
        results = evaluate(vae, train, labels[:TRAINED], held_out, labels[TRAINED:])
    return {
        "L_tot": round(results["test"]["L_tot"], 2),
        "log_likelihood_binarized": round(results["log_likelihood_binarized"], 2),
        "knn_accuracy": results["knn_accuracy"],
        "seconds": round(seconds, 1),
    }


def main(names):
    rows = {}
    names, write = names or VARIANTS, not names
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:  # one for each core
        for name, row in zip(names, pool.map(run_variant, names), strict=True):
            rows[name] = row
            print(f"{name:35}", "  ".join(f"{key} {value}" for key, value in row.items()))
            sys.stdout.flush()
    if write:
        write_json("ablation", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
