"""Images of which a region is erased or kept, and what stands in place of the rest (docs/apga.md, Method 1).

Symbols: x = images [B, C, H, W] in [0, 1]; a = mask [B, 1, H, W], 1 where selected, in between if it is soft.
"""

import math
from functools import reduce
from operator import add
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.checks import check_choice

Fill = Literal["zero", "mean", "blur", "noise"]
BLUR = 0.08
"""Deviation of the Gaussian that blurs an image, as a share of its side."""


def enlarge(mask: Tensor, size: int) -> Tensor:
    """Mask [..., G, G] as [..., size, size]: each cell is repeated along both sides.

    Raises:
        ValueError: G does not divide `size`.
    """
    grid = mask.shape[-1]
    if size % grid:
        raise ValueError(f"grid is {grid} but must divide the {size} pixels of the image's side")
    cell = size // grid
    return mask if cell == 1 else mask.repeat_interleave(cell, dim=-1).repeat_interleave(cell, dim=-2)


def erased(x: Tensor, mask: Tensor, fill: Tensor | None = None) -> Tensor:
    """x_adv = x (1 - a), plus the fill times a."""
    return kept(x, 1 - mask.to(x.dtype), fill)


def kept(x: Tensor, mask: Tensor, fill: Tensor | None = None) -> Tensor:
    """x_aid = x a, plus the fill times 1 - a."""
    mask = mask.to(x.dtype)
    return x * mask if fill is None else x * mask + fill * (1 - mask)


def fill_of(x: Tensor, kind: Fill, noise: Tensor | None = None) -> Tensor | None:
    """What stands where an image is erased, [B, C, H, W] or [B, C, 1, 1]; None: 0, which is black.

    Args:
        x: the images.
        kind: zero; mean: the mean of each image; blur: the image through a wide Gaussian; noise: normal noise with the
            mean and deviation of each image, cut to [0, 1].
        noise: standard normal numbers as `x` for noise; None: of PyTorch's generator.
    """
    check_choice("fill", kind, get_args(Fill))
    if kind == "zero":
        return None
    if kind == "blur":
        sigma_px = BLUR * x.shape[-1]
        return blurred(x, sigma_px, max(1, round(3 * sigma_px)))
    mean = x.mean(dim=(2, 3), keepdim=True)
    if kind == "mean":
        return mean
    noise = torch.randn_like(x) if noise is None else noise
    return (mean + x.std(dim=(2, 3), keepdim=True) * noise).clamp(0, 1)


def blurred(x: Tensor, sigma_px: float, radius_px: int) -> Tensor:
    """Images [B, C, H, W], each smoothed by a Gaussian of 2 radius_px + 1 pixels a side; borders are repeated outwards.

    An image is the same, bit for bit, alone and in any batch.
    """
    weights = [math.exp(-0.5 * (at / sigma_px) ** 2) for at in range(-radius_px, radius_px + 1)]
    for axis in (2, 3):  # sums of shifted images: a convolution rounds otherwise for another number of images
        sides = [0, 0, radius_px, radius_px] if axis == 2 else [radius_px, radius_px, 0, 0]
        padded, length = F.pad(x, sides, mode="replicate"), x.shape[axis]
        parts = (weight * padded.narrow(axis, at, length) for at, weight in enumerate(weights))
        x = reduce(add, parts) / sum(weights)
    return x
