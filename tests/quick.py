"""Runs a script with narrow networks, so that a training takes a second:

    python tests/quick.py auto_encoder.py --epochs 2 --out somewhere

Models that were saved load as they are.
"""

import runpy
import sys
from functools import partialmethod
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

import models  # noqa: E402
from lib import plots  # noqa: E402

WIDTHS = (32, 32), (32, 32)  # of the encoder and the decoder


def small_model(kind, latent_dim):
    """As models.make_model, with narrow networks."""
    if kind == "ae":
        return models.AutoEncoder(latent_dim, *WIDTHS)
    if latent_dim == 2:
        return models.GridVAE(*WIDTHS)
    return models.VAE(latent_dim, *WIDTHS)


def make_quick(set_attribute):
    """Narrow networks, few samples and nodes for log p(x), pictures with few pixels.

    `set_attribute` is setattr, or what pytest has in its place.
    """
    few_samples = partialmethod(models.VAE.log_likelihood, samples=20)
    few_nodes = partialmethod(models.GridVAE.log_likelihood, side=45)
    few_pixels = {**plots.STYLE, "savefig.dpi": 40}
    set_attribute(models, "make_model", small_model)
    set_attribute(models.VAE, "log_likelihood", few_samples)
    set_attribute(models.GridVAE, "log_likelihood", few_nodes)
    set_attribute(plots, "STYLE", few_pixels)


if __name__ == "__main__":
    make_quick(setattr)
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
