"""Train the auto-encoder on MNIST and draw the codes of the last 1000 test images.

    python auto_encoder.py                      # the homework: trains, evaluates, draws
    python auto_encoder.py --epochs 2           # a quick look
    python auto_encoder.py --data digits.csv    # your own digits; or a folder of idx files

README.md has more. Then `python decoder_generate.py` draws new digits with the decoder.

One training step of the default model, a GridVAE, on a batch of images x:

    grid            decode 81 x 81 codes z_g, spread as the prior is; anew every 20 steps
    likelihood      log p(x|z_g) for every image and code: one matrix product
    posterior       p(z_g|x) by Bayes' rule: a softmax, as all z_g have the same prior mass
    decoder loss    -log p(x|z), with z drawn from a Gaussian at the posterior's highest peak
    encoder loss    the cross-entropy between the posterior's regions of the plane and those that
                    the encoder predicts, minus 0.1 times the ELBO of the Gaussian that it gives
    update          Muon for the matrices of hidden layers, AdamW for all other weights

The loss of the other models needs no grid: it is the negative ELBO, of a plain auto-encoder the
cross-entropy.
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import MNIST, read_digits
from lib import checkpoints, latent_grid, metrics, plots
from lib.cli import Parser, between, nonempty_path, run
from lib.errors import InputError, explained
from lib.files import remove_if_there, reserved, write_files
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
    make_model,
    standard_normal_like,
)

# --- Settings ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained.

    Where no other reason stands, a number was chosen by L_tot on the last 5,000 training images,
    after training on the others. benchmarks/ablation.py shows what the choices are worth.
    """

    epochs: int = 20
    batch_size: int = 256
    lr: float = 0.003  # the highest learning rate
    warmup: float = 0.05  # part of all steps in which the learning rate rises
    seed: int = 0
    validation: int = 0  # training images that are held out
    patience: int | None = None  # epochs without improvement on them after which training stops

    # Weight decay is for the matrices of hidden layers, and apart from it for all other weights.
    decoder_hidden_decay: float = 0.4
    decoder_decay: float = 0.0
    encoder_hidden_decay: float = 0.4
    encoder_decay: float = 0.0
    encoder_lr_scale: float = 1.0  # the encoder's learning rate, as a multiple of the decoder's

    # "medium" multiplies in bfloat16 and sums in float32 where the processor can (AMX or
    # AVX512-BF16): it is faster.
    matmul_precision: str = "medium"

    # Of a GridVAE alone:
    grid_refresh: int = 20  # steps between two grids; the decoder moves little in between
    som_epochs: int = 0  # first epochs, in which codes stay near their image's place on a map
    som_sigma: float = 0.05  # deviation from that place, in sides of the unit square of quantiles
    coarse_side: int = 27  # nodes per side of the grid in these epochs; a coarse one is enough
    variance_factor: float = 2.0  # of the Gaussian from which the decoder's codes are drawn; wider
    # ones make the borders between digits on the map sharper, at a price in L_tot
    label_smoothing: float = 0.2  # of the regions (Szegedy et al. 2016)
    position_weight: float = 0.1  # of the ELBO in the encoder's loss


PLAIN_SETTINGS = TrainingSettings()
GRID_SETTINGS = TrainingSettings(
    batch_size=512,  # as good as 256, and faster: Muon's cost is per step
    lr=0.009,
    decoder_hidden_decay=0.0,
    encoder_hidden_decay=0.7,
    encoder_decay=0.7,
    encoder_lr_scale=0.6,
    som_epochs=3,
)


def default_settings(model):
    """The settings with which a model of this kind is trained best."""
    return GRID_SETTINGS if isinstance(model, GridVAE) else PLAIN_SETTINGS


# --- Training ---------------------------------------------------------------------------------


class History(NamedTuple):
    """What training leaves besides the weights of the last epoch."""

    log: list  # the metrics of each epoch
    snapshots: dict  # {epochs: `snapshot` after so many}
    best: dict  # the weights of the best epoch


def train(model, digits, settings, files, description, resume=False):
    """Train, saving after each epoch; leave the best weights in the model. Returns the `History`.

    Without held-out images the last epoch counts as the best. `files` are those of `output_files`;
    `description` is what `describe_run` says, for them.
    """
    x_train, x_validation = hold_out(digits.x_train, settings.validation)
    optimizers = make_optimizers(model, settings)
    if resume:
        history = restore(files["resume"], description["settings"], model, optimizers)
    else:
        history = History(log=[], snapshots={0: snapshot(model, digits)}, best={})
    saved_epochs = len(history.log)
    positions = None
    try:
        while not is_finished(history.log, settings):
            epoch = len(history.log)  # counts from 0
            started = time.perf_counter()
            with matmul_precision(settings.matmul_precision):
                if epoch < settings.som_epochs and positions is None:
                    positions = som_positions(x_train.view(-1, 28, 28), settings.seed)
                train_epoch(model, optimizers, x_train, epoch, settings, positions)
                epoch_metrics = measure(
                    model, x_train, x_validation, digits.x_test, epoch, settings
                )
            epoch_metrics["seconds"] = round(time.perf_counter() - started, 2)
            history.log.append(epoch_metrics)
            history = save_epoch(model, digits, optimizers, history, files, description)
            saved_epochs = len(history.log)
            print(format_epoch(epoch, epoch_metrics, digits.test_name), flush=True)
    except KeyboardInterrupt:
        kept = ""
        if saved_epochs:
            kept = f" after {saved_epochs} epochs; they are saved, --resume continues"
        raise KeyboardInterrupt(kept) from None
    model.load_state_dict(history.best)
    return history


def train_epoch(model, optimizers, x, epoch, settings, positions=None):
    """Train on every image of x, [N, 784], once; `epoch` counts from 0.

    `positions` [N, 2] are the images' places on a map, from 0 to 1; in the first epochs the codes
    of a GridVAE stay near them.
    """
    model.train()
    near_map = positions is not None and epoch < settings.som_epochs
    # A random stream of its own for each epoch: --resume needs no saved random state.
    seed = np.random.SeedSequence([settings.seed, epoch]).generate_state(1)[0]
    generator = torch.Generator(x.device).manual_seed(int(seed))
    order = torch.randperm(len(x), generator=generator, device=x.device)
    batches = order.split(settings.batch_size)
    bar = tqdm(batches, f"epoch {epoch + 1} of {settings.epochs}", leave=False, disable=None)
    for step, batch in enumerate(bar):
        progress = (epoch + (step + 0.5) / len(batches)) / settings.epochs
        set_learning_rate(optimizers, learning_rate(progress, settings))
        if isinstance(model, GridVAE):
            if step % settings.grid_refresh == 0:
                grid = model.latent_grid(settings.coarse_side if near_map else model.grid_side)
            near = positions[batch] if near_map else None
            loss, l_tot = grid_loss(model, x[batch], grid, near, settings, generator)
        else:
            loss = l_tot = negative_elbo(model, x[batch], generator)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 10 == 0 and not bar.disable:
            bar.set_postfix_str(f"L_tot {l_tot.item():.1f}")
    model.fit_sampler(x[:TRACKED_IMAGES])


def learning_rate(progress, settings):
    """Of the decoder, when this part of training is done, 0 to 1: warm-up, then half a cosine."""
    warmup = min(progress / settings.warmup, 1)
    return settings.lr * warmup * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizers, lr):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * lr


def make_optimizers(model, settings):
    """Muon (Jordan et al. 2024) for the matrices of hidden layers, AdamW for all other weights.

    Muon makes the singular values of a matrix's update equal, so that it learns in all directions
    at once and in fewer steps; first and last layers, biases and embeddings are not for it, as its
    authors advise. With "match_rms_adamw" both take the same learning rate.
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
        fused=True,
    )
    return [muon, adamw]


def split_parameters(network):
    """The matrices of a network's hidden layers, and all its other parameters."""
    matrices = [layer.weight for layer in network.modules() if isinstance(layer, HiddenLayer)]
    known = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in network.parameters() if id(parameter) not in known]
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


# --- The losses, in nats per image -----------------------------------------------------------


def negative_elbo(model, x, generator):
    """The training loss of a VAE or an AutoEncoder on images [N, 784]: their L_tot."""
    likelihood, divergence = model.elbo(x, generator=generator)
    return (divergence - likelihood).mean()


def grid_loss(vae, x, grid, positions, settings, generator):
    """The training loss of a GridVAE on images [N, 784], and their L_tot.

    Both networks learn from the grid posterior, as in variational EM (Neal & Hinton 1998). With
    `positions` [N, 2] its prior is narrowed, to a Gaussian around each image's own.
    """
    log_likelihood_grid = grid.log_likelihood(x)
    if positions is not None:
        log_likelihood_grid = log_likelihood_grid + log_near(positions, grid, settings)
    loss_of_decoder, l_tot = decoder_loss(vae, x, log_likelihood_grid, grid, settings, generator)
    loss_of_encoder = encoder_loss(vae.encoder, x, log_likelihood_grid, settings, generator)
    return loss_of_decoder + loss_of_encoder, l_tot


def log_near(positions, grid, settings):
    """How near the nodes of a grid are to positions [N, 2] in the unit square: log-density [N, G].

    Of a Gaussian around each position, but for its constant.
    """
    quantiles = torch.special.ndtr(grid.codes)
    distances = torch.cdist(positions, quantiles)
    return -0.5 * (distances / settings.som_sigma).square()


def decoder_loss(vae, x, log_likelihood_grid, grid, settings, generator):
    """Minus the likelihood of images [N, 784] at codes from their posterior; and their L_tot.

    The codes are drawn from the Laplace posterior, made wider.
    """
    mean, logvar = latent_grid.fit_laplace(log_likelihood_grid, grid.codes)
    wider = logvar + math.log(settings.variance_factor)
    likelihood, divergence = vae.elbo(x, (mean, wider), generator)
    return -likelihood.mean(), (divergence - likelihood).mean()


def encoder_loss(encoder, x, log_likelihood_grid, settings, generator):
    """The loss of a RegionEncoder on images [N, 784].

    `log_likelihood_grid` is their log p(x|z) at the nodes of a grid, [N, G].
    """
    probabilities = latent_grid.region_probabilities(log_likelihood_grid, encoder.regions)
    likeliest = probabilities.argmax(1)
    features = encoder.body(x)
    gaussian = encoder.gaussian(features, likeliest)
    position_loss = -grid_elbo(gaussian, log_likelihood_grid, generator).mean()
    # A posterior with several peaks is met as it is: a classifier does not average over them.
    region_loss = F.cross_entropy(
        encoder.region(features), probabilities, label_smoothing=settings.label_smoothing
    )
    return region_loss + settings.position_weight * position_loss


def grid_elbo(gaussian, log_likelihood_grid, generator):
    """The ELBO, [N], of Gaussians, [N, 4] as an encoder gives them, without a pass of the decoder.

    The likelihood is interpolated between the nodes of the grid, at two antithetic samples,
    mean + noise and mean - noise: what is odd in the noise cancels out.
    """
    mean, logvar = gaussian.chunk(2, dim=1)
    noise = (0.5 * logvar).exp() * standard_normal_like(mean, generator)
    above = latent_grid.interpolate(log_likelihood_grid, mean + noise)
    below = latent_grid.interpolate(log_likelihood_grid, mean - noise)
    return (above + below) / 2 - kl_divergence(mean, logvar)


# --- Epochs -----------------------------------------------------------------------------------

TRACKED_IMAGES = 10_000  # training images for the log, and to whose codes an AutoEncoder fits its
# sampler: as many as MNIST has test images


def hold_out(x, count):
    """Images [N, 784] in two: those to train on, and the last `count`, to validate on."""
    if count >= len(x):
        raise InputError(f"--validation {count}: there are {len(x)} training images in all")
    return x.split([len(x) - count, count])


def is_finished(log, settings):
    """Whether all epochs are done, or the last `patience` of them were no better."""
    if len(log) >= settings.epochs:
        return True
    if settings.patience is None or not log:
        return False
    return len(log) - best_epoch(log) > settings.patience


def best_epoch(log):
    """The epoch with the lowest L_tot on the held-out images; without any, the last."""
    if "validation" not in log[-1]:
        return len(log) - 1
    return min(range(len(log)), key=lambda epoch: log[epoch]["validation"]["L_tot"])


def measure(model, x_train, x_validation, x_test, epoch, settings):
    """The metrics for the log, of one epoch: {"train", "validation", "test", "laplace"}.

    "laplace" is the Laplace posterior on the test images. While codes are held near the map it is
    no fair yardstick, and left out.
    """
    log_entry = {"train": mean_elbo(model, x_train[:TRACKED_IMAGES])}
    if len(x_validation):
        log_entry["validation"] = mean_elbo(model, x_validation)
    log_entry["test"] = mean_elbo(model, x_test)
    if isinstance(model, GridVAE) and epoch >= settings.som_epochs:
        log_entry["laplace"] = mean_elbo(model, x_test, model.latent_grid())
    return log_entry


def save_epoch(model, digits, optimizers, history, files, description):
    """Save what an epoch changed, all at once. Returns the new history."""
    contents = {}
    epochs = len(history.log)
    if best_epoch(history.log) == epochs - 1:
        best = {name: weight.clone() for name, weight in model.state_dict().items()}
        history = history._replace(best=best)
        contents[files["checkpoint"]] = checkpoint_bytes(model, **description, epochs=epochs)
    if is_snapshot_epoch(epochs):
        history.snapshots[epochs] = snapshot(model, digits)
    contents[files["metrics"]] = json_bytes({**description, "log": history.log})
    contents[files["resume"]] = resume_bytes(description["settings"], model, optimizers, history)
    write_files(contents)
    return history


def is_snapshot_epoch(epochs):
    """True after 1, 2, 5, 10, 20, 50, ... epochs: a model changes ever more slowly."""
    while epochs % 10 == 0:
        epochs //= 10
    return epochs in (1, 2, 5)


@torch.no_grad()
def snapshot(model, digits):
    """What the pictures show of the model as it is now: codes and decoded images."""
    model.eval()
    codes = model.codes(torch.cat([digits.x_shown, digits.last_x_test]))
    shown_codes, last_codes = codes.tensor_split([len(digits.x_shown)])
    images = model.decode(shown_codes).sigmoid()
    return {"last_codes": last_codes.cpu(), "codes": shown_codes.cpu(), "images": images.cpu()}


# --- What --resume needs ----------------------------------------------------------------------

RESUME_FORMAT = "mnist-auto-encoder-resume-7"


def resume_bytes(run_settings, model, optimizers, history):
    """All that `restore` needs, in one file, so that a kill between two files does no harm."""
    groups = {"weights": model.state_dict(), "best": history.best}
    for number, optimizer in enumerate(optimizers):
        groups.update(checkpoints.optimizer_groups(optimizer, f"optimizer/{number}"))
    for epochs, tensors in history.snapshots.items():
        groups[f"snapshot/{epochs}"] = tensors
    tensors = checkpoints.flattened(groups)
    contents = {"settings": run_settings, "log": history.log}
    return checkpoints.file_bytes(RESUME_FORMAT, tensors, contents)


def restore(path, run_settings, model, optimizers):
    """Put weights and optimizers back as they were after the last epoch; return the `History`.

    Raises InputError: the file is missing, damaged, or of a run with other settings.
    """
    begin_anew = "leave out --resume to begin anew"
    if not path.is_file():
        raise InputError(f"--resume: {path} is not there; {begin_anew}")
    tensors, contents = checkpoints.read_file(path, RESUME_FORMAT, begin_anew)
    with explained(path, "is of another architecture than models.py has", begin_anew):
        for name, value in run_settings.items():
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
        return History(log=contents["log"], snapshots=snapshots, best=groups["best"])


# --- Evaluation -------------------------------------------------------------------------------

NEIGHBOURS = 15  # k of the k-NN classifier that judges the codes
DIVERGED = 10 * PIXELS * math.log(2)  # nats: ten times the loss of giving each pixel 0.5


def mean_elbo(model, x, grid=None):
    """L_tot, L_likelihood and L_divergence of images [N, 784], mean nats per image.

    With a `LatentGrid` the Laplace posterior stands in for the encoder.
    Raises InputError: the loss is not finite, or far above that of a blank guess.
    """
    model.eval()
    generator = torch.Generator(x.device).manual_seed(0)

    def elbo(part):
        if grid is None:
            return model.elbo(part, generator=generator)
        return model.elbo(part, grid.laplace_posterior(part), generator)

    terms = metrics.mean_elbo(elbo, x)
    if not terms["L_tot"] < DIVERGED:  # also if it is not a number
        raise InputError(
            f"--lr: training diverges, the loss is {terms['L_tot']:.3g} nats per image; "
            "give a smaller one (what was saved before is kept)"
        )
    return terms


@torch.no_grad()
def evaluate(model, digits):
    """The final metrics of a model, on all test images."""
    x_test = digits.x_test
    results = {"test": mean_elbo(model, x_test)}
    if isinstance(model, VAE):
        generator = torch.Generator(x_test.device).manual_seed(0)
        binarized = torch.bernoulli(x_test, generator=generator)  # the grey value: chance of ink
        both = model.log_likelihood(torch.cat([x_test, binarized]), generator=generator)
        grey_mean, binarized_mean = both.view(2, -1).mean(1).tolist()
        results["log_likelihood"] = grey_mean
        results["log_likelihood_binarized"] = binarized_mean
    if isinstance(model, GridVAE):
        results["laplace"] = mean_elbo(model, x_test, model.latent_grid())
    train_codes = torch.cat([model.codes(part) for part in digits.x_train.split(TRACKED_IMAGES)])
    last_codes = model.codes(digits.last_x_test)
    predicted = metrics.knn_predict(train_codes, digits.train_labels, last_codes, NEIGHBOURS)
    results["knn_accuracy"] = float((predicted == digits.last_test_labels).mean())
    results["knn_codes"] = len(predicted)
    return results


def format_epoch(epoch, epoch_metrics, test_name):
    """The log line of an epoch, in the homework's form."""
    parts = [f"epoch {epoch}: {format_elbo(epoch_metrics['train'])}"]
    if "validation" in epoch_metrics:
        parts.append(f"validation {format_elbo(epoch_metrics['validation'])}")
    parts.append(f"{test_name} {format_elbo(epoch_metrics['test'])}")
    return " | ".join(parts)


def format_elbo(terms):
    return " ".join(f"{name} {value:.2f}" for name, value in terms.items())


def format_results(results, test_name):
    """What is printed of the final metrics."""
    lines = [f"{test_name} {format_elbo(results['test'])}"]
    if "laplace" in results:
        # Of the encoder to a better posterior (Cremer, Li & Duvenaud 2018).
        gap = results["test"]["L_tot"] - results["laplace"]["L_tot"]
        laplace = format_elbo(results["laplace"])
        lines.append(f"Laplace posterior {laplace} | amortisation gap {gap:.2f}")
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


class Shown(NamedTuple):
    """What the pictures are drawn from."""

    model: torch.nn.Module
    digits: NamedTuple  # `data.Digits`
    log: list  # the metrics of each epoch
    views: (
        dict  # {epochs: `snapshot` after so many, as arrays}, in order, the last one as it is now
    )
    plane: plots.Plane  # of the codes as they are now

    @property
    def now(self):
        """The last of the views."""
        return self.views[max(self.views)]

    def points(self, view):
        """The last test codes of a view in the plane: [N, 2]."""
        return self.plane.project(view["last_codes"])


def gather_views(model, digits, history, epochs):
    """What the pictures show of a training whose best epoch was the one after `epochs`."""
    snapshots = {**history.snapshots, epochs: snapshot(model, digits)}
    views = {}
    for number in sorted(snapshots):
        if number <= epochs:
            views[number] = {name: part.numpy() for name, part in snapshots[number].items()}
    plane = plots.plane_of(views[epochs]["last_codes"])
    return Shown(model, digits, history.log, views, plane)


def draw_scatter(shown):
    """The homework's picture: the codes of the last 1000 test images, coloured by digit."""
    labels = shown.digits.last_test_labels
    name = shown.digits.test_name
    title = f"Codes of {'the last ' if name == 'test' else ''}{len(labels)} {name} images"
    return plots.draw_scatter(shown.points(shown.now), labels, shown.plane, title)


def draw_scatter_epochs(shown):
    """The same codes as training goes on."""
    points = {after(epochs): shown.points(view) for epochs, view in shown.views.items()}
    return plots.draw_scatters(points, shown.digits.last_test_labels, shown.plane)


def draw_reconstructions(shown):
    """Ten test images of each digit, and what their codes decode to as training goes on."""
    panels = {f"{shown.digits.test_name} images": shown.digits.x_shown.cpu().numpy()}
    for epochs, view in shown.views.items():
        if epochs > 0:  # before training all is grey
            panels[after(epochs)] = view["images"]
    return plots.draw_image_panels(panels)


def after(epochs):
    """When a view was taken, as a title."""
    if epochs == 0:
        return "before training"
    return "after 1 epoch" if epochs == 1 else f"after {epochs} epochs"


def draw_loss(shown):
    """L_tot over the epochs, and the gap between the encoder and the Laplace posterior."""
    looks = {  # in the log: (name, style, colour)
        "train": ("train", "o-", plots.COLOURS[6]),
        "validation": ("validation", "s-", plots.COLOURS[4]),
        "test": ("test", "^-", plots.COLOURS[0]),
        "laplace": ("test, exact posterior", "--", plots.COLOURS[5]),
    }
    curves = {}
    for key, (name, style, colour) in looks.items():
        epochs = [number for number, entry in enumerate(shown.log, start=1) if key in entry]
        if not epochs:
            continue
        values = [shown.log[number - 1][key]["L_tot"] for number in epochs]
        label = f"{name}, {values[0]:.1f} to {values[-1]:.2f}"
        curves[key] = plots.Curve(label, epochs, values, style, colour)
    band = None
    if "laplace" in curves:
        epochs, lower = curves["laplace"].x, curves["laplace"].y
        upper = [shown.log[number - 1]["test"]["L_tot"] for number in epochs]
        label = f"amortisation gap, last {upper[-1] - lower[-1]:.2f} nats"
        band = (label, epochs, lower, upper, plots.COLOURS[0])
    return plots.draw_curves(curves.values(), "epochs", "$L_{tot}$, nats per image", band)


def draw_sanity_check(shown):
    """One image of each digit, its code, and what the code decodes to."""
    images = shown.digits.x_shown.cpu().numpy()
    one_of_each = slice(None, None, 10)
    return plots.draw_image_code_image(
        images[one_of_each], shown.now["codes"][one_of_each], shown.now["images"][one_of_each]
    )


def draw_manifold(shown):
    """What the decoder makes of a grid of codes, on the axes of the scatter."""
    decoder = shown.model.decoder
    return plots.draw_decoded_plane(lambda codes: decode_images(decoder, codes), shown.plane)


# File names in the folder of --figures, and what draws them; a function may return None if its
# picture makes no sense for a model.
FIGURES = {
    "scatter_epochs": draw_scatter_epochs,
    "reconstructions": draw_reconstructions,
    "loss": draw_loss,
    "sanity_check": draw_sanity_check,
    "manifold": draw_manifold,
}


def draw_pictures(shown, with_figures):
    """The PNG files of a run: {"scatter" or, `with_figures`, a name in FIGURES: bytes}."""
    pictures = {"scatter": draw_scatter(shown)}
    if with_figures:
        for name, draw in FIGURES.items():
            png = draw(shown)
            if png is not None:
                pictures[name] = png
    return pictures


# --- The command line -------------------------------------------------------------------------

PROJECT = Path(__file__).resolve().parent
MAX_INTEGER = 2**31 - 1  # of flags that have no other limit
PICTURE_BYTES = 2**19  # more than any of the pictures has
DEVICES = {  # name: whether this machine has it; the first that it has is the default
    "cuda": lambda: torch.cuda.is_available(),
    "cpu": lambda: True,
}


def main():
    started = time.perf_counter()
    args = parse_arguments()
    device = choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)  # of the first weights
    model = make_model(args.model, args.latent_dim).to(device)
    settings = settings_from(args, model)
    files = output_files(args)
    with plots.own_style(), reserved(files.values(), disk_space(model, files)):
        digits = read_digits(args.data, device)
        description = describe_run(args, settings, digits)
        history = train(model, digits, settings, files, description, args.resume)
        epochs = best_epoch(history.log) + 1
        print("evaluating ...", flush=True)
        summary = {**description, "epochs": epochs, "results": evaluate(model, digits)}
        print("drawing ...", flush=True)
        shown = gather_views(model, digits, history, epochs)
        outputs = draw_pictures(shown, with_figures=args.figures is not None)
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
        help="a folder of idx files, or a table: a label and 784 pixels per line (default mnist)")
    add("--checkpoint", type=nonempty_path, metavar="FILE", default=SHIPPED,
        help="the trained weights, results beside them (default checkpoints/vae.safetensors)")
    add("--scatter", type=nonempty_path, metavar="FILE", default=PROJECT / "encoder.png",
        help="picture of the codes of the last 1000 test images (default encoder.png)")
    add("--figures", type=nonempty_path, metavar="DIR", default=PROJECT / "figures",
        help=f"folder for {', '.join(FIGURES)}.png (default figures)")
    add("--no-figures", dest="figures", action="store_const", const=None,
        help="draw only the scatterplot")
    add = parser.add_argument_group("model").add_argument
    add("--model", choices=("vae", "ae"), default="vae", help="variational or plain (default vae)")
    add("--latent-dim", type=between(int, 1, PIXELS), metavar="N", default=2,
        help="dimensions of a code (default 2)")
    add = parser.add_argument_group("training").add_argument
    whole = between(int, 1, MAX_INTEGER)
    two, others = GRID_SETTINGS, PLAIN_SETTINGS
    add("--epochs", type=whole, metavar="N", default=others.epochs,
        help=f"passes over the data (default {others.epochs})")
    add("--batch-size", type=whole, metavar="N",
        help=f"batch size (default {two.batch_size} for a VAE of 2 latents, "
        f"{others.batch_size} for others)")
    add("--lr", type=between(float, 1e-9, 1e6), metavar="X",
        help=f"highest learning rate (default {two.lr} for a VAE of 2 latents, "
        f"{others.lr} for others)")
    add("--validation", type=between(int, 0, MAX_INTEGER), metavar="N", default=0,
        help="hold out the last N training images, and keep the best epoch's weights (default 0)")
    add("--patience", type=whole, metavar="N",
        help="stop after N epochs without improvement in validation loss (default: never)")
    add("--seed", type=between(int, 0, MAX_INTEGER), metavar="N", default=0,
        help="the same seed gives the same files (default 0)")
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


def output_files(args):
    """The path of each output, {name: path}, none in the way of another or of the data."""
    if not args.checkpoint.name:
        raise InputError(f"--checkpoint {args.checkpoint}: is a folder; name a file")
    name = args.checkpoint.name.removesuffix(".safetensors") or args.checkpoint.name
    files = {
        "checkpoint": args.checkpoint,
        "metrics": args.checkpoint.with_name(f"{name}.json"),
        "resume": args.checkpoint.with_name(f"{name}.resume.safetensors"),
        "scatter": args.scatter,
    }
    if args.figures:
        for figure in FIGURES:
            files[figure] = args.figures / f"{figure}.png"
    resolved = {name: Path(os.path.realpath(file)) for name, file in files.items()}
    taken = {Path(os.path.realpath(args.data))}
    for name, path in resolved.items():
        is_folder_of_another = any(path in other.parents for other in resolved.values())
        if path in taken or is_folder_of_another:
            raise InputError(f"{files[name]}: would be overwritten; name another output")
        taken.add(path)
    return files


def disk_space(model, files):
    """About as many bytes as the outputs need."""
    weights = sum(weight.nbytes for weight in model.state_dict().values())
    # In the checkpoint once; for --resume as they are, the best ones, and two moments of AdamW.
    needed = 5 * weights + PICTURE_BYTES * len(files)
    return 2 * needed  # new files stand beside older ones until they are whole


def describe_run(args, settings, digits):
    """The settings, which --resume must find unchanged, and the versions."""
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


def describe_machine(device):
    return {"device": f"{device} {platform.machine()}", "threads": torch.get_num_threads()}


def json_bytes(contents):
    return (json.dumps(contents, indent=1) + "\n").encode()


if __name__ == "__main__":
    run(main, memory_advice="give a smaller --batch-size or close other programs")
