"""The variational auto-encoder, its exact log-likelihood, and its checkpoints.

A Gaussian-latent, Bernoulli-likelihood VAE (Kingma & Welling, "Auto-Encoding Variational Bayes",
2014): prior p(z) = N(0, I), decoder p(x|z) = prod_i Bernoulli(x_i; sigmoid(decode(z)_i)), encoder
q(z|x) = N(mean(x), diag exp(logvar(x))). All likelihoods are in nats per image.
"""

import contextlib
import io
import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from data import InputError, write_file

PIXELS = 28 * 28
RADIUS = 4.0  # of the grid of codes; 1.3e-4 of the prior's mass lies beyond
TILE = 1.0  # side of the squares into which the plane is cut for quadrature
BATCH = 1000  # images or codes at a time where memory, not speed, is at stake
CHECKPOINT_FORMAT = "mnist-vae-1"


class Layer(nn.Linear):
    """Linear, then GELU, with a skip connection where input and output sizes agree."""

    def forward(self, h):
        out = F.gelu(super().forward(h))
        return h + out if h.shape == out.shape else out


def mlp(*sizes):
    """Hidden layers of these sizes, the last a linear one."""
    layers = [Layer(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes[:-1])]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


class Encoder(nn.Module):
    """Images [N, 784] in [0, 1] -> mean and log-variance of q(z|x), each [N, latent_dim].

    In training it sees pixels drawn from Bernoulli(x): noise that narrows the train-test gap.
    """

    def __init__(self, latent_dim, widths):
        super().__init__()
        self.net = mlp(PIXELS, *widths, 2 * latent_dim)

    def forward(self, x):
        if self.training:
            x = torch.bernoulli(x)
        return self.net(x).chunk(2, dim=1)


class Decoder(nn.Module):
    """Codes [N, latent_dim] -> logits of the pixels' Bernoulli means, [N, 784].

    The MLP sees the code and its sines and cosines: a plain MLP learns fine detail in few
    variables only slowly (Tancik et al. 2020, "Fourier features").
    """

    FREQUENCIES = (0.5, 1.0)

    def __init__(self, latent_dim, widths):
        super().__init__()
        self.latent_dim = latent_dim
        inputs = latent_dim * (1 + 2 * len(self.FREQUENCIES))
        self.net = mlp(inputs, *widths, PIXELS)

    def forward(self, z):
        waves = [wave(f * z) for f in self.FREQUENCIES for wave in (torch.sin, torch.cos)]
        return self.net(torch.cat([z, *waves], dim=1))


class Codebook(NamedTuple):
    """A square grid of codes and what the decoder makes of each, G nodes a side.

    `log_weight` holds all of log p(x, z) that does not depend on x, and the area of a node's cell,
    so that `x @ logits.T + log_weight` is log p(x, z) dz, and its logsumexp over the nodes is
    log p(x) of these nodes.
    """

    logits: torch.Tensor  # [G * G, 784]
    log_weight: torch.Tensor  # [G * G]
    side: int  # G
    spacing: float

    def log_joint(self, x):
        """log p(x, z) dz in nats for images [N, 784] at every node: [N, G * G]."""
        return torch.addmm(self.log_weight, x, self.logits.T)


class VAE(nn.Module):
    """The variational auto-encoder.

    Two kinds of encoder give q(z|x). "network" is the usual one, an MLP trained with the decoder.
    "exact", for two latent variables, has no weights of its own: it applies Bayes' rule to a
    codebook of decoded codes and fits a Gaussian to the posterior around its highest peak. That is
    variational EM (Neal & Hinton 1998) with an E-step that finds the right mode for every image,
    where a network sends the ambiguous ones to wrong places.

    Args:
        latent_dim: number of latent variables.
        encoder: "exact" or "network"; by default "exact" where it can be, for latent_dim 2.
        encoder_widths: sizes of the encoder network's hidden layers, image side first.
        decoder_widths: sizes of the decoder's hidden layers, code side first.
    """

    def __init__(
        self,
        latent_dim=2,
        encoder=None,
        encoder_widths=(512, 512, 256),
        decoder_widths=(256, 256, 256, 256, 512),
    ):
        super().__init__()
        encoder = encoder or ("exact" if latent_dim == 2 else "network")
        if encoder == "exact" and latent_dim != 2:
            raise ValueError(f"the exact encoder needs 2 latent variables, not {latent_dim}")
        self.config = {
            "latent_dim": latent_dim,
            "encoder": encoder,
            "encoder_widths": list(encoder_widths),
            "decoder_widths": list(decoder_widths),
        }
        self.latent_dim = latent_dim
        self.encoder = Encoder(latent_dim, encoder_widths) if encoder == "network" else None
        self.decoder = Decoder(latent_dim, decoder_widths)

    def decode(self, z):
        """Logits [N, 784] of the pixels for codes [N, latent_dim]; their sigmoid is the image."""
        return self.decoder(z)

    def encode(self, x, codebook=None):
        """The approximate posterior q(z|x) = N(mean, diag exp(logvar)).

        Args:
            x: images, float32 `[N, 784]` in [0, 1].
            codebook: for the exact encoder, a codebook to use again instead of a fresh one.

        Returns:
            mean, logvar: `[N, latent_dim]` each. The exact encoder's carry no gradient.
        """
        if self.encoder is not None:
            return self.encoder(x)
        codebook = codebook or self.codebook()
        parts = [_fit_posterior(part, codebook) for part in x.split(BATCH)]
        mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
        return mean, variance.log()

    def elbo(self, x, codebook=None):
        """The two terms of the evidence lower bound, with one sample of q(z|x) per image.

        Kingma & Welling (2014), equation 10; L_tot = divergence - likelihood.

        Args:
            x, codebook: as for `encode`.

        Returns:
            likelihood: E_q[log p(x|z)], nats per image, `[N]`.
            divergence: KL(q(z|x) || p(z)), nats per image, in closed form (appendix B), `[N]`.
        """
        mean, logvar = self.encode(x, codebook)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)
        return log_bernoulli(x, self.decode(z)), divergence

    @torch.no_grad()
    def codebook(self, spacing=0.1):
        """Decode a grid of codes `spacing` apart, from -RADIUS to RADIUS in both directions."""
        side = 2 * round(RADIUS / spacing) + 1
        device = next(self.parameters()).device
        axis = spacing * (torch.arange(side, device=device) - side // 2)
        return self._decoded(torch.cartesian_prod(axis, axis), spacing)

    def _decoded(self, codes, spacing):
        logits = torch.cat([self.decode(part) for part in codes.split(BATCH)])
        log_weight = torch.cat([-F.softplus(part).sum(1) for part in logits.split(BATCH)])
        log_weight += log_standard_normal(codes) + 2 * math.log(spacing)
        return Codebook(logits, log_weight, math.isqrt(len(codes)), spacing)

    @torch.no_grad()
    def log_likelihood(self, x, spacing=0.025, samples=200):
        """log p(x) in nats per image, `[N]`, for images `[N, 784]` in [0, 1].

        With two latent variables the integral over the prior is done by quadrature on a grid of
        codes `spacing` apart; halve it to see that it has converged. Otherwise `samples`
        importance samples from the encoder bound it from below (IWAE: Burda, Grosse &
        Salakhutdinov 2016, equation 8).
        """
        if self.latent_dim == 2:
            return self._integrate(x, spacing)
        return torch.cat([self._importance_sampled(part, samples) for part in x.split(BATCH)])

    def _integrate(self, x, spacing):
        """log p(x) by the midpoint rule, tile by tile, each for the images that it matters to.

        The error for a smooth function that vanishes at the border falls exponentially with the
        spacing (Trefethen & Weideman, SIAM Review 2014). A tile is passed over for an image if a
        coarse grid stays 100 nats below that image's best there: far more than a peak that falls
        between its nodes can hide.
        """
        coarse = self.codebook()
        step = round(TILE / coarse.spacing)
        highest = torch.cat(
            [
                F.max_pool2d(
                    coarse.log_joint(part).view(-1, 1, coarse.side, coarse.side), step + 1, step
                )
                for part in x.split(BATCH)
            ]
        )  # [N, 1, tiles, tiles]
        matters = (highest > highest.amax((2, 3), keepdim=True) - 100)[:, 0]
        total = x.new_full((len(x),), -math.inf)
        nodes = round(TILE / spacing)
        inside = TILE * (torch.arange(nodes, device=x.device) + 0.5) / nodes
        for row, column in torch.cartesian_prod(*2 * [torch.arange(matters.shape[1])]):
            own = matters[:, row, column].nonzero()[:, 0]
            codes = torch.cartesian_prod(row * TILE + inside, column * TILE + inside) - RADIUS
            tile = self._decoded(codes, TILE / nodes)
            for images in own.split(BATCH):
                part = _logsumexp(tile.log_joint(x[images]))
                total[images] = total[images].logaddexp(part)
        return total

    def _importance_sampled(self, x, samples):
        mean, logvar = self.encode(x)
        log_ratios = []
        for _ in range(samples):
            noise = torch.randn_like(mean)
            z = mean + (0.5 * logvar).exp() * noise
            log_q = log_standard_normal(noise) - 0.5 * logvar.sum(1)
            log_ratios.append(log_bernoulli(x, self.decode(z)) + log_standard_normal(z) - log_q)
        return torch.stack(log_ratios).logsumexp(0) - math.log(samples)


def log_bernoulli(x, logits):
    """log p(x|z) in nats, [N], of images [N, 784] in [0, 1] under logits [N, 784]."""
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def log_standard_normal(z):
    """log N(z; 0, I) in nats, [N], of codes [N, d]."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


def _logsumexp(values):
    """As values.logsumexp(1), but 4 times as fast where most terms underflow, as they do here."""
    return values[:, 0] - values.log_softmax(1)[:, 0]


@torch.no_grad()
def _fit_posterior(x, codebook):
    """The Gaussian at the posterior's highest peak: mean and variance, [N, 2] each.

    Laplace's approximation (MacKay 2003, chapter 27) by central differences: from the node with
    the highest log p(x, z), one Newton step to the peak. The factorised Gaussian closest to it
    keeps the diagonal of its precision (Bishop 2006, equation 10.12).
    """
    side, spacing = codebook.side, codebook.spacing
    log_joint = codebook.log_joint(x)
    node = log_joint.max(1).indices
    row, column = (node // side).clamp(1, side - 2), (node % side).clamp(1, side - 2)
    offset = torch.arange(-1, 2, device=x.device)
    around = (row * side + column)[:, None] + (side * offset[:, None] + offset).flatten()
    (top_left, top, top_right), (left, centre, right), (bottom_left, bottom, bottom_right) = (
        log_joint.gather(1, around).T.unflatten(0, (3, 3))
    )
    # Precision per squared node; it includes the prior's, which is spacing^2.
    rows = (2 * centre - top - bottom).clamp_min(spacing**2)
    columns = (2 * centre - left - right).clamp_min(spacing**2)
    cross = (top_right + bottom_left - top_left - bottom_right) / 4
    limit = 0.9 * (rows * columns).sqrt()  # keeps the matrix positive definite
    cross = cross.clamp(-limit, limit)
    slope_rows, slope_columns = (bottom - top) / 2, (right - left) / 2
    determinant = rows * columns - cross.square()
    step_rows = (columns * slope_rows - cross * slope_columns) / determinant
    step_columns = (rows * slope_columns - cross * slope_rows) / determinant
    step = torch.stack([step_rows, step_columns], 1).clamp(-0.6, 0.6)  # the node is the nearest
    peak = torch.stack([row, column], 1) + step
    variance = spacing**2 / torch.stack([rows, columns], 1)
    return (peak - side // 2) * spacing, variance


def save_checkpoint(path, vae, **metadata):
    """Write a VAE's weights, its sizes and `metadata` (what JSON can hold).

    Raises:
        InputError: the file cannot be written.
    """
    contents = {
        "format": CHECKPOINT_FORMAT,
        "config": vae.config,
        "metadata": json.loads(json.dumps(metadata)),  # plain types: all that weights_only reads
        "weights": {name: weight.cpu() for name, weight in vae.state_dict().items()},
    }
    write_tensors(path, contents)


def write_tensors(path, contents):
    """torch.save, but whole or not at all; raises InputError if the file cannot be written."""
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path):
    """Rebuild the VAE that `save_checkpoint` wrote, on the CPU, in evaluation mode.

    What was saved beside the weights is in its `metadata`. No code in the file is ever run.

    Raises:
        InputError: the file is missing, damaged, or not such a checkpoint.
    """
    contents = read_checkpoint(path)
    with damage_reported(path):
        vae = _build(VAE, contents["config"], contents["weights"])
        vae.metadata = contents["metadata"]
    return vae


def load_decoder(path):
    """As `load_checkpoint`, but build the `Decoder` alone."""
    contents = read_checkpoint(path)
    with damage_reported(path):
        config = contents["config"]
        sizes = {"latent_dim": config["latent_dim"], "widths": config["decoder_widths"]}
        weights = {
            name.removeprefix("decoder."): weight
            for name, weight in contents["weights"].items()
            if name.startswith("decoder.")
        }
        return _build(Decoder, sizes, weights)


def read_checkpoint(path, form=CHECKPOINT_FORMAT):
    """Read a file of ours as a dict, refusing any other.

    Raises:
        InputError: the file is missing, damaged, or of another format.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; auto_encoder.py makes one")
    with damage_reported(path):
        contents = torch.load(path, map_location="cpu", weights_only=True)
        if contents["format"] != form:
            raise InputError(f"{path}: of another format ({contents['format']!r}, not {form!r})")
    return contents


@contextlib.contextmanager
def damage_reported(path):
    """Report any error as an InputError: on damaged bytes the unpickler raises nearly anything."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: not a checkpoint, or damaged ({type(error).__name__}); "
            "auto_encoder.py makes a new one"
        ) from error


def _build(module, config, weights):
    """Construct a module without memory for its weights, then give it those that were read."""
    with torch.device("meta"):  # so that sizes in a damaged file cannot exhaust the memory
        built = module(**config)
    built.load_state_dict(weights, assign=True)
    return built.float().eval()
