"""What each choice buys: train without it, on a validation split of the training images.

    python benchmarks/ablation.py       # about half an hour on two cores; writes ablation.json
    python benchmarks/ablation.py NAME  # some rows only, by their names; prints, writes nothing

Trains on the first 15,000 training images for 10 epochs, on one thread, with three seeds, and
evaluates on the last 5,000 training images. Each row differs from the default in one choice, but
for two: "usual VAE", which is another training, and "encoder without regions", which is another
encoder with another loss.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from unittest.mock import patch

import torch
from classifier import classifier
from common import digits, write_json
from islands import island_metrics

import auto_encoder
from auto_encoder import GRID_SETTINGS, NEIGHBOURS, PAIRS, PLAIN_SETTINGS, TrainingSettings
from lib.knn import knn_predict
from lib.latent_grid import log_marginal_likelihood, square_grid
from lib.torch_settings import flush_denormal, matmul_precision
from models import PIXELS, VAE, Decoder, GridVAE, mlp

TRAINED = 15_000  # training images
HELD_OUT = 5_000
SEEDS = (0, 1, 2)
EPOCHS = 10
GRID_SIDE = 81  # nodes per side of the grid by which all variants are judged
QUADRATURE_SIDE = 324


# --- What stands in for a choice --------------------------------------------------------------


class PlainDecoder(Decoder):
    """Its input has no sines and cosines."""

    FREQUENCIES = ()


class PlainDecoderVAE(GridVAE):
    def make_decoder(self, widths):
        return PlainDecoder(self.latent_dim, widths)


def adamw_for_all(vae, settings):
    """An optimizer with the same learning rates, and the decay that AdamW's weights have."""
    decoder = {
        "params": list(vae.decoder.parameters()),
        "lr_scale": 1.0,
        "weight_decay": 0.0,
    }
    encoder = {
        "params": list(vae.encoder.parameters()),
        "lr_scale": settings.encoder_lr_scale,
        "weight_decay": settings.encoder_decay,
    }
    return [torch.optim.AdamW([decoder, encoder], fused=True)]


class RegressionVAE(GridVAE):
    """Its encoder gives a Gaussian directly, without regions."""

    def make_encoder(self, widths):
        return mlp(PIXELS, widths, 2 * self.latent_dim)

    def encode(self, x):
        return VAE.encode(self, x)  # there is one Gaussian, and nothing to choose


def regression_loss(encoder, x, log_posterior, settings, generator):
    """As `auto_encoder.encoder_loss`, for the encoder of a `RegressionVAE`: minus the ELBO."""
    mean, logvar = encoder(x).chunk(2, dim=1)
    return -auto_encoder.grid_elbo(mean, logvar, log_posterior, generator).mean()


@dataclass(frozen=True)
class Variant:
    """A training: the default one, but for what is given."""

    model: Callable = GridVAE
    settings: TrainingSettings = GRID_SETTINGS
    optimizers: Callable = auto_encoder.optimizers_for
    encoder_loss: Callable = auto_encoder.encoder_loss


def changed(**settings):
    return dataclasses.replace(GRID_SETTINGS, **settings)


VARIANTS = {
    "default": Variant(),
    # The grid: what the decoder and the encoder learn from.
    "usual VAE": Variant(model=lambda: VAE(2), settings=PLAIN_SETTINGS),
    "encoder without regions": Variant(model=RegressionVAE, encoder_loss=regression_loss),
    "a new grid every 5 steps": Variant(settings=changed(grid_refresh=5)),
    "variance not doubled": Variant(settings=changed(posterior_temperature=1.0)),
    # The self-organising map.
    "no self-organising map": Variant(settings=changed(som_part=0.0)),
    "half as near the self-organising map": Variant(settings=changed(som_sigma=0.1)),
    # The networks and how they are trained.
    "no sines and cosines": Variant(model=PlainDecoderVAE),
    "no label smoothing": Variant(settings=changed(label_smoothing=0.0)),
    "AdamW for all, no Muon": Variant(optimizers=adamw_for_all),
}


# --- The measurement --------------------------------------------------------------------------


def train(variant, x, seed):
    """A model trained on images [N, 784], in the way of `auto_encoder.train`."""
    torch.manual_seed(seed)
    model = variant.model()
    settings = dataclasses.replace(variant.settings, epochs=EPOCHS, seed=seed)
    optimizers = variant.optimizers(model, settings)
    som_phase = auto_encoder.SomPhase(x, settings) if settings.som_epochs else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(auto_encoder, "encoder_loss", variant.encoder_loss))
        stack.enter_context(matmul_precision(settings.matmul_precision))
        for epoch in range(settings.epochs):
            if epoch >= settings.som_epochs:
                som_phase = None
            auto_encoder.train_epoch(model, optimizers, x, epoch, settings, som_phase)
    return model.eval()


@torch.no_grad()
def evaluate(model, x, labels, held_out, held_out_labels):
    """The metrics on the held-out images, the same for every variant."""
    grid = square_grid(model.decoder, GRID_SIDE)
    log_likelihood = log_marginal_likelihood(model.decoder, held_out, QUADRATURE_SIDE)
    train_codes = torch.cat([model.codes(part) for part in x.split(10_000)])
    predicted = knn_predict(train_codes, labels.numpy(), model.codes(held_out), NEIGHBOURS)
    encoder = auto_encoder.elbo_terms(model, held_out, pairs=PAIRS)
    laplace = auto_encoder.elbo_terms(model, held_out, grid.laplace_posterior, PAIRS)
    return {
        "L_tot": encoder["L_tot"],
        "laplace": laplace["L_tot"],
        "log_likelihood": log_likelihood.mean().item(),
        "knn_accuracy": float((predicted == held_out_labels.numpy()).mean()),
        **island_metrics(model.decoder, classifier()),
    }


@flush_denormal()
def run_variant(name, seed):
    """Train a variant, and give its metrics on the validation split."""
    torch.set_num_threads(1)
    x, labels = digits("train")
    started = time.perf_counter()
    model = train(VARIANTS[name], x[:TRAINED], seed)
    seconds = time.perf_counter() - started
    held_out = x[-HELD_OUT:]
    row = evaluate(model, x[:TRAINED], labels[:TRAINED], held_out, labels[-HELD_OUT:])
    return {**row, "seconds": seconds}


def main(names):
    chosen = names or list(VARIANTS)
    runs = [(name, seed) for name in chosen for seed in SEEDS]
    rows = {name: {} for name in chosen}
    classifier()  # trained before both processes want it
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:  # one for each core
        results = pool.map(run_variant, *zip(*runs, strict=True))
        for (name, seed), row in zip(runs, results, strict=True):
            rows[name][seed] = row
            figures = "  ".join(f"{key} {value:.4g}" for key, value in row.items())
            print(f"{name}, seed {seed}: {figures}", flush=True)
    if not names:
        write_json("ablation", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
