"""Random changes of a batch of radiographs while a network learns from them, on their device (docs/apga.md, Method 7).

Each image is mirrored by chance and turned, in one resampling. Numbers come as uniform ones from outside, `DRAWS` for
each image, so that an image is changed alike in any batch.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Literal["none", "geometric"]
DRAWS = 2
"""Uniform numbers that each image needs."""
MOST_DEGREES = 30.0
"""Greatest angle, either way."""


def augmented(x: Tensor, kind: Augment) -> Tensor:
    """Images [B, C, S, S] as they are (none), or as `turned` changes them by numbers of PyTorch's generator of their
    device (geometric)."""
    if kind == "none":
        return x
    return turned(x, torch.rand(DRAWS, len(x), device=x.device))


def turned(x: Tensor, draws: Tensor) -> Tensor:
    """Images, half of them mirrored left to right, each turned about its middle by up to 30 degrees; black comes in.

    Args:
        x: [B, C, S, S] in [0, 1], square.
        draws: uniform in [0, 1), [DRAWS, B]: the angle, 0.5 being none and more being clockwise; below 0.5: mirrored.
    """
    angle = (2 * draws[0] - 1) * math.radians(MOST_DEGREES)
    mirror = torch.where(draws[1] < 0.5, -1.0, 1.0)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # where each pixel of the result comes from: (x, y) turned back, then mirrored
    affine = torch.stack([cos * mirror, sin * mirror, zero, -sin, cos, zero], dim=1).view(-1, 2, 3)
    places = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, places, align_corners=False)
