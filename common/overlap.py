"""Overlap of two label maps: Dice, and the counts that IoU and accuracy are made of."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SMOOTH = 1e-5
"""Added to the denominator of `dice_batch`, in voxels."""


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


def dice_case(counts: ClassCounts) -> Tensor:
    """Dice of each image and foreground class, float32 [B, K - 1] (docs/seat.md, Method 9).

    2 TP / (2 TP + FP + FN); 1 where the class is neither predicted nor true.
    """
    return _ratio(2 * counts.both, counts.predicted + counts.true, 1.0)[:, 1:]


def recall_and_precision(counts: ClassCounts) -> tuple[Tensor, Tensor]:
    """TP / (TP + FN) and TP / (TP + FP) of each image and foreground class, float32 [B, K - 1] each; NaN for 0 / 0."""
    recall, precision = (_ratio(counts.both, of, torch.nan)[:, 1:] for of in (counts.true, counts.predicted))
    return recall, precision


def dice_batch(counts: ClassCounts, *, strict_reference: bool = False) -> Tensor:
    """Mean Dice of the foreground classes of each image, float32 [B], which attacks choose by (docs/seat.md, Method 9).

    2 TP / (2 TP + FP + FN + 1e-5); a class that is neither predicted nor true is left out, and without any the image
    gives 1.

    Args:
        counts: of the images.
        strict_reference: such a class counts 0, as in the program.
    """
    sizes = (counts.predicted + counts.true)[:, 1:]
    dice = 2 * counts.both[:, 1:] / (sizes + SMOOTH)
    if strict_reference:
        return dice.mean(dim=1)
    return _ratio((dice * (sizes > 0)).sum(dim=1), (sizes > 0).sum(dim=1), 1.0)


def dice_global(counts: ClassCounts) -> Tensor:
    """Dice of each foreground class over all images together, float32 [K - 1]; NaN where it is nowhere."""
    return _ratio(2 * counts.both.sum(dim=0), (counts.predicted + counts.true).sum(dim=0), torch.nan)[1:]


def _ratio(part: Tensor, whole: Tensor, empty: float) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1), empty)
