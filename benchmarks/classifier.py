"""A classifier of MNIST, the judge of generated images and of the map.

It is trained at the first use, which takes about two minutes on two cores, and kept in
benchmarks/classifier.safetensors.
"""

import safetensors.torch
import torch
import torch.nn.functional as F
from common import PROJECT, digits, write_files
from torch import nn

EPOCHS, BATCH_SIZE, HIGHEST_LR = 4, 128, 3e-3
WEIGHTS = PROJECT / "benchmarks/classifier.safetensors"


def classifier():
    """The trained network: images [N, 784] in [0, 1] -> logits of the digits [N, 10]."""
    torch.manual_seed(0)
    network = nn.Sequential(
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
    if WEIGHTS.exists():
        network.load_state_dict(safetensors.torch.load_file(WEIGHTS))
    else:
        train(network, *digits("train"))
        write_files({WEIGHTS: safetensors.torch.save(network.state_dict())})
    return network.eval()


@torch.enable_grad()
def train(network, x, labels):
    optimizer = torch.optim.AdamW(network.parameters())
    steps = EPOCHS * -(-len(x) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, HIGHEST_LR, total_steps=steps)
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            loss = F.cross_entropy(network(x[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"classifier: epoch {epoch}, last loss {loss.item():.3f}", flush=True)
