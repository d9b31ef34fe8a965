"""Augmentation: distorted copies of images, so that a network sees more images than there are."""

from functools import cache

import torch
import torch.nn.functional as F

NODES = 5  # per side of the coarse field of shifts that bends an image


def augment(images, strength, generator):
    """Images [N, H, W] in [0, 1], each turned, sheared, scaled, shifted and bent at random.

    Each place of an image shows what a place near it showed before. A random 2 x 2 matrix says
    which, plus a random field of shifts, smooth between NODES x NODES nodes (Simard, Steinkraus &
    Platt 2003, "Best practices for convolutional neural networks"). `strength` is the standard
    deviation of the matrix's entries around the unit matrix, and of the shifts at the nodes, in
    units of half an image. What comes from outside of an image is 0.
    """
    count, height, width = images.shape
    if count == 0:
        return images

    def noise(*shape):
        sample = torch.randn(count, *shape, generator=generator, device=images.device)
        return strength * sample

    matrices = torch.eye(2, device=images.device) + noise(2, 2)
    affine = F.pad(matrices, (0, 1))  # [N, 2, 3]; the last column, a shift of the whole, is 0
    places = F.affine_grid(affine, (count, 1, height, width), align_corners=False)
    rows = bicubic_weights(height).to(images.device)
    columns = bicubic_weights(width).to(images.device)
    shifts = rows @ noise(2, NODES, NODES) @ columns.T  # [N, 2, H, W]
    places = places + shifts.permute(0, 2, 3, 1)
    augmented = F.grid_sample(images[:, None], places, align_corners=False)
    return augmented[:, 0].clamp(0, 1)


@cache  # asked for twice in every training step
def bicubic_weights(size):
    """What each of NODES nodes adds to `size` places between them: [size, NODES].

    Two products with such matrices give what F.interpolate gives, but many times faster.
    """
    each_node = torch.eye(NODES)[None, None]
    weights = F.interpolate(each_node, (size, NODES), mode="bicubic", align_corners=True)
    return weights[0, 0]
