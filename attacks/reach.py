"""What attacks with steps of their own share: images that may be reached, and the end of an attack."""

import torch
from torch import Tensor

from .budget import per_image
from .core import AttackCore


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
