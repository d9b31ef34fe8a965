"""Generate images of digits: sample codes from the prior N(0, I) and decode them.

    python decoder_generate.py                      # 20 images in imgs_generated/
    python decoder_generate.py --seed 1 --count 50
    python decoder_generate.py --codes my.csv       # decode the codes in a file, one per line

Needs what auto_encoder.py saves. By default the codes are spread evenly over the prior, by a Sobol
sequence; --draws random gives independent ones. A plain auto-encoder has no prior; its codes are
sampled from a Gaussian that auto_encoder.py fitted to those of training images.
"""

import io
import warnings
from pathlib import Path

import numpy as np

from lib import cli, plots
from lib.cli import Parser, between, nonempty_path
from lib.errors import InputError
from lib.files import check_outputs, numbered_image, one_run, replace_images, resolved
from models import RETRAIN, SHIPPED, load_checkpoint, sample_noise

PROJECT = Path(__file__).resolve().parent
OUT = PROJECT / "imgs_generated"
SHEET = PROJECT / "figures/generated.png"
MAX_CODE = 1e6  # far beyond all codes that a decoder has learned
UTF8_MARK = "\xef\xbb\xbf"  # the byte-order mark of some editors, as it looks when read as latin-1


def main(argv=None):
    """Sample codes, decode them, write images, as the flags say; `argv` is for use from Python."""
    args = parse_arguments(argv)
    decoder = load_checkpoint(args.checkpoint).decoder
    if args.codes:
        codes = read_codes(args.codes, decoder.latent_dim)
    else:
        noise = sample_noise(args.count, decoder.latent_dim, args.seed, args.draws)
        codes = decoder.codes_from_noise(noise).numpy()
    images = decoder.decode_images(codes)  # [N, 784] in [0, 1]
    if not np.isfinite(images).all():
        raise InputError(f"{args.checkpoint}: decodes to numbers that are not finite; {RETRAIN}")
    pngs = [plots.image_png_bytes(image) for image in images]

    with one_run(args.out):
        sheet = {}  # {path: bytes}; the sheet is drawn only for the default folder
        if resolved(args.out) == resolved(OUT):
            with plots.own_style():
                sheet[SHEET] = plots.draw_sheet(images, codes, decoder.decode_images)
        outputs = [numbered_image(args.out, number) for number in range(len(pngs))]
        inputs = [args.checkpoint, args.codes] if args.codes else [args.checkpoint]
        check_outputs([*outputs, *sheet], inputs)
        replace_images(args.out, pngs, sheet)
    and_sheet = f", {SHEET}" if sheet else ""
    print(f"wrote {len(pngs)} images to {args.out}{and_sheet}")


# Each flag is kept on few lines.
# fmt: off
def parse_arguments(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=nonempty_path, metavar="FILE", default=SHIPPED,
        help="what auto_encoder.py saved (default checkpoints/vae.safetensors)")
    add("--out", type=nonempty_path, metavar="DIR", default=OUT,
        help="folder for 00.png, 01.png, ...; older images of such names in it are replaced "
        "(default imgs_generated, with the first 50 on one sheet in figures/generated.png)")
    add("--count", type=between(int, 1, 10_000), metavar="N", default=20,
        help="how many images (default 20)")
    add("--seed", type=between(int, 0, 2**31 - 1), metavar="N", default=0,
        help="the same seed gives the same images (default 0)")
    add("--draws", choices=("even", "random"), default="even",
        help="evenly spread (Sobol) or independent random codes (default even)")
    add("--codes", type=nonempty_path, metavar="FILE",
        help="decode these codes instead of samples: one per line, numbers with commas or spaces")
    return parser.parse_args(argv)
# fmt: on


def read_codes(path, latent_dim):
    """Codes, float32 [N, latent_dim], from a text file, one per line.

    Raises InputError: the file is not that, or a number is above MAX_CODE.
    """
    if not path.is_file():
        raise InputError(f"--codes {path}: no such file")
    # latin-1 can decode any bytes; what is not a number fails in loadtxt, which names it.
    text = path.read_text(encoding="latin-1").removeprefix(UTF8_MARK)
    delimiter = "," if "," in text else None  # None: blanks
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of an empty file; see below
            codes = np.loadtxt(io.StringIO(text), np.float32, delimiter=delimiter, ndmin=2)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise InputError(f"--codes {path}: {reason}; give {latent_dim} numbers per line") from None
    if len(codes) == 0:
        raise InputError(f"--codes {path}: holds no codes; give one per line")
    if codes.shape[1] != latent_dim:
        found = codes.shape[1]
        raise InputError(f"--codes {path}: has {found} numbers per line, needs {latent_dim}")
    if not (np.abs(codes) <= MAX_CODE).all():  # written this way, it catches NaN, too
        raise InputError(f"--codes {path}: numbers must be finite and at most {MAX_CODE:,.0f}")
    return codes


if __name__ == "__main__":
    cli.run(main, memory_advice="give a smaller --count or close other programs")
