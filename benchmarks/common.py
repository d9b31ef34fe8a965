"""What the benchmarks share: the project on the path, the digits, and where results go."""

import json
import sys
from pathlib import Path

import torch

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from data import MNIST, as_input, load_digits
from lib.files import write_files
from models import SHIPPED

MODELS_OF_SEEDS = {  # the models of three seeds: {name: checkpoint}
    "seed 0": SHIPPED,
    "seed 1": PROJECT / "benchmarks/runs/seed1/checkpoints/vae.safetensors",
    "seed 2": PROJECT / "benchmarks/runs/seed2/checkpoints/vae.safetensors",
}


def digits(split):
    """Images float32 [N, 784] in [0, 1] and labels int64 [N], both tensors."""
    images, labels = load_digits(MNIST, split)
    return as_input(images), torch.from_numpy(labels)


def write_json(name, contents):
    """Print the results and write them to benchmarks/`name`.json."""
    text = json.dumps(contents, indent=1)
    print(text)
    write_files({PROJECT / f"benchmarks/{name}.json": (text + "\n").encode()})
