"""Numbers that judge a model, from callables and arrays: mean bounds, k-NN accuracy."""

import numpy as np
import torch

from lib import EVAL_BATCH


@torch.no_grad()
def mean_terms(elbo, x):
    """The terms of the evidence lower bound, averaged over images x [N, D], in nats per image.

    `elbo` maps images [n, D] to the two terms of the bound, likelihood and divergence, [n] each.
    Returns them as L_likelihood and L_divergence, and L_tot = L_divergence - L_likelihood.
    """
    terms = [torch.stack(elbo(part)) for part in x.split(EVAL_BATCH)]
    likelihood, divergence = torch.cat(terms, dim=1).mean(1).tolist()
    return {
        "L_tot": divergence - likelihood,
        "L_likelihood": likelihood,
        "L_divergence": divergence,
    }


def nearest_neighbours(train_codes, query_codes, k):
    """The indices of the k nearest of training codes [N, d] for each of query codes [Q, d]: [Q, k].

    Of all training codes, if there are fewer than k.
    """
    parts = []
    for part in query_codes.split(100):  # 100 x 60,000 distances take 24 MB
        # The matrix-product shortcut loses the digits that tell close neighbours apart.
        distances = torch.cdist(part, train_codes, compute_mode="donot_use_mm_for_euclid_dist")
        parts.append(distances.topk(min(k, len(train_codes)), largest=False).indices)
    return torch.cat(parts)


def knn_predict(train_codes, train_labels, query_codes, k):
    """The commonest label among the k nearest training codes of each query code: [Q].

    Codes are tensors [N, d] and [Q, d], labels an int64 array [N].
    """
    neighbours = nearest_neighbours(train_codes, query_codes, k).cpu().numpy()
    return np.array([np.bincount(labels).argmax() for labels in train_labels[neighbours]])
