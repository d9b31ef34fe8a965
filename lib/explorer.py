"""A page on which one can walk over two latent variables: one HTML file that needs no network.

explorer.html is the template. Its scripts do in the browser what models.py and latent_grid.py do
here: they decode, encode and apply Bayes' rule. This module puts the model and the images into it.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from lib.errors import as_input_error
from lib.plots import COLOURS, MARKERS, mosaic

TEMPLATE = Path(__file__).with_name("explorer.html")
IMAGES_PER_ROW = 40


def page_bytes(tensors, images, codes, labels, settings):
    """The page as an HTML file, for a model with two latents.

    `tensors` are the model's weights, {name: array}, which become float16. `images` [N, 784] are
    in [0, 1], their `codes` are [N, 2], their `labels` [N], 0 to 9. `settings` is what JSON can
    hold; these names the page knows:

    - kind: "VAE" for a RegionEncoder, "AutoEncoder" for an encoder that is an MLP
    - about: a line about the run; images_name: what the images are
    - reach: the map shows codes from -reach to reach
    - worst_first: the indices of all images, that on which the encoder loses most first
    - mean_loss: L_tot of all test images, nats per image
    - stretch, frequencies: of the decoder's inputs
    - regions_per_side, proposals, initial_logvar: of a RegionEncoder, as in models.py
    """
    contents = {
        **settings,
        "colours": COLOURS,
        "markers": MARKERS,
        "codes": [[round(float(z), 5) for z in code] for code in codes],
        "labels": [int(label) for label in labels],
        "tensors": [[name, list(tensor.shape)] for name, tensor in tensors.items()],
        "weights": base64_of(float16_bytes(tensors)),
        "images": base64_of(sheet_png(images)),
    }
    # Nothing in it can end the script in which it stands, or begin another.
    text = json.dumps(contents).replace("<", "\\u003c")
    before, after = read_template().split("@@data@@")
    return (before + text + after).encode()


def read_template():
    """The text of the template. Raises InputError: it is not there."""
    with as_input_error(TEMPLATE, "cannot be read", "copy all of lib/", OSError):
        return TEMPLATE.read_text(encoding="utf-8")


def float16_bytes(tensors):
    """All tensors, one after the other, as little-endian float16."""
    with np.errstate(over="ignore"):  # the page says what an infinite weight means
        return b"".join(np.asarray(tensor).astype("<f2").tobytes() for tensor in tensors.values())


def sheet_png(images):
    """Images [N, 784] in [0, 1] as one grey PNG, IMAGES_PER_ROW in a row."""
    missing = -len(images) % IMAGES_PER_ROW
    padded = np.pad(images, [(0, missing), (0, 0)])
    pixels = (mosaic(padded, IMAGES_PER_ROW) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def base64_of(data):
    return base64.b64encode(data).decode()
