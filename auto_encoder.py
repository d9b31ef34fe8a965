"""Train the auto-encoder on MNIST and draw the codes of the last 1000 test images.

    python auto_encoder.py                                   # the homework
    python auto_encoder.py --epochs 2 --out first_look       # a quick look, written elsewhere
    python auto_encoder.py --data digits.csv --out mine      # your own digits

Then `python decoder_generate.py` draws new digits with the decoder.

All models are judged by L_tot = L_divergence - L_likelihood, the negative evidence lower bound
(ELBO), in nats per image; lower is better. models.py defines its terms. Usual VAEs are trained to
minimise L_tot, and so is a plain auto-encoder: its divergence is 0, and its L_tot is the
cross-entropy of its reconstructions. See `elbo_step`. Epochs count from 0, as in the log that the
assignment shows.

The default model has two latents, few enough for Bayes' rule on a grid of codes. A code z is a
point of the plane, with the prior N(0, I). Its place u in the unit square is, in each coordinate,
the CDF of N(0, 1) at z; PyTorch calls this CDF ndtr, and its inverse ndtri.

Training is variational EM: the E-step finds the posterior p(z|x) with the decoder held fixed, the
M-step improves the decoder with the posterior held fixed. At the same time the encoder network
learns to give the posterior in one pass; that is called amortisation. See `train_step`:

    grid            decode 81 x 81 codes z_g, evenly spaced in u: each stands for the same share of
                    the prior. This is done anew every 20 steps
    E-step          log p(x|z_g) for every image and code: one matrix product. All codes stand
                    for the same share of the prior, so by Bayes' rule the softmax of these numbers
                    over the codes is the grid posterior p(z_g|x). A Gaussian is fitted to its
                    highest peak: the Laplace posterior
    amortisation    the plane is cut into 27 x 27 regions, and the encoder has two outputs. It says
                    in which region the code lies; the loss is the cross-entropy against the
                    regions' shares of the grid posterior. And it gives a Gaussian in the likeliest
                    region; the loss is the negative ELBO. The two losses are added
    M-step          the decoder minimises -log p(x|z), with z drawn from the Laplace posterior with
                    twice its variance
    update          the matrices between hidden layers are updated by Muon, an optimizer made for
                    matrices, all other weights by AdamW. See lib/optimizers.py

The first quarter of the epochs is a phase of its own (`SomPhase`). A self-organising map lays the
training images out in the plane, so that similar ones are neighbours. In this phase the grid has
27 x 27 codes, and the posterior of an image is pulled towards its place on the map. Thanks to it
each digit has a few large islands (connected areas of the plane that decode to it) instead of many
small ones.

When the trained model encodes an image, the encoder proposes the Gaussians of its five likeliest
regions, and the decoder chooses the one that explains the image best: see `GridVAE.encode`.

What the parts buy: how much higher L_tot is without each, in nats, on held-out images after ten
epochs on 15,000 images, a mean over three seeds (benchmarks/README.md). It was measured when the
encoder was larger and gave one proposal. The gains are not additive.

    Bayes' rule on a grid (without it: a usual VAE)                        17.9
    regions (an encoder that gives its Gaussian directly, by ELBO alone)   28.4
    Muon (AdamW for all weights)                                            3.1
    self-organising map (without it: 27 islands instead of 14)              1.8
    sines and cosines of the decoder's input                                1.5
    label smoothing of the regions' shares                                  0.3
    doubled variance (without it: more decoded images between two digits)  -0.2
"""

import dataclasses
import json
import math
import platform
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import MNIST, Digits, find_source, load_both_splits
from lib import EVAL_BATCH, cli, explorer, latent_grid, plots
from lib.cli import Parser, Replaced, between, nonempty_path
from lib.devices import choose_device
from lib.errors import InputError
from lib.figures import FIGURES, draw_scatter, picture_data, take_snapshot
from lib.files import check_outputs, one_run, remove_if_ours, remove_if_there, write_files
from lib.history import History, is_snapshot_time, restore, resume_bytes
from lib.knn import knn_predict
from lib.optimizers import WeightGroup, learning_rate, make_optimizers, set_learning_rate
from lib.som import som_positions
from lib.torch_settings import flush_denormal, matmul_precision, one_thread
from models import (
    PIXELS,
    VAE,
    GridVAE,
    checkpoint_bytes,
    kl_divergence,
    make_model,
    split_parameters,
    standard_normal_like,
)

# --- Settings ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained. The default model, a GridVAE, has the GRID_SETTINGS below.

    Unless a comment gives another reason, a number was chosen by L_tot on the last 5,000 training
    images, after training on the others.
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
    # Stop after this many epochs without improvement on the held-out images.
    patience: int | None = None

    # Weight decay of the matrices between hidden layers (Muon), and of the encoder's other weights
    # (AdamW). The decoder's other weights have none.
    decoder_hidden_decay: float = 0.4
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
    # The part of the epochs, at the start, that make the `SomPhase`. 0: there is no such phase.
    som_part: float = 0.0
    # Nodes per side of the grid in that phase; a multiple of the encoder's regions_per_side.
    som_grid_side: int = 27
    # The standard deviation of codes around their places on the map, in u. This and som_part were
    # chosen by how the labels of training images lie in the plane, at a small price in L_tot.
    som_sigma: float = 0.05
    # In the M-step the Laplace posterior's variance is multiplied by this. At 2 the decoder learns
    # an image at the codes around its own, too, and fewer decoded images are between two digits, at
    # a small price in L_tot.
    posterior_temperature: float = 2.0
    # How much of a uniform distribution is mixed into the regions' probabilities, the encoder's
    # target (Szegedy et al. 2016, "Rethinking the Inception architecture").
    label_smoothing: float = 0.2
    # The weight of the negative ELBO in the encoder's loss.
    elbo_weight: float = 0.1

    @property
    def som_epochs(self):
        """The number of epochs in the `SomPhase`, rounded up."""
        return math.ceil(self.som_part * self.epochs)


PLAIN_SETTINGS = TrainingSettings()
GRID_SETTINGS = TrainingSettings(
    batch_size=512,  # as good as 256, and faster, as Muon's cost is per step
    lr=0.009,
    # Weight decay helps the encoder on new images: there its L_tot comes closer to that of the best
    # Gaussian for each image.
    decoder_hidden_decay=0.0,
    encoder_hidden_decay=0.7,
    encoder_decay=0.7,
    encoder_lr_scale=0.6,
    som_part=0.25,
)

# How many training images are used for the L_tot in the log; MNIST has as many test images. A plain
# AutoEncoder also uses these images to fit the Gaussian from which it later samples codes.
TRACKED_IMAGES = 10_000


def default_settings(model):
    """The settings with which a model of this kind is trained best."""
    return GRID_SETTINGS if isinstance(model, GridVAE) else PLAIN_SETTINGS


# --- The run ----------------------------------------------------------------------------------


def main(argv=None):
    """Train, evaluate, draw and save, as the flags say; `argv` is for use from Python."""
    started = time.perf_counter()
    args = parse_arguments(argv)
    source = find_source(args.data)
    explorer.read_template()  # fails now, not after the training, if lib/explorer.html is missing
    files = output_files(args.out, args.model)
    # A GPU that PyTorch sees may still be unable to train: a tiny training run tells.
    device = choose_device(args.device, partial(try_out, args.model, args.latent_dim))
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)  # for the initial weights
    model = make_model(args.model, args.latent_dim).to(device)
    settings = settings_from(args, model)
    with one_run(args.out):  # a lock: no second run into this folder
        check_outputs(files.values(), inputs=source.files)
        if args.resume:
            check_resumable(files)
        with flush_denormal():  # numbers below 1e-38 become 0: faster
            digits = load_both_splits(source, device)
            print(f"data: {describe_digits(digits)} from {source}", flush=True)
            metadata = run_metadata(args, settings, digits)
            history = train(model, digits, settings, files, metadata, args.resume)
            print("evaluating ...", flush=True)
            results, last_log_p_x = final_metrics(model, digits)
        print("drawing ...", flush=True)
        pictures = draw_pictures(picture_data(model, digits, history, last_log_p_x))

        # "epochs": how many were done when these weights were best; later ones were worse.
        summary = {**metadata, "epochs": history.best_epoch + 1, "results": results}
        training_seconds = sum(entry["seconds"] for entry in history.log)
        total_seconds = time.perf_counter() - started
        run = {
            **summary,
            "machine": describe_machine(device),
            "log": history.log,
            "training_seconds": round(training_seconds, 1),
            "total_seconds": round(total_seconds, 1),
        }
        outputs = {
            **pictures,
            "checkpoint": checkpoint_bytes(model, **summary),
            "metrics": json_bytes(run),
        }
        write_files({files[name]: content for name, content in outputs.items()})
        for name in FIGURES:
            if name not in outputs:  # a picture that only other models have
                remove_if_ours(files[name])  # an earlier run may have left one
        remove_if_there(files["resume"])  # nothing is left to continue
    print(format_results(results, digits.test_name))
    print(f"trained for {training_seconds:.0f} s; this run took {total_seconds:.0f} s in all")
    written = [str(files[name]) for name in files if name in outputs]
    print(f"wrote {', '.join(written)}", flush=True)


def draw_pictures(shown):
    """The pictures of a run: {"scatter" or a name in FIGURES: bytes}."""
    with plots.own_style():
        pictures = {"scatter": draw_scatter(shown)}
        for name, draw in FIGURES.items():
            picture = draw(shown)
            if picture is not None:
                pictures[name] = picture
    return pictures


# --- Training ---------------------------------------------------------------------------------


def train(model, digits, settings, files, metadata, resume=False):
    """Train, saving after each epoch; leave the best weights in the model. Returns the `History`.

    Without held-out images the last epoch counts as the best. `files` are the paths that
    `output_files` gives, {name: path}, of which "checkpoint", "metrics" and "resume" are written
    here; `metadata`, from `run_metadata`, goes into them.
    """
    x_train, x_validation = hold_out(digits.x_train, settings.validation)
    optimizers = optimizers_for(model, settings)
    if resume:
        history = restore(files["resume"], metadata["settings"], model, optimizers)
    else:
        history = History(snapshots={0: take_snapshot(model, digits)})
    som_phase = None
    saved_epochs = len(history.log)  # Ctrl-C may come when one more is in the log, but not saved
    try:
        while not history.is_finished(settings.epochs, settings.patience):
            epoch = len(history.log)
            started = time.perf_counter()
            if epoch == settings.som_epochs:
                som_phase = None
            elif epoch < settings.som_epochs and som_phase is None:
                print("placing the training images on a self-organising map ...", flush=True)
                som_phase = SomPhase(x_train, settings)
            with matmul_precision(settings.matmul_precision):
                train_epoch(model, optimizers, x_train, epoch, settings, som_phase)
                entry = epoch_metrics(model, x_train, x_validation, digits.x_test, som_phase)
            entry["seconds"] = round(time.perf_counter() - started, 2)
            history.add_epoch(entry, model)
            if is_snapshot_time(epoch + 1):
                history.snapshots[epoch + 1] = take_snapshot(model, digits)
            save_epoch(model, optimizers, history, files, metadata)
            saved_epochs = epoch + 1
            print(format_epoch(epoch, entry, digits.test_name), flush=True)
    except KeyboardInterrupt:
        advice = ""
        if saved_epochs:
            advice = f" after {saved_epochs} epochs; they are saved, --resume continues"
        raise KeyboardInterrupt(advice) from None  # `cli.run` prints "interrupted" and this
    model.load_state_dict(history.best_weights)
    return history


class SomPhase:
    """The first epochs of a GridVAE, in which codes are kept near places on a map.

    A self-organising map (SOM, lib/som.py) gives every image a place in the unit square; images
    that look alike are neighbours there. In this phase the posterior is multiplied by a Gaussian
    around that place. The grid is coarse, one node for each region of the encoder: that is enough
    to find the region, and faster.
    """

    def __init__(self, x_train, settings):
        """Place the training images [N, 784] on a map."""
        with one_thread():  # on several, the last bits of its sums over all images would differ
            self.places = som_positions(x_train.view(-1, 28, 28), settings.seed)  # [N, 2], in u
        self.grid_side = settings.som_grid_side
        self.sigma = settings.som_sigma

    def log_som_prior(self, indices, codes):
        """The log of the Gaussian by which the posterior of images is multiplied: [n, G].

        log N(u; place, sigma^2 I), up to a constant, at codes [G, 2], for the training images of
        these indices, [n].
        """
        u = torch.special.ndtr(codes)  # the CDF of N(0, 1)
        distances = torch.cdist(self.places[indices], u)
        return -0.5 * (distances / self.sigma).square()


def train_epoch(model, optimizers, x, epoch, settings, som_phase=None):
    """Train on every image of x, [N, 784], once; `epoch` counts from 0.

    The progress bar of a GridVAE shows the L_tot that `train_step` returns, that of the widened
    Laplace posterior; the log has that of the encoder.
    """
    model.train()
    # A random stream of its own for each epoch, so that --resume needs no saved random state.
    # SeedSequence mixes the two numbers into one.
    seed = np.random.SeedSequence([settings.seed, epoch]).generate_state(1)[0]
    generator = torch.Generator(x.device).manual_seed(int(seed))
    order = torch.randperm(len(x), generator=generator, device=x.device)
    index_batches = order.split(settings.batch_size)
    name = f"epoch {epoch} (0 to {settings.epochs - 1})"
    # None: tqdm shows a bar only on a terminal. Python without a console (pythonw) has no stderr.
    disable = None if sys.stderr else True
    bar = tqdm(index_batches, desc=name, leave=False, disable=disable)
    for step, indices in enumerate(bar):
        part_of_epoch = (step + 0.5) / len(index_batches)  # at the middle of the step
        progress = (epoch + part_of_epoch) / settings.epochs
        lr = learning_rate(progress, settings.lr, settings.warmup_part)
        set_learning_rate(optimizers, lr)
        if isinstance(model, GridVAE):
            if step % settings.grid_refresh == 0:
                grid = model.make_grid(som_phase.grid_side if som_phase else None)
            l_tot = train_step(model, optimizers, x, indices, grid, settings, generator, som_phase)
        else:
            l_tot = elbo_step(model, optimizers, x[indices], generator)
        if step % 10 == 0 and not bar.disable:
            bar.set_postfix_str(f"L_tot {l_tot.item():.1f}")
    # In each epoch, as each one is saved. For a VAE this does nothing.
    model.fit_sampler(x[:TRACKED_IMAGES])


def train_step(vae, optimizers, x_train, indices, grid, settings, generator, som_phase=None):
    """One step of a GridVAE on the images x_train[indices]. Returns an L_tot, for the progress bar.

    The step is one of variational EM (Neal & Hinton 1998, "A view of the EM algorithm"). The grid,
    and so the posterior, has no gradient: the encoder's loss trains the encoder alone, and the
    decoder's loss the decoder alone. The L_tot is that of the widened Laplace posterior, from which
    the decoder's codes are drawn.
    """
    x = x_train[indices]  # [N, 784]

    # E-step: Bayes' rule on the grid. All nodes have the same prior mass, so log p(x|z_g) is also
    # the log of their posterior mass, up to a constant for each image: [N, G]. (As a density in z
    # the posterior has the prior's density in it, too; `fit_laplace` multiplies it in.)
    log_posterior = grid.log_likelihood_grid(x)
    if som_phase:
        log_posterior = log_posterior + som_phase.log_som_prior(indices, grid.codes)
    posterior_mean, posterior_logvar = latent_grid.fit_laplace(log_posterior, grid.codes)

    # Amortisation: the encoder learns to give the posterior.
    loss_of_encoder = encoder_loss(vae.encoder, x, log_posterior, settings, generator)

    # M-step: the decoder learns to give the images back from codes of the posterior, made wider.
    # The divergence does not depend on the decoder, so it is not in the loss.
    logvar = posterior_logvar + math.log(settings.posterior_temperature)
    likelihood, divergence = vae.elbo(x, q=(posterior_mean, logvar), generator=generator)
    loss_of_decoder = -likelihood.mean()

    update(vae, optimizers, loss_of_decoder + loss_of_encoder)
    return (divergence - likelihood).mean()


def encoder_loss(encoder, x, log_posterior, settings, generator):
    """The loss of a RegionEncoder on images [N, 784], given the nodes' log posterior [N, G].

    It is the sum of two terms: the cross-entropy of the regions' probabilities, and `elbo_weight`
    times the negative ELBO of the Gaussian in one region, the likeliest one by the posterior.
    """
    probabilities = latent_grid.region_probabilities(log_posterior, encoder.regions_per_side)
    posterior_region = probabilities.argmax(1)
    features = encoder.body(x)
    mean, logvar = encoder.gaussian(features, posterior_region)
    negative_elbo = -grid_elbo(mean, logvar, log_posterior, generator).mean()
    # The target is the probabilities of all regions, not only the likeliest one, so that the
    # encoder learns of all the peaks that an image has.
    region_loss = F.cross_entropy(
        encoder.classifier(features), probabilities, label_smoothing=settings.label_smoothing
    )
    return region_loss + settings.elbo_weight * negative_elbo


def grid_elbo(mean, logvar, log_posterior, generator):
    """The ELBO, [N], of Gaussians, [N, 2] each, without a pass of the decoder.

    As in `train_step`, the nodes' `log_posterior` [N, G] is log p(x|z_g), the prior not included;
    in the `SomPhase` it has the map's factor as well, which then counts as part of the likelihood.
    It is interpolated at two samples, mean + offset and mean - offset. They are antithetic
    (Hammersley & Morton 1956, "A new Monte Carlo technique"): terms that change their sign with the
    offset cancel, so that the mean of the two varies less than that of two independent ones.
    """
    offset = (0.5 * logvar).exp() * standard_normal_like(mean, generator)
    at_plus = latent_grid.interpolate(log_posterior, mean + offset)
    at_minus = latent_grid.interpolate(log_posterior, mean - offset)
    likelihood = (at_plus + at_minus) / 2
    return likelihood - kl_divergence(mean, logvar)


def elbo_step(model, optimizers, x, generator):
    """One step of a usual VAE or a plain AutoEncoder on images [N, 784]. Returns their L_tot."""
    likelihood, divergence = model.elbo(x, generator=generator)
    l_tot = (divergence - likelihood).mean()
    update(model, optimizers, l_tot)
    return l_tot


def update(model, optimizers, loss):
    """One step of gradient descent."""
    model.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def optimizers_for(model, settings):
    """The optimizers of both networks' weights, of which some are trained by Muon."""
    decoder_matrices, decoder_others = split_parameters(model.decoder)
    encoder_matrices, encoder_others = split_parameters(model.encoder)
    scale = settings.encoder_lr_scale
    return make_optimizers(
        hidden_matrices=[
            WeightGroup(decoder_matrices, lr_scale=1.0, weight_decay=settings.decoder_hidden_decay),
            WeightGroup(
                encoder_matrices, lr_scale=scale, weight_decay=settings.encoder_hidden_decay
            ),
        ],
        other_weights=[
            WeightGroup(decoder_others, lr_scale=1.0, weight_decay=0.0),
            WeightGroup(encoder_others, lr_scale=scale, weight_decay=settings.encoder_decay),
        ],
    )


def hold_out(x, count):
    """Split images [N, 784]: those to train on, and the last `count`, to validate on."""
    if count >= len(x):
        raise InputError(f"--validation {count}: there are {len(x)} training images in all")
    return x.split([len(x) - count, count])


def save_epoch(model, optimizers, history, files, metadata):
    """Write what --resume needs, the metrics, and a checkpoint if the epoch is the best so far."""
    # Files are moved into place in this order. What --resume needs is first: if the next one cannot
    # be moved, this epoch is not lost.
    resume = resume_bytes(metadata["settings"], model, optimizers, history)
    contents = {files["resume"]: resume}
    if history.last_is_best:
        epochs = len(history.log)
        contents[files["checkpoint"]] = checkpoint_bytes(model, **metadata, epochs=epochs)
    contents[files["metrics"]] = json_bytes({**metadata, "log": history.log})
    write_files(contents)


def check_resumable(files):
    """Raise an InputError if there is no interrupted run, or the run is finished."""
    if files["resume"].is_file():
        return
    metrics_file = files["metrics"]
    if is_finished_run(metrics_file):
        raise InputError(
            f"--resume: this run is finished, its results are in {metrics_file}; "
            "to train anew, leave out --resume, and name another folder with --out to keep them"
        )
    raise InputError(f"--resume: {files['resume']} is not there; leave out --resume to begin anew")


def is_finished_run(metrics_file):
    """Whether a file of metrics is that of a finished run: only then it has results."""
    try:
        return "results" in json.loads(metrics_file.read_text())
    except (OSError, ValueError):
        return False


# --- Evaluation -------------------------------------------------------------------------------

PAIRS = 8  # antithetic pairs of samples of z, over which the final L_tot is averaged
NEIGHBOURS = 15  # k of the k-NN classifier that judges the codes
CODES_AT_ONCE = 10_000  # images that are encoded at once, so that memory is bounded
DIVERGED = 10 * PIXELS * math.log(2)  # nats: ten times the loss of giving each pixel 0.5


def epoch_metrics(model, x_train, x_validation, x_test, som_phase=None):
    """An epoch's entry in the log, {name: `elbo_terms`}.

    The names are "train" and "test"; with held-out images "validation"; and for a GridVAE
    "laplace", the test images with the Laplace posterior in place of the encoder. In the `SomPhase`
    "laplace" is left out: there the encoder learns a posterior with the map's factor, which test
    images do not have, so the two cannot be compared.
    """
    entry = {"train": elbo_terms(model, x_train[:TRACKED_IMAGES])}
    if len(x_validation):
        entry["validation"] = elbo_terms(model, x_validation)
    entry["test"] = elbo_terms(model, x_test)
    if isinstance(model, GridVAE) and not som_phase:
        entry["laplace"] = elbo_terms(model, x_test, model.make_grid().laplace_posterior)
    return entry


@torch.no_grad()
def elbo_terms(model, x, encode=None, pairs=0):
    """L_tot, L_likelihood and L_divergence of images [N, 784], mean nats per image.

    `encode`, a function from images to mean and logvar, stands in for the model's own. The
    likelihood is that of one sample of z for each image or the mean over so many `pairs` of them.
    Raises InputError: the loss is not finite, or above DIVERGED.
    """
    model.eval()
    generator = torch.Generator(x.device).manual_seed(0)
    terms = []
    for part in x.split(EVAL_BATCH):
        options = {"generator": generator}
        if encode is not None:
            options["q"] = encode(part)
        if pairs:
            likelihood, divergence = model.mean_elbo(part, pairs=pairs, **options)
        else:
            likelihood, divergence = model.elbo(part, **options)
        terms.append(torch.stack([likelihood, divergence]))
    both_terms = torch.cat(terms, dim=1)  # [2, N]
    likelihood, divergence = both_terms.mean(1).tolist()
    l_tot = divergence - likelihood
    if not l_tot < DIVERGED:  # also if it is not a number
        raise InputError(
            f"--lr: training diverges, the loss is {l_tot:.3g} nats per image; "
            "give a smaller one (what was saved before is kept)"
        )
    return {"L_tot": l_tot, "L_likelihood": likelihood, "L_divergence": divergence}


@torch.no_grad()
def final_metrics(model, digits):
    """The final metrics of a model on all test images, of k-NN on the last 1000; and log p(x).

    Returns the two: a dict, and log p(x) of each of the last 1000 test images, [N], or None for a
    plain AutoEncoder.
    The figures differ a little from those in the log, which come from one sample of z for each
    image and from products in `matmul_precision`; here they are in full float32.
    """
    x_test = digits.x_test
    last_log_p_x = None
    results = {"test": elbo_terms(model, x_test, pairs=PAIRS)}
    if isinstance(model, VAE):
        generator = torch.Generator(x_test.device).manual_seed(0)
        # Grey pixels are no samples of a Bernoulli variable. So log p(x) is also given for
        # binarized images, in which a pixel is ink with its grey value as the probability.
        binarized = torch.bernoulli(x_test, generator=generator)
        # Both in one call, so that a GridVAE decodes its grid only once.
        both = model.log_likelihood(torch.cat([x_test, binarized]), generator=generator)
        of_grey, of_binarized = both.chunk(2)
        results["log_likelihood"] = of_grey.mean().item()
        results["log_likelihood_binarized"] = of_binarized.mean().item()
        last_log_p_x = of_grey[-len(digits.last_x_test) :]
    if isinstance(model, GridVAE):
        first_proposal = partial(model.encode, proposals=1)
        results["first_proposal"] = elbo_terms(model, x_test, first_proposal, PAIRS)
        laplace_posterior = model.make_grid().laplace_posterior
        results["laplace"] = elbo_terms(model, x_test, laplace_posterior, PAIRS)
    # Neighbours are searched among all training images, also those held out for validation.
    train_codes = torch.cat([model.codes(part) for part in digits.x_train.split(CODES_AT_ONCE)])
    last_codes = model.codes(digits.last_x_test)
    predicted = knn_predict(train_codes, digits.train_labels, last_codes, NEIGHBOURS)
    results["knn_accuracy"] = float((predicted == digits.last_test_labels).mean())
    results["knn_codes"] = len(predicted)
    return results, last_log_p_x


def format_epoch(epoch, entry, test_name):
    """The log line of an epoch. It begins as the assignment's log does:

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
    is_grid_vae = "laplace" in results
    if is_grid_vae:
        first_proposal = format_elbo(results["first_proposal"])
        lines.append(f"the encoder's first proposal alone {first_proposal}")
        above_laplace = results["test"]["L_tot"] - results["laplace"]["L_tot"]
        laplace = format_elbo(results["laplace"])
        lines.append(
            f"Laplace posterior {laplace} | the encoder's L_tot is {above_laplace:.2f} higher"
        )
    if "log_likelihood" in results:
        method = "quadrature" if is_grid_vae else "a lower bound, importance sampling"
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


# --- The command line -------------------------------------------------------------------------

PROJECT = Path(__file__).resolve().parent
MAX_INTEGER = 2**31 - 1  # of flags that have no other limit


# Each flag is kept on few lines.
# fmt: off
def parse_arguments(argv):
    parser = Parser(__doc__)
    add = parser.add_argument_group("files").add_argument
    add("--data", type=nonempty_path, metavar="PATH", default=MNIST,
        help="a folder of idx files or of a train and a test table, one table with a label and 784 "
        "pixels per line, or Keras's mnist.npz (default: the copy of MNIST in mnist)")
    add("--out", type=nonempty_path, metavar="DIR", default=PROJECT,
        help="folder for encoder.png, checkpoints/ and figures/ (default: the project's own)")
    # Flags of earlier versions: they end in an error that names the new one.
    for flag in ("--checkpoint", "--scatter", "--figures", "--no-figures"):
        add(flag, action=Replaced, help="--out DIR, the folder for all that a run writes")
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
    add("--device", default="auto", metavar="NAME",
        help="auto takes a CUDA GPU if one works; or cpu, cuda, cuda:1, mps ... (default auto)")
    add("--threads", type=between(int, 1, 1024), metavar="N", help="CPU threads (default: all)")
    add("--resume", action="store_true",
        help="continue an interrupted run; give the other flags as before")
    args = parser.parse_args(argv)
    if args.patience and not args.validation:
        raise InputError("--patience: needs held-out images; give --validation, say 5000")
    return args
# fmt: on


def settings_from(args, model):
    """The settings of this kind of model, changed as the flags say.

    Where the default depends on the kind of model, a flag that was not given is None.
    """
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


def output_files(folder, kind):
    """The path of each file that a run writes below a folder: {name: path}.

    The names are "checkpoint", "metrics", "resume", "scatter" and those in FIGURES. `kind`, "vae"
    or "ae", is that of --model.
    """
    files = {
        "checkpoint": folder / f"checkpoints/{kind}.safetensors",
        "metrics": folder / f"checkpoints/{kind}.json",
        "resume": folder / f"checkpoints/{kind}.resume.pt",
        "scatter": folder / "encoder.png",
    }
    for figure in FIGURES:
        files[figure] = folder / "figures" / figure
    return files


def try_out(kind, latent_dim, device):
    """Train and evaluate a model of this kind on a few images, to see what a device can do."""
    x = torch.rand(20, PIXELS, device=device)
    labels = np.zeros(20, int)
    digits = Digits(x, labels, x, labels, x_shown=x, test_name="test", checksums={})
    model = make_model(kind, latent_dim).to(device)
    settings = default_settings(model)
    optimizers = optimizers_for(model, settings)
    som_phase = SomPhase(x, settings) if settings.som_epochs else None
    with matmul_precision(settings.matmul_precision):
        train_epoch(model, optimizers, x, 0, settings, som_phase)
    take_snapshot(model, digits)
    final_metrics(model, digits)


def run_metadata(args, settings, digits):
    """What a run's files say of it: versions, and settings, which --resume must find unchanged."""
    return {
        "settings": {
            "model": args.model,
            "latent_dim": args.latent_dim,
            "epochs": settings.epochs,
            "validation": settings.validation,
            "seed": settings.seed,
            "batch_size": settings.batch_size,
            "lr": settings.lr,
            "data": digits.checksums,
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
