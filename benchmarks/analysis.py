"""Figures of the shipped model for the report's analysis, on all 10,000 test images.

python benchmarks/analysis.py       # about a minute on two cores; writes analysis.json
and figures/confusions.png
"""

import itertools

import numpy as np
import torch
from common import PROJECT, digits, write_files, write_json

import plots
from evaluation import NEIGHBOURS, nearest_label
from models import REGIONS, SHIPPED, load_checkpoint
from ordering import lean

SAMPLES = 20  # of q(z|x) per image, to tell the gap from its noise


def mean_bound(vae, x, q):
    """The ELBO of each image in nats, [N], over samples of q."""
    bounds = []
    for part, *gaussian in zip(x.split(1000), *(term.split(1000) for term in q), strict=True):
        draws = [torch.sub(*vae.elbo(part, gaussian)) for _ in range(SAMPLES)]
        bounds.append(torch.stack(draws).mean(0))
    return torch.cat(bounds)


def style(x):
    """How far each of images [N, 784] leans, and how much ink it has: [N, 2]."""
    return torch.stack([lean(x)[0], x.mean(1)], 1)


def draw_confusions(images, labels, predicted, pairs):
    """The first two test images of each digit of a pair that are taken for the other one."""
    shown = []
    for pair in pairs:
        for one, other in itertools.permutations(map(int, pair.split(" and "))):
            wrong = np.flatnonzero((labels == one) & (predicted == other))[:2]
            shown += [(images[place], f"{one} as {other}") for place in wrong]
    with plots.own_style():
        figure = plots._figure(0.6 * len(shown), 0.85)
        for place, (image, title) in enumerate(shown, start=1):
            axes = figure.add_subplot(1, len(shown), place)
            axes.set_title(title, fontsize=9)
            plots._tile(axes, image[None], 1)
        return plots._png(figure)


@torch.no_grad()
def main():
    torch.manual_seed(0)
    vae = load_checkpoint(SHIPPED)
    (x, digit_of), (x_test, digit_of_test) = digits("train"), digits("test")
    labels, test_labels = digit_of.numpy(), digit_of_test.numpy()
    mean, logvar = vae.encode(x_test)
    known = vae.codes(x)
    predicted = nearest_label(known, labels, mean)
    confused = np.zeros((10, 10), int)
    np.add.at(confused, (test_labels, predicted), 1)
    pairs = {
        f"{a} and {b}": int(confused[a, b] + confused[b, a])
        for a, b in itertools.combinations(range(10), 2)
    }
    nearest = {"own": [], "another": []}  # distances to the nearest training code of such a digit
    known_style, guessed_style = style(x), []
    for codes, digit in zip(mean.split(500), digit_of_test.split(500), strict=True):
        distance = torch.cdist(codes, known, compute_mode="donot_use_mm_for_euclid_dist")
        same = digit[:, None] == digit_of
        neighbours = distance.topk(NEIGHBOURS, largest=False).indices
        guessed_style.append(known_style[neighbours].mean(1))
        nearest["own"].append(distance.masked_fill(~same, torch.inf).amin(1))
        nearest["another"].append(distance.masked_fill(same, torch.inf).amin(1))
    left = (torch.cat(guessed_style) - style(x_test)).square().mean(0)
    exact = vae.posterior(x_test)
    gap = mean_bound(vae, x_test, exact) - mean_bound(vae, x_test, (mean, logvar))
    places = [REGIONS * torch.special.ndtr(codes) for codes in (mean, exact[0])]
    right = ((places[0] - places[1]).abs() < 1.5).all(1)  # the same region or one beside it
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
        "share_of_slant_and_ink_explained": (1 - left / style(x_test).var(0)).tolist(),
        "deviation_of_codes": mean.std(0).tolist(),
        "median_deviation_of_posterior": (0.5 * logvar).exp().median().item(),
        "right_region": right.float().mean().item(),
        "gap_in_right_region": gap[right].mean().item(),
        "gap_in_wrong_region": gap[~right].mean().item(),
    }
    write_json("analysis", results)
    names = [pair for pair, _ in results["most_confused"][:3]]
    picture = draw_confusions(x_test.numpy(), test_labels, predicted, names)
    write_files({PROJECT / "figures/confusions.png": picture})


if __name__ == "__main__":
    main()
