"""The region automaton and the weight of each pixel's loss (docs/rp-pgd.md, Method 4 and 5).

Regions, uint8 [B, *spatial]: True (right from the start until now), Boundary (was True, has been wrong since), False
(wrong at the start), ignored. Boundary and False are absorbing. Groups split Boundary and False by whether the pixel is
wrong now. Symbols: T, B, F = regions; R(p) = region of pixel p, Omega = valid pixels of the image.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

IGNORED, TRUE, FALSE, BOUNDARY = range(4)
GROUPS = ("true", "boundary_wrong", "boundary_right", "false_wrong", "false_right")
"""Names of groups 1 to 5; 0 are ignored pixels."""
RegionNorm = Literal["image", "batch", "global"]


@dataclass(frozen=True)
class Weighting:
    """How one step weighs pixels and terms: the numbers that a scripted attack is a schedule of.

    Each is a number, or a tensor [B] of one for each image.
    """

    true: float | Tensor = 1.0
    """Weight of the pixels that are still right."""
    boundary_wrong: float | Tensor = 1.0
    """Of those that were True and are wrong now."""
    boundary_right: float | Tensor = 1.0
    """Of those that were True, were wrong, and are right again."""
    false_wrong: float | Tensor = 1.0
    """Of those that were wrong at the start and are so now."""
    false_right: float | Tensor = 1.0
    """Of those that were wrong at the start and are right now."""
    region_mean: float | Tensor = 0.0
    """0 divides by the valid pixels of the image, 1 by the size of the pixel's region; between, both in part."""
    confidence: float | Tensor | None = None
    """Exponent of the cosine of softmax and one-hot target; None: not weighed by it."""
    inter: float | Tensor | None = None
    """Weight of the inter-class term of prototypes; None: not computed."""
    intra: float | Tensor | None = None
    """Weight of the intra-class term of prototypes; None: not computed."""
    dice: float | Tensor | None = None
    """Weight of 1 - soft Dice of the foreground; None: not computed."""


def region_schedule(t: int, steps: int) -> tuple[float, float, float]:
    """Weights of True, Boundary and False in step t of `steps`: 1 - t/2N, (t - 1)/2N, 1/2N, which add up to 1."""
    return 1 - t / (2 * steps), (t - 1) / (2 * steps), 1 / (2 * steps)


def start_regions(right: Tensor, valid: Tensor, *, ignore_as_false: bool = False) -> Tensor:
    """Regions at the start, uint8: True or False by the prediction, ignored where not valid.

    Args:
        right: bool [B, *spatial], whether the prediction is the label.
        valid: bool [B, *spatial], whether the label is known.
        ignore_as_false: ignored pixels are False, as in the released program.
    """
    regions = torch.where(right & valid, TRUE, FALSE).to(torch.uint8)
    return regions if ignore_as_false else regions * valid


def next_regions(regions: Tensor, right: Tensor) -> Tensor:
    """Regions after a step: True pixels that are wrong now become Boundary, nothing else changes."""
    return torch.where((regions == TRUE) & ~right, BOUNDARY, regions).to(torch.uint8)


def groups(regions: Tensor, right: Tensor) -> Tensor:
    """Groups 1 to 5 in the order of `GROUPS`, 0 where ignored, uint8 [B, *spatial]."""
    boundary, false = torch.where(right, 3, 2), torch.where(right, 5, 4)
    found = torch.where(regions == BOUNDARY, boundary, torch.where(regions == FALSE, false, 1))
    return torch.where(regions == IGNORED, 0, found).to(torch.uint8)


def pixel_weights(
    regions: Tensor, right: Tensor, weighting: Weighting, *, confidence: Tensor | None = None, over_batch: bool = False
) -> Tensor:
    """Weight of each pixel's loss, [B, *spatial], 0 where ignored.

    cos_p^confidence * w_group(p) * (region_mean / |R(p)| + (1 - region_mean) / |Omega|).

    Args:
        regions: of `start_regions` and `next_regions`.
        right: bool [B, *spatial], whether the prediction is right now.
        weighting: weights of groups and what they are divided by.
        confidence: cos_p in [0, 1], [B, *spatial]; needed where the weighting has an exponent.
        over_batch: |R(p)| counts the region's pixels in all images together, as in the released program.
    """
    device, dtype = regions.device, torch.float32 if confidence is None else confidence.dtype
    images = len(regions)

    def per_image(value: float | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(device, dtype).expand(images)
        return torch.full((images,), value, dtype=dtype, device=device)  # no copy from the host

    true, boundary_wrong, boundary_right, false_wrong, false_right = (per_image(getattr(weighting, n)) for n in GROUPS)
    nothing = torch.zeros_like(true)
    of_groups = (nothing, nothing, true, true, false_wrong, false_right, boundary_wrong, boundary_right)
    weights = torch.stack(of_groups, dim=1)  # [B, 8]: each region wrong and right, in the order of their numbers
    sizes = torch.stack([(regions == region).flatten(1).sum(dim=1) for region in range(4)], dim=1)  # [B, 4]
    valid = sizes[:, 1:].sum(dim=1, keepdim=True)
    if over_batch:
        sizes = sizes.sum(dim=0, keepdim=True).expand(images, 4)
    mean = per_image(weighting.region_mean)[:, None]
    shares = mean / sizes.clamp(min=1) + (1 - mean) / valid.clamp(min=1)  # [B, 4]
    index = (2 * regions.flatten(1) + right.flatten(1)).long()
    result = (weights * shares.repeat_interleave(2, dim=1)).gather(1, index)
    if weighting.confidence is not None and confidence is not None:
        exponent = per_image(weighting.confidence)[:, None]
        result = result * confidence.flatten(1) ** exponent
    return result.view_as(regions)
