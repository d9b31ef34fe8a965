"""Generate images of digits: sample codes from the prior N(0, I) and decode them.

    python decoder_generate.py                      # 20 images in imgs_generated/
    python decoder_generate.py --seed 1 --count 50
    python decoder_generate.py --codes my.csv       # decode the codes in a file, one a line

Needs what auto_encoder.py saves.
"""

import io

import torch
from PIL import Image

import plots
from cli import Parser, between, nonempty_path, run
from errors import InputError
from files import PROJECT, read_lines, replace_images, reserved, write_files
from models import SHIPPED, draw_noise, load_checkpoint

OUT, SHEET = PROJECT / "imgs_generated", PROJECT / "figures/generated.png"


# fmt: off
def parse_arguments():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=nonempty_path, metavar="FILE", default=SHIPPED,
        help="what auto_encoder.py saved (default checkpoints/vae.safetensors)")
    add("--out", type=nonempty_path, metavar="DIR", default=OUT,
        help="folder for 00.png, 01.png, ...; older images of such names in it are replaced "
        "(default imgs_generated, and all on one sheet in figures/generated.png)")
    add("--count", type=between(int, 1, 10_000), metavar="N", default=20,
        help="how many images (default 20)")
    add("--seed", type=between(int, 0, 2**31 - 1), metavar="N", default=0,
        help="the same seed gives the same images (default 0)")
    add("--draws", choices=("even", "random"), default="even",
        help="codes that together leave no gaps, or independent ones (default even)")
    add("--codes", type=nonempty_path, metavar="FILE",
        help="decode these codes instead of samples: one a line, numbers with commas or spaces")
    return parser.parse_args()
# fmt: on


def main():
    args = parse_arguments()
    decoder = load_checkpoint(args.checkpoint).decoder
    if args.codes:
        codes = read_codes(args.codes, decoder.latent_dim)
    else:
        codes = decoder.sample(draw_noise(args.count, decoder.latent_dim, args.seed, args.draws))
    with torch.no_grad():
        images = torch.sigmoid(decoder(codes))
    pngs = [png(image) for image in (images * 255).round().to(torch.uint8).numpy()]
    sheets = [SHEET] if args.out == OUT else []
    with plots.own_style(), reserved([args.out / "00.png", *sheets], 2 * sum(map(len, pngs))):
        write_files({sheet: plots.draw_generated(images, codes, decoder) for sheet in sheets})
        replace_images(args.out, pngs)
    print(f"wrote {len(pngs)} images to {', '.join(map(str, [args.out, *sheets]))}")


def read_codes(path, latent_dim):
    """Codes [N, latent_dim] from a text file; InputError if a line is not such finite numbers."""
    codes = []
    for number, line in enumerate(read_lines(path), start=1):
        words = line.replace(",", " ").split()
        try:
            code = [float(word) for word in words]
        except ValueError:
            code = []
        if words and (len(code) != latent_dim or not torch.tensor(code).isfinite().all()):
            raise InputError(f"--codes {path}, line {number}: needs {latent_dim} finite numbers")
        codes += [code] if words else []
    if not codes:
        raise InputError(f"--codes {path}: holds no codes")
    return torch.tensor(codes)


def png(image):
    """A uint8 array [784] as the bytes of an 8-bit grey PNG file."""
    Image.fromarray(image.reshape(28, 28)).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    run(main)
