"""The variational auto-encoder, its exact log-likelihood, a plain auto-encoder, and checkpoints.

A Gaussian-latent, Bernoulli-likelihood VAE (Kingma & Welling, "Auto-Encoding Variational Bayes",
2014): prior p(z) = N(0, I), decoder p(x|z) = prod_i Bernoulli(x_i; sigmoid(decode(z)_i)), encoder
q(z|x) = N(mean(x), diag exp(logvar(x))). All likelihoods are in nats per image.
"""

import contextlib
import io
import itertools
import json
import math
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from data import InputError, write_files

PIXELS = 28 * 28
SIDE = 81  # nodes a side of the grid of codes, a multiple of TILES
TILES = 9  # a side, into which the plane is cut for quadrature
ENCODER_WIDTHS = (512, 512, 256)  # hidden layers, image side first
DECODER_WIDTHS = (256, 256, 256, 256, 512)  # hidden layers, code side first
BATCH = 1000  # images or codes at a time where memory, not speed, is at stake
CHECKPOINT_FORMAT = "mnist-auto-encoder-2"
LARGEST_FILE = 2**29  # bytes; a resume file of 784 latents has a tenth of it
LARGEST_PICKLE = 2**24  # bytes, without the tensors' values; 20 epochs need a thousandth of it
PICKLED_NAMES = {  # all that the tensors of our files need
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch ByteStorage",
    "collections OrderedDict",
}


class Layer(nn.Linear):
    """Linear, then GELU, with a skip connection where input and output sizes agree."""

    def forward(self, h):
        out = F.gelu(super().forward(h))
        return h + out if h.shape == out.shape else out


def mlp(*sizes):
    """Hidden layers of these sizes, the last a linear one."""
    layers = [Layer(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes[:-1])]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


class Decoder(nn.Module):
    """Codes [N, latent_dim] -> logits of the pixels' Bernoulli means, [N, 784].

    The MLP sees each latent variable's place among the quantiles of the prior, so that it
    has the same room for every share of the prior; and sines and cosines of it, as a plain MLP
    learns fine detail in few variables only slowly (Tancik et al. 2020, "Fourier features").
    """

    FREQUENCIES = (0.5, 1.0)

    def __init__(self, latent_dim, widths):
        super().__init__()
        self.latent_dim = latent_dim
        inputs = latent_dim * (1 + 2 * len(self.FREQUENCIES))
        self.net = mlp(inputs, *widths, PIXELS)
        # What `sample` draws from: the prior, until an AutoEncoder puts its own codes' spread here.
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("factor", torch.eye(latent_dim))

    def forward(self, z):
        place = 4 * torch.erf(z / math.sqrt(2))
        waves = [wave(f * place) for f in self.FREQUENCIES for wave in (torch.sin, torch.cos)]
        return self.net(torch.cat([place, *waves], dim=1))

    def sample(self, noise):
        """Codes from draws of N(0, I), both [N, latent_dim]."""
        return self.mean + noise @ self.factor.T


class Codebook(NamedTuple):
    """A grid of codes at quantiles of the prior, or part of one, and what the decoder makes of it.

    Each node stands for the same share of the prior, exp(log_share). `log_normaliser` holds all of
    log p(x|z) that does not depend on x.
    """

    codes: torch.Tensor  # [G, 2]
    logits: torch.Tensor  # [G, 784]
    log_normaliser: torch.Tensor  # [G]
    log_share: float

    def log_likelihood(self, x):
        """log p(x|z) in nats for images [N, 784] at every node: [N, G]."""
        return torch.addmm(self.log_normaliser, x, self.logits.T)

    def log_joint(self, x):
        """log p(x, z) in nats for images [N, 784] at every node: [N, G]."""
        return torch.addmm(self.log_normaliser + log_standard_normal(self.codes), x, self.logits.T)


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
        encoder_widths=ENCODER_WIDTHS,
        decoder_widths=DECODER_WIDTHS,
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
        self.encoder = None
        if encoder == "network":
            self.encoder = mlp(PIXELS, *encoder_widths, 2 * latent_dim)
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
            return self.encoder(x).chunk(2, dim=1)
        codebook = codebook or self.codebook()
        parts = [_fit_posterior(part, codebook) for part in x.split(BATCH)]
        mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
        return mean, variance.log()

    def codes(self, x, codebook=None):
        """The mean of q(z|x) as the code of each image: [N, latent_dim]; arguments as `encode`."""
        return self.encode(x, codebook)[0]

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

    def codebook(self, side=SIDE):
        """Decode a grid of side x side codes, each at the middle of an equal share of the prior."""
        quantiles = (torch.arange(side) + 0.5) / side
        return self._decoded(quantiles, quantiles, side)

    @torch.no_grad()
    def _decoded(self, rows, columns, side):
        """The part of a grid of side x side codes that lies at these quantiles of the prior."""
        device = next(self.parameters()).device
        codes = torch.special.ndtri(torch.cartesian_prod(rows, columns)).to(device)
        logits = torch.cat([self.decode(part) for part in codes.split(BATCH)])
        log_normaliser = torch.cat([-F.softplus(part).sum(1) for part in logits.split(BATCH)])
        return Codebook(codes, logits, log_normaliser, -2 * math.log(side))

    @torch.no_grad()
    def log_likelihood(self, x, side=4 * SIDE, samples=200):
        """log p(x) in nats per image, `[N]`, for images `[N, 784]` in [0, 1].

        With two latent variables the integral over the prior is done by quadrature on a grid of
        side x side codes, `side` being a multiple of 9; double it to see that it has converged.
        Otherwise `samples` importance samples from the encoder bound it from below (IWAE: Burda,
        Grosse & Salakhutdinov 2016, equation 8).
        """
        if self.latent_dim == 2:
            return self._integrate(x, side)
        return torch.cat([self._importance_sampled(part, samples) for part in x.split(BATCH)])

    def _integrate(self, x, side):
        """log p(x) by the midpoint rule, tile by tile, each for the images that it matters to.

        Over the prior's quantiles the integral is one over the unit square, and the decoder a
        smooth function of them. A tile is passed over for an image if a coarse grid stays 100 nats
        below that image's best there: far more than a peak that falls between its nodes can hide.
        """
        coarse = self.codebook()
        coarse_side = math.isqrt(len(coarse.codes))
        step, nodes = coarse_side // TILES, side // TILES
        highest = []
        for part in x.split(BATCH):
            grid = coarse.log_likelihood(part).view(-1, 1, coarse_side, coarse_side)
            highest.append(F.max_pool2d(grid, step + 2, step, padding=1)[:, 0])
        highest = torch.cat(highest)  # [N, TILES, TILES]
        matters = highest > highest.amax((1, 2), keepdim=True) - 100
        total = x.new_full((len(x),), -math.inf)
        inside = (torch.arange(nodes) + 0.5) / nodes
        for row, column in torch.cartesian_prod(*2 * [torch.arange(TILES)]):
            own = matters[:, row, column].nonzero()[:, 0]
            tile = self._decoded((row + inside) / TILES, (column + inside) / TILES, nodes * TILES)
            for images in own.split(BATCH):
                part = _logsumexp(tile.log_likelihood(x[images])) + tile.log_share
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


class AutoEncoder(nn.Module):
    """A deterministic auto-encoder: the VAE's encoder network and decoder, without a prior.

    Args:
        latent_dim, encoder_widths, decoder_widths: as for `VAE`.
    """

    def __init__(self, latent_dim=2, encoder_widths=ENCODER_WIDTHS, decoder_widths=DECODER_WIDTHS):
        super().__init__()
        self.config = {
            "latent_dim": latent_dim,
            "encoder_widths": list(encoder_widths),
            "decoder_widths": list(decoder_widths),
        }
        self.latent_dim = latent_dim
        self.encoder = mlp(PIXELS, *encoder_widths, latent_dim)
        self.decoder = Decoder(latent_dim, decoder_widths)

    def encode(self, x):
        """Codes [N, latent_dim] of images [N, 784] in [0, 1]."""
        return self.encoder(x)

    def decode(self, z):
        """Logits [N, 784] of the pixels for codes [N, latent_dim]; their sigmoid is the image."""
        return self.decoder(z)

    def codes(self, x, codebook=None):
        """As `encode`; a VAE's other argument is of no use here."""
        return self.encode(x)

    def elbo(self, x, codebook=None):
        """As the VAE's: minus the binary cross-entropy in nats, `[N]`, and a divergence of 0."""
        return log_bernoulli(x, self.decode(self.encode(x))), x.new_zeros(len(x))

    @torch.no_grad()
    def fit_samples(self, x):
        """Let the decoder sample from the Gaussian that fits the codes of these images [N, 784].

        Without a prior, most draws of N(0, I) would be codes that the decoder never met.
        """
        codes = torch.cat([self.encode(part) for part in x.split(BATCH)]).double()
        centred = codes - codes.mean(0)
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(x))
        self.decoder.mean.copy_(codes.mean(0))
        self.decoder.factor.copy_(axes * variances.clamp_min(0).sqrt())


MODELS = {"vae": VAE, "ae": AutoEncoder}  # as --model and checkpoints name them


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

    Laplace's approximation (MacKay 2003, chapter 27) by central differences: from the node with the
    highest log p(x, z), one Newton step to the peak. The factorised Gaussian closest to it keeps
    the diagonal of its precision (Bishop 2006, equation 10.12).
    """
    side = math.isqrt(len(codebook.codes))
    log_joint = codebook.log_joint(x)
    best = log_joint.max(1).indices
    best = torch.stack([best // side, best % side], 1)
    row, column = centre = best.clamp(1, side - 2).T
    offset = torch.arange(-1, 2, device=x.device)
    around = (row * side + column)[:, None] + (side * offset[:, None] + offset).flatten()
    (top_left, top, top_right), (left, middle, right), (bottom_left, bottom, bottom_right) = (
        log_joint.gather(1, around).T.unflatten(0, (3, 3))
    )
    rows = (2 * middle - top - bottom).clamp_min(1e-3)  # precision, per squared node
    columns = (2 * middle - left - right).clamp_min(1e-3)
    cross = (top_right + bottom_left - top_left - bottom_right) / 4
    limit = 0.9 * (rows * columns).sqrt()  # keeps the matrix positive definite
    cross = cross.clamp(-limit, limit)
    slope_rows, slope_columns = (bottom - top) / 2, (right - left) / 2
    determinant = rows * columns - cross.square()
    step_rows = (columns * slope_rows - cross * slope_columns) / determinant
    step_columns = (rows * slope_columns - cross * slope_rows) / determinant
    peak = centre.T + torch.stack([step_rows, step_columns], 1)
    peak = peak.clamp(best - 0.45, best + 0.45)  # the best node is the nearest
    mean = torch.special.ndtri((peak + 0.5) / side)
    slope = (0.5 * mean.square()).exp() * math.sqrt(2 * math.pi) / side  # of the mean, per node
    variance = slope.square() / torch.stack([rows, columns], 1)
    return mean, variance.clamp_max(1)  # no wider than the prior


def save_checkpoint(path, model, **metadata):
    """Write a VAE or an AutoEncoder to a file, and `metadata` (what JSON can hold).

    Raises:
        InputError: the file cannot be written.
    """
    write_files({path: checkpoint_bytes(model, **metadata)})


def checkpoint_bytes(model, **metadata):
    """What `save_checkpoint` writes."""
    return tensor_bytes(
        {
            "format": CHECKPOINT_FORMAT,
            "model": next(name for name, kind in MODELS.items() if isinstance(model, kind)),
            "config": model.config,
            "metadata": json.loads(json.dumps(metadata)),  # plain types: all weights_only reads
            "weights": {name: weight.cpu() for name, weight in model.state_dict().items()},
        }
    )


def tensor_bytes(contents):
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    return buffer.getvalue()


def load_checkpoint(path):
    """Rebuild the model that `save_checkpoint` wrote, on the CPU, in evaluation mode.

    What was saved beside the weights is in its `metadata`. No code in the file is ever run.

    Raises:
        InputError: the file is missing, damaged, or not such a checkpoint.
    """
    contents = read_checkpoint(path)
    with damage_reported(path):
        model = _build(MODELS[contents["model"]], contents["config"], contents["weights"])
        model.metadata = contents["metadata"]
    return model


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
    if Path(path).stat().st_size > LARGEST_FILE:
        raise InputError(f"{path}: is too large for a checkpoint; name another")
    with damage_reported(path):
        contents = load_tensors(Path(path).read_bytes())
        if contents["format"] != form:
            raise InputError(f"{path}: is not of the format {form}; auto_encoder.py makes one")
    return contents


def load_tensors(content):
    """What was given to `tensor_bytes`; raises nearly anything if it is not intact.

    PyTorch alone would read weights whose checksum is wrong, unpack compressed ones to any size,
    and let a file call more functions, such as bytearray, than our tensors need.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("compressed")
        if sum(record.file_size for record in records) > len(content):
            raise ValueError("records that overlap")
        if archive.testzip():
            raise ValueError("a wrong checksum")
        (pickled,) = (record for record in records if record.filename.endswith("data.pkl"))
        if pickled.file_size > LARGEST_PICKLE:
            raise ValueError("more than tensors")
        names = [
            name
            for operation, name, _ in pickletools.genops(archive.read(pickled))
            if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST")
        ]
    if not PICKLED_NAMES.issuperset(names):
        raise ValueError("names that need not be there")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


@contextlib.contextmanager
def damage_reported(path):
    """Report any error as an InputError: on damaged bytes the unpickler raises nearly anything."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error is enough
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
    widths = [width for name, sizes in config.items() if "widths" in name for width in sizes]
    sizes = [config["latent_dim"], *widths]
    if len(sizes) > 100 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("sizes that no model has")
    with torch.device("meta"):
        built = module(**config)
    for weight in weights.values():
        plain = weight.dtype == torch.float32 and weight.is_contiguous()
        if not plain or not weight.isfinite().all():
            raise ValueError("weights that no model has")
    built.load_state_dict(weights, assign=True)
    return built.eval()
