"""The recipe of a well-known homework, and ours, on the same 2,000 training images.

    python benchmarks/recipe.py     # a few minutes on two cores; writes recipe.json

The recipe: 784-512-256-32-256-512-784 with a sigmoid after every layer, binary cross-entropy,
AdamW at 1e-3, batches of 64. Both train for 100 epochs on the first 2,000 training images and are
tested on all 10,000 test images.
"""

import dataclasses
import itertools
import time

import torch
import torch.nn.functional as F
from common import digits, write_json
from torch import nn

from auto_encoder import PLAIN_SETTINGS, elbo_terms, optimizers_for, train_epoch
from lib.torch_settings import matmul_precision
from models import AutoEncoder

IMAGES = 2000
EPOCHS = 100
BATCH_SIZE = 64
SIZES = (784, 512, 256, 32, 256, 512, 784)


def train_recipe(x, x_test):
    """Test cross-entropy in nats per image of the recipe."""
    layers = []
    for inputs, outputs in itertools.pairwise(SIZES):
        layers += [nn.Linear(inputs, outputs), nn.Sigmoid()]
    model = nn.Sequential(*layers[:-1])  # the loss below has the last sigmoid in it
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            loss = F.binary_cross_entropy_with_logits(model(x[batch]), x[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return 784 * F.binary_cross_entropy_with_logits(model(x_test), x_test).item()


def train_ours(x, x_test):
    """Test cross-entropy in nats per image of `auto_encoder.py --model ae --latent-dim 32`."""
    model = AutoEncoder(32)
    settings = dataclasses.replace(PLAIN_SETTINGS, epochs=EPOCHS, batch_size=BATCH_SIZE)
    optimizers = optimizers_for(model, settings)
    with matmul_precision(settings.matmul_precision):
        for epoch in range(EPOCHS):
            train_epoch(model, optimizers, x, epoch, settings)
    return elbo_terms(model, x_test)["L_tot"]


def main():
    x, x_test = digits("train")[0][:IMAGES], digits("test")[0]
    rows = {}
    for name, train in (("recipe", train_recipe), ("ours", train_ours)):
        torch.manual_seed(0)
        started = time.perf_counter()
        nats = train(x, x_test)
        seconds = round(time.perf_counter() - started, 1)
        rows[name] = {"nats": nats, "per_pixel": nats / 784, "seconds": seconds}
        print(f"{name}: {nats:.2f} nats, {nats / 784:.4f} per pixel, {seconds} s", flush=True)
    write_json("recipe", rows)


if __name__ == "__main__":
    main()
