"""PAdam: projected Adam, whose steps find their own size in each pixel (docs/rp-pgd.md, Method 26)."""

from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_choice, check_range
from .budget import Bounds, Epsilon, LinfBall, per_image
from .core import AttackCore
from .methods import Schedule, cospgd, uniform
from .options import RPOptions
from .reach import finished, reachable

LOSSES: dict[str, Schedule] = {"ce": uniform, "cos": cospgd}
"""What is raised: the cross-entropy, or that of each pixel by its confidence."""
BETAS = (0.9, 0.999)
"""Decay of the mean of the gradients and of their squares."""
TINY = 1e-8


@torch.inference_mode(False)
def padam(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str | Fraction | Epsilon,
    loss: Literal["ce", "cos"] = "ce",
    steps: int = 200,
    step_size: float | str | Fraction | Epsilon = "2/255",
    random_start: bool = True,
    bounds: Bounds = (0.0, 1.0),
    ignore_index: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images [B, C, *spatial] within eps, by AMSGrad and projection; of all steps, the last.

    `steps` forward and backward passes; contract and arguments as those of `Attack`. Gradients are divided by the
    largest value in their image, so that images do not depend on each other and small ones are not lost.

    Args:
        model: gives logits [B, K, *spatial] of images in their own units.
        images: floating point [B, C, *spatial], within the bounds.
        labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
        eps: radius as a share of high - low, in (0, 1]: 0.03, or "8/255".
        random_start: from U(-eps, eps) around the images.
        bounds: (low, high), numbers or tensors for each image and channel.
        ignore_index: label of pixels that count for nothing.
        generator: of what is drawn; None: PyTorch's own.
        loss: "ce", or "cos" with the weights of CosPGD.
        steps: at least 1.
        step_size: Adam's learning rate, a share of the range.

    Raises:
        ValueError: as `Attack`.
    """
    check_choice("loss", loss, LOSSES)
    check_range("steps", steps, AT_LEAST_1)
    budget = Epsilon.parse(eps)
    share = Epsilon.parse(step_size, "step_size").value / budget.value
    ball = LinfBall.around(images, budget.value, bounds)
    core = AttackCore(model, ignore_index=ignore_index)
    core.reset(ball, labels, ball.random(generator) if random_start else None)
    mean, square = torch.zeros_like(ball.images), torch.zeros_like(ball.images)
    highest, moved = torch.zeros_like(ball.images), ball.images
    for t in range(1, steps + 1):
        gradient = core.differentiate(core.weigh(LOSSES[loss](t - 1, steps, RPOptions()), share))
        largest = per_image(gradient.abs().flatten(1).amax(dim=1), images)
        gradient = gradient / torch.where(largest > 0, largest, 1)
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient.square()
        highest = torch.maximum(highest, square)
        step = mean / (1 - BETAS[0] ** t) / ((highest / (1 - BETAS[1] ** t)).sqrt() + TINY)
        moved = reachable(core, core.adversarial + share * ball.radius * step)
        if t < steps:
            core.observe(moved)
    return finished(core, moved)
