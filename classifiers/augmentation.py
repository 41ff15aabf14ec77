"""Random changes of training images: flips, and intensities of other scanners and contrast phases
(docs/spars.md, Method 7)."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .presence_config import PresenceTrainingConfig

KNOTS = 4
"""Random values along each axis of a shading field."""


def draw_flips(number: int, config: PresenceTrainingConfig, generator: Generator) -> Tensor:
    """Which axes of each of `number` samples are reversed, bool [B, 3]."""
    return torch.rand(number, 3, generator=generator) < config.flip_probability


def flip_axes(x: Tensor, flips: Tensor) -> Tensor:
    """x [B, C, X, Y, Z] with the axes of each sample reversed where flips, bool [B, 3], says so."""
    for axis in range(3):
        x = torch.where(flips[:, axis].view(-1, 1, 1, 1, 1), x.flip(axis + 2), x)
    return x


def jitter_intensity(
    x: Tensor, hu_window: tuple[float, float], config: PresenceTrainingConfig, generator: Generator
) -> Tensor:
    """Images in [0, 1] as of another scanner or contrast phase; x [B, 1, X, Y, Z] in [0, 1].

    x becomes a·x^c + shift + shading + noise: a scanner that reads a·HU + b, a in 1 ± hu_scale and b in ± hu_shift; c
    in 1 / (1 + gamma) to 1 + gamma; shading in ± bias_hu; noise of a standard deviation up to noise_hu. What is
    configured as 0 draws no numbers. Air stays 0: it lies far below the window, and the halo outside the volume is 0
    when the classifier is used.
    """
    low, high = hu_window
    a, b = _both_sides((2, len(x), 1, 1, 1, 1), x, generator)
    a, b = 1 + config.hu_scale * a, config.hu_shift * b
    shift = ((a - 1) * low + b) / (high - low)  # of the scaled intensity (HU - low) / (high - low)
    bent = x
    if config.gamma:
        bent = x ** torch.exp(math.log1p(config.gamma) * _both_sides((len(x), 1, 1, 1, 1), x, generator))
    changed = a * bent + shift
    if config.bias_hu:
        knots = config.bias_hu / (high - low) * _both_sides((len(x), 1, KNOTS, KNOTS, KNOTS), x, generator)
        changed = changed + F.interpolate(knots, size=x.shape[2:], mode="trilinear", align_corners=True)
    if config.noise_hu:
        deviation = torch.rand(len(x), 1, 1, 1, 1, generator=generator).to(x.device) * config.noise_hu / (high - low)
        seed = int(torch.randint(2**62, (), generator=generator))
        there = Generator(x.device).manual_seed(seed)  # as many numbers as voxels: drawn where the images are
        changed = changed + deviation * torch.randn(x.shape, generator=there, device=x.device)
    return torch.where(x > 0, changed, 0).clamp(0, 1)


def _both_sides(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    """Numbers in [-1, 1) on the device of `like`."""
    return (2 * torch.rand(shape, generator=generator) - 1).to(like.device)
