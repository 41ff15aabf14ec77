"""Overlap of two label maps: Dice, and the counts that IoU and accuracy are made of."""

from collections.abc import Sequence
from typing import NamedTuple

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


class ClassCounts(NamedTuple):
    """Pixels of each class, int64 [B, K] each; they add up over images."""

    both: Tensor
    """Predicted and true, I_k."""
    predicted: Tensor
    """P_k."""
    true: Tensor
    """G_k."""

    @property
    def union(self) -> Tensor:
        """U_k = P_k + G_k - I_k."""
        return self.predicted + self.true - self.both


def class_counts(predicted: Tensor, labels: Tensor, classes: int, ignore_index: int = 255) -> ClassCounts:
    """Pixels of each class without those that are ignored (docs/rp-pgd.md, Method 18); never waits for the device.

    Args:
        predicted: integers [B, *spatial] in 0 .. K - 1.
        labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
        classes: K.
        ignore_index: label of pixels that count for nothing.

    Raises:
        ValueError: maps of different shapes, or without a spatial axis.
    """
    if predicted.shape != labels.shape or predicted.ndim < 2:
        raise ValueError(
            f"label maps are {list(predicted.shape)} and {list(labels.shape)} but must both be [B, *spatial]"
        )
    valid = (labels != ignore_index).flatten(1)
    true, found = (torch.where(valid, x.flatten(1).long(), classes) for x in (labels, predicted))

    def count(numbers: Tensor) -> Tensor:
        counts = torch.zeros(len(numbers), classes + 1, dtype=torch.int64, device=numbers.device)
        return counts.scatter_add_(1, numbers, torch.ones_like(numbers))[:, :classes]

    return ClassCounts(count(torch.where(true == found, true, classes)), count(found), count(true))
