"""Do the generated images look like digits? A classifier trained on MNIST is the judge.

    python benchmarks/generation.py     # about three minutes on two cores; writes generation.json

For independent and for even draws of the prior: the classifier's mean confidence in its answer and
the number of different digits, over the 20 images of each of 50 seeds. Seed 0 with even draws are
the shipped images.
"""

from statistics import mean

import torch
import torch.nn.functional as F
from common import digits, write_json
from torch import nn

from models import SHIPPED, draw_noise, load_checkpoint

EPOCHS, BATCH_SIZE, HIGHEST_LR = 4, 128, 3e-3
SEEDS, COUNT = 50, 20


def make_classifier():
    """Images [N, 784] in [0, 1] -> logits of the digits [N, 10]."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(128, 10),
    )


def train_classifier(x, labels):
    torch.manual_seed(0)
    classifier = make_classifier()
    optimizer = torch.optim.AdamW(classifier.parameters())
    steps = EPOCHS * -(-len(x) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, HIGHEST_LR, total_steps=steps)
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            loss = F.cross_entropy(classifier(x[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"classifier: epoch {epoch}, last loss {loss.item():.3f}", flush=True)
    return classifier.eval()


@torch.no_grad()
def judge(classifier, decoder, draws):
    """The judgement on images of many seeds, and how many digits seed 0 shows."""
    confidences, kinds = [], []
    for seed in range(SEEDS):
        codes = decoder.sample(draw_noise(COUNT, decoder.latent_dim, seed, draws))
        confidence, digit = classifier(decoder(codes).sigmoid()).softmax(1).max(1)
        confidences.append(confidence.mean().item())
        kinds.append(len(digit.unique()))
    return {
        "mean_confidence": mean(confidences),
        "mean_digits": mean(kinds),
        "digits_of_seed_0": kinds[0],
    }


def main():
    classifier = train_classifier(*digits("train"))
    x, labels = digits("test")
    with torch.no_grad():
        probabilities = torch.cat([classifier(part).softmax(1) for part in x.split(1000)])
    confidence, digit = probabilities.max(1)
    decoder = load_checkpoint(SHIPPED).decoder
    results = {
        "classifier_test_accuracy": (digit == labels).float().mean().item(),
        "confidence_in_test_images": confidence.mean().item(),
        **{draws: judge(classifier, decoder, draws) for draws in ("random", "even")},
    }
    write_json("generation", results)


if __name__ == "__main__":
    main()
