"""Masks that no agent learns: what APGA is compared with (docs/apga.md, Method 18).

Symbols: x = images [B, 1, S, S] in [0, 1]; a = mask [B, 1, S, S] or [B, 1, h, w], float, 1 where selected; u = uniform
numbers in [0, 1), handed in so that a caller decides where they come from.
"""

import torch
from torch import Tensor

CANDIDATES = 96
"""Boxes that are tried at once: of which one in a million draws has none that fits."""
NARROWEST = 0.3
"""Least ratio of a box's height to its width; its inverse is the largest."""
DROPPED = 0.5398
"""Share of pixels that pixel dropout selects: the normal distribution function at 0.1 (Eq. 18.2)."""
LEVELS = 256


def cutout_boxes(u: Tensor, size: int) -> Tensor:
    """One box in each image, a [B, 1, size, size], by the law of Eq. 18.1: the first candidate that fits.

    u: [B, `CANDIDATES`, 4].
    """
    s, ratio = u[..., 0] * size * size, NARROWEST + u[..., 1] * (1 / NARROWEST - NARROWEST)
    width, height = (s / ratio).sqrt().floor(), (s * ratio).sqrt().floor()  # [B, candidates]
    left, top = (u[..., 2] * size).floor(), (u[..., 3] * size).floor()
    fits = (left + width <= size) & (top + height <= size)
    first = fits.int().argmax(dim=1, keepdim=True)  # where none fits the first, cut at the border
    at = torch.arange(size, device=u.device)

    def within(start: Tensor, length: Tensor) -> Tensor:
        begin = start.gather(1, first)
        return (at >= begin) & (at < begin + length.gather(1, first))  # [B, size]

    return (within(top, height)[:, :, None] & within(left, width)[:, None, :])[:, None].float()


def foreground(x: Tensor) -> Tensor:
    """What is brighter than Otsu's threshold of each image, a [B, 1, S, S] (Eq. 18.3); none where all is the same."""
    levels = (x * (LEVELS - 1)).round().long().flatten(1)  # [B, S S]
    counts = torch.zeros(len(x), LEVELS, dtype=torch.float64, device=x.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))
    share = counts / levels.shape[1]
    below = share.cumsum(dim=1)
    mean = (share * torch.arange(LEVELS, device=x.device)).cumsum(dim=1)
    between = (mean[:, -1:] * below - mean).square() / (below * (1 - below)).clamp(min=1e-12)
    best = between.argmax(dim=1)
    return (levels > best[:, None]).view_as(x).to(x.dtype)


def same_area(mask: Tensor, u: Tensor) -> Tensor:
    """Masks whose cells are those of `mask`, each image's in random order: the same area, anywhere. u: as `mask`."""
    return mask.flatten(1).gather(1, u.flatten(1).argsort(dim=1)).view_as(mask)


def others(mask: Tensor) -> Tensor:
    """The mask of another image of the batch for each, which keeps their shapes and breaks with the image."""
    return mask.roll(1, dims=0)
