"""Random changes of a batch of patches while a network learns from them, on their device (docs/seat.md, Method 6).

In this order: turned and scaled in one resampling, cut to the middle, mirrored, gamma, contrast, brightness. Numbers
come as uniform ones from outside, `DRAWS` for each patch, so that a patch is changed alike in any batch.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...common.checks import AT_LEAST_0, POSITIVE, SHARE, check
from ..volumes import Patches
from .plan import Triple

DRAWS = 15
"""Uniform numbers that each patch needs, whatever the configuration is: options do not shift each other."""


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of patches.

    Raises:
        ValueError: a value outside its range, or a lowest factor above the highest.
    """

    rotation: float = 0.5
    """Share of the patches that are turned, about all three axes."""
    degrees: float = 15.0
    """Greatest angle about each axis, either way."""
    scaling: float = 0.5
    """Share of the patches that are scaled."""
    scale: tuple[float, float] = (0.85, 1.15)
    """Lowest and highest factor, as often below 1 as above; above 1 more of the patch is seen, smaller."""
    mirror: float = 0.5
    """Share of the patches that are mirrored, along each axis by itself."""
    gamma: float = 0.2
    """Share of the patches whose intensities, scaled to 0..1, are taken to a power; mean and deviation stay."""
    gamma_range: tuple[float, float] = (0.7, 1.5)
    """Lowest and highest power, as often below 1 as above."""
    contrast: float = 0.2
    """Share of the patches whose intensities are drawn towards, or away from, their mean, within their range."""
    contrast_range: tuple[float, float] = (0.75, 1.25)
    """Lowest and highest factor, as often below 1 as above."""
    brightness: float = 0.2
    """Share of the patches to which one normal number is added."""
    brightness_std: float = 1.0
    """Its standard deviation, in z-scores."""

    def __post_init__(self) -> None:
        section = "augmentation."
        shares = ("rotation", "scaling", "mirror", "gamma", "contrast", "brightness")
        check(self, section, degrees=AT_LEAST_0, brightness_std=AT_LEAST_0, **dict.fromkeys(shares, SHARE))
        for name in ("scale", "gamma_range", "contrast_range"):
            check(self, section, **{name: POSITIVE})
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise ValueError(f"{section}{name} is {(low, high)} but must enclose 1, the lowest first")


NO_AUGMENTATION = AugmentationConfig(rotation=0, scaling=0, mirror=0, gamma=0, contrast=0, brightness=0)
"""Patches are cut to their middle, and nothing else."""


def augment(patches: Patches, size: Triple, config: AugmentationConfig, uniform: Tensor) -> Patches:
    """The middle `size` voxels of the changed patches, on their device.

    Args:
        patches: images float32 [B, C, X, Y, Z] in z-scores.
        size: voxels of the result, at most those of the patches.
        config: ranges and shares.
        uniform: float64 [B, DRAWS] in [0, 1).

    Raises:
        ValueError: too few numbers, or a size that exceeds the patches.
    """
    images, labels = patches
    if uniform.shape != (len(images), DRAWS):
        raise ValueError(f"uniform has shape {tuple(uniform.shape)} but must have ({len(images)}, {DRAWS})")
    if any(inner > outer for inner, outer in zip(size, images.shape[2:], strict=True)):
        raise ValueError(f"size is {size} but patches have {tuple(images.shape[2:])} voxels and cannot grow")
    u = uniform.float().unbind(1)
    turned = u[0] < config.rotation
    angles = [torch.where(turned, math.radians(config.degrees) * (2 * one - 1), 0.0) for one in u[1:4]]
    scaled = u[4] < config.scaling
    factor = torch.where(scaled, _about_one(u[5], config.scale), 1.0)
    images, labels = _spatial(images, labels, size, turned | scaled, angles, factor)
    for axis in range(3):
        mirrored = u[6 + axis] < config.mirror
        images = torch.where(_wide(mirrored, images), images.flip(2 + axis), images)
        labels = torch.where(_wide(mirrored, labels), labels.flip(1 + axis), labels)
    images = torch.where(
        _wide(u[9] < config.gamma, images), gamma_changed(images, _about_one(u[10], config.gamma_range)), images
    )
    images = torch.where(
        _wide(u[11] < config.contrast, images),
        contrast_changed(images, _about_one(u[12], config.contrast_range)),
        images,
    )
    normal = math.sqrt(2) * torch.erfinv((2 * u[14] - 1).clamp(-1 + 1e-6, 1 - 1e-6))
    added = torch.where(u[13] < config.brightness, config.brightness_std * normal, 0.0)
    return Patches(images + _wide(added, images), labels)


def gamma_changed(images: Tensor, power: Tensor) -> Tensor:
    """Images [B, C, ...] whose intensities, scaled to 0..1 by the range of all channels, are taken to a power [B].

    Mean and deviation over all channels stay what they were; a constant image stays as it is.
    """
    low, high = images.flatten(1).aminmax(dim=1)
    mean, std = _moments(images)
    reach = _wide(high - low + 1e-7, images)
    bent = ((images - _wide(low, images)) / reach).clamp(0, 1) ** _wide(power, images) * reach
    new_mean, new_std = _moments(bent)
    return (bent - new_mean) / (new_std + 1e-8) * std + mean


def contrast_changed(images: Tensor, factor: Tensor) -> Tensor:
    """Images [B, C, ...] whose distance to their mean, of all channels, is multiplied [B], within their own range."""
    low, high = (_wide(end, images) for end in images.flatten(1).aminmax(dim=1))
    mean, _ = _moments(images)
    return torch.minimum(torch.maximum((images - mean) * _wide(factor, images) + mean, low), high)


def _spatial(
    images: Tensor, labels: Tensor, size: Triple, changed: Tensor, angles: list[Tensor], factor: Tensor
) -> tuple[Tensor, Tensor]:
    """The middle of turned and scaled patches; those that are not `changed` are cut without resampling.

    Images are trilinear with 0 (the mean of the foreground) beyond the patch, labels nearest with background there.
    """
    whole = images.shape[2:]
    first = [(outer - inner) // 2 for outer, inner in zip(whole, size, strict=True)]
    x, y, z = (slice(start, start + inner) for start, inner in zip(first, size, strict=True))
    cut, cut_labels = images[..., x, y, z], labels[..., x, y, z]
    # from a voxel of the result to one of the patch, both counted from their middles in (x, y, z)
    turn = _rotation(angles) * factor[:, None, None]
    to_ends, from_ends = (
        torch.stack([torch.full((), end, device=images.device) for end in ends])  # no copy, for which a host would wait
        for ends in ([inner / 2 for inner in size], [2 / outer for outer in whole])
    )
    theta = (from_ends[:, None] * turn * to_ends).flip(1, 2)  # grid_sample counts the last axis first
    theta = torch.cat((theta, torch.zeros_like(theta[:, :, :1])), dim=2)
    grid = functional.affine_grid(theta, [len(images), 1, *size], align_corners=False)
    sampled = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    nearest = functional.grid_sample(
        labels[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    images = torch.where(_wide(changed, sampled), sampled, cut)
    return images, torch.where(_wide(changed, cut_labels), nearest[:, 0].long(), cut_labels)


def _rotation(angles: list[Tensor]) -> Tensor:
    """Rotations about x, then y, then z, by these angles [B] in radians: [B, 3, 3] on (x, y, z)."""
    matrix = torch.eye(3, device=angles[0].device).expand(len(angles[0]), 3, 3)
    for axis, angle in enumerate(angles):
        one, other = [kept for kept in range(3) if kept != axis]
        turn = torch.eye(3, device=angle.device).repeat(len(angle), 1, 1)
        turn[:, one, one] = turn[:, other, other] = angle.cos()
        turn[:, one, other], turn[:, other, one] = -angle.sin(), angle.sin()
        matrix = matrix @ turn
    return matrix


def _about_one(u: Tensor, ends: tuple[float, float]) -> Tensor:
    """Factors [B] between the ends, of uniform numbers: the lower half below 1, the upper half above."""
    low, high = ends
    return torch.where(u < 0.5, low + 2 * u * (1 - low), 1 + (2 * u - 1) * (high - 1))


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each image, over its channels and voxels, as wide as the images."""
    std, mean = torch.std_mean(images.flatten(1), dim=1, correction=0)
    return _wide(mean, images), _wide(std, images)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Values [B] with as many axes as `like`."""
    return values.view(-1, *(1,) * (like.ndim - 1))
