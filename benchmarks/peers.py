"""A library that people use for this, Pythae, on the same data and machine, for comparison.

    pip install pythae
    python benchmarks/peers.py              # about a quarter of an hour; writes peers.json
    python benchmarks/peers.py SVAE 0.01    # one of them; prints L_tot after each epoch

Its VAE with two latents and its SVAE on the sphere of two dimensions, binary cross-entropy, its own
networks and trainer, ten epochs, four learning rates: its default of 1e-4, the usual 1e-3, and two
higher ones. The rest are its defaults. Grey-scale test images.
"""

import sys
import tempfile
import time

import torch
from common import digits, write_json
from pythae.models import SVAE, VAE, SVAEConfig, VAEConfig
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback

from auto_encoder import NEIGHBOURS
from data import LAST_TEST_IMAGES
from lib.knn import knn_predict

EPOCHS = 10
LEARNING_RATES = (1e-4, 1e-3, 3e-3, 1e-2)
PEERS = {"VAE": (VAE, VAEConfig, 2), "SVAE": (SVAE, SVAEConfig, 3)}


@torch.no_grad()
def test_loss(model, x_test):
    """Test L_tot in nats, with one sample of the code."""
    model.eval()
    losses = []
    for part in x_test.split(1000):
        images = part.view(-1, 1, 28, 28)
        losses.append(model({"data": images}).loss.item())
    return sum(losses) / len(losses)


class PrintLoss(TrainingCallback):
    """Prints the test L_tot after each epoch."""

    def __init__(self, model):
        self.model = model
        self.x_test, _ = digits("test")
        self.epoch = 0

    def on_epoch_end(self, training_config, **_):
        print(
            f"epoch {self.epoch}: test L_tot {test_loss(self.model, self.x_test):.2f}", flush=True
        )
        self.epoch += 1


@torch.no_grad()
def evaluate(model):
    """The test L_tot, and the k-NN accuracy of the last codes."""
    model.eval()
    torch.manual_seed(0)
    x, labels = digits("train")
    x_test, test_labels = digits("test")
    l_tot = test_loss(model, x_test)

    def codes(images):
        parts = [model.encoder(p.view(-1, 1, 28, 28)).embedding for p in images.split(1000)]
        return torch.cat(parts)

    train_codes = codes(x)
    query_codes = codes(x_test[-LAST_TEST_IMAGES:])
    if isinstance(model, SVAE):  # its codes are directions
        train_codes = train_codes / train_codes.norm(dim=1, keepdim=True)
        query_codes = query_codes / query_codes.norm(dim=1, keepdim=True)
    predicted = knn_predict(train_codes, labels.numpy(), query_codes, NEIGHBOURS)
    accuracy = (predicted == test_labels[-LAST_TEST_IMAGES:].numpy()).mean()
    return {"L_tot": l_tot, "knn_accuracy": float(accuracy)}


def train(name, learning_rate, x, prints_loss=False):
    """A trained peer, and the seconds that its training took."""
    kind, config, latent_dim = PEERS[name]
    torch.manual_seed(0)
    sizes = {"input_dim": (1, 28, 28), "latent_dim": latent_dim}
    model = kind(config(reconstruction_loss="bce", **sizes))
    with tempfile.TemporaryDirectory() as folder:
        training = BaseTrainerConfig(
            output_dir=folder, num_epochs=EPOCHS, learning_rate=learning_rate, no_cuda=True
        )
        started = time.perf_counter()
        callbacks = [PrintLoss(model)] if prints_loss else None
        TrainingPipeline(model, training)(x, callbacks=callbacks)
        return model, time.perf_counter() - started


def main():
    results = {}
    x = digits("train")[0].view(-1, 1, 28, 28)
    for name in PEERS:
        results[name] = {}
        for learning_rate in LEARNING_RATES:
            model, seconds = train(name, learning_rate, x)
            row = {**evaluate(model), "seconds": round(seconds, 1)}
            results[name][str(learning_rate)] = row
            print(name, learning_rate, row, flush=True)
    write_json("peers", results)


if __name__ == "__main__":
    if sys.argv[1:]:
        name, learning_rate = sys.argv[1:]
        images, _ = digits("train")
        train(name, float(learning_rate), images.view(-1, 1, 28, 28), prints_loss=True)
    else:
        main()
