"""Overlap of two label maps."""

from collections.abc import Sequence

import torch
from torch import Tensor


def class_dice(a: Tensor, b: Tensor, classes: Sequence[int]) -> Tensor:
    """Dice 2 |A and B| / (|A| + |B|) per image and class, float32 [B, K], of integer label maps [B, *spatial].

    A class that is in neither map gives 1, in one of them 0.

    Raises:
        ValueError: maps of different shapes, or without a spatial axis.
    """
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"label maps are {list(a.shape)} and {list(b.shape)} but must both be [B, *spatial]")
    columns = []
    for label in classes:
        in_a, in_b = (a == label).flatten(1), (b == label).flatten(1)
        both, either = (in_a & in_b).sum(dim=1), in_a.sum(dim=1) + in_b.sum(dim=1)
        columns.append(torch.where(either > 0, 2 * both / either.clamp(min=1), 1.0))
    return torch.stack(columns, dim=1)
