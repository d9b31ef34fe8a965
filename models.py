"""The auto-encoders and their checkpoints.

    AutoEncoder     two networks: image -> code -> image
    VAE             a variational auto-encoder (Kingma & Welling 2014), any number of latents
    GridVAE         the default: a VAE with two latents, few enough for Bayes' rule on a grid

In a VAE p(z) = N(0, I) is the prior of a code, p(x|z) = prod_i Bernoulli(x_i; sigmoid(decode(z)_i))
is the decoder, and q(z|x) = N(mean, variance) is the encoder. All quantities are in nats per image.
"""

import itertools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lib import checkpoints, latent_grid
from lib.errors import explained
from lib.latent_grid import log_standard_normal

PIXELS = 28 * 28
SHIPPED = Path(__file__).resolve().parent / "checkpoints/vae.safetensors"
CHECKPOINT_FORMAT = "mnist-auto-encoder-6"
RETRAIN = "auto_encoder.py makes a new one"

# Widths of the hidden layers, in the order in which they are computed.
DECODER_WIDTHS = (256, 256, 256, 256, 512)
ENCODER_WIDTHS = (512, 512, 256)
REGION_ENCODER_WIDTHS = (256, 256, 256, 256)

BATCH_SIZE = 1000  # images at a time where gradients are not needed, so that memory is bounded


# --- Networks ---------------------------------------------------------------------------------


class InputLayer(nn.Linear):
    """A network's first layer: linear, then GELU."""

    def forward(self, h):
        return F.gelu(super().forward(h))


class HiddenLayer(nn.Linear):
    """Linear, then GELU, with a skip connection if the output is as wide as the input."""

    def forward(self, h):
        out = F.gelu(super().forward(h))
        if self.in_features == self.out_features:
            return h + out
        return out


def hidden_layers(inputs, widths):
    """A network [N, inputs] -> [N, widths[-1]] of an InputLayer and HiddenLayers."""
    layers = [InputLayer(inputs, widths[0])]
    for narrower, wider in itertools.pairwise(widths):
        layers.append(HiddenLayer(narrower, wider))
    return nn.Sequential(*layers)


def mlp(inputs, widths, outputs):
    """A multilayer perceptron [N, inputs] -> [N, outputs]: hidden layers, then a linear one."""
    return hidden_layers(inputs, widths).append(nn.Linear(widths[-1], outputs))


def encoder_body(widths):
    """All but the last layer of any encoder: images [N, 784] -> features [N, widths[-1]]."""
    return hidden_layers(PIXELS, widths)


class Decoder(nn.Module):
    """Codes [N, latent_dim] -> logits of the pixels' Bernoulli means, [N, 784].

    The MLP sees a code's quantiles, so that it has the same room for every share of the prior, and
    their sines and cosines, to learn fine detail (Tancik et al. 2020, "Fourier features").
    """

    # Quantiles are stretched from (-1, 1) to (-4, 4). Sines and cosines of half of that and of all
    # of it go through 0.6 and 1.3 periods. benchmarks/ablation.py shows what they are worth.
    STRETCH = 4
    FREQUENCIES = (0.5, 1.0)

    def __init__(self, latent_dim, widths):
        super().__init__()
        self.latent_dim = latent_dim
        features = latent_dim * (1 + 2 * len(self.FREQUENCIES))
        self.net = mlp(features, widths, PIXELS)
        # What `sample` draws from: the prior, until an AutoEncoder puts its own codes' spread here.
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("factor", torch.eye(latent_dim))

    def forward(self, z):
        return self.net(self.features(z))

    def features(self, z):
        """What the MLP sees of codes [N, latent_dim]: [N, 5 * latent_dim]."""
        quantiles = self.STRETCH * torch.erf(z / math.sqrt(2))  # erf: ndtr, from -1 to 1
        features = [quantiles]
        for frequency in self.FREQUENCIES:
            features.append(torch.sin(frequency * quantiles))
            features.append(torch.cos(frequency * quantiles))
        return torch.cat(features, dim=1)

    def sample(self, noise):
        """Codes from draws of N(0, I), both [N, latent_dim]."""
        return self.mean + noise @ self.factor.T


class RegionEncoder(nn.Module):
    """Images [N, 784] -> the Gaussian q(z|x): mean and logvar side by side, [N, 4].

    A posterior may have several peaks, and a regression would predict their mean. So the network
    first classifies: which of regions x regions equal shares of the prior? Then a small matrix of
    that region's own gives the Gaussian, relative to the region's centre and width.
    """

    # At the start of training a Gaussian's deviation is exp(-3 / 2) = 0.22 of its region's width,
    # so that it lies inside, and its mean is at the centre: matrices near 0 give shifts near 0.
    INITIAL_LOGVAR = -3
    INITIAL_MATRIX_STD = 0.02

    def __init__(self, widths, regions, readout):
        super().__init__()
        self.regions = regions  # per side of the plane
        self.body = encoder_body(widths)
        self.region = nn.Linear(widths[-1], regions**2)
        self.readout = HiddenLayer(widths[-1], readout)
        # An embedding, as the gradient of plain indexing depends on the number of threads.
        numbers = 4 * (readout + 1)  # mean and logvar from the readout and a constant
        self.matrices = nn.Embedding(regions**2, numbers)
        nn.init.normal_(self.matrices.weight, std=self.INITIAL_MATRIX_STD)

    def forward(self, x):
        features = self.body(x)
        likeliest = self.region(features).argmax(1)
        return self.gaussian(features, likeliest)

    def gaussian(self, features, region):
        """The Gaussian inside given regions [N], from features: [N, 4]."""
        row_and_column = torch.stack([region // self.regions, region % self.regions], 1)
        centre = torch.special.ndtri((row_and_column + 0.5) / self.regions)
        width = latent_grid.cell_width(centre, self.regions)

        readout = self.readout(features)
        readout = F.pad(readout, (0, 1), value=1.0)  # the constant
        matrices = self.matrices(region).view(len(region), 4, -1)
        shift, logvar = (matrices @ readout[:, :, None])[:, :, 0].chunk(2, dim=1)

        mean = centre + width * shift
        logvar = 2 * width.log() + self.INITIAL_LOGVAR + logvar
        return torch.cat([mean, logvar], 1)


# --- Models -----------------------------------------------------------------------------------


class AutoEncoder(nn.Module):
    """A deterministic auto-encoder: `latent_dim` numbers make a code, and there is no prior."""

    def __init__(self, latent_dim=2, encoder_widths=ENCODER_WIDTHS, decoder_widths=DECODER_WIDTHS):
        super().__init__()
        self.config = {  # what the constructor needs to build the same architecture
            "latent_dim": latent_dim,
            "encoder_widths": list(encoder_widths),
            "decoder_widths": list(decoder_widths),
        }
        self.latent_dim = latent_dim
        self.encoder = self.make_encoder(encoder_widths)
        self.decoder = self.make_decoder(decoder_widths)

    def make_encoder(self, widths):
        return encoder_body(widths).append(nn.Linear(widths[-1], self.latent_dim))

    def make_decoder(self, widths):
        return Decoder(self.latent_dim, widths)

    def codes(self, x):
        """The codes [N, latent_dim] of images [N, 784] in [0, 1]."""
        return self.encoder(x)

    def decode(self, z):
        """Logits [N, 784] of the pixels for codes [N, latent_dim]; their sigmoid is the image."""
        return self.decoder(z)

    def elbo(self, x, generator=None):
        """As the VAE's: minus the binary cross-entropy in nats, `[N]`, and a divergence of 0."""
        return log_bernoulli(x, self.decode(self.codes(x))), x.new_zeros(len(x))

    @torch.no_grad()
    def fit_sampler(self, x):
        """As there is no prior, let the decoder sample from the Gaussian that fits x's codes."""
        codes = torch.cat([self.codes(part) for part in x.split(BATCH_SIZE)]).double()
        centred = codes - codes.mean(0)
        covariance = centred.T @ centred / len(x)
        # nan_to_num: a loss that is not finite is reported by those who watch it.
        variances, axes = torch.linalg.eigh(covariance.nan_to_num())
        self.decoder.mean.copy_(codes.mean(0))
        self.decoder.factor.copy_(axes * variances.clamp_min(0).sqrt())


class VAE(AutoEncoder):
    """The variational auto-encoder (Kingma & Welling 2014), for any number of latents."""

    def make_encoder(self, widths):
        return encoder_body(widths).append(nn.Linear(widths[-1], 2 * self.latent_dim))

    def encode(self, x):
        """The mean and logvar, [N, latent_dim] each, of q(z|x) for images [N, 784] in [0, 1]."""
        return self.encoder(x).chunk(2, dim=1)

    def codes(self, x):
        """The mean of q(z|x) as the code of each image: [N, latent_dim]."""
        return self.encode(x)[0]

    def elbo(self, x, q=None, generator=None):
        """The two terms of the evidence lower bound of images [N, 784], with one sample of q(z|x).

        The likelihood E_q[log p(x|z)] and the divergence KL(q(z|x) || p(z)), nats, [N] each (Kingma
        & Welling 2014, equation 10); L_tot = divergence - likelihood. `q`, a mean and logvar,
        stands in for those of `encode`. `generator` is PyTorch's own if there is none.
        """
        mean, logvar = self.encode(x) if q is None else q
        z = reparameterize(mean, logvar, standard_normal_like(mean, generator))
        return log_bernoulli(x, self.decode(z)), kl_divergence(mean, logvar)

    def fit_sampler(self, x):
        """Nothing to fit: the decoder samples from the prior."""

    @torch.no_grad()
    def log_likelihood(self, x, samples=200, generator=None):
        """A lower bound on log p(x) in nats, [N], for images [N, 784] in [0, 1].

        From `samples` importance samples of the encoder: the log of the mean of p(x, z) / q(z|x)
        (IWAE: Burda, Grosse & Salakhutdinov 2016, equation 8).
        """
        parts = [self._importance_sampled(part, samples, generator) for part in x.split(BATCH_SIZE)]
        return torch.cat(parts)

    def _importance_sampled(self, x, samples, generator):
        mean, logvar = self.encode(x)
        log_weights = []
        for _ in range(samples):
            noise = standard_normal_like(mean, generator)
            z = reparameterize(mean, logvar, noise)
            # q(z|x) dz = N(noise; 0, I) dnoise, and dz = exp(logvar / 2) dnoise
            log_q = log_standard_normal(noise) - 0.5 * logvar.sum(1)
            log_joint = log_bernoulli(x, self.decode(z)) + log_standard_normal(z)
            log_weights.append(log_joint - log_q)
        return torch.stack(log_weights).logsumexp(0) - math.log(samples)


class GridVAE(VAE):
    """A VAE with two latents, so few that Bayes' rule can be computed on a grid of codes.

    The grid posterior teaches its `RegionEncoder`, and log p(x) is an integral over the plane.
    Raises ValueError: the grid cannot be cut into the regions.
    """

    def __init__(
        self,
        encoder_widths=REGION_ENCODER_WIDTHS,
        decoder_widths=DECODER_WIDTHS,
        regions=27,  # per side, of the encoder; chosen on the validation split (ablation.py)
        readout=64,  # features that place a Gaussian in its region
        grid_side=81,  # nodes per side; as good as 101, and faster
    ):
        if grid_side % regions:
            raise ValueError(f"grid_side {grid_side} is not a multiple of regions {regions}")
        self.regions = regions  # before super().__init__, which calls make_encoder
        self.readout = readout
        super().__init__(2, encoder_widths, decoder_widths)
        self.grid_side = grid_side
        del self.config["latent_dim"]  # always 2
        self.config.update(regions=regions, readout=readout, grid_side=grid_side)

    def make_encoder(self, widths):
        return RegionEncoder(widths, self.regions, self.readout)

    def latent_grid(self, side=None):
        """The decoder's `LatentGrid`, by default of grid_side x grid_side codes."""
        if side is None:
            side = self.grid_side
        device = next(self.parameters()).device
        return latent_grid.square_grid(self.decoder, side, device)

    def laplace_posterior(self, x):
        """As `encode`, by Bayes' rule instead of the encoder: Laplace's method on the grid."""
        return self.latent_grid().laplace_posterior(x)

    @torch.no_grad()
    def log_likelihood(self, x, side=324, generator=None):
        """log p(x) in nats, [N], for images [N, 784] in [0, 1], by quadrature: no sampling.

        On side x side codes, `side` a multiple of 9; benchmarks/quadrature.py shows that 324 are
        enough.
        """
        return latent_grid.log_marginal_likelihood(self.decoder, x, side)


def make_model(kind, latent_dim):
    """A new model of `kind`, "vae" or "ae". The one place that chooses the two-latent algorithm."""
    if kind == "ae":
        return AutoEncoder(latent_dim)
    if latent_dim == 2:
        return GridVAE()
    return VAE(latent_dim)


# --- Probabilities ----------------------------------------------------------------------------


def log_bernoulli(x, logits):
    """log p(x|z) in nats, [N], of images [N, 784] in [0, 1] under logits [N, 784]."""
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def kl_divergence(mean, logvar):
    """KL(N(mean, exp(logvar)) || N(0, I)) in nats, [N] (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)


def reparameterize(mean, logvar, noise):
    """A sample of N(mean, exp(logvar)) from one of N(0, I), with a gradient: all [N, d]."""
    return mean + (0.5 * logvar).exp() * noise


def standard_normal_like(tensor, generator=None):
    """A sample of N(0, I) of the shape, type and device of a tensor."""
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)


@torch.no_grad()
def decode_images(decoder, codes):
    """The images, [N, 784] in [0, 1], of codes [N, latent_dim]; both are float32 arrays."""
    device = next(decoder.parameters()).device
    logits = decoder(torch.from_numpy(codes).to(device))
    return logits.sigmoid().cpu().numpy()


def draw_noise(count, latent_dim, seed, draws):
    """Samples of N(0, I), [count, latent_dim], "even" or "random" ones.

    "random" ones are independent. "even" ones are quantiles at a scrambled Sobol sequence (Matousek
    1998), which together leave no gaps.
    """
    if draws == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, latent_dim, generator=generator)
    quantiles = torch.quasirandom.SobolEngine(latent_dim, scramble=True, seed=seed).draw(count)
    return torch.special.ndtri(quantiles.clamp(1e-6, 1 - 1e-6))  # at 0 and 1 it is infinite


# --- Checkpoints ------------------------------------------------------------------------------

MODELS = {model.__name__: model for model in (AutoEncoder, VAE, GridVAE)}


def checkpoint_bytes(model, **metadata):
    """A model as a file for `load_checkpoint`, with JSON-like `metadata`."""
    contents = {"model": type(model).__name__, "config": model.config, "metadata": metadata}
    return checkpoints.file_bytes(CHECKPOINT_FORMAT, model.state_dict(), contents)


def load_checkpoint(path):
    """The model of `checkpoint_bytes`, with its `metadata`.

    Raises InputError: there is no such file, it is damaged, or its architecture is not one of
    those here, say as it was saved before a network was changed.
    """
    weights, contents = checkpoints.read_file(path, CHECKPOINT_FORMAT, RETRAIN)
    with explained(path, "is of another architecture than models.py has", RETRAIN):
        config = contents["config"]
        if len(config["encoder_widths"]) + len(config["decoder_widths"]) > len(weights):
            raise ValueError("more layers than weights")
        with torch.device("meta"):  # takes no memory, whatever sizes the file claims
            model = MODELS[contents["model"]](**config)
        model.load_state_dict(weights, assign=True)
        model.metadata = contents["metadata"]
    return model.eval()
