"""Otsu's threshold of many images at once: foreground without training (docs/apga.md, Method 14)."""

import torch
from torch import Tensor


def otsu_thresholds(images: Tensor) -> Tensor:
    """For each image uint8 [N, C, H, W] the grey value t, int64 [N], whose split into <= t and > t has the largest
    variance between the two parts; the first of several, and of a constant image its value."""
    flat = images.flatten(1).long()
    counts = torch.zeros(len(flat), 256, dtype=torch.float64, device=flat.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float64))
    values = torch.arange(256, dtype=torch.float64, device=flat.device)
    below, total = counts.cumsum(dim=1), flat.shape[1]
    mass = (counts * values).cumsum(dim=1)
    above = total - below
    spread = (mass * total - mass[:, -1:] * below) ** 2 / (below * above).clamp(min=1)
    spread = torch.where((below > 0) & (above > 0), spread, -1.0)
    highest = flat.amax(dim=1)
    return torch.where(spread.amax(dim=1) > 0, spread.argmax(dim=1), highest)


def otsu_masks(images: Tensor) -> Tensor:
    """Pixels above Otsu's threshold of their image, bool [N, C, H, W] of images uint8; none of a constant one."""
    return images > otsu_thresholds(images)[:, None, None, None]
