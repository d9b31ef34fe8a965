"""Generate images of digits: sample codes from the prior N(0, I) and decode them.

    python decoder_generate.py                      # 20 images in imgs_generated/
    python decoder_generate.py --seed 1 --count 50
    python decoder_generate.py --codes my.csv       # decode the codes in a file, one per line

Needs what auto_encoder.py saves. By default the codes are spread evenly over the prior, by a Sobol
sequence; --draws random gives independent ones. A plain auto-encoder has no prior; its codes are
sampled from a Gaussian that auto_encoder.py fitted to those of training images.
"""

from lib import start

if __name__ == "__main__":
    start.prepare()  # before PyTorch is imported

import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lib import cli, plots
from lib.cli import Parser, between, nonempty_path
from lib.errors import InputError
from lib.files import (
    check_replaceable,
    hidden_neighbours,
    is_left_by_a_killed_run,
    numbered_images,
    read_lines,
    replace_images,
    reserved,
)
from models import RETRAIN, SHIPPED, decode_images, load_checkpoint, sample_noise

PROJECT = Path(__file__).resolve().parent
OUT = PROJECT / "imgs_generated"
SHEET = PROJECT / "figures/generated.png"
MAX_COUNT = 10_000  # images
MAX_LINES = 10 * MAX_COUNT  # of a file of codes, with empty ones
MAX_CODE = 1e6  # far beyond what a decoder has learned of; larger numbers cannot be drawn
SEPARATOR = re.compile(r"\s*,\s*|\s+")  # of numbers: a comma or blanks


def main():
    args = parse_arguments()
    decoder = load_checkpoint(args.checkpoint).decoder
    if args.codes:
        codes = read_codes(args.codes, decoder.latent_dim)
    else:
        noise = sample_noise(args.count, decoder.latent_dim, args.seed, args.draws)
        codes = decoder.sample(noise)
    if not (codes.abs() <= MAX_CODE).all():
        problem = f"samples codes that are not finite or above {MAX_CODE:,.0f}"
        raise InputError(f"{args.checkpoint}: {problem}; {RETRAIN}")
    codes = codes.numpy()
    images = decode_images(decoder, codes)  # [N, 784] in [0, 1]
    if not np.isfinite(images).all():
        raise InputError(f"{args.checkpoint}: decodes to numbers that are not finite; {RETRAIN}")
    pngs = [plots.image_png_bytes(image) for image in images]

    # The sheet of all images is drawn only with those of the default folder.
    with_sheet = os.path.realpath(args.out) == os.path.realpath(OUT)
    check_outputs(args, len(pngs), with_sheet)
    first_image = args.out / "00.png"  # locking this one keeps a second run out of the folder
    reserved_files = [first_image, SHEET] if with_sheet else [first_image]
    needed_bytes = 2 * sum(len(png) for png in pngs)  # new images stand beside older ones
    with plots.own_style(), reserved(reserved_files, needed_bytes):
        others = {}
        if with_sheet:
            others[SHEET] = plots.draw_sheet(images, codes, partial(decode_images, decoder))
        replace_images(args.out, pngs, others)
    and_sheet = f", {SHEET}" if with_sheet else ""
    print(f"wrote {len(pngs)} images to {args.out}{and_sheet}")


# fmt: off
def parse_arguments():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=nonempty_path, metavar="FILE", default=SHIPPED,
        help="what auto_encoder.py saved (default checkpoints/vae.safetensors)")
    add("--out", type=nonempty_path, metavar="DIR", default=OUT,
        help="folder for 00.png, 01.png, ...; older images of such names in it are replaced "
        "(default imgs_generated, with the first 50 on one sheet in figures/generated.png)")
    add("--count", type=between(int, 1, MAX_COUNT), metavar="N", default=20,
        help="how many images (default 20)")
    add("--seed", type=between(int, 0, 2**31 - 1), metavar="N", default=0,
        help="the same seed gives the same images (default 0)")
    add("--draws", choices=("even", "random"), default="even",
        help="evenly spread (Sobol) or independent random codes (default even)")
    add("--codes", type=nonempty_path, metavar="FILE",
        help="decode these codes instead of samples: one per line, numbers with commas or spaces")
    return parser.parse_args()
# fmt: on


def check_outputs(args, count, with_sheet):
    """Raise an InputError if an image would replace an input or what no earlier run made."""
    outputs = {args.out / f"{number:02d}.png" for number in range(count)}
    outputs.update(numbered_images(args.out))  # those that are too many are removed
    inputs = {os.path.realpath(path) for path in (args.checkpoint, args.codes) if path}
    for path in inputs:
        # `replace_images` removes what a killed run has left in the output folder.
        is_in_folder = os.path.dirname(path) == os.path.realpath(args.out)
        if is_in_folder and is_left_by_a_killed_run(Path(path)):
            raise InputError(f"{path}: is also an input; name another folder with --out")
    if with_sheet:
        outputs.add(SHEET)
    for path in sorted(outputs):
        written = [os.path.realpath(path), *map(str, hidden_neighbours(path))]
        if inputs.intersection(written):
            raise InputError(f"{path}: is also an input; name another folder with --out")
        check_replaceable(path, plots.is_own_png)


def read_codes(path, latent_dim):
    """Codes [N, latent_dim] from a text file, one per line.

    Raises InputError: a line is not `latent_dim` numbers up to MAX_CODE, or there is none.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"--codes {path}: is not an ordinary file; name one")
    codes = []
    for number, line in enumerate(read_lines(path), start=1):
        if number > MAX_LINES:
            raise InputError(f"--codes {path}: has more than {MAX_LINES:,} lines; split it")
        if not line.strip():
            continue
        words = SEPARATOR.split(line.strip())
        needed = (
            f"--codes {path}, line {number}: needs {latent_dim} numbers up to {MAX_CODE:,.0f}, "
            "with commas or spaces between them"
        )
        try:
            if "_" in line:
                raise ValueError("float() would take 1_0 for 10")
            code = torch.tensor([float(word) for word in words])
        except ValueError:
            raise InputError(needed) from None
        if len(code) != latent_dim or not (code.abs() <= MAX_CODE).all():
            raise InputError(needed)
        codes.append(code)
        if len(codes) > MAX_COUNT:
            raise InputError(f"--codes {path}: has more than {MAX_COUNT:,} codes; split it")
    if not codes:
        raise InputError(f"--codes {path}: holds no codes; give one per line")
    return torch.stack(codes)


if __name__ == "__main__":
    cli.run(main, memory_advice="give a smaller --count or close other programs")
