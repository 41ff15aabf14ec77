"""Images of which a region is erased or kept, and what stands in place of the rest (docs/apga.md, Method 1).

Symbols: x = images [B, C, H, W] in [0, 1]; a = mask [B, 1, H, W], 1 where selected, in between if it is soft.
"""

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
        return blurred(x, BLUR * x.shape[-1])
    mean = x.mean(dim=(2, 3), keepdim=True)
    if kind == "mean":
        return mean
    noise = torch.randn_like(x) if noise is None else noise
    return (mean + x.std(dim=(2, 3), keepdim=True) * noise).clamp(0, 1)


def blurred(x: Tensor, sigma_px: float) -> Tensor:
    """Images through a Gaussian of this deviation, with their border repeated outwards."""
    radius = max(1, min(round(3 * sigma_px), min(x.shape[-2:]) - 1))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype) / sigma_px) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    padded = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, None, :], groups=x.shape[1])
    return F.conv2d(rows, kernel[:, :, :, None], groups=x.shape[1])
