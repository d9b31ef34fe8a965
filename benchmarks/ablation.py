"""What each choice buys: train without it, on a validation split of the training images.

    python benchmarks/ablation.py       # about 30 minutes on two cores; writes ablation.json
    python benchmarks/ablation.py NAME  # some rows only, by their names; prints, writes nothing

Trains on the first 55,000 training images for 10 epochs, on one thread, and evaluates on the last
5,000.
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
import torch.nn.functional as F
from classifier import classifier
from common import digits, write_json
from map import map_metrics

import auto_encoder
from auto_encoder import GRID_SETTINGS, NEIGHBOURS, PLAIN_SETTINGS, TrainingSettings
from lib import metrics
from lib.latent_grid import log_marginal_likelihood, square_grid
from lib.som import project_on_principal_axes, som_positions
from models import VAE, Decoder, GridVAE

TRAINED = 55_000  # training images
KNN_CODES = 1000  # the last held-out images, as the homework's last test images
GRID_SIDE = 81  # nodes per side of the grid by which all variants are judged
QUADRATURE_SIDE = 324


# --- What stands in for a choice --------------------------------------------------------------


class PlainDecoder(Decoder):
    """It sees the quantiles only."""

    FREQUENCIES = ()


class PlainDecoderVAE(GridVAE):
    def make_decoder(self, widths):
        return PlainDecoder(self.latent_dim, widths)


def ranks_by_principal_components(images, seed):
    """Ranks along the first two, as for a generative topographic mapping: [N, 2], from 0 to 1."""
    components = project_on_principal_axes(images.flatten(1))
    return components.argsort(0).argsort(0) / len(images)


def adamw_for_all(vae, settings):
    """An optimizer with the same learning rates, and the decay that AdamW's weights have."""
    decoder = {
        "params": list(vae.decoder.parameters()),
        "lr_scale": 1.0,
        "weight_decay": settings.decoder_decay,
    }
    encoder = {
        "params": list(vae.encoder.parameters()),
        "lr_scale": settings.encoder_lr_scale,
        "weight_decay": settings.encoder_decay,
    }
    return [torch.optim.AdamW([decoder, encoder], fused=True)]


def half_augmented_loss(vae, x, grid, positions, settings, generator):
    """As `auto_encoder.grid_loss`, with half of the encoder's images augmented."""
    log_scores = grid.log_likelihood_grid(x)
    if positions is not None:
        log_scores = log_scores + auto_encoder.log_near(positions, grid, settings)
    decoder_loss, l_tot = auto_encoder.decoder_loss(vae, x, log_scores, grid, settings, generator)
    half = (len(x) + 1) // 2
    with torch.no_grad():
        augmented = augment(x[:half], generator)
        of_augmented = grid.log_likelihood_grid(augmented)
    encoder_loss = auto_encoder.encoder_loss(
        vae.encoder,
        torch.cat([augmented, x[half:]]),
        torch.cat([of_augmented, log_scores[half:]]),
        settings,
        generator,
    )
    return decoder_loss + encoder_loss, l_tot


def augment(x, generator):
    """Images [N, 784] turned, sheared, scaled and bent a little."""
    count = len(x)
    spread = torch.tensor([[0.03, 0.05, 0], [0.05, 0.03, 0]])
    affine = torch.eye(2, 3) + spread * torch.randn(count, 2, 3, generator=generator)
    bend = 0.025 * torch.randn(count, 2, 5, 5, generator=generator)
    bend = F.interpolate(bend, (28, 28), mode="bicubic", align_corners=True)
    grid = F.affine_grid(affine, (count, 1, 28, 28), align_corners=False)
    grid = grid + bend.permute(0, 2, 3, 1)
    images = F.grid_sample(x.view(count, 1, 28, 28), grid, align_corners=False)
    return images.flatten(1).clamp(0, 1)


@dataclass(frozen=True)
class Variant:
    """A training: the default one, but for what is given."""

    model: Callable = GridVAE
    settings: TrainingSettings = GRID_SETTINGS
    positions: Callable = som_positions
    optimizers: Callable = auto_encoder.make_optimizers
    loss: Callable = auto_encoder.grid_loss


def changed(**settings):
    return dataclasses.replace(GRID_SETTINGS, **settings)


VARIANTS = {
    "default": Variant(),
    "plain Gaussian network": Variant(model=lambda: VAE(2), settings=PLAIN_SETTINGS),
    "no ordered initialisation": Variant(settings=changed(som_epochs=0)),
    "start from principal components": Variant(positions=ranks_by_principal_components),
    "codes as wide as the posterior": Variant(settings=changed(variance_factor=1.0)),
    "no sines and cosines": Variant(model=PlainDecoderVAE),
    "9 x 9 regions": Variant(model=lambda: GridVAE(regions_per_side=9)),
    "81 x 81 regions": Variant(
        model=lambda: GridVAE(regions_per_side=81), settings=changed(som_grid_side=81)
    ),
    "half augmented": Variant(loss=half_augmented_loss),
    "AdamW for all, no Muon": Variant(optimizers=adamw_for_all),
    "grid of 54 x 54 codes": Variant(model=lambda: GridVAE(grid_side=54)),
    "float32 products": Variant(settings=changed(matmul_precision="highest")),
}


# --- The measurement --------------------------------------------------------------------------


def train(variant, x):
    """A model trained on images [N, 784], in the way of `auto_encoder.train`."""
    torch.manual_seed(0)
    model = variant.model()
    settings = dataclasses.replace(variant.settings, epochs=10)
    optimizers = variant.optimizers(model, settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(auto_encoder, "grid_loss", variant.loss))
        stack.enter_context(auto_encoder.matmul_precision(settings.matmul_precision))
        positions = None
        if settings.som_epochs:
            positions = variant.positions(x.view(-1, 28, 28), settings.seed)
        for epoch in range(settings.epochs):
            if epoch >= settings.som_epochs:
                positions = None
            auto_encoder.train_epoch(model, optimizers, x, epoch, settings, positions)
    return model.eval()


@torch.no_grad()
def evaluate(model, x, labels, held_out, held_out_labels):
    """The metrics on the held-out images, the same for every variant."""
    grid = square_grid(model.decoder, GRID_SIDE)
    binarized = torch.bernoulli(held_out, generator=torch.Generator().manual_seed(0))
    log_likelihood = log_marginal_likelihood(model.decoder, binarized, QUADRATURE_SIDE)
    train_codes = torch.cat([model.codes(part) for part in x.split(10_000)])
    query_codes = model.codes(held_out[-KNN_CODES:])
    predicted = metrics.knn_predict(train_codes, labels.numpy(), query_codes, NEIGHBOURS)
    correct = predicted == held_out_labels[-KNN_CODES:].numpy()
    on_the_map = map_metrics(model.decoder, classifier())
    return {
        "L_tot": round(auto_encoder.mean_elbo_terms(model, held_out)["L_tot"], 2),
        "laplace": round(auto_encoder.mean_elbo_terms(model, held_out, grid)["L_tot"], 2),
        "log_likelihood_binarized": round(log_likelihood.mean().item(), 2),
        "knn_accuracy": float(correct.mean()),
        "islands": on_the_map["islands"],
        "share_of_largest": round(on_the_map["share_of_largest"], 2),
    }


def run_variant(name):
    """Train a variant, and give its metrics on the validation split."""
    torch.set_num_threads(1)
    x, labels = digits("train")
    started = time.perf_counter()
    model = train(VARIANTS[name], x[:TRAINED])
    seconds = time.perf_counter() - started
    row = evaluate(model, x[:TRAINED], labels[:TRAINED], x[TRAINED:], labels[TRAINED:])
    return {**row, "seconds": round(seconds, 1)}


def main(names):
    rows = {}
    classifier()  # trained before both processes want it
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:  # one for each core
        chosen = names or list(VARIANTS)
        for name, row in zip(chosen, pool.map(run_variant, chosen), strict=True):
            rows[name] = row
            print(f"{name:35}", "  ".join(f"{key} {value}" for key, value in row.items()))
            sys.stdout.flush()
    if not names:
        write_json("ablation", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
