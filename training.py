"""One epoch of training, and what an interrupted training needs to go on."""

import itertools
import math
import time

import numpy as np
import torch
from tqdm import tqdm

from errors import InputError
from evaluation import elbo_figures, mean_elbo
from models import AutoEncoder, encoder_kind
from precision import fast_matmul
from tensor_files import damage_reported, read_tensors, tensor_bytes

RESUME_FORMAT = "mnist-auto-encoder-resume-4"
LEARNING_RATES = {"exact": 5e-3, "network": 3e-3}  # by the encoder
WEIGHT_DECAYS = {"exact": 0.0, "network": 0.4}  # of the hidden matrices
WARMUP = 0.05  # share of the steps in which the learning rate rises
REFRESH = 50  # steps between two codebooks; the decoder moves little in between
SAMPLED = 10_000  # training images to whose codes an AutoEncoder fits what it samples from


@fast_matmul()
def train_epoch(model, optimizers, x, watched, epoch, settings):
    """Train on every image of x, [N, 784], once; `epoch` counts from 0.

    Returns:
        {"train": figures met on the way, name: the figures of each {name: images} in `watched`,
        "seconds": time}, all from fast products; `evaluate` has the last digits.

    Raises:
        InputError: the loss diverges.
    """
    started = time.perf_counter()
    # A random stream of its own for each epoch: --resume needs no saved random state.
    seeds = np.random.SeedSequence([settings["seed"], epoch])
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    batches = torch.randperm(len(x)).split(settings["batch_size"])
    sums = torch.zeros(2, device=x.device)
    for step, batch in enumerate(tqdm(batches, f"epoch {epoch}", leave=False, disable=None)):
        progress = (epoch * len(batches) + step) / (settings["epochs"] * len(batches))
        for group in itertools.chain(*(optimizer.param_groups for optimizer in optimizers)):
            group["lr"] = learning_rate(progress, settings["lr"])
        if step % REFRESH == 0:
            model.train()  # makes the exact encoder decode its grid of codes anew
        likelihood, divergence = model.elbo(x[batch.to(x.device)])
        model.zero_grad()
        (divergence - likelihood).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        sums += torch.stack([likelihood.detach().sum(), divergence.detach().sum()])
    figures = {"train": elbo_figures(sums / len(x))}
    figures |= {name: mean_elbo(model, images) for name, images in watched.items()}
    if isinstance(model, AutoEncoder):
        model.fit_samples(x[:SAMPLED])
    return figures | {"seconds": round(time.perf_counter() - started, 2)}


def learning_rate(progress, highest):
    """Linear warm-up, then half a cosine to zero; `progress` goes from 0 to 1."""
    return highest * min(progress / WARMUP, 1) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizers(model):
    """Muon (Jordan et al. 2024) for the hidden layers' matrices, Adam for all else.

    As Muon's authors advise, the first and the last layers stay with Adam.
    """
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"PyTorch 2.9 or newer is needed, not {torch.__version__}; install it")
    hidden = []
    for network in filter(None, (model.encoder, model.decoder)):
        hidden += [p for p in network.parameters() if p.ndim == 2][1:-1]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in hidden)]
    decay = WEIGHT_DECAYS[encoder_kind(model)]
    muon = torch.optim.Muon(hidden, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.Adam(others, fused=True)]


def best_epoch(log):
    """The epoch with the lowest L_tot on the held-out images; without any, the last."""
    if "validation" not in log[-1]:
        return len(log) - 1
    return min(range(len(log)), key=lambda epoch: log[epoch]["validation"]["L_tot"])


def out_of_patience(log, patience):
    """Whether the last `patience` epochs were no better on the held-out images."""
    return bool(patience and log) and len(log) - 1 - best_epoch(log) >= patience


def resume_bytes(settings, model, optimizers, history):
    """All that `restore` needs, for one file, so that a kill between two files does no harm."""
    tensors = {f"weights/{name}": weight for name, weight in model.state_dict().items()}
    tensors |= {f"best/{name}": weight for name, weight in history["best"].items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{index}/{name}": t for name, t in state.items()}
    for epochs, snapshot in history["snapshots"].items():
        tensors |= {f"snapshot/{epochs}/{name}": tensor for name, tensor in snapshot.items()}
    return tensor_bytes(RESUME_FORMAT, tensors, {"settings": settings, "log": history["log"]})


def restore(path, settings, model, optimizers):
    """Put weights and optimizers back as they were after the last epoch; return the history.

    Raises:
        InputError: the file is missing, damaged, or of a run with other settings.
    """
    again = "or leave out --resume to begin anew"
    if not path.is_file():
        raise InputError(f"--resume: {path} is not there; give the flags of that run, {again}")
    tensors, contents = read_tensors(path, RESUME_FORMAT)
    with damage_reported(path):
        for name, value in settings.items():
            if contents["settings"][name] != value:
                flag = "--data" if name == "training_images" else "--" + name.replace("_", "-")
                raise InputError(
                    f"--resume: {path} was made with another {flag}; give that, {again}"
                )
        saved = {}  # "a/b/name": tensor -> {"a/b": {"name": tensor}}
        for place, tensor in tensors.items():
            group, _, name = place.rpartition("/")
            saved.setdefault(group, {})[name] = tensor
        model.load_state_dict(saved["weights"])
        for number, optimizer in enumerate(optimizers):
            fresh = (
                optimizer.state_dict()
            )  # its groups hold but the learning rate, set at each step
            indices = [index for group in fresh["param_groups"] for index in group["params"]]
            fresh["state"] = {index: saved[f"optimizer/{number}/{index}"] for index in indices}
            optimizer.load_state_dict(fresh)
        snapshots = {
            int(group.removeprefix("snapshot/")): view
            for group, view in saved.items()
            if group.startswith("snapshot/")
        }
        return {"log": contents["log"], "snapshots": snapshots, "best": saved["best"]}
