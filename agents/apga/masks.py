"""Masks that no agent learns: what APGA is compared with (docs/apga.md, Method 18).

Symbols: x = images [B, 1, S, S] in [0, 1]; a = mask [B, 1, S, S] or [B, 1, h, w], float, 1 where selected. Random
numbers are of the generator of PyTorch for the device, whose state a training keeps in its checkpoints.
"""

import torch
from torch import Generator, Tensor

from ...envs.apga_actions import box_masks
from ...segmenters.otsu import otsu_masks
from .rules import DROPPED, cutout_boxes


def boxes(x: Tensor) -> Tensor:
    """One box in each image, a [B, 1, S, S], by cutout's law."""
    size = x.shape[-1]
    return box_masks(cutout_boxes(len(x), size, generator_of(x.device)), size).to(x.dtype)


def pixels(x: Tensor) -> Tensor:
    """Each pixel by itself, a [B, 1, S, S], by the law of pixel dropout."""
    return (torch.rand_like(x) < DROPPED).to(x.dtype)


def foreground(x: Tensor) -> Tensor:
    """What is brighter than Otsu's threshold of each image, a [B, 1, S, S]; none where all is the same."""
    return otsu_masks((x * 255).round().byte()).to(x.dtype)


def same_area(mask: Tensor, u: Tensor) -> Tensor:
    """Masks whose cells are those of `mask`, each image's in random order: the same area, anywhere.

    u: as `mask`, uniform in [0, 1), whose order is the cells'.
    """
    return mask.flatten(1).gather(1, u.flatten(1).argsort(dim=1)).view_as(mask)


def others(mask: Tensor) -> Tensor:
    """The mask of another image of the batch for each: shapes stay, and no longer fit what is seen."""
    return mask.roll(1, dims=0)


def generator_of(device: torch.device) -> Generator:
    """PyTorch's own generator of a device."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
