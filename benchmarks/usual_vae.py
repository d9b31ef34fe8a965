"""A usual VAE with our decoder, a row of the ablation and a curve of speed.py.

    python benchmarks/usual_vae.py 20       # so many epochs

Encoder and decoder are trained together, by L_tot with one sample of the code, on all training
images, with the settings that were chosen for it.
"""

import dataclasses
import sys

import torch
from common import digits

from auto_encoder import PLAIN_SETTINGS, elbo_terms, optimizers_for, train_epoch
from lib.torch_settings import matmul_precision
from models import VAE


def main(epochs):
    x, _ = digits("train")
    x_test, _ = digits("test")
    torch.manual_seed(0)
    vae = VAE(2)
    settings = dataclasses.replace(PLAIN_SETTINGS, epochs=epochs)
    optimizers = optimizers_for(vae, settings)
    for epoch in range(epochs):
        with matmul_precision(settings.matmul_precision):
            train_epoch(vae, optimizers, x, epoch, settings)
            l_tot = elbo_terms(vae, x_test)["L_tot"]
        print(f"epoch {epoch}: test L_tot {l_tot:.2f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
