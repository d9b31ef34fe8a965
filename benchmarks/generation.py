"""Do the generated images look like digits? A classifier trained on MNIST is the judge.

    python benchmarks/generation.py     # about three minutes on two cores; writes generation.json

For independent and for even draws of the prior: the classifier's mean confidence in its answer and
the number of different digits, over the 20 images of each of 50 seeds. Seed 0 with even draws are
the shipped images. The other models are those of training seeds 1 and 2.
"""

from statistics import mean

import torch
from classifier import classifier
from common import MODELS_OF_SEEDS, digits, write_json

from models import SHIPPED, load_checkpoint, sample_noise

SEEDS = 50
COUNT = 20  # images of a seed


@torch.no_grad()
def judge(network, decoder, draws):
    """The judgement on images of many seeds; that on those of seed 0 also by itself."""
    confidences = []
    least_confidences = []
    least_confident = []
    different_digits = []
    for seed in range(SEEDS):
        codes = decoder.codes_from_noise(sample_noise(COUNT, decoder.latent_dim, seed, draws))
        confidence, digit = network(decoder(codes).sigmoid()).softmax(1).max(1)
        confidences.append(confidence.mean().item())
        least_confidences.append(confidence.min().item())
        least_confident.append(confidence.argmin().item())
        different_digits.append(len(digit.unique()))
    return {
        "mean_confidence": mean(confidences),
        "mean_digits": mean(different_digits),
        "digits_of_seed_0": different_digits[0],
        "confidence_of_seed_0": confidences[0],
        "least_confidence_of_seed_0": least_confidences[0],
        "least_confident_of_seed_0": least_confident[0],
    }


@torch.no_grad()
def main():
    network = classifier()
    x, labels = digits("test")
    decoder = load_checkpoint(SHIPPED).decoder
    others = [load_checkpoint(MODELS_OF_SEEDS[name]).decoder for name in ("seed 1", "seed 2")]
    probabilities = torch.cat([network(part).softmax(1) for part in x.split(1000)])
    confidence, digit = probabilities.max(1)
    results = {
        "classifier_test_accuracy": (digit == labels).float().mean().item(),
        "confidence_in_test_images": confidence.mean().item(),
        **{draws: judge(network, decoder, draws) for draws in ("random", "even")},
        "even_of_other_models": [judge(network, other, "even") for other in others],
    }
    write_json("generation", results)


if __name__ == "__main__":
    main()
