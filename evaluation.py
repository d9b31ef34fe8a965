"""Figures of a model: mean ELBO, log-likelihood, k-NN accuracy of the codes; their log lines."""

import math

import numpy as np
import torch

from data import SCATTERED
from errors import InputError
from exact import decode_plane
from models import BATCH, PIXELS, VAE

NEIGHBOURS = 15  # k of the k-NN classifier that judges the codes


@torch.no_grad()
def mean_elbo(model, x, codebook=None):
    """L_tot, L_likelihood and L_divergence of images [N, 784], mean nats per image.

    With a codebook the exact posterior stands in for the encoder. Raises InputError: the loss is
    not finite, or ten times that of giving each pixel 0.5.
    """
    model.eval()
    torch.manual_seed(0)
    posterior = (lambda part: [codebook.posterior(part)]) if codebook else lambda part: []
    parts = [torch.stack(model.elbo(part, *posterior(part))) for part in x.split(BATCH)]
    likelihood, divergence = torch.cat(parts, dim=1).mean(1).tolist()
    loss = divergence - likelihood
    if not loss < 10 * math.log(2) * PIXELS:
        problem = f"training diverges, the loss is {loss:.3g} nats an image"
        raise InputError(f"--lr: {problem}; give a smaller one (what was saved before is kept)")
    return {"L_tot": loss, "L_likelihood": likelihood, "L_divergence": divergence}


@torch.no_grad()
def evaluate(model, x, labels, x_test, test_labels):
    """Figures on the full test set; `x` and `labels` are the training images'."""
    results = {"test": mean_elbo(model, x_test)}
    if isinstance(model, VAE):
        torch.manual_seed(0)
        binarized = torch.bernoulli(x_test.cpu()).to(x_test.device)
        both = model.log_likelihood(torch.cat([x_test, binarized])).view(2, -1).mean(1).tolist()
        results["log_likelihood"], results["log_likelihood_binarized"] = both
        if model.latent_dim == 2:
            results["exact"] = mean_elbo(model, x_test, decode_plane(model.decoder))
    known = torch.cat([model.codes(part) for part in x.split(10 * BATCH)])
    predicted = nearest_label(known, labels, model.codes(x_test[-SCATTERED:]))
    results["knn_accuracy"] = float((predicted == test_labels[-SCATTERED:]).mean())
    results["knn_codes"] = len(predicted)
    return results


def nearest_label(known, labels, asked):
    """The commonest label among the k nearest of `known` [N, d] codes, for each of `asked`."""
    votes = []
    for part in asked.split(100):
        # the matrix-product shortcut loses the digits that tell close neighbours apart
        distances = torch.cdist(part, known, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(min(NEIGHBOURS, len(known)), largest=False).indices
        votes += [np.bincount(row).argmax() for row in labels[nearest.cpu().numpy()]]
    return np.array(votes)


def format_epoch(epoch, figures, which):
    """The log line of an epoch; `which` names the images that are not for training."""
    names = {"train": f"epoch {epoch}:", "validation": "validation", "test": which}
    return " | ".join(f"{n} {format_elbo(figures[k])}" for k, n in names.items() if k in figures)


def format_elbo(figures):
    return " ".join(f"{name} {value:.2f}" for name, value in figures.items())


def format_results(metrics, which):
    """What is printed at the end of a run, from what its .json file holds."""
    results = metrics["results"]
    lines = [f"{which} {format_elbo(results['test'])}"]
    if "exact" in results:
        exact, gap = results["exact"], results["test"]["L_tot"] - results["exact"]["L_tot"]
        lines += [f"exact posterior {format_elbo(exact)} | amortisation gap {gap:.2f}"]
    if "log_likelihood" in results:
        grey, binarized = results["log_likelihood"], results["log_likelihood_binarized"]
        method = "exact" if "exact" in results else "lower bound, by importance sampling"
        lines += [f"{which} log p(x) {grey:.2f} grey-scale, {binarized:.2f} binarized ({method})"]
    lines += [f"k-NN accuracy {results['knn_accuracy']:.3f} of the last {results['knn_codes']}"]
    lines[-1] += f" {which} codes (k={NEIGHBOURS}, among all training codes)"
    seconds, total = metrics["training_seconds"], metrics["total_seconds"]
    return "\n".join([*lines, f"trained for {seconds:.0f} s; this run took {total:.0f} s in all"])
