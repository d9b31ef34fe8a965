"""One epoch of training, and what an interrupted training needs to go on."""

import itertools
import math
import time
import warnings

import numpy as np
import torch
from tqdm import tqdm

from errors import InputError, explained
from evaluation import mean_elbo
from exact import SIDE, decode_plane
from models import VAE, Encoder, Layer
from ordering import NODES, ordered_places
from tensor_files import DAMAGED, read_tensors, tensor_bytes

warnings.filterwarnings("ignore", message="Please use the new API settings")  # PyTorch 2.9 alone

USUAL = {True: (512, 0.009), False: (256, 0.003)}  # batch and highest learning rate, by is_taught
RESUME_FORMAT = "mnist-auto-encoder-resume-6"
# Of decoder and encoder: a share of that rate, weight decay of hidden matrices, of other weights.
PACES = {True: ((1.0, 0.0, 0.0), (0.6, 0.7, 0.7)), False: ((1.0, 0.4, 0.0), (1.0, 0.4, 0.0))}
WARMUP = 0.05  # share of the steps in which the learning rate rises
ORDERED = 3  # epochs, at first, on the map's coarse grid; codes stay near their `ordered_places`,
NEAR = 0.05  # with this deviation, as a share of a side of the plane of quantiles
SPREAD = 2.0  # of the decoder's codes, times the posterior's variance: larger islands on the map
REFRESH = 20  # steps between two codebooks; the decoder moves little in between
SAMPLED = 10_000  # training images for the figures, and to whose codes an AutoEncoder fits samples


def train_epoch(model, optimizers, x, watched, epoch, settings):
    """Train on every image of x, [N, 784], once; `epoch` counts from 0.

    Returns the figures of some of x ("train"), of each {name: images} in `watched`, after the first
    ORDERED epochs also of the exact posterior on the test images ("exact"), all from fast products,
    and the "seconds".
    """
    started = time.perf_counter()
    # Multiply bfloat16 and sum float32 where the processor can (AMX, AVX512-BF16): it is faster.
    torch.set_float32_matmul_precision("medium")
    model.train()
    taught, codebook, epochs = is_taught(model), None, settings["epochs"]
    start = ordered_places(x, settings["seed"]) if taught and epoch < ORDERED else None
    # A random stream of its own for each epoch: --resume needs no saved random state.
    seeds = np.random.SeedSequence([settings["seed"], epoch])
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    batches = torch.randperm(len(x)).split(settings["batch_size"])
    bar = tqdm(batches, f"epoch {epoch + 1} of {epochs}", leave=False, disable=None)
    for step, batch in enumerate(bar):
        batch, done = batch.to(x.device), (epoch + (step + 0.5) / len(batches)) / epochs
        # Linear warm-up, then half a cosine to zero.
        lr = settings["lr"] * min(done / WARMUP, 1) * 0.5 * (1 + math.cos(math.pi * done))
        for group in itertools.chain(*(optimizer.param_groups for optimizer in optimizers)):
            group["lr"] = group["share"] * lr
        if step % REFRESH == 0 and taught:
            codebook = decode_plane(model.decoder, SIDE if start is None else NODES)
        loss, total = lessons(model, x[batch], codebook, None if start is None else start[batch])
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 10 == 0 and not bar.disable:
            bar.set_postfix_str(f"L_tot {total.item():.1f}")
    if not isinstance(model, VAE):
        model.fit_samples(x[:SAMPLED])
    images = {"train": x[:SAMPLED], **watched}
    figures = {name: mean_elbo(model, part) for name, part in images.items()}
    if taught and start is None:  # while codes are held near the map it is no fair yardstick
        figures["exact"] = mean_elbo(model, watched["test"], decode_plane(model.decoder))
    torch.set_float32_matmul_precision("highest")
    return figures | {"seconds": round(time.perf_counter() - started, 2)}


def lessons(model, x, codebook=None, start=None):
    """What a model learns from images [N, 784]: the loss to minimise, and the L_tot.

    With a codebook both networks learn from Bayes' rule: the decoder from samples of the posterior,
    as in variational EM (Neal & Hinton 1998). The prior is narrowed to near `start` [N, 2], if any.
    """
    if codebook is None:
        likelihood, divergence = model.elbo(x)
        total = (divergence - likelihood).mean()
        return total, total
    table = codebook.log_likelihood(x)
    if start is not None:
        table -= 0.5 * (torch.cdist(start, torch.special.ndtr(codebook.codes)) / NEAR).square()
    mean, logvar = codebook.fit_posterior(table)
    likelihood, divergence = model.elbo(x, (mean, logvar + math.log(SPREAD)))
    loss = model.encoder.lesson(x, table) - likelihood.mean()
    return loss, (divergence - likelihood).mean()


def is_taught(model):
    """Whether the encoder learns from the exact posterior instead of with the decoder."""
    return isinstance(model.encoder, Encoder)


def make_optimizers(model):
    """Muon (Jordan et al. 2024) for hidden layers' matrices, as it advises; AdamW for others."""
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"PyTorch 2.9 or newer is needed, not {torch.__version__}; install it")
    muon, adam = [], []
    for network, pace in zip((model.decoder, model.encoder), PACES[is_taught(model)], strict=True):
        share, hidden_decay, decay = pace
        hidden = [layer.weight for layer in network.modules() if isinstance(layer, Layer)][1:]
        others = [p for p in network.parameters() if all(p is not matrix for matrix in hidden)]
        muon.append({"params": hidden, "share": share, "weight_decay": hidden_decay})
        adam.append({"params": others, "share": share, "weight_decay": decay})
    muon = torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(adam, fused=True)]


def best_epoch(log):
    """The epoch with the lowest L_tot on the held-out images; without any, the last."""
    if "validation" not in log[-1]:
        return len(log) - 1
    return min(range(len(log)), key=lambda epoch: log[epoch]["validation"]["L_tot"])


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

    Raises InputError: the file is missing, damaged, or of a run with other settings.
    """
    if not path.is_file():
        raise InputError(f"--resume: {path} is not there; leave out --resume to begin anew")
    tensors, contents = read_tensors(path, RESUME_FORMAT)
    with explained(path, *DAMAGED):
        for name, value in settings.items():
            if contents["settings"][name] != value:
                problem = f"--resume: {path} was made with another --{name.replace('_', '-')}"
                raise InputError(f"{problem}; give that, or leave out --resume to begin anew")
        saved = {}  # "a/b/name": tensor -> {"a/b": {"name": tensor}}
        for place, tensor in tensors.items():
            group, _, name = place.rpartition("/")
            saved.setdefault(group, {})[name] = tensor
        model.load_state_dict(saved["weights"])
        for number, optimizer in enumerate(optimizers):
            fresh = optimizer.state_dict()  # the learning rate is set at each step
            indices = [index for group in fresh["param_groups"] for index in group["params"]]
            fresh["state"] = {index: saved[f"optimizer/{number}/{index}"] for index in indices}
            optimizer.load_state_dict(fresh)
        snapshots = {int(k.split("/")[1]): s for k, s in saved.items() if k.startswith("snapshot/")}
        return {"log": contents["log"], "snapshots": snapshots, "best": saved["best"]}
