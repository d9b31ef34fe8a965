"""The variational auto-encoder, a plain auto-encoder, and their checkpoints.

A Gaussian-latent, Bernoulli-likelihood VAE (Kingma & Welling, "Auto-Encoding Variational Bayes",
2014): prior p(z) = N(0, I), decoder p(x|z) = prod_i Bernoulli(x_i; sigmoid(decode(z)_i)), encoder
q(z|x) = N(mean(x), diag exp(logvar(x))). All likelihoods are in nats per image.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

from exact import BATCH, SIDE, decode_plane, fit_posterior, integrate, log_standard_normal
from files import PROJECT
from tensor_files import damage_reported, read_tensors, tensor_bytes

PIXELS = 28 * 28
WIDE = (512, 512, 256)  # the encoder's hidden layers, image side first
DEEP = (256, 256, 256, 256, 512)  # the decoder's hidden layers, code side first
SHIPPED = PROJECT / "checkpoints/vae.safetensors"
CHECKPOINT_FORMAT = "mnist-auto-encoder-3"


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


def draw_noise(count, latent_dim, seed, draws):
    """Samples of N(0, I), [count, latent_dim].

    "even" sends the points of a scrambled Sobol sequence (Matousek 1998) through the inverse of the
    normal distribution function: each is a sample of N(0, I), but together they are spread evenly.
    """
    if draws == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, latent_dim, generator=generator)
    quantiles = torch.quasirandom.SobolEngine(latent_dim, scramble=True, seed=seed).draw(count)
    return torch.special.ndtri(quantiles.clamp(1e-6, 1 - 1e-6))  # at 0 and 1 it is infinite


class VAE(nn.Module):
    """The variational auto-encoder.

    Two kinds of encoder give q(z|x). "network" is the usual one, an MLP trained with the decoder.
    "exact", for two latent variables, has no weights of its own: it fits a Gaussian to the exact
    posterior. That is variational EM (Neal & Hinton 1998) with an E-step that finds the right mode
    for every image, where a network sends the ambiguous ones to wrong places.

    By default the encoder is "exact" where it can be, for a `latent_dim` of 2.
    """

    def __init__(self, latent_dim=2, encoder=None, encoder_widths=WIDE, decoder_widths=DEEP):
        super().__init__()
        encoder = encoder or ("exact" if latent_dim == 2 else "network")
        if encoder == "exact" and latent_dim != 2:
            raise ValueError(f"the exact encoder needs 2 latent variables, not {latent_dim}")
        widths = {"encoder_widths": list(encoder_widths), "decoder_widths": list(decoder_widths)}
        self.config = {"latent_dim": latent_dim, "encoder": encoder, **widths}
        self.latent_dim = latent_dim
        self.encoder = None
        if encoder == "network":
            self.encoder = mlp(PIXELS, *encoder_widths, 2 * latent_dim)
        self.decoder = Decoder(latent_dim, decoder_widths)
        self._codebook = None

    def train(self, mode=True):
        """As every module's; and the exact encoder then decodes its grid of codes anew."""
        self._codebook = None
        return super().train(mode)

    def encode(self, x):
        """The mean and logvar, [N, latent_dim] each, of q(z|x) for images [N, 784] in [0, 1].

        The exact encoder's carry no gradient. It keeps its codebook until the next `train()` or
        `eval()`: call one of them after a change of the weights.
        """
        if self.encoder is not None:
            return self.encoder(x).chunk(2, dim=1)
        self._codebook = self._codebook or decode_plane(self.decoder)
        parts = [fit_posterior(part, self._codebook) for part in x.split(BATCH)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def codes(self, x):
        """The mean of q(z|x) as the code of each image: [N, latent_dim]."""
        return self.encode(x)[0]

    def decode(self, z):
        """Logits [N, 784] of the pixels for codes [N, latent_dim]; their sigmoid is the image."""
        return self.decoder(z)

    def elbo(self, x):
        """The two terms of the evidence lower bound of images [N, 784], with a sample of q(z|x).

        Kingma & Welling (2014), equation 10; L_tot = divergence - likelihood.
        They are the likelihood E_q[log p(x|z)] and the divergence KL(q(z|x) || p(z)), in closed
        form (appendix B): nats per image, [N] each.
        """
        mean, logvar = self.encode(x)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)
        return log_bernoulli(x, self.decode(z)), divergence

    @torch.no_grad()
    def log_likelihood(self, x, side=4 * SIDE, samples=200):
        """log p(x) in nats per image, `[N]`, for images `[N, 784]` in [0, 1].

        With two latent variables the integral over the prior is done by quadrature on a grid of
        side x side codes, `side` being a multiple of 9; double it to see that it has converged.
        Otherwise `samples` importance samples from the encoder bound it from below (IWAE: Burda,
        Grosse & Salakhutdinov 2016, equation 8).
        """
        if self.latent_dim == 2:
            return integrate(self.decoder, x, side)
        return torch.cat([self._importance_sampled(part, samples) for part in x.split(BATCH)])

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
    """A deterministic auto-encoder: the VAE's encoder network and decoder, without a prior."""

    def __init__(self, latent_dim=2, encoder_widths=WIDE, decoder_widths=DEEP):
        super().__init__()
        widths = {"encoder_widths": list(encoder_widths), "decoder_widths": list(decoder_widths)}
        self.config = {"latent_dim": latent_dim, **widths}
        self.latent_dim = latent_dim
        self.encoder = mlp(PIXELS, *encoder_widths, latent_dim)
        self.decoder = Decoder(latent_dim, decoder_widths)

    def encode(self, x):
        """Codes [N, latent_dim] of images [N, 784] in [0, 1]."""
        return self.encoder(x)

    codes = encode

    def decode(self, z):
        """Logits [N, 784] of the pixels for codes [N, latent_dim]; their sigmoid is the image."""
        return self.decoder(z)

    def elbo(self, x):
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


def encoder_kind(model):
    """The model's encoder as --encoder names it: "exact" or "network"."""
    return "exact" if model.encoder is None else "network"


def checkpoint_bytes(model, **metadata):
    """A VAE or an AutoEncoder as a file for `load_checkpoint`, with JSON-like `metadata`."""
    kind = next(name for name, kind in MODELS.items() if isinstance(model, kind))
    contents = {"model": kind, "config": model.config, "metadata": metadata}
    return tensor_bytes(CHECKPOINT_FORMAT, model.state_dict(), contents)


def load_checkpoint(path):
    """Rebuild the model of `checkpoint_bytes`, on the CPU, in evaluation mode, with its metadata.

    Raises:
        InputError: the file is missing, damaged, or not such a checkpoint.
    """
    weights, contents = read_tensors(path, CHECKPOINT_FORMAT)
    with damage_reported(path):
        config = contents["config"]
        sizes = [config["latent_dim"], *config["encoder_widths"], *config["decoder_widths"]]
        if len(sizes) > 100 or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError("sizes that no model has")
        with torch.device("meta"):  # no memory for weights that are replaced at once
            model = MODELS[contents["model"]](**config)
        model.load_state_dict(weights, assign=True)
        model.metadata = contents["metadata"]
    return model.eval()
