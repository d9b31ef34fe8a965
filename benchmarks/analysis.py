"""Figures of the shipped model for the report's analysis, on all 10,000 test images.

python benchmarks/analysis.py       # about a minute on two cores; writes analysis.json
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from auto_encoder import as_input, nearest_label, write_json
from data import PROJECT, load_digits
from models import load_checkpoint

SAMPLES = 20  # of q(z|x) per image, to tell the bound's gap from its noise


@torch.no_grad()
def main():
    torch.manual_seed(0)
    vae = load_checkpoint(PROJECT / "checkpoints/vae.pt")
    device = torch.device("cpu")
    images, labels = load_digits(PROJECT / "mnist", "train")
    test_images, test_labels = load_digits(PROJECT / "mnist", "test")
    x, x_test = as_input(images, device), as_input(test_images, device)

    codebook = vae.codebook()
    mean, logvar = vae.encode(x_test, codebook)
    known = vae.codes(x, codebook)
    predicted = nearest_label(known, labels, mean)
    confused = np.zeros((10, 10), int)
    np.add.at(confused, (test_labels, predicted), 1)
    pairs = {
        f"{a} and {b}": int(confused[a, b] + confused[b, a])
        for a, b in itertools.combinations(range(10), 2)
    }
    nearest = {"own": [], "another": []}  # distances to the nearest training code of such a digit
    digits = torch.from_numpy(labels)
    for codes, digit in zip(mean.split(500), torch.from_numpy(test_labels).split(500), strict=True):
        distance = torch.cdist(codes, known, compute_mode="donot_use_mm_for_euclid_dist")
        same = digit[:, None] == digits
        nearest["own"].append(distance.masked_fill(~same, torch.inf).amin(1))
        nearest["another"].append(distance.masked_fill(same, torch.inf).amin(1))
    bounds = [torch.sub(*vae.elbo(x_test, codebook)) for _ in range(SAMPLES)]
    gap = (vae.log_likelihood(x_test) - torch.stack(bounds).mean(0)).numpy()
    results = {
        "knn_accuracy": float((predicted == test_labels).mean()),
        "errors": int((predicted != test_labels).sum()),
        "most_confused": sorted(pairs.items(), key=lambda pair: -pair[1])[:4],
        "accuracy_of_digit": {
            digit: float(confused[digit, digit] / confused[digit].sum()) for digit in range(10)
        },
        "median_distance": {
            digit: torch.cat(parts).median().item() for digit, parts in nearest.items()
        },
        "deviation_of_codes": mean.std(0).tolist(),
        "median_deviation_of_posterior": (0.5 * logvar).exp().median().item(),
        "gap": {
            "mean": float(gap.mean()),
            "median": float(np.median(gap)),
            "90th_percentile": float(np.quantile(gap, 0.9)),
        },
    }
    print(json.dumps(results, indent=1))
    write_json(PROJECT / "benchmarks/analysis.json", results)


if __name__ == "__main__":
    main()
