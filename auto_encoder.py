"""Train the auto-encoder on MNIST and draw the codes of the last 1000 test images.

    python auto_encoder.py                      # the homework: trains, evaluates, draws
    python auto_encoder.py --epochs 2           # a quick look
    python auto_encoder.py --data digits.csv    # your own digits; or a folder of idx files

README.md has more. Then `python decoder_generate.py` draws new digits with the decoder.

To read the code, begin with `main`, at the end, and `train`.

All models are judged by L_tot = L_divergence - L_likelihood, the negative evidence lower bound
(ELBO), in nats per image; lower is better. models.py defines its terms. Usual VAEs are trained to
minimise L_tot: see `negative_elbo`. So is a plain auto-encoder; its divergence is 0, and its L_tot
is the cross-entropy of its reconstructions.

The default model has two latents. It is trained to minimise two other losses, which come from
Bayes' rule: see `grid_loss`. One training step, on a batch of images x:

    grid            decode 81 x 81 codes z_g, spread as the prior is; anew every 20 steps
    likelihood      log p(x|z_g) for every image and code: one matrix product
    grid posterior  p(z_g|x) by Bayes' rule: a softmax, as each z_g stands for the same share of
                    the prior
    Laplace         a Gaussian at the highest peak of the density p(z|x); its variances come from
      posterior     the curvature of log p(z|x) there
    decoder loss    -log p(x|z), with z drawn from the Laplace posterior with twice its variance
    encoder loss    on the batch, and on distorted copies of half of it. The plane is cut into
                    27 x 27 regions. The loss is a sum of two terms:
                    1. the cross-entropy between the probabilities that the grid posterior gives to
                       the regions and those that the encoder predicts
                    2. 0.1 times the negative ELBO of the Gaussian that the encoder gives in the
                       region that is likeliest by the grid posterior
    update          Muon for the matrices of hidden layers, AdamW for all other weights

In the first quarter of the epochs the grid has 27 x 27 codes, and a self-organising map (SOM,
lib/som.py) gives every image a place in the plane; images that look alike are neighbours there.
Codes are kept near these places, so that each digit has a few large islands in the plane instead of
many small ones.

A code z is also written as u, its place in the unit square: u = ndtr(z), the distribution function
of N(0, 1), in each coordinate.
"""

from lib import start

if __name__ == "__main__":
    start.prepare()  # before PyTorch is imported

import contextlib
import dataclasses
import itertools
import json
import math
import os
import platform
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import MNIST, Digits, find_source, load_both_splits
from lib import checkpoints, cli, explorer, latent_grid, metrics, plots
from lib.augment import distort
from lib.cli import Parser, between, nonempty_path
from lib.errors import InputError, explained
from lib.files import (
    check_replaceable,
    hidden_neighbours,
    remove_if_there,
    reserved,
    write_files,
)
from lib.som import som_positions
from models import (
    PIXELS,
    SHIPPED,
    VAE,
    GridVAE,
    HiddenLayer,
    checkpoint_bytes,
    decode_images,
    kl_divergence,
    log_bernoulli,
    make_model,
    reparameterize,
    standard_normal_like,
)

# --- Settings ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained. The default model, a GridVAE, has the GRID_SETTINGS below.

    Where no other reason stands, a number was chosen by L_tot on the last 5,000 training images,
    after training on the others. benchmarks/ablation.py shows what the main choices are worth.
    """

    # Passes over the training images.
    epochs: int = 20
    batch_size: int = 256
    # The highest learning rate; see `learning_rate`.
    lr: float = 0.003
    # The part of all steps in which the learning rate rises.
    warmup_part: float = 0.05
    seed: int = 0
    # How many training images are held out, to choose the best epoch by.
    validation: int = 0
    # Stop after so many epochs without improvement on them.
    patience: int | None = None

    # Weight decay of the matrices of hidden layers (Muon), and of all other weights (AdamW).
    decoder_hidden_decay: float = 0.4
    decoder_decay: float = 0.0
    encoder_hidden_decay: float = 0.4
    encoder_decay: float = 0.0
    # The encoder's learning rate, as a multiple of the decoder's.
    encoder_lr_scale: float = 1.0
    # "medium" multiplies in bfloat16 and sums in float32 where a processor has instructions for it
    # (AMX or AVX512-BF16; a GPU may take TensorFloat-32): it is faster.
    matmul_precision: str = "medium"

    # The rest is for a GridVAE alone.

    # Steps between two grids; the decoder moves little in between.
    grid_refresh: int = 20
    # The first part of the epochs, in which codes are kept near their images' places on the SOM,
    # and how near: the standard deviation of codes around these places, in the unit square. Both
    # were chosen by how the labels of training images lie in the plane, at a small price in L_tot.
    som_part: float = 0.0
    som_sigma: float = 0.05
    # Nodes per side of the grid in these epochs, in which a coarse one is enough; a multiple of the
    # encoder's regions_per_side.
    som_grid_side: int = 27
    # The decoder's codes are drawn from a Gaussian with the Laplace posterior's variance times
    # this. With wider ones fewer decoded images are between two digits, at a price in L_tot.
    variance_factor: float = 2.0
    # The encoder also learns from distorted copies of this part of each batch, and how much these
    # are distorted; see `distort`. The decoder does not: its images would be less sharp.
    distorted_part: float = 0.5
    distortion: float = 0.06
    # How much of a uniform distribution is mixed into the regions' probabilities, the encoder's
    # target (Szegedy et al. 2016, "Rethinking the Inception architecture").
    label_smoothing: float = 0.2
    # The weight of the second term of the encoder's loss.
    gaussian_weight: float = 0.1

    @property
    def som_epochs(self):
        """The epochs, a whole number, that `som_part` of them means."""
        return math.ceil(self.som_part * self.epochs)


PLAIN_SETTINGS = TrainingSettings()
GRID_SETTINGS = TrainingSettings(
    batch_size=512,  # as good as 256, and faster, as Muon's cost is per step
    lr=0.009,
    # Weight decay helps the encoder on new images: it makes the amortisation gap smaller.
    decoder_hidden_decay=0.0,
    encoder_hidden_decay=0.7,
    encoder_decay=0.7,
    encoder_lr_scale=0.6,
    som_part=0.25,
)

# Training images whose L_tot is logged: as many as MNIST has test images. A plain AutoEncoder has
# no prior to sample from; it fits a Gaussian to their codes, see `fit_sampler`.
TRACKED_IMAGES = 10_000


def default_settings(model):
    """The settings with which a model of this kind is trained best."""
    return GRID_SETTINGS if isinstance(model, GridVAE) else PLAIN_SETTINGS


# --- Training ---------------------------------------------------------------------------------


@dataclass
class History:
    """What training leaves besides the weights of the last epoch."""

    log: list = field(default_factory=list)  # the metrics of each epoch
    snapshots: dict = field(default_factory=dict)  # {epochs done: `take_snapshot` then}
    best_weights: dict = field(default_factory=dict)  # {name: tensor}, of the best epoch


def train(model, digits, settings, files, metadata, resume=False):
    """Train, saving after each epoch; leave the best weights in the model. Returns the `History`.

    Without held-out images the last epoch counts as the best. `files` are the paths that
    `output_files` gives, {name: path}, of which "checkpoint", "metrics" and "resume" are written
    here; `metadata`, from `run_metadata`, goes into them.
    """
    x_train, x_validation = hold_out(digits.x_train, settings.validation)
    optimizers = make_optimizers(model, settings)
    untrained = take_snapshot(model, digits)
    if resume:
        flags = resume_flags(metadata, digits)
        history = restore(files["resume"], flags, model, optimizers, untrained)
    else:
        history = History(snapshots={0: untrained})
    saved_epochs = len(history.log)  # Ctrl-C may come when one more is in the log, but not saved
    positions = None  # the training images' places on the SOM, in its epochs
    try:
        while not is_finished(history.log, settings):
            epoch = len(history.log)  # from 0, as the homework counts
            started = time.perf_counter()
            if epoch >= settings.som_epochs:
                positions = None
            elif positions is None:
                print("placing the training images on a self-organising map ...", flush=True)
                with one_thread():  # its sums over all images would depend on the number of threads
                    positions = som_positions(x_train.view(-1, 28, 28), settings.seed)
            with matmul_precision(settings.matmul_precision):
                train_epoch(model, optimizers, x_train, epoch, settings, positions)
                entry = measure(model, x_train, x_validation, digits.x_test, epoch, settings)
            entry["seconds"] = round(time.perf_counter() - started, 2)
            record_epoch(model, digits, history, entry)
            save_epoch(model, digits, optimizers, history, files, metadata)
            saved_epochs = len(history.log)
            print(format_epoch(epoch, entry, digits.test_name), flush=True)
    except KeyboardInterrupt:
        advice = ""
        if saved_epochs:
            advice = f" after {saved_epochs} epochs; they are saved, --resume continues"
        raise KeyboardInterrupt(advice) from None  # `cli.run` prints "interrupted" and this
    model.load_state_dict(history.best_weights)
    return history


def train_epoch(model, optimizers, x, epoch, settings, positions=None):
    """Train on every image of x, [N, 784], once; `epoch` counts from 0.

    If `positions` [N, 2] are given, the images' places on the SOM in the unit square, the codes of
    a GridVAE are kept near them. The progress bar of a GridVAE shows the L_tot of the Gaussians
    from which the decoder's codes are drawn; the log has that of the encoder.
    """
    model.train()
    # A random stream of its own for each epoch, so that --resume needs no saved random state.
    # SeedSequence mixes the two numbers into one.
    seed = np.random.SeedSequence([settings.seed, epoch]).generate_state(1)[0]
    generator = torch.Generator(x.device).manual_seed(int(seed))
    order = torch.randperm(len(x), generator=generator, device=x.device)
    index_batches = order.split(settings.batch_size)
    name = f"epoch {epoch}, last {settings.epochs - 1}"  # counted from 0, as in the log
    bar = tqdm(index_batches, desc=name, leave=False, disable=None)  # None: only on a terminal
    for step, indices in enumerate(bar):
        part_of_epoch = (step + 0.5) / len(index_batches)  # at the middle of the step
        progress = (epoch + part_of_epoch) / settings.epochs
        set_learning_rate(optimizers, learning_rate(progress, settings))
        if isinstance(model, GridVAE):
            batch_positions = None if positions is None else positions[indices]
            if step % settings.grid_refresh == 0:
                side = model.grid_side if positions is None else settings.som_grid_side
                grid = model.make_grid(side)
            loss, shown_l_tot = grid_loss(
                model, x[indices], grid, batch_positions, settings, generator
            )
        else:
            loss = shown_l_tot = negative_elbo(model, x[indices], generator)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 10 == 0 and not bar.disable:
            bar.set_postfix_str(f"L_tot {shown_l_tot.item():.1f}")
    # Only a plain AutoEncoder has something to fit; in each epoch, as each one is saved.
    model.fit_sampler(x[:TRACKED_IMAGES])


def learning_rate(progress, settings):
    """The decoder's learning rate when `progress`, a part from 0 to 1, of all steps is done.

    It is the highest one times a warm-up from 0 to 1 times half a cosine from 1 to 0.
    """
    warmup = min(progress / settings.warmup_part, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return settings.lr * warmup * cosine


def set_learning_rate(optimizers, lr):
    """Give each group of weights its multiple of a learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * lr


def make_optimizers(model, settings):
    """Muon (Jordan et al. 2024) for the matrices of hidden layers, AdamW for all other weights.

    Muon makes the singular values of a matrix's update equal, so that it learns in all directions
    at once and in fewer steps. As its authors advise, it is not used for first and last layers,
    biases and embeddings. "match_rms_adamw" scales its steps to the root mean square of AdamW's, so
    that one learning rate serves both. `set_learning_rate` sets it; "lr_scale" is for that.
    """
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"PyTorch 2.9 or newer is needed, not {torch.__version__}; install it")
    decoder_matrices, decoder_others = split_parameters(model.decoder)
    encoder_matrices, encoder_others = split_parameters(model.encoder)
    muon = torch.optim.Muon(
        [
            {
                "params": decoder_matrices,
                "lr_scale": 1.0,
                "weight_decay": settings.decoder_hidden_decay,
            },
            {
                "params": encoder_matrices,
                "lr_scale": settings.encoder_lr_scale,
                "weight_decay": settings.encoder_hidden_decay,
            },
        ],
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        [
            {
                "params": decoder_others,
                "lr_scale": 1.0,
                "weight_decay": settings.decoder_decay,
            },
            {
                "params": encoder_others,
                "lr_scale": settings.encoder_lr_scale,
                "weight_decay": settings.encoder_decay,
            },
        ],
        fused=True,  # one pass over the weights: faster
    )
    return [muon, adamw]


def split_parameters(network):
    """The matrices of a network's hidden layers, and all its other parameters."""
    matrices = [layer.weight for layer in network.modules() if isinstance(layer, HiddenLayer)]
    matrix_ids = {id(matrix) for matrix in matrices}  # `in` would compare the tensors' elements
    others = [p for p in network.parameters() if id(p) not in matrix_ids]
    return matrices, others


@contextlib.contextmanager
def matmul_precision(precision):
    """Inside, PyTorch multiplies float32 matrices with this precision."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings")  # PyTorch 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def one_thread():
    """Inside, PyTorch computes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def no_subnormals():
    """Inside, PyTorch computes 0 instead of a number below 1e-38.

    Most of a grid posterior is so small, and processors are many times slower with such numbers.
    Outside they are kept: versions of NumPy before 2 warn, as Matplotlib draws, when they are gone.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


# --- The losses, in nats per image -----------------------------------------------------------


def negative_elbo(model, x, generator):
    """The training loss of a VAE or an AutoEncoder on images [N, 784]: their L_tot."""
    likelihood, divergence = model.elbo(x, generator=generator)
    return (divergence - likelihood).mean()


def grid_loss(vae, x, grid, positions, settings, generator):
    """The training loss of a GridVAE on images [N, 784]; and an L_tot for the progress bar.

    The loss is the sum of two. As the grid has no gradient, `decoder_loss` trains the decoder
    alone, and `encoder_loss` the encoder alone. Both learn from the posterior, which is computed
    first and then held fixed, as in variational EM (Neal & Hinton 1998, "A view of the EM
    algorithm").

    If `positions` [N, 2] are given, the posterior is multiplied by a Gaussian around each image's
    position. A distorted copy stays near the position of the original.
    """
    count = round(settings.distorted_part * len(x))  # the images of a batch are in random order
    copies = distort(x[:count].view(-1, 28, 28), settings.distortion, generator)
    x_encoder = torch.cat([x, copies.flatten(1)])
    # log_scores [N + count, G]: log p(x|z) at each node. In the epochs of the SOM `log_near` is
    # added, as one more factor of the posterior.
    log_scores = grid.log_likelihood_grid(x_encoder)
    if positions is not None:
        positions = torch.cat([positions, positions[:count]])
        log_scores = log_scores + log_near(positions, grid, settings)
    loss_of_encoder = encoder_loss(vae.encoder, x_encoder, log_scores, settings, generator)
    loss_of_decoder, shown_l_tot = decoder_loss(
        vae, x, log_scores[: len(x)], grid, settings, generator
    )
    return loss_of_decoder + loss_of_encoder, shown_l_tot


def log_near(positions, grid, settings):
    """The log-density of a Gaussian around each position, at each node of the grid: [N, G].

    Up to a constant; positions [N, 2] and distances are in the unit square, u = ndtr(z).
    """
    u = torch.special.ndtr(grid.codes)
    distances = torch.cdist(positions, u)
    return -0.5 * (distances / settings.som_sigma).square()


def decoder_loss(vae, x, log_scores, grid, settings, generator):
    """Minus the likelihood of images [N, 784] at one code each; and an L_tot for the progress bar.

    The code is drawn from the Laplace posterior, made wider; the L_tot is that of this Gaussian.
    `log_scores` [N, G] are log p(x|z) at the nodes of the grid, in the epochs of the SOM plus
    `log_near`. The divergence of a given Gaussian does not depend on the decoder, so it is not in
    the loss, only in L_tot.
    """
    mean, logvar = latent_grid.fit_laplace(log_scores, grid.codes)
    wider_logvar = logvar + math.log(settings.variance_factor)
    likelihood, divergence = vae.elbo(x, q=(mean, wider_logvar), generator=generator)
    shown_l_tot = (divergence - likelihood).mean()
    return -likelihood.mean(), shown_l_tot


def encoder_loss(encoder, x, log_scores, settings, generator):
    """The loss of a RegionEncoder on images [N, 784], with `log_scores` as for `decoder_loss`.

    The encoder's `body` makes features of an image, its `region_logits` predict the region from
    them, and its `gaussian` gives the mean and logvar in a region.
    """
    probabilities = latent_grid.region_probabilities(log_scores, encoder.regions_per_side)
    posterior_region = probabilities.argmax(1)  # in use it is the one that the encoder predicts
    features = encoder.body(x)
    mean, logvar = encoder.gaussian(features, posterior_region)
    gaussian_loss = -grid_elbo(mean, logvar, log_scores, generator).mean()
    # The target is the whole posterior, so that several peaks stay several.
    region_loss = F.cross_entropy(
        encoder.region_logits(features), probabilities, label_smoothing=settings.label_smoothing
    )
    return region_loss + settings.gaussian_weight * gaussian_loss


def grid_elbo(mean, logvar, log_scores, generator):
    """The ELBO, [N], of Gaussians, [N, 2] each, without a pass of the decoder.

    `log_scores`, as for `decoder_loss`, are interpolated between the nodes, at two samples, mean +
    offset and mean - offset. They are antithetic (Hammersley & Morton 1956, "A new Monte Carlo
    technique"): terms that change their sign with the offset cancel, so that the mean of the two
    varies less than that of two independent ones.
    """
    offset = (0.5 * logvar).exp() * standard_normal_like(mean, generator)
    at_plus = latent_grid.interpolate(log_scores, mean + offset)
    at_minus = latent_grid.interpolate(log_scores, mean - offset)
    likelihood = (at_plus + at_minus) / 2
    return likelihood - kl_divergence(mean, logvar)


# --- Epochs -----------------------------------------------------------------------------------


def hold_out(x, count):
    """Split images [N, 784]: those to train on, and the last `count`, to validate on."""
    if count >= len(x):
        raise InputError(f"--validation {count}: there are {len(x)} training images in all")
    return x.split([len(x) - count, count])


def is_finished(log, settings):
    """Whether all epochs are done, or the last `patience` of them were no better."""
    if len(log) >= settings.epochs:
        return True
    if settings.patience is None or not log:
        return False
    last_epoch = len(log) - 1
    return last_epoch - best_epoch(log) >= settings.patience


def best_epoch(log):
    """The epoch, from 0, with the lowest L_tot on held-out images; without any, the last."""
    if "validation" not in log[-1]:
        return len(log) - 1
    return min(range(len(log)), key=lambda epoch: log[epoch]["validation"]["L_tot"])


def measure(model, x_train, x_validation, x_test, epoch, settings):
    """An epoch's entry in the log, {name: `mean_elbo_terms`}.

    The names are "train" and "test"; with held-out images "validation"; and for a GridVAE
    "laplace", the test images with the Laplace posterior in place of the encoder. "laplace" is left
    out in the epochs of the SOM: it does not know the SOM, from which the encoder learns then, so
    the two cannot be compared.
    """
    entry = {"train": mean_elbo_terms(model, x_train[:TRACKED_IMAGES])}
    if len(x_validation):
        entry["validation"] = mean_elbo_terms(model, x_validation)
    entry["test"] = mean_elbo_terms(model, x_test)
    if isinstance(model, GridVAE) and epoch >= settings.som_epochs:
        entry["laplace"] = mean_elbo_terms(model, x_test, model.make_grid())
    return entry


def is_best_so_far(log):
    """Whether the last epoch in the log is the best."""
    return best_epoch(log) == len(log) - 1


def record_epoch(model, digits, history, entry):
    """Add an epoch to the history: its entry, weights that are the best so far, a snapshot."""
    history.log.append(entry)
    if is_best_so_far(history.log):
        history.best_weights = {name: w.clone() for name, w in model.state_dict().items()}
    epochs = len(history.log)
    if is_snapshot_time(epochs):
        history.snapshots[epochs] = take_snapshot(model, digits)


def save_epoch(model, digits, optimizers, history, files, metadata):
    """Write the checkpoint, if the last epoch is the best so far, its metrics, and the rest."""
    contents = {}
    if is_best_so_far(history.log):
        epochs = len(history.log)
        contents[files["checkpoint"]] = checkpoint_bytes(model, **metadata, epochs=epochs)
    contents[files["metrics"]] = json_bytes({**metadata, "log": history.log})
    flags = resume_flags(metadata, digits)
    contents[files["resume"]] = resume_bytes(flags, model, optimizers, history)
    write_files(contents)


def is_snapshot_time(epochs):
    """True after 1, 2, 5, 10, 20, 50, ... epochs, as a model changes ever more slowly.

    `epochs` is at least 1.
    """
    while epochs % 10 == 0:
        epochs //= 10
    return epochs in (1, 2, 5)


@torch.no_grad()
def take_snapshot(model, digits):
    """What the pictures show of the model as it is now: codes and decoded images."""
    model.eval()
    codes = model.codes(torch.cat([digits.x_shown, digits.last_x_test]))
    shown_codes, last_codes = codes.tensor_split([len(digits.x_shown)])
    shown_images = model.decode(shown_codes).sigmoid()
    return {
        "last_codes": last_codes.cpu(),  # of the last 1000 test images
        "shown_codes": shown_codes.cpu(),  # of ten test images of each digit
        "shown_images": shown_images.cpu(),  # what these codes decode to
    }


# --- What --resume needs ----------------------------------------------------------------------

RESUME_FORMAT = "mnist-auto-encoder-resume-7"
ELBO_TERMS = ("L_tot", "L_likelihood", "L_divergence")
LARGEST = 1e30  # no weight and no number in a snapshot may be larger


def resume_flags(metadata, digits):
    """What must not change before --resume: the run's flags, and all images and labels.

    The metadata only identify the training images, by the MD5 that is published for MNIST. So
    `fingerprint`, of everything that --data led to, takes the place of that.
    """
    return {**metadata["settings"], "data": digits.fingerprint}


def resume_bytes(flags, model, optimizers, history):
    """All that `restore` needs, in one file: it fits together whenever the process is killed.

    `flags` are those of `resume_flags`.
    """
    groups = {"weights": model.state_dict(), "best": history.best_weights}
    for number, optimizer in enumerate(optimizers):
        groups.update(checkpoints.optimizer_groups(optimizer, f"optimizer/{number}"))
    for epochs, tensors in history.snapshots.items():
        groups[f"snapshot/{epochs}"] = tensors
    tensors = checkpoints.flattened(groups)
    contents = {"settings": flags, "log": history.log}
    return checkpoints.file_bytes(RESUME_FORMAT, tensors, contents)


def restore(path, flags, model, optimizers, untrained):
    """Put weights and optimizers back as they were after the last epoch; return the `History`.

    `untrained` is the snapshot before training, whose shapes the others must have.
    Raises InputError: the file is missing, damaged, or of a run with other flags.
    """
    begin_anew = "leave out --resume to begin anew"
    if not path.is_file():
        raise InputError(f"--resume: {path} is not there; {begin_anew}")
    tensors, contents = checkpoints.read_file(path, RESUME_FORMAT, begin_anew)
    # Whatever is missing or does not fit below raises an InputError with these words.
    with explained(path, "is of another architecture than models.py has", begin_anew):
        for name, value in flags.items():
            if contents["settings"][name] != value:
                flag = "--" + name.replace("_", "-")
                raise InputError(
                    f"--resume: {path} was made with another {flag}; give that, or {begin_anew}"
                )
        groups = checkpoints.nested(tensors)
        model.load_state_dict(groups["weights"])
        for number, optimizer in enumerate(optimizers):
            checkpoints.restore_optimizer(optimizer, f"optimizer/{number}", groups)
        snapshots = {}
        for group, group_tensors in groups.items():
            if group.startswith("snapshot/"):
                epochs = int(group.removeprefix("snapshot/"))
                snapshots[epochs] = group_tensors
        history = History(contents["log"], snapshots, groups["best"])
        check_history(history, model, untrained)
        return history


def shapes_of(tensors):
    """The shapes of {name: tensor}, by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def check_history(history, model, untrained):
    """Raise an error if a history is not what `train` makes of a model.

    A damaged file is found by its checksum. This is for a whole one that something else wrote.
    """
    measured = {"train", "validation", "test", "laplace"}
    for entry in history.log:
        if not {"train", "test", "seconds"} <= entry.keys() <= measured | {"seconds"}:
            raise ValueError("an entry of the log with other names")
        if ("validation" in entry) != ("validation" in history.log[0]):
            raise ValueError("held-out images in some epochs alone")
        for name in measured & entry.keys():
            terms = entry[name]
            if tuple(terms) != ELBO_TERMS or not all(isinstance(t, float) for t in terms.values()):
                raise ValueError("terms that are no numbers")
        if not isinstance(entry["seconds"], (int, float)):
            raise ValueError("a time that is no number")
    times = {epochs for epochs in range(1, len(history.log) + 1) if is_snapshot_time(epochs)}
    if not history.log or history.snapshots.keys() != {0, *times}:
        raise ValueError("snapshots of other epochs")
    for tensors, reference in (
        (history.best_weights, model.state_dict()),
        *((snapshot, untrained) for snapshot in history.snapshots.values()),
    ):
        if shapes_of(tensors) != shapes_of(reference):
            raise ValueError("tensors of other names or shapes")
        if not all((tensor.abs() < LARGEST).all() for tensor in tensors.values()):
            raise ValueError("numbers that cannot be drawn")


# --- Evaluation -------------------------------------------------------------------------------

PAIRS = 8  # of antithetic samples of z, which the L_tot of the final metrics averages
NEIGHBOURS = 15  # k of the k-NN classifier that judges the codes
CODES_AT_ONCE = 10_000  # images that are encoded at once, so that memory is bounded
DIVERGED = 10 * PIXELS * math.log(2)  # nats: ten times the loss of giving each pixel 0.5


def mean_elbo_terms(model, x, grid=None, pairs=0):
    """L_tot, L_likelihood and L_divergence of images [N, 784], mean nats per image.

    With a `LatentGrid` the Laplace posterior stands in for the encoder. The likelihood is that of
    one sample of z for each image or, of a VAE, the mean over so many `pairs` of samples.
    Raises InputError: the loss is not finite, or far above that of a blank guess.
    """
    model.eval()
    generator = torch.Generator(x.device).manual_seed(0)

    def elbo(part):
        options = {"generator": generator}
        if grid is not None:
            options["q"] = grid.laplace_posterior(part)
        if pairs and isinstance(model, VAE):
            return model.mean_elbo(part, pairs=pairs, **options)
        return model.elbo(part, **options)

    terms = metrics.mean_terms(elbo, x)
    if not terms["L_tot"] < DIVERGED:  # also if it is not a number
        raise InputError(
            f"--lr: training diverges, the loss is {terms['L_tot']:.3g} nats per image; "
            "give a smaller one (what was saved before is kept)"
        )
    return terms


def quadrature_l_tot(model, x, q=None):
    """L_tot of each image [N, 784], without random samples: [N]. For models with two latents.

    The mean over the Gaussian is a weighted sum over 5 x 5 codes: Gauss-Hermite quadrature. `q`, a
    mean and logvar, stands in for those of `encode`. A plain AutoEncoder has one code.
    """
    if not isinstance(model, VAE):
        likelihood, divergence = model.elbo(x)
        return divergence - likelihood
    mean, logvar = model.encode(x) if q is None else q
    l_tot = kl_divergence(mean, logvar)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    nodes = torch.tensor(nodes, dtype=x.dtype, device=x.device)
    weights = weights / weights.sum()
    for i, j in itertools.product(range(5), repeat=2):
        noise = nodes[[i, j]]  # in place of a sample of N(0, I), the same for every image
        z = reparameterize(mean, logvar, noise)
        l_tot = l_tot - weights[i] * weights[j] * log_bernoulli(x, model.decode(z))
    return l_tot


@torch.no_grad()
def evaluate(model, digits):
    """The final metrics of a model: on all test images, k-NN on the last 1000.

    Also log p(x) of each of the last 1000: [N], or None for a plain AutoEncoder, which has none.
    The figures differ a little from those in the log, which come from one sample of z for each
    image and from products in `matmul_precision`; here they are in full float32.
    """
    x_test = digits.x_test
    last_log_likelihood = None
    results = {"test": mean_elbo_terms(model, x_test, pairs=PAIRS)}
    if isinstance(model, VAE):
        generator = torch.Generator(x_test.device).manual_seed(0)
        # Grey pixels are no samples of a Bernoulli variable. So log p(x) is also given for
        # binarized images, in which a pixel is ink with its grey value as the probability.
        binarized = torch.bernoulli(x_test, generator=generator)
        # Together, as then a GridVAE decodes each of its codes once.
        both = model.log_likelihood(torch.cat([x_test, binarized]), generator=generator)
        of_grey, of_binarized = both.chunk(2)
        results["log_likelihood"] = of_grey.mean().item()
        results["log_likelihood_binarized"] = of_binarized.mean().item()
        last_log_likelihood = of_grey[-len(digits.last_x_test) :]
    if isinstance(model, GridVAE):
        results["laplace"] = mean_elbo_terms(model, x_test, model.make_grid(), PAIRS)
    # Neighbours are searched among all training images, also among held-out ones.
    train_codes = torch.cat([model.codes(part) for part in digits.x_train.split(CODES_AT_ONCE)])
    last_codes = model.codes(digits.last_x_test)
    predicted = metrics.knn_predict(train_codes, digits.train_labels, last_codes, NEIGHBOURS)
    results["knn_accuracy"] = float((predicted == digits.last_test_labels).mean())
    results["knn_codes"] = len(predicted)
    return results, last_log_likelihood


def format_epoch(epoch, entry, test_name):
    """The log line of an epoch. It begins as the homework's own log does:

    epoch 0: L_tot 161.47 L_likelihood -157.01 L_divergence 4.46
    """
    parts = [f"epoch {epoch}: {format_elbo(entry['train'])}"]
    if "validation" in entry:
        parts.append(f"validation {format_elbo(entry['validation'])}")
    parts.append(f"{test_name} {format_elbo(entry['test'])}")
    return " | ".join(parts)


def format_elbo(terms):
    return " ".join(f"{name} {value:.2f}" for name, value in terms.items())


def format_results(results, test_name):
    """What is printed of the final metrics."""
    lines = [f"{test_name} {format_elbo(results['test'])}"]
    if "laplace" in results:  # of a GridVAE
        # Less than the amortisation gap, which is against the best Gaussian: benchmarks/gap.py.
        gap = results["test"]["L_tot"] - results["laplace"]["L_tot"]
        laplace = format_elbo(results["laplace"])
        lines.append(f"Laplace posterior {laplace} | the encoder's L_tot is {gap:.2f} higher")
    if "log_likelihood" in results:
        method = "quadrature" if "laplace" in results else "a lower bound, importance sampling"
        grey = results["log_likelihood"]
        binarized = results["log_likelihood_binarized"]
        lines.append(
            f"{test_name} log p(x) {grey:.2f} grey-scale, {binarized:.2f} binarized ({method})"
        )
    lines.append(
        f"k-NN accuracy {results['knn_accuracy']:.3f} of the last {results['knn_codes']} "
        f"{test_name} codes (k={NEIGHBOURS}, among all training codes)"
    )
    return "\n".join(lines)


# --- Pictures ---------------------------------------------------------------------------------


class PictureData(NamedTuple):
    """What the pictures are drawn from."""

    model: torch.nn.Module
    digits: Digits
    log: list  # the metrics of each epoch
    # {epochs done: `take_snapshot` then, as arrays}, in order. The last is of the final model.
    snapshots: dict
    plane: plots.Plane  # that shows the final model's codes
    last_log_likelihood: torch.Tensor | None  # log p(x) of the last test images, if there is one

    @property
    def final(self):
        """The last of the snapshots."""
        return self.snapshots[max(self.snapshots)]

    def points(self, snapshot):
        """The last test codes of a snapshot in the plane: [N, 2]."""
        return self.plane.project(snapshot["last_codes"])


def picture_data(model, digits, history, epochs, last_log_likelihood=None):
    """What the pictures show of a training, up to its best epoch, when `epochs` were done."""
    taken = {**history.snapshots, epochs: take_snapshot(model, digits)}
    snapshots = {}
    for epochs_done in sorted(taken):
        if epochs_done <= epochs:
            snapshot = taken[epochs_done]
            snapshots[epochs_done] = {name: tensor.numpy() for name, tensor in snapshot.items()}
    plane = plots.plane_of(snapshots[epochs]["last_codes"])
    return PictureData(model, digits, history.log, snapshots, plane, last_log_likelihood)


def draw_scatter(shown):
    """The homework's picture: the codes of the last 1000 test images, coloured by digit."""
    labels = shown.digits.last_test_labels
    images = f"{len(labels)} {shown.digits.test_name} images"
    if shown.digits.test_name == "test":
        images = f"the last {images}"
    title = f"Codes of {images}"
    return plots.draw_scatter(shown.points(shown.final), labels, shown.plane, title)


def draw_scatter_epochs(shown):
    """The same codes as training goes on."""
    points = {}
    for epochs, snapshot in shown.snapshots.items():
        points[after(epochs)] = shown.points(snapshot)
    return plots.draw_scatters(points, shown.digits.last_test_labels, shown.plane)


def draw_reconstructions(shown):
    """Ten test images of each digit, and what their codes decode to as training goes on."""
    panels = {f"{shown.digits.test_name} images": shown.digits.x_shown.cpu().numpy()}
    for epochs, snapshot in shown.snapshots.items():
        if epochs > 0:  # before training all is grey
            panels[after(epochs)] = snapshot["shown_images"]
    return plots.draw_image_panels(panels)


def after(epochs):
    """When a snapshot was taken, as a title."""
    if epochs == 0:
        return "before training"
    return "after 1 epoch" if epochs == 1 else f"after {epochs} epochs"


def draw_loss(shown):
    """L_tot over the epochs, and the gap between the encoder and the Laplace posterior."""
    curves = {}
    for key, name, style, colour in (
        ("train", "train", "o-", plots.COLOURS[6]),
        ("validation", "validation", "s-", plots.COLOURS[4]),
        ("test", "test", "^-", plots.COLOURS[0]),
        ("laplace", "test, Laplace posterior", "--", plots.COLOURS[5]),
    ):
        measured = {n: entry[key] for n, entry in enumerate(shown.log, start=1) if key in entry}
        if not measured:
            continue
        l_tot = [terms["L_tot"] for terms in measured.values()]
        label = f"{name}, {l_tot[0]:.1f} to {l_tot[-1]:.1f}"  # one sample: no second decimal
        curves[key] = plots.Curve(label, list(measured), l_tot, style, colour)
    gap = None
    if "laplace" in curves:
        epochs = curves["laplace"].x
        lower = curves["laplace"].y
        upper = [shown.log[n - 1]["test"]["L_tot"] for n in epochs]
        label = f"gap between the two, last {upper[-1] - lower[-1]:.1f} nats"
        gap = plots.Band(label, epochs, lower, upper, plots.COLOURS[0])
    return plots.draw_curves(curves.values(), gap, "epochs", "$L_{tot}$, nats per image")


def draw_sanity_check(shown):
    """One image of each digit, its code, and what the code decodes to."""
    one_of_each = slice(None, None, 10)
    return plots.draw_image_code_image(
        shown.digits.x_shown.cpu().numpy()[one_of_each],
        shown.final["shown_codes"][one_of_each],
        shown.final["shown_images"][one_of_each],
    )


def draw_manifold(shown):
    """What the decoder makes of a grid of codes, on the axes of the scatter."""
    decode = partial(decode_images, shown.model.decoder)
    return plots.draw_decoded_plane(decode, shown.plane)


def draw_explorer(shown):
    """A page with the map, the model and the last test images; for models with two latents."""
    if shown.model.latent_dim != 2:
        return None
    return explorer.page_bytes(
        {name: tensor.cpu().numpy() for name, tensor in shown.model.state_dict().items()},
        shown.digits.last_x_test.cpu().numpy(),
        shown.final["last_codes"],
        shown.digits.last_test_labels,
        explorer_settings(shown),
    )


def explorer_settings(shown):
    """What `explorer.page_bytes` needs to know of the model and the run."""
    model = shown.model
    digits = shown.digits
    settings = {
        "kind": "AutoEncoder",
        "reach": shown.plane.reach,
        "stretch": model.decoder.STRETCH,
        "frequencies": model.decoder.FREQUENCIES,
    }
    name = "plain auto-encoder"
    if isinstance(model, GridVAE):
        settings["kind"] = "VAE"
        settings["regions_per_side"] = model.regions_per_side
        settings["initial_logvar"] = model.encoder.INITIAL_LOGVAR
        name = "variational auto-encoder"

    epochs = max(shown.snapshots)
    epochs_in_words = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    settings["about"] = (
        f"This is a {name} with two latent variables, trained on "
        f"{len(digits.x_train):,} images for {epochs_in_words}."
    )
    shown_count = len(digits.last_x_test)
    all_count = len(digits.x_test)
    settings["images_name"] = f"the last {shown_count:,} of {all_count:,} {digits.test_name} images"
    settings["mean_loss"] = shown.log[epochs - 1]["test"]["L_tot"]
    settings["worst_first"] = worst_first(shown)
    return settings


@torch.no_grad()
def worst_first(shown):
    """The indices of the last test images, those first of which the encoder loses most.

    What it loses is how far L_tot is above -log p(x), which no Gaussian can beat. A plain
    AutoEncoder has no log p(x); there L_tot alone counts.
    """
    excess = quadrature_l_tot(shown.model, shown.digits.last_x_test)
    if shown.last_log_likelihood is not None:
        excess += shown.last_log_likelihood
    return excess.argsort(descending=True).tolist()


# What is drawn into the folder of --figures: {file name: function of a PictureData}. If a picture
# is only for some models, its function returns None for the others.
FIGURES = {
    "scatter_epochs.png": draw_scatter_epochs,
    "reconstructions.png": draw_reconstructions,
    "loss.png": draw_loss,
    "sanity_check.png": draw_sanity_check,
    "manifold.png": draw_manifold,
    "explorer.html": draw_explorer,
}


def draw_pictures(shown, with_figures):
    """The pictures of a run: {"scatter" or, `with_figures`, a name in FIGURES: bytes}."""
    pictures = {"scatter": draw_scatter(shown)}
    if with_figures:
        for name, draw in FIGURES.items():
            picture = draw(shown)
            if picture is not None:
                pictures[name] = picture
    return pictures


# --- The command line -------------------------------------------------------------------------

PROJECT = Path(__file__).resolve().parent
MAX_INTEGER = 2**31 - 1  # of flags that have no other limit
PICTURE_BYTES = 2**20  # more than a picture has, on average
DEVICES = {  # name: whether this machine has it; the first that it has is the default
    "cuda": lambda: torch.cuda.is_available(),
    "cpu": lambda: True,
}


def main():
    """Train, evaluate, draw and save, as the flags say."""
    started = time.perf_counter()
    args = parse_arguments()
    device = choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)  # for the initial weights
    model = make_model(args.model, args.latent_dim).to(device)
    settings = settings_from(args, model)
    source = find_source(args.data)
    files = output_files(args, source.files)
    with plots.own_style(), reserved(files.values(), disk_space(model, files)):
        with no_subnormals():
            digits = load_both_splits(source, device)
            print(f"data: {describe_digits(digits)} from {source}", flush=True)
            metadata = run_metadata(args, settings, digits)
            history = train(model, digits, settings, files, metadata, args.resume)
            print("evaluating ...", flush=True)
            results, last_log_likelihood = evaluate(model, digits)
        epochs = best_epoch(history.log) + 1
        summary = {**metadata, "epochs": epochs, "results": results}
        print("drawing ...", flush=True)
        shown = picture_data(model, digits, history, epochs, last_log_likelihood)
        outputs = draw_pictures(shown, with_figures=args.figures is not None)
        # `outputs` has the contents, `files` the paths, by the same names.
        outputs["checkpoint"] = checkpoint_bytes(model, **summary)
        training_seconds = sum(entry["seconds"] for entry in history.log)
        total_seconds = time.perf_counter() - started
        outputs["metrics"] = json_bytes(
            {
                **summary,
                "machine": describe_machine(device),
                "log": history.log,
                "training_seconds": round(training_seconds, 1),
                "total_seconds": round(total_seconds, 1),
            }
        )
        check_outputs(files, args)  # again: somebody may have put a file there since the start
        write_files({files[name]: content for name, content in outputs.items()})
        remove_if_there(files["resume"])  # nothing is left to continue
    print(format_results(summary["results"], digits.test_name))
    print(f"trained for {training_seconds:.0f} s; this run took {total_seconds:.0f} s in all")
    written = [str(files[name]) for name in files if name in outputs]
    print(f"wrote {', '.join(written)}", flush=True)


# fmt: off
def parse_arguments():
    parser = Parser(__doc__)
    add = parser.add_argument_group("files (defaults are beside this script)").add_argument
    add("--data", type=nonempty_path, metavar="PATH", default=MNIST,
        help="a folder of idx files or of a train and a test table, one table with a label and 784 "
        "pixels per line, or Keras's mnist.npz (default mnist)")
    add("--checkpoint", type=nonempty_path, metavar="FILE", default=SHIPPED,
        help="the trained weights, results beside them (default checkpoints/vae.safetensors)")
    add("--scatter", type=nonempty_path, metavar="FILE", default=PROJECT / "encoder.png",
        help="picture of the codes of the last 1000 test images (default encoder.png)")
    add("--figures", type=nonempty_path, metavar="DIR", default=PROJECT / "figures",
        help=f"folder for {', '.join(FIGURES)} (default figures)")
    add("--no-figures", dest="figures", action="store_const", const=None,
        help="draw only the scatterplot")
    add = parser.add_argument_group("model").add_argument
    add("--model", choices=("vae", "ae"), default="vae", help="variational or plain (default vae)")
    add("--latent-dim", type=between(int, 1, PIXELS), metavar="N", default=2,
        help="dimensions of a code (default 2)")
    add = parser.add_argument_group("training").add_argument
    whole = between(int, 1, MAX_INTEGER)
    grid, plain = GRID_SETTINGS, PLAIN_SETTINGS
    add("--epochs", type=whole, metavar="N", default=plain.epochs,
        help=f"passes over the data (default {plain.epochs})")
    add("--batch-size", type=whole, metavar="N",
        help=f"batch size (default {grid.batch_size} for a VAE of 2 latents, "
        f"{plain.batch_size} for others)")
    add("--lr", type=between(float, 1e-9, 1e6), metavar="X",
        help=f"highest learning rate (default {grid.lr} for a VAE of 2 latents, "
        f"{plain.lr} for others)")
    add("--validation", type=between(int, 0, MAX_INTEGER), metavar="N", default=0,
        help="hold out the last N training images, and keep the best epoch's weights (default 0)")
    add("--patience", type=whole, metavar="N",
        help="stop after N epochs without improvement in validation loss (default: never)")
    add("--seed", type=between(int, 0, MAX_INTEGER), metavar="N", default=0,
        help="the same seed gives the same weights and pictures (default 0)")
    add = parser.add_argument_group("running").add_argument
    add("--device", choices=("auto", *DEVICES), default="auto",
        help="auto takes a GPU if there is one (default auto)")
    add("--threads", type=between(int, 1, 1024), metavar="N", help="CPU threads (default: all)")
    add("--resume", action="store_true",
        help="continue an interrupted run; give the other flags as before")
    args = parser.parse_args()
    if args.patience and not args.validation:
        raise InputError("--patience: needs held-out images; give --validation, say 5000")
    return args
# fmt: on


def choose_device(name):
    """The torch.device that --device names."""
    if name == "auto":
        name = next(device for device, is_available in DEVICES.items() if is_available())
    if not DEVICES[name]():
        raise InputError(f"--device {name}: PyTorch finds no such device here; use --device cpu")
    return torch.device(name)


def settings_from(args, model):
    """The settings of this kind of model, changed as the flags say."""
    default = default_settings(model)
    return dataclasses.replace(
        default,
        epochs=args.epochs,
        batch_size=args.batch_size or default.batch_size,
        lr=args.lr or default.lr,
        seed=args.seed,
        validation=args.validation,
        patience=args.patience,
    )


def output_files(args, inputs):
    """The path of each output: {name: path}; `inputs` are the files that are read.

    Raises InputError: an output would overwrite an input, another output or a file that no earlier
    run made, or is the folder of another output.
    """
    if not args.checkpoint.name:
        raise InputError(f"--checkpoint {args.checkpoint}: is a folder; name a file")
    files = {"checkpoint": args.checkpoint, "scatter": args.scatter}
    files.update(files_beside(args.checkpoint))
    if args.figures:
        for figure in FIGURES:
            files[figure] = args.figures / figure
    resolved = {name: Path(os.path.realpath(file)) for name, file in files.items()}
    taken = {Path(os.path.realpath(path)) for path in (args.data, *inputs)}
    for name, path in resolved.items():
        is_folder_of_another = any(path in other.parents for other in resolved.values())
        if path in taken or is_folder_of_another:
            raise InputError(
                f"{files[name]}: is also an input, another output or its folder; "
                "name another output"
            )
        taken.add(path)
    for path in files.values():
        for neighbour in hidden_neighbours(path):
            if neighbour in taken:
                raise InputError(f"{neighbour}: is needed to write {path}; name another file")
    check_outputs(files, args)
    return files


def check_outputs(files, args):
    """Raise an InputError if an output, {name: path}, would replace what no earlier run made."""
    for name, path in files.items():
        is_named = path in (args.checkpoint, args.scatter)
        check_replaceable(path, OUTPUT_TESTS.get(name, plots.is_own_png), may_be_link=is_named)


def files_beside(checkpoint):
    """The files that stand beside a checkpoint: {name: path}."""
    name = checkpoint.name.removesuffix(".safetensors") or checkpoint.name
    return {
        "metrics": checkpoint.with_name(f"{name}.json"),
        "resume": checkpoint.with_name(f"{name}.resume.safetensors"),
    }


def is_checkpoint(path):
    """Whether a file is a checkpoint, or what --resume needs."""
    return str(checkpoints.format_of(path)).startswith("mnist-auto-encoder")


def is_metrics_file(path):
    """Whether a file is JSON as a run writes it."""
    if path.stat().st_size > checkpoints.MAX_JSON_BYTES:
        return False
    try:
        contents = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(contents, dict) or not isinstance(contents.get("settings"), dict):
        return False
    return {"model", "latent_dim", "epochs", "data"} <= contents["settings"].keys()


# Whether a file is one that an earlier run made; the other outputs are pictures.
OUTPUT_TESTS = {
    "checkpoint": is_checkpoint,
    "resume": is_checkpoint,
    "metrics": is_metrics_file,
    "explorer.html": explorer.is_own_page,
}


def disk_space(model, files):
    """About as many bytes as the outputs need."""
    weights = sum(weight.nbytes for weight in model.state_dict().values())
    # A copy in the checkpoint; for --resume the last ones, the best ones, and at most two moments.
    needed = (1 + 1 + 1 + 2) * weights + PICTURE_BYTES * len(files)
    return 2 * needed  # new files stand beside older ones until they are whole


def run_metadata(args, settings, digits):
    """What a run's files say of it: its flags, which --resume must find unchanged, and versions."""
    return {
        "settings": {
            "model": args.model,
            "latent_dim": args.latent_dim,
            "epochs": settings.epochs,
            "validation": settings.validation,
            "seed": settings.seed,
            "batch_size": settings.batch_size,
            "lr": settings.lr,
            "data": digits.identity,
        },
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }


def describe_digits(digits):
    """How many images were read, in words."""
    return f"{len(digits.x_train):,} training and {len(digits.x_test):,} {digits.test_name} images"


def describe_machine(device):
    return {"device": f"{device} {platform.machine()}", "threads": torch.get_num_threads()}


def json_bytes(contents):
    return (json.dumps(contents, indent=1) + "\n").encode()


if __name__ == "__main__":
    cli.run(main, memory_advice="give a smaller --batch-size or close other programs")
