"""What attacks with steps of their own share: images that may be reached, what is left there, the end of an attack."""

from typing import Literal

import torch
from torch import Tensor

from ..common.overlap import class_counts, dice_batch
from .budget import per_image
from .core import AttackCore

Measure = Literal["accuracy", "dice"]
"""What an attack brings down, by which its images are chosen: share of right pixels, or hard Dice of the foreground."""


def measure(core: AttackCore, by: Measure) -> Tensor:
    """What is left of the prediction at x_t, [B] in [0, 1]; 1 where no pixel is valid.

    dice: mean over the foreground classes that are predicted or true in the image (`dice_batch`).
    """
    if by == "accuracy":
        return core.accuracy()
    nowhere = core.logits.shape[1]  # a label that no class has
    labels = torch.where(core.valid, core.targets, nowhere)
    predicted = core.logits.max(dim=1).indices
    return dice_batch(class_counts(predicted, labels, core.logits.shape[1], ignore_index=nowhere))


def reachable(core: AttackCore, images: Tensor) -> Tensor:
    """The nearest images of the ball, and the clean ones where an image has no valid pixel; without a graph."""
    return torch.where(per_image(core.active, images), core.ball.project(images.detach()), core.ball.images)


def finished(core: AttackCore, images: Tensor) -> Tensor:
    """The images that an attack returns, once nothing that was seen on the way was NaN or infinity.

    Raises:
        ValueError: logits, gradients or images that are not finite.
    """
    core.check_finite()
    broken = (~images.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"gradients of image(s) {broken} are not finite; look for NaN in the model's weights")
    return images
