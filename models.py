"""The variational auto-encoder (Kingma & Welling 2014), a plain one, and their checkpoints.

p(z) = N(0, I), p(x|z) = prod_i Bernoulli(x_i; sigmoid(decode(z)_i)), q(z|x) = N(mean, variance).
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

import exact
from errors import explained
from exact import BATCH, SIDE, log_standard_normal
from files import PROJECT
from tensor_files import DAMAGED, read_tensors, tensor_bytes

PIXELS = 28 * 28
ENCODER = (512, 512, 256)  # hidden layers of an encoder, image side first
TAUGHT = (256, 256, 256, 256)  # the same, of one that is taught by the exact posterior
DECODER = (256, 256, 256, 256, 512)  # the decoder's hidden layers, code side first
REGIONS = 27  # a side, into which the encoder of two latents cuts the plane; SIDE is a multiple
READ = 64  # numbers from which a region reads the place inside it
SHIPPED = PROJECT / "checkpoints/vae.safetensors"
CHECKPOINT_FORMAT = "mnist-auto-encoder-5"


class Layer(nn.Linear):
    """Linear, then GELU, with a skip connection where input and output sizes agree."""

    def forward(self, h):
        out = F.gelu(super().forward(h))
        return h + out if h.shape == out.shape else out


def hidden_layers(*sizes):
    """Layers from each of these sizes to the next."""
    return nn.Sequential(*(Layer(*pair) for pair in itertools.pairwise(sizes)))


def mlp(*sizes):
    """The same, but the last one linear."""
    return hidden_layers(*sizes[:-1]).append(nn.Linear(*sizes[-2:]))


class Decoder(nn.Module):
    """Codes [N, latent_dim] -> logits of the pixels' Bernoulli means, [N, 784].

    The MLP sees a code's quantiles, so that it has the same room for every share of the prior, and
    their sines and cosines, to learn fine detail (Tancik et al. 2020, "Fourier features").
    """

    def __init__(self, latent_dim, widths):
        super().__init__()
        self.latent_dim = latent_dim
        self.net = mlp(5 * latent_dim, *widths, PIXELS)
        # What `sample` draws from: the prior, until an AutoEncoder puts its own codes' spread here.
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("factor", torch.eye(latent_dim))

    def forward(self, z):
        place = 4 * torch.erf(z / math.sqrt(2))
        waves = [wave(f * place) for f in (0.5, 1.0) for wave in (torch.sin, torch.cos)]
        return self.net(torch.cat([place, *waves], dim=1))

    def sample(self, noise):
        """Codes from draws of N(0, I), both [N, latent_dim]."""
        return self.mean + noise @ self.factor.T


def draw_noise(count, latent_dim, seed, draws):
    """Samples of N(0, I), [count, latent_dim].

    "even" ones are quantiles at a scrambled Sobol sequence (Matousek 1998), spread evenly together.
    """
    if draws == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, latent_dim, generator=generator)
    quantiles = torch.quasirandom.SobolEngine(latent_dim, scramble=True, seed=seed).draw(count)
    return torch.special.ndtri(quantiles.clamp(1e-6, 1 - 1e-6))  # at 0 and 1 it is infinite


class Encoder(nn.Module):
    """Images [N, 784] -> the Gaussian q(z|x): mean and logvar side by side, [N, 4].

    A posterior may have several peaks, and a regression would answer with their average. So the
    network first classifies: which of REGIONS x REGIONS equal shares of the prior? Then a small
    matrix of that region's own reads the place and the width inside it.
    """

    def __init__(self, widths):
        super().__init__()
        self.features = hidden_layers(PIXELS, *widths)
        self.region = nn.Linear(widths[-1], REGIONS**2)
        self.reading = Layer(widths[-1], READ)
        # An embedding, as the gradient of plain indexing depends on the number of threads.
        self.matrices = nn.Embedding(REGIONS**2, 4 * (READ + 1))
        nn.init.normal_(self.matrices.weight, std=0.02)

    def forward(self, x):
        features = self.features(x)
        return self.place(features, self.region(features).argmax(1))

    def place(self, features, region):
        """The Gaussian inside the regions [N], from the features: [N, 4]."""
        quantiles = torch.stack([region // REGIONS, region % REGIONS], 1).add(0.5) / REGIONS
        centre = torch.special.ndtri(quantiles)
        width = exact.width_of_share(centre, REGIONS)
        read = F.pad(self.reading(features), (0, 1), value=1.0)[:, :, None]  # 1 for the offsets
        matrices = self.matrices(region).view(len(region), 4, READ + 1)
        shift, logvar = (matrices @ read)[:, :, 0].chunk(2, dim=1)
        return torch.cat([centre + width * shift, 2 * width.log() - 3 + logvar], 1)

    def lesson(self, x, table):
        """The loss of a lesson by Bayes' rule; `table` is log p(x|z) at a codebook's nodes, [N, G].

        The region is learnt by cross-entropy from the posterior's share of each, smoothed (Szegedy
        et al. 2016), as a classifier does not average over peaks; the place inside the likeliest by
        the ELBO, whose likelihood is read off the table, so that it costs no pass of the decoder.
        """
        side = math.isqrt(table.shape[1])
        rows = table.softmax(1).view(-1, REGIONS, side // REGIONS, side).sum(2)
        shares = rows.view(-1, REGIONS**2, side // REGIONS).sum(2)
        features = self.features(x)
        mean, logvar = self.place(features, shares.argmax(1)).chunk(2, dim=1)
        noise = (0.5 * logvar).exp() * torch.randn_like(mean)
        both = [exact.interpolate(table, mean + sign * noise) for sign in (1, -1)]
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)
        place_loss = (divergence - sum(both) / 2).mean()
        region_loss = F.cross_entropy(self.region(features), shares, label_smoothing=0.2)
        return region_loss + 0.1 * place_loss


class AutoEncoder(nn.Module):
    """A deterministic auto-encoder: two networks, no prior; `latent_dim` numbers make a code."""

    def __init__(self, latent_dim=2, encoder_widths=ENCODER, decoder_widths=DECODER):
        super().__init__()
        widths = {"encoder_widths": list(encoder_widths), "decoder_widths": list(decoder_widths)}
        self.config = {"latent_dim": latent_dim, **widths}
        self.latent_dim = latent_dim
        self.encoder = self.make_encoder(encoder_widths)
        self.decoder = Decoder(latent_dim, decoder_widths)

    def make_encoder(self, widths):
        return mlp(PIXELS, *widths, self.latent_dim)

    def codes(self, x):
        """The codes [N, latent_dim] of images [N, 784] in [0, 1]."""
        return self.encoder(x)

    def decode(self, z):
        """Logits [N, 784] of the pixels for codes [N, latent_dim]; their sigmoid is the image."""
        return self.decoder(z)

    def elbo(self, x):
        """As the VAE's: minus the binary cross-entropy in nats, `[N]`, and a divergence of 0."""
        return log_bernoulli(x, self.decode(self.codes(x))), x.new_zeros(len(x))

    @torch.no_grad()
    def fit_samples(self, x):
        """As there is no prior, let the decoder sample from the Gaussian that fits x's codes."""
        codes = torch.cat([self.codes(part) for part in x.split(BATCH)]).double()
        centred = codes - codes.mean(0)
        variances, axes = torch.linalg.eigh((centred.T @ centred / len(x)).nan_to_num())
        self.decoder.mean.copy_(codes.mean(0))
        self.decoder.factor.copy_(axes * variances.clamp_min(0).sqrt())


class VAE(AutoEncoder):
    """The variational auto-encoder; with two latent variables its encoder is an `Encoder`."""

    def __init__(self, latent_dim=2, encoder_widths=None, decoder_widths=DECODER):
        usual = TAUGHT if latent_dim == 2 else ENCODER
        super().__init__(latent_dim, encoder_widths or usual, decoder_widths)

    def make_encoder(self, widths):
        two = self.latent_dim == 2
        return Encoder(widths) if two else mlp(PIXELS, *widths, 2 * self.latent_dim)

    def encode(self, x):
        """The mean and logvar, [N, latent_dim] each, of q(z|x) for images [N, 784] in [0, 1]."""
        return self.encoder(x).chunk(2, dim=1)

    def posterior(self, x):
        """As `encode`, but by Bayes' rule instead of the encoder, for two latent variables."""
        return exact.decode_plane(self.decoder).posterior(x)

    def codes(self, x):
        """The mean of q(z|x) as the code of each image: [N, latent_dim]."""
        return self.encode(x)[0]

    def elbo(self, x, q=None):
        """The two terms of the evidence lower bound of images [N, 784], with a sample of q(z|x).

        The likelihood E_q[log p(x|z)] and the divergence KL(q(z|x) || p(z)), nats, [N] each (Kingma
        & Welling 2014, equation 10, appendix B); L_tot = divergence - likelihood. `q`, a mean and
        logvar, stands in for those of `encode`.
        """
        mean, logvar = q or self.encode(x)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)
        return log_bernoulli(x, self.decode(z)), divergence

    @torch.no_grad()
    def log_likelihood(self, x, side=4 * SIDE, samples=200):
        """log p(x) in nats per image, `[N]`, for images `[N, 784]` in [0, 1].

        With two latent variables by quadrature on side x side codes, `side` a multiple of 9; double
        it to see that it has converged. Otherwise `samples` importance samples from the encoder
        bound it from below (IWAE: Burda, Grosse & Salakhutdinov 2016, equation 8).
        """
        if self.latent_dim == 2:
            return exact.integrate(self.decoder, x, side)
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


MODELS = {"vae": VAE, "ae": AutoEncoder}  # as --model and checkpoints name them


def log_bernoulli(x, logits):
    """log p(x|z) in nats, [N], of images [N, 784] in [0, 1] under logits [N, 784]."""
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def checkpoint_bytes(model, **metadata):
    """A VAE or an AutoEncoder as a file for `load_checkpoint`, with JSON-like `metadata`."""
    kind = next(name for name, kind in MODELS.items() if isinstance(model, kind))
    contents = {"model": kind, "config": model.config, "metadata": metadata}
    return tensor_bytes(CHECKPOINT_FORMAT, model.state_dict(), contents)


def load_checkpoint(path):
    """The model of `checkpoint_bytes`, with its `metadata`; InputError if there is none."""
    weights, contents = read_tensors(path, CHECKPOINT_FORMAT)
    with explained(path, *DAMAGED):
        config = contents["config"]
        if len(config["encoder_widths"]) + len(config["decoder_widths"]) > len(weights):
            raise ValueError("more layers than weights")
        with torch.device("meta"):  # takes no memory, whatever sizes the file claims
            model = MODELS[contents["model"]](**config)
        model.load_state_dict(weights, assign=True)
        model.metadata = contents["metadata"]
    return model.eval()
