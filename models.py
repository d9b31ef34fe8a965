"""The auto-encoders and their checkpoints.

    AutoEncoder     two networks: image -> code -> image
    VAE             a variational auto-encoder (Kingma & Welling 2014), any number of latents
    GridVAE         the default: a VAE with two latents, few enough for Bayes' rule on a grid

In a VAE

    p(z) = N(0, I)                                      is the prior of a code,
    p(x|z) = prod_i Bernoulli(x_i; sigmoid(l_i))        is the decoder, l = decode(z) the logits,
    q(z|x) = N(mean, diag(exp(logvar)))                 is the encoder.

MNIST's pixels are grey, from 0 to 1. For these -log p(x|z) means the cross-entropy, as is usual.
All quantities are in nats (natural logarithms) per image.

A code z is also written as u, its place in the unit square or cube. In each coordinate u is the CDF
of N(0, 1) at z; PyTorch's names are u = ndtr(z) and z = ndtri(u).
"""

import itertools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lib import EVAL_BATCH, checkpoints, latent_grid
from lib.errors import as_input_error
from lib.latent_grid import log_standard_normal

PIXELS = 28 * 28
SHIPPED = Path(__file__).resolve().parent / "checkpoints/vae.safetensors"
CHECKPOINT_FORMAT = "mnist-auto-encoder-7"
RETRAIN = "auto_encoder.py makes a new one"  # the end of error messages

# Widths of the hidden layers, in the order in which they are computed; chosen on the last 5,000
# training images, after training on the others.
DECODER_WIDTHS = (256, 256, 256, 256, 512)
ENCODER_WIDTHS = (512, 512, 256)
REGION_ENCODER_WIDTHS = (256, 256, 256)


# --- Networks ---------------------------------------------------------------------------------


class HiddenLayer(nn.Linear):
    """Linear, then GELU (Hendrycks & Gimpel 2016, "GELUs").

    Where the width stays the same, with a skip connection (He et al. 2016, "Deep residual
    learning").
    """

    def forward(self, h):
        out = F.gelu(super().forward(h))
        if self.in_features == self.out_features:
            return h + out
        return out


def hidden_layers(inputs, widths):
    """All but the last layer of a network: [N, inputs] -> [N, widths[-1]]."""
    layers = []
    for width_in, width_out in itertools.pairwise([inputs, *widths]):
        layers.append(HiddenLayer(width_in, width_out))
    return nn.Sequential(*layers)


def mlp(inputs, widths, outputs):
    """A multilayer perceptron [N, inputs] -> [N, outputs]; its last layer is linear."""
    return hidden_layers(inputs, widths).append(nn.Linear(widths[-1], outputs))


def split_parameters(network):
    """The matrices between the hidden layers of a network, and all its other parameters."""
    layers = [layer for layer in network.modules() if isinstance(layer, HiddenLayer)]
    matrices = [layer.weight for layer in layers[1:]]  # the first is not between hidden layers
    matrix_ids = {id(matrix) for matrix in matrices}  # `in` would compare the tensors' elements
    others = [p for p in network.parameters() if id(p) not in matrix_ids]
    return matrices, others


class Decoder(nn.Module):
    """Codes [N, latent_dim] -> logits of the pixels' Bernoulli means, [N, 784].

    The MLP does not see z but s = 4 (2 u - 1), where u is the CDF of N(0, 1) at z. So s is uniform
    from -4 to 4 if z is N(0, 1): equal shares of the prior get equal ranges of s. It also sees
    sines and cosines of s, to learn fine detail (Tancik et al. 2020, "Fourier features").
    """

    # Over the range of s, sin(f s) goes through 8 f / (2 pi) periods: 0.6 and 1.3. The numbers were
    # chosen on held-out images; benchmarks/ablation.py shows what the sines and cosines are worth.
    STRETCH = 4
    FREQUENCIES = (0.5, 1.0)

    def __init__(self, latent_dim, widths):
        super().__init__()
        self.latent_dim = latent_dim
        input_width = latent_dim * (1 + 2 * len(self.FREQUENCIES))
        self.net = mlp(input_width, widths, PIXELS)
        # The distribution of `codes_from_noise`: the prior, until an AutoEncoder puts the spread of
        # its own codes here.
        self.register_buffer("sample_mean", torch.zeros(latent_dim))
        # sample_factor @ sample_factor.T is the covariance.
        self.register_buffer("sample_factor", torch.eye(latent_dim))

    def forward(self, z):
        return self.net(self.inputs(z))

    def inputs(self, z):
        """What the MLP sees of codes [N, latent_dim]: [N, 5 * latent_dim]."""
        s = self.STRETCH * torch.erf(z / math.sqrt(2))  # erf(z / sqrt(2)) = 2 u - 1
        inputs = [s]
        for frequency in self.FREQUENCIES:
            inputs.append(torch.sin(frequency * s))
            inputs.append(torch.cos(frequency * s))
        return torch.cat(inputs, dim=1)

    def codes_from_noise(self, noise):
        """Codes to decode, made from noise of N(0, I), both [N, latent_dim]."""
        return self.sample_mean + noise @ self.sample_factor.T

    @torch.no_grad()
    def decode_images(self, codes):
        """The images, [N, 784] in [0, 1], of codes [N, latent_dim]; float32 NumPy arrays both."""
        device = self.sample_mean.device
        images = []
        for part in torch.from_numpy(codes).split(EVAL_BATCH):
            logits = self(part.to(device))
            images.append(logits.sigmoid().cpu())
        return torch.cat(images).numpy()


class RegionEncoder(nn.Module):
    """Images [N, 784] -> Gaussians of their codes: see `propose`.

    The network first classifies. The plane is cut into regions_per_side x regions_per_side regions
    that have equal shares of the prior, and the network says in which of them the code lies. Then a
    small matrix that belongs to that region gives the Gaussian, relative to the region's centre and
    width. How much better this is than to give the Gaussian directly is in benchmarks/README.md:
    "encoder without regions".
    """

    # At first the matrices are nearly 0, so that each Gaussian is at its region's centre, with a
    # standard deviation of exp(-3 / 2) = 0.22 of the region's width: most of it lies inside.
    INITIAL_LOGVAR = -3
    INITIAL_MATRIX_STD = 0.02

    def __init__(self, widths, regions_per_side, readout_width):
        super().__init__()
        self.regions_per_side = regions_per_side
        regions = regions_per_side**2
        self.body = hidden_layers(PIXELS, widths)
        self.classifier = nn.Linear(widths[-1], regions)
        self.readout = HiddenLayer(widths[-1], readout_width)
        # A region's matrix makes the four numbers of a Gaussian from the readout and a constant 1.
        # It is looked up with an embedding: with plain indexing the last bits of the gradient would
        # depend on the number of threads, and the same seed would not give the same weights.
        self.matrices = nn.Embedding(regions, 4 * (readout_width + 1))
        nn.init.normal_(self.matrices.weight, std=self.INITIAL_MATRIX_STD)

    def propose(self, x, count):
        """The Gaussians in the `count` likeliest regions of images [N, 784], the likeliest first.

        [(mean, logvar), ...], [N, 2] each.
        """
        features = self.body(x)
        likeliest = self.classifier(features).topk(count).indices  # [N, count]
        return [self.gaussian(features, region_index) for region_index in likeliest.unbind(1)]

    def gaussian(self, features, region_index):
        """The Gaussian in given regions [N], from features of `body`: mean, logvar, [N, 2] each.

        Regions are numbered row by row; z_1 grows from row to row, z_2 from column to column.
        """
        row = region_index // self.regions_per_side
        column = region_index % self.regions_per_side
        u = (torch.stack([row, column], 1) + 0.5) / self.regions_per_side
        centre = torch.special.ndtri(u)  # [N, 2], in z
        width = latent_grid.cell_width(centre, self.regions_per_side)  # [N, 2], in z

        # R is the readout's width.
        readout_and_1 = F.pad(self.readout(features), (0, 1), value=1.0)  # [N, R + 1]
        matrices = self.matrices(region_index).view(len(region_index), 4, -1)  # [N, 4, R + 1]
        numbers = torch.bmm(matrices, readout_and_1[:, :, None])[:, :, 0]  # [N, 4]
        shift, logvar_shift = numbers.chunk(2, dim=1)  # shift: in widths of the region

        mean = centre + width * shift
        logvar = 2 * width.log() + self.INITIAL_LOGVAR + logvar_shift
        return mean, logvar


# --- Models -----------------------------------------------------------------------------------


class AutoEncoder(nn.Module):
    """A deterministic auto-encoder: `latent_dim` numbers make a code, and there is no prior.

    `codes` gives the code of an image; a VAE also has `encode`, which gives the Gaussian q(z|x).
    """

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
        return mlp(PIXELS, widths, self.latent_dim)

    def make_decoder(self, widths):
        return Decoder(self.latent_dim, widths)

    def codes(self, x):
        """The codes [N, latent_dim] of images [N, 784] in [0, 1]."""
        return self.encoder(x)

    def decode(self, z):
        """Logits [N, 784] of the pixels for codes [N, latent_dim]; their sigmoid is the image."""
        return self.decoder(z)

    def elbo(self, x, *, generator=None):
        """The same two terms as a VAE has, so that both can be trained and evaluated alike.

        The likelihood is minus the cross-entropy in nats, [N], and the divergence is 0. Nothing is
        drawn from `generator`.
        """
        return log_bernoulli(x, self.decode(self.codes(x))), x.new_zeros(len(x))

    @torch.no_grad()
    def mean_elbo(self, x, *, pairs=8, generator=None):
        """As `elbo`: without samples there is nothing to average."""
        return self.elbo(x)

    def page_settings(self):
        """Settings that the page figures/explorer.html needs to compute what the networks do."""
        return {
            "kind": "AutoEncoder",  # the page's name for an encoder that is an MLP
            "stretch": self.decoder.STRETCH,
            "frequencies": self.decoder.FREQUENCIES,
        }

    @torch.no_grad()
    def fit_sampler(self, x):
        """As there is no prior, let the decoder sample from the Gaussian that fits x's codes."""
        codes = torch.cat([self.codes(part) for part in x.split(EVAL_BATCH)])
        # In float64 a variance near 0 is not lost in rounding errors; on the CPU, as Apple's GPUs
        # have no float64.
        codes = codes.cpu().double()
        centred = codes - codes.mean(0)
        covariance = centred.T @ centred / len(x)
        # If training diverges, the codes are not finite. That is reported later, where the loss is
        # measured; nan_to_num only keeps eigh from failing first.
        variances, axes = torch.linalg.eigh(covariance.nan_to_num())
        self.decoder.sample_mean.copy_(codes.mean(0))
        # covariance = axes @ diag(variances) @ axes.T; this is a square root of it.
        self.decoder.sample_factor.copy_(axes * variances.clamp_min(0).sqrt())


class VAE(AutoEncoder):
    """The variational auto-encoder (Kingma & Welling 2014), for any number of latents."""

    def make_encoder(self, widths):
        return mlp(PIXELS, widths, 2 * self.latent_dim)

    def encode(self, x):
        """The mean and logvar, [N, latent_dim] each, of q(z|x) for images [N, 784] in [0, 1]."""
        return self.encoder(x).chunk(2, dim=1)

    def codes(self, x):
        """The mean of q(z|x) as the code of each image: [N, latent_dim]."""
        return self.encode(x)[0]

    def elbo(self, x, q=None, *, generator=None):
        """The two terms of the evidence lower bound (ELBO) of images [N, 784].

        They are the likelihood E_q[log p(x|z)], from one sample of q(z|x), and the divergence
        KL(q(z|x) || p(z)), nats, [N] each (Kingma & Welling 2014, equation 10). The bound is their
        difference; L_tot = divergence - likelihood is to be minimised. `q`, a mean and logvar,
        stands in for those of `encode`. The sample is drawn from PyTorch's own random numbers, or
        from those of a `generator`.
        """
        mean, logvar = self.encode(x) if q is None else q
        z = reparameterize(mean, logvar, standard_normal_like(mean, generator))
        return log_bernoulli(x, self.decode(z)), kl_divergence(mean, logvar)

    @torch.no_grad()
    def mean_elbo(self, x, q=None, *, pairs=8, generator=None):
        """As `elbo`, but the likelihood is a mean over several samples of q(z|x), 2 * `pairs`.

        A pair is mean + offset and mean - offset: antithetic samples (Hammersley & Morton 1956, "A
        new Monte Carlo technique").
        """
        mean, logvar = self.encode(x) if q is None else q
        likelihood = x.new_zeros(len(x))
        for _ in range(pairs):
            noise = standard_normal_like(mean, generator)
            for sign in (1, -1):
                z = reparameterize(mean, logvar, sign * noise)
                likelihood += log_bernoulli(x, self.decode(z))
        return likelihood / (2 * pairs), kl_divergence(mean, logvar)

    def fit_sampler(self, x):
        """There is nothing to fit: the decoder samples from the prior."""

    @torch.no_grad()
    def log_likelihood(self, x, samples=200, generator=None):
        """An estimate of log p(x) in nats, [N], for images [N, 784] in [0, 1].

        Draws importance samples, `samples` codes from q(z|x), and returns the log of the mean of
        p(x, z) / q(z|x). On average this is below log p(x), and more samples bring it closer
        (Burda, Grosse & Salakhutdinov 2016, "Importance weighted autoencoders", equation 8).
        """
        parts = [self._importance_sampled(part, samples, generator) for part in x.split(EVAL_BATCH)]
        return torch.cat(parts)

    def _importance_sampled(self, x, samples, generator):
        mean, logvar = self.encode(x)
        log_weights = []
        for _ in range(samples):
            noise = standard_normal_like(mean, generator)
            z = reparameterize(mean, logvar, noise)
            # The density of z = mean + exp(logvar / 2) noise, by the change of variables.
            log_q = log_standard_normal(noise) - 0.5 * logvar.sum(1)
            log_joint = log_bernoulli(x, self.decode(z)) + log_standard_normal(z)
            log_weights.append(log_joint - log_q)
        return torch.stack(log_weights).logsumexp(0) - math.log(samples)


class GridVAE(VAE):
    """A VAE with two latents, so few that Bayes' rule can be computed on a grid of codes.

    The grid posterior teaches its `RegionEncoder`, and log p(x) is an integral over the plane.
    """

    def __init__(
        self,
        encoder_widths=REGION_ENCODER_WIDTHS,
        decoder_widths=DECODER_WIDTHS,
        regions_per_side=27,  # of the encoder
        readout_width=64,  # R, what the Gaussian in a region is computed from
        grid_side=81,  # nodes per side, a multiple of regions_per_side
        proposals=5,  # of the encoder, of which the decoder chooses one; see `encode`
    ):
        # super().__init__ calls make_encoder, which needs these. (Before super().__init__ PyTorch
        # allows numbers to be set, but not layers.)
        self.regions_per_side = regions_per_side
        self.readout_width = readout_width
        super().__init__(2, encoder_widths, decoder_widths)
        self.grid_side = grid_side
        self.proposals = proposals
        self.config = {
            "encoder_widths": list(encoder_widths),
            "decoder_widths": list(decoder_widths),
            "regions_per_side": regions_per_side,
            "readout_width": readout_width,
            "grid_side": grid_side,
            "proposals": proposals,
        }

    def make_encoder(self, widths):
        return RegionEncoder(widths, self.regions_per_side, self.readout_width)

    def encode(self, x, proposals=None):
        """As in a `VAE`, but the encoder proposes several Gaussians, and the decoder chooses one.

        The encoder's likeliest region is often a wrong one, but the right one is nearly always
        among its first five. Of the Gaussians in these, the one with the highest ELBO is taken,
        with the mean in place of a sample: log p(x|mean) - KL(q(z|x) || p(z)). The result is still
        a function of the image alone, so L_tot is a bound as before. With `proposals=1` the encoder
        is alone; by default there are as many as the model was made with.
        """
        if proposals is None:
            proposals = self.proposals
        means = []
        logvars = []
        scores = []
        for mean, logvar in self.encoder.propose(x, proposals):
            means.append(mean)
            logvars.append(logvar)
            scores.append(log_bernoulli(x, self.decode(mean)) - kl_divergence(mean, logvar))
        best = torch.stack(scores).argmax(0)  # [N]; of equal ones the likeliest
        image = torch.arange(len(x), device=x.device)
        return torch.stack(means)[best, image], torch.stack(logvars)[best, image]

    def page_settings(self):
        return {
            **super().page_settings(),
            "kind": "VAE",  # the page's name for a RegionEncoder
            "regions_per_side": self.regions_per_side,
            "proposals": self.proposals,
            "initial_logvar": self.encoder.INITIAL_LOGVAR,
        }

    def make_grid(self, side=None):
        """The decoder's `LatentGrid`, by default of grid_side x grid_side codes. No gradient."""
        if side is None:
            side = self.grid_side
        device = next(self.parameters()).device
        return latent_grid.square_grid(self.decoder, side, device)

    def laplace_posterior(self, x):
        """As `encode`, but by Bayes' rule and Laplace's method on a new grid, not the encoder."""
        return self.make_grid().laplace_posterior(x)

    @torch.no_grad()
    def log_likelihood(self, x, side=324, generator=None):
        """log p(x) in nats, [N], for images [N, 784] in [0, 1], by quadrature: no sampling.

        On side x side codes, `side` a multiple of 9 (`latent_grid.TILES`); benchmarks/quadrature.py
        shows that 324 are enough. Nothing is drawn from `generator`.
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


def sample_noise(count, latent_dim, seed, draws):
    """Samples of N(0, I), [count, latent_dim], "even" or "random" ones.

    "random" ones are independent. "even" ones are spread evenly: u is a scrambled Sobol sequence in
    the unit cube, which leaves no gaps (Matousek 1998, "On the L2-discrepancy for anchored boxes"),
    and z = ndtri(u).
    """
    if draws == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, latent_dim, generator=generator)
    u = torch.quasirandom.SobolEngine(latent_dim, scramble=True, seed=seed).draw(count)
    return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))  # at 0 and 1 ndtri is infinite


# --- Checkpoints ------------------------------------------------------------------------------

MODELS = {model.__name__: model for model in (AutoEncoder, VAE, GridVAE)}


def checkpoint_bytes(model, **metadata):
    """A model as a file for `load_checkpoint`, with JSON-like `metadata`."""
    contents = {"model": type(model).__name__, "config": model.config, "metadata": metadata}
    return checkpoints.file_bytes(CHECKPOINT_FORMAT, model.state_dict(), contents)


def load_checkpoint(path):
    """The model of `checkpoint_bytes`, with its `metadata`.

    Raises InputError: there is no such file, it is damaged, or its architecture is not one of
    those here, for example because a network was changed after it was saved.
    """
    weights, contents = checkpoints.read_file(path, CHECKPOINT_FORMAT, RETRAIN)
    with as_input_error(path, "has another architecture than those in models.py", RETRAIN):
        model = MODELS[contents["model"]](**contents["config"])
        model.load_state_dict(weights)
        model.metadata = contents["metadata"]
    return model.eval()
