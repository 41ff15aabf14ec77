"""How right a prediction is, image by image, and so how much an attack has damaged it: m(x_t) - m(x_{t+1})
(docs/rp-pgd.md, Method 22).

Symbols: I, P, G = pixels of a class that are both, predicted, true; p_y = probability of the true class.
"""

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.overlap import class_counts

Measure = Literal["miou", "acc", "dice", "p_y"]
NOWHERE = -1
"""Label of pixels that count nowhere, which no class has."""


class Predicted(Protocol):
    """What is measured, such as an `AttackCore`."""

    logits: Tensor
    """[B, K, *spatial]."""
    targets: Tensor
    """int64 [B, *spatial] in 0 .. K - 1; any where not valid."""
    valid: Tensor
    """Whether the label is known, bool [B, *spatial]."""


@torch.no_grad()
def measures(state: Predicted) -> dict[str, Tensor]:
    """Measures of each image by name, float32 [B] in [0, 1]; 1 where no pixel is valid.

    miou: mean of I / (P + G - I) over the classes that are predicted or true in the image; acc: share of the valid
    pixels that are right; dice: mean of 2 I / (P + G) over the classes from 1 on that are predicted or true, 1 where
    none is; p_y: mean over the valid pixels.
    """
    classes = state.logits.shape[1]
    labels = torch.where(state.valid, state.targets, NOWHERE)
    counts = class_counts(state.logits.argmax(dim=1), labels, classes, ignore_index=NOWHERE)
    both, union, sizes = counts.both, counts.union, counts.predicted + counts.true
    valid = state.valid.flatten(1).sum(dim=1)
    chance = F.cross_entropy(state.logits, state.targets, reduction="none").neg().exp()
    return {
        "miou": _mean_of(both / union.clamp(min=1), union > 0),
        "acc": torch.where(valid > 0, both.sum(dim=1) / valid.clamp(min=1), 1.0),
        "dice": _mean_of(2 * both[:, 1:] / sizes[:, 1:].clamp(min=1), sizes[:, 1:] > 0),
        "p_y": torch.where(valid > 0, (chance * state.valid).flatten(1).sum(dim=1) / valid.clamp(min=1), 1.0),
    }


def _mean_of(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over the classes that are counted, [B]; 1 where none is."""
    number = counted.sum(dim=1)
    return torch.where(number > 0, (values * counted).sum(dim=1) / number.clamp(min=1), 1.0)
