"""Generate images of digits: sample codes from the prior N(0, I) and decode them.

    python decoder_generate.py                      # 20 images in imgs_generated/
    python decoder_generate.py --seed 1 --count 50
    python decoder_generate.py --codes my.csv       # decode the codes in a file, one a line

Needs a checkpoint of auto_encoder.py; one is shipped.
"""

import io
import sys

import torch
from PIL import Image

from data import (
    PROJECT,
    InputError,
    Parser,
    nonempty_path,
    read_lines,
    replace_images,
    run,
    say,
    whole_number,
)
from models import load_decoder

MAX_IMAGES = 10_000


# fmt: off
def parse_arguments():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--checkpoint", type=nonempty_path, metavar="FILE", default=PROJECT / "checkpoints/vae.pt",
        help="what auto_encoder.py saved (default checkpoints/vae.pt beside this script)")
    add("--out", type=nonempty_path, metavar="DIR", default=PROJECT / "imgs_generated",
        help="folder for 00.png, 01.png, ...; older images of such names in it are replaced "
        "(default imgs_generated beside this script)")
    add("--count", type=whole_number(1, MAX_IMAGES), metavar="N", default=20,
        help="how many images (default %(default)s)")
    add("--seed", type=whole_number(0), metavar="N", default=0,
        help="the same seed gives the same images (default %(default)s)")
    add("--draws", choices=("even", "random"), default="even",
        help="codes that together leave no gaps, or independent ones (default even)")
    add("--codes", type=nonempty_path, metavar="FILE",
        help="decode these codes instead of samples: one a line, numbers with commas or spaces")
    return parser.parse_args()
# fmt: on


def main():
    args = parse_arguments()
    decoder = load_decoder(args.checkpoint)
    if args.codes:
        codes = read_codes(args.codes, decoder.latent_dim)
    else:
        noise = draw_noise(args.count, decoder.latent_dim, args.seed, args.draws)
        codes = decoder.sample(noise)
    with torch.no_grad():
        images = torch.sigmoid(decoder(codes)).reshape(-1, 28, 28)
    pixels = (images * 255).round().to(torch.uint8).numpy()
    kept = replace_images(args.out, [png(image) for image in pixels])
    say(f"wrote {len(pixels)} images to {args.out}")
    if kept:
        say(f"{args.out}: left alone, not of this run: {', '.join(kept)}", sys.stderr)


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


def read_codes(path, latent_dim):
    """Read codes [N, latent_dim] from a text file, one a line.

    Raises:
        InputError: the file is missing, or a line is not `latent_dim` finite numbers.
    """
    codes = []
    with read_lines(path) as lines:
        for number, line in enumerate(lines, start=1):
            words = line.replace(",", " ").split()
            if not words:
                continue
            try:
                code = [float(word) for word in words]
            except ValueError:
                code = []
            if len(code) != latent_dim or not torch.tensor(code).isfinite().all():
                raise InputError(
                    f"--codes {path}, line {number}: needs {latent_dim} finite numbers"
                )
            codes.append(code)
            if len(codes) > MAX_IMAGES:
                raise InputError(f"--codes {path}: holds more than {MAX_IMAGES} codes")
    if not codes:
        raise InputError(f"--codes {path}: holds no codes")
    return torch.tensor(codes)


def png(image):
    """A uint8 array [28, 28] as the bytes of an 8-bit grey PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    run(main)
