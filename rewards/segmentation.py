"""Rewards from the true labels, one value per pixel (docs/rl4seg.md, Method 6).

Each takes actions and labels, both integers [B, H, W], and gives float32 in [0, 1]: [B, H, W], but for `accuracy`.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from ..common.overlap import class_dice

RewardMap = Callable[[Tensor, Tensor], Tensor]


def pixel_accuracy(actions: Tensor, labels: Tensor) -> Tensor:
    """1[a_p = y_p], [B, H, W]: the oracle's reward, credit pixel by pixel."""
    return _correct(actions, labels)


def accuracy(actions: Tensor, labels: Tensor) -> Tensor:
    """Share of the image's pixels that are right, [B, 1, 1]: it broadcasts where a map is expected."""
    return _correct(actions, labels).mean(dim=(1, 2), keepdim=True)


def accuracy_map(actions: Tensor, labels: Tensor) -> Tensor:
    """The image's accuracy at every pixel, [B, H, W]."""
    return accuracy(actions, labels).expand(actions.shape)


def dice_map(actions: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """The image's Dice at every pixel, the mean over `classes`, [B, H, W]; a class absent from both masks counts 1."""
    _correct(actions, labels)
    return class_dice(actions, labels, classes).float().mean(dim=1)[:, None, None].expand(actions.shape)


def min_fusion(*maps: Tensor) -> Tensor:
    """The least of several reward maps at each pixel, [B, H, W]; maps of [B, 1, 1] broadcast.

    Raises:
        ValueError: no map.
    """
    if not maps:
        raise ValueError("min_fusion needs at least one reward map")
    return reduce(torch.minimum, maps)


def _correct(actions: Tensor, labels: Tensor) -> Tensor:
    if actions.shape != labels.shape or actions.dim() != 3:
        raise ValueError(
            f"actions are {list(actions.shape)} and labels {list(labels.shape)} but both must be [B, H, W] of one size"
        )
    return (actions == labels).float()
