"""What each choice buys: train without it, on a validation split of the training images.

    python benchmarks/ablation.py       # about 30 minutes on two cores; writes ablation.json
    python benchmarks/ablation.py NAME  # some rows only, by their names; prints, writes nothing

Trains on the first 55,000 training images for 10 epochs, on one thread, and evaluates on the last
5,000.
"""

import contextlib
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from unittest.mock import patch

import torch
import torch.nn.functional as F
from classifier import classifier
from common import digits, write_json
from map import figures

import exact
import models
import training
from evaluation import evaluate
from models import VAE

EPOCHS, TRAINED = 10, 55_000


class PlainDecoder(models.Decoder):
    """It sees the quantiles only."""

    def __init__(self, latent_dim, widths):
        super().__init__(latent_dim, widths)
        self.net = models.mlp(latent_dim, *widths, models.PIXELS)

    def forward(self, z):
        return self.net(4 * torch.erf(z / math.sqrt(2)))


def gaussian_network(vae, widths):
    return models.mlp(models.PIXELS, *models.ENCODER, 2 * vae.latent_dim)


def principal_components(x, seed):
    """Ranks along the first two, as for a generative topographic mapping."""
    centred = x - x.mean(0)
    axes = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors[:, [-1, -2]].float()
    return (centred @ axes).argsort(0).argsort(0) / len(x)


def adam_only(vae):
    groups = [
        {"params": list(network.parameters()), "share": share, "weight_decay": decay}
        for network, (share, _, decay) in zip(
            (vae.decoder, vae.encoder), training.PACES[True], strict=True
        )
    ]
    return [torch.optim.AdamW(groups, fused=True)]


def with_augmentation(vae, x, table, lesson=models.Encoder.lesson):
    """Half of the encoder's images turned, sheared, scaled and bent a little."""
    half = (len(x) + 1) // 2
    with torch.no_grad():
        other = augment(x[:half])
        table = torch.cat([CODEBOOK[-1].log_likelihood(other), table[half:]])
    return lesson(vae, torch.cat([other, x[half:]]), table)


def augment(x):
    count = len(x)
    spread = torch.tensor([[0.03, 0.05, 0], [0.05, 0.03, 0]])
    affine = torch.eye(2, 3) + spread * torch.randn(count, 2, 3)
    bend = 0.025 * torch.randn(count, 2, 5, 5)
    bend = F.interpolate(bend, (28, 28), mode="bicubic", align_corners=True)
    grid = F.affine_grid(affine, (count, 1, 28, 28), align_corners=False)
    grid = grid + bend.permute(0, 2, 3, 1)
    images = F.grid_sample(x.view(count, 1, 28, 28), grid, align_corners=False)
    return images.flatten(1).clamp(0, 1)


CODEBOOK = []  # the one in use, for `with_augmentation`


def kept_codebook(decoder, side=exact.SIDE, decode_plane=exact.decode_plane):
    CODEBOOK[:] = [decode_plane(decoder, side)]
    return CODEBOOK[0]


NO_MATMUL = (torch, "set_float32_matmul_precision", lambda precision: None)
AUGMENTED = [
    (models.Encoder, "lesson", with_augmentation),
    (training, "decode_plane", kept_codebook),
]
VARIANTS = {  # name: what stands in for attributes of modules and classes
    "default": [],
    "plain Gaussian network": [(VAE, "make_encoder", gaussian_network)],
    "no start in order": [(training, "ordered_places", lambda x, seed: None)],
    "start from principal components": [(training, "ordered_places", principal_components)],
    "codes as wide as the posterior": [(training, "SPREAD", 1.0)],
    "no sines and cosines": [(models, "Decoder", PlainDecoder)],
    "9 x 9 regions": [(models, "REGIONS", 9)],
    "81 x 81 regions": [(models, "REGIONS", 81), (training, "NODES", 81)],
    "half augmented": AUGMENTED,
    "AdamW for all, no Muon": [(training, "make_optimizers", adam_only)],
    "grid of 54 x 54 codes": [(training, "SIDE", 54)],
    "float32 products": [NO_MATMUL],
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
        size, lr = training.USUAL[training.is_taught(vae)]
        settings = {"seed": 0, "epochs": EPOCHS, "batch_size": size, "lr": lr}
        started = time.perf_counter()
        for epoch in range(EPOCHS):
            training.train_epoch(vae, optimizers, train, {"test": held_out[:1000]}, epoch, settings)
        seconds = time.perf_counter() - started
        results = evaluate(vae, train, labels[:TRAINED], held_out, labels[TRAINED:])
        on_the_map = figures(vae.decoder, classifier())
    return {
        "L_tot": round(results["test"]["L_tot"], 2),
        "exact": round(results["exact"]["L_tot"], 2),
        "log_likelihood_binarized": round(results["log_likelihood_binarized"], 2),
        "knn_accuracy": results["knn_accuracy"],
        "islands": on_the_map["islands"],
        "share_of_largest": round(on_the_map["share_of_largest"], 2),
        "seconds": round(seconds, 1),
    }


def main(names):
    rows = {}
    names, write = names or VARIANTS, not names
    classifier()  # trained before both processes want it
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:  # one for each core
        for name, row in zip(names, pool.map(run_variant, names), strict=True):
            rows[name] = row
            print(f"{name:35}", "  ".join(f"{key} {value}" for key, value in row.items()))
            sys.stdout.flush()
    if write:
        write_json("ablation", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
