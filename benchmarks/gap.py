"""Where the nats go: how far the encoder is from the best Gaussian, and that from log p(x).

    python benchmarks/gap.py        # about a quarter of an hour on two cores; writes gap.json

For images of the test set and of the training set, in nats per image (Cremer, Li & Duvenaud 2018,
"Inference suboptimality in variational autoencoders"):

    approximation gap   L_tot of the best factorised Gaussian, less -log p(x)
    amortisation gap    L_tot of the encoder, less that of the best factorised Gaussian

How much larger the amortisation gap is on test images than on training images is the encoder's
generalisation gap; of -log p(x) it is the decoder's. That one is measured on all images of both
sets ("all_test", "all_train"), as log p(x) differs much from image to image.

The best Gaussian is found for each image by gradient descent, from the encoder's Gaussian and from
the Laplace posterior; the better of the two counts. Its loss while it is sought is a sum over 5 x 5
codes, Gauss-Hermite quadrature; every L_tot in gap.json is a mean over 32 samples.
"""

import itertools
import math

import numpy as np
import torch
from common import digits, write_json

from lib import EVAL_BATCH
from models import SHIPPED, kl_divergence, load_checkpoint, log_bernoulli, reparameterize

IMAGES = 2000  # drawn at random from each set
PAIRS = 16  # of antithetic samples
STEPS = 60  # 200 find a mean that is lower by less than 0.001 nats
LEARNING_RATE = 0.1
PART = 200  # images that are fitted at once: 25 decoded images for each


def best_gaussian(vae, x, start):
    """The mean and logvar, [N, 2] each, that gradient descent finds from those of `start`."""
    start_mean, start_logvar = start
    means = []
    logvars = []
    parts = zip(x.split(PART), start_mean.split(PART), start_logvar.split(PART), strict=True)
    for images, mean, logvar in parts:
        best_mean, best_logvar = fit_part(vae, images, mean, logvar)
        means.append(best_mean)
        logvars.append(best_logvar)
    return torch.cat(means), torch.cat(logvars)


@torch.enable_grad()
def fit_part(vae, x, mean, logvar):
    """As `best_gaussian`, from a mean and logvar, [N, 2] each.

    Two numbers are fitted for each of the two: how many deviations to shift the mean by, and what
    to add to logvar.
    """
    shift = torch.zeros_like(mean, requires_grad=True)
    widening = torch.zeros_like(mean, requires_grad=True)
    optimizer = torch.optim.Adam([shift, widening], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    best_loss = torch.full((len(x),), math.inf)
    best = [mean.clone(), logvar.clone()]
    for _ in range(STEPS):
        q = (mean + (0.5 * logvar).exp() * shift, logvar + widening)
        loss = quadrature_l_tot(vae, x, q)
        is_better = loss.detach() < best_loss
        best_loss[is_better] = loss.detach()[is_better]
        for kept, now in zip(best, q, strict=True):
            kept[is_better] = now.detach()[is_better]
        # Not loss.backward(), as the weights of the decoder need no gradient.
        shift.grad, widening.grad = torch.autograd.grad(loss.sum(), (shift, widening))
        optimizer.step()
        schedule.step()
    return best


def quadrature_l_tot(vae, x, q):
    """L_tot of each image [N, 784] under Gaussians q, [N, 2] each, without random samples: [N].

    The mean over the Gaussian is a weighted sum over 5 x 5 codes: Gauss-Hermite quadrature.
    """
    mean, logvar = q
    l_tot = kl_divergence(mean, logvar)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    nodes = torch.tensor(nodes, dtype=x.dtype)
    weights = weights / weights.sum()
    for i, j in itertools.product(range(5), repeat=2):
        noise = nodes[[i, j]]  # in place of a sample of N(0, I), the same for every image
        z = reparameterize(mean, logvar, noise)
        l_tot = l_tot - weights[i] * weights[j] * log_bernoulli(x, vae.decode(z))
    return l_tot


def l_tot(vae, x, q):
    """L_tot of each image under Gaussians q, a mean over samples: [N]."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for part, mean, logvar in zip(*(t.split(EVAL_BATCH) for t in (x, *q)), strict=True):
        q_of_part = (mean, logvar)
        likelihood, divergence = vae.mean_elbo(part, q_of_part, pairs=PAIRS, generator=generator)
        parts.append(divergence - likelihood)
    return torch.cat(parts)


def nats_of_images(vae, x):
    """Nats per image, {name: [N]}."""
    encoded = vae.encode(x)
    laplace = vae.laplace_posterior(x)
    tried = [l_tot(vae, x, best_gaussian(vae, x, start)) for start in (encoded, laplace)]
    return {
        "encoder": l_tot(vae, x, encoded),
        "laplace": l_tot(vae, x, laplace),
        "best_gaussian": torch.minimum(*tried),
        "minus_log_likelihood": -vae.log_likelihood(x, side=648),
    }


def mean_with_error(values):
    """The mean of values [N], and its standard error."""
    return {
        "mean": values.mean().item(),
        "standard_error": (values.std() / len(values) ** 0.5).item(),
    }


def summary(nats):
    """Means of `nats_of_images`, the gaps, and how the amortisation gap spreads over the images."""
    amortisation = nats["encoder"] - nats["best_gaussian"]
    approximation = nats["best_gaussian"] - nats["minus_log_likelihood"]
    worst_tenth = amortisation.topk(len(amortisation) // 10).values
    return {
        **{name: mean_with_error(values) for name, values in nats.items()},
        "approximation_gap": mean_with_error(approximation),
        "amortisation_gap": mean_with_error(amortisation),
        "median_amortisation_gap": amortisation.median().item(),
        "share_of_worst_tenth": (worst_tenth.sum() / amortisation.sum()).item(),
    }


@torch.no_grad()
def main():
    vae = load_checkpoint(SHIPPED)
    generator = torch.Generator().manual_seed(0)
    results = {"images": IMAGES}
    for split in ("test", "train"):
        x, _ = digits(split)
        chosen = torch.randperm(len(x), generator=generator)[:IMAGES]
        results[split] = summary(nats_of_images(vae, x[chosen]))
        results[f"all_{split}"] = mean_with_error(-vae.log_likelihood(x))
        print(split, results[split], flush=True)
    write_json("gap", results)


if __name__ == "__main__":
    main()
