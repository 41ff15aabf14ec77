"""PGD from several random starts, of which each image's lowest measure is kept: the attack of SEAT's evaluation, and
TRADES' inner attack (docs/seat.md, Method 16)."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import get_args

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_choice, check_range
from .budget import Bounds, Epsilon, LinfBall, per_image
from .core import AttackCore
from .losses import divergence_from
from .methods import Schedule, cospgd, segpgd, uniform, with_dice
from .options import RPOptions
from .reach import Measure, finished, measure, reachable
from .regions import Weighting

LOSSES: Mapping[str, Schedule] = {"ce": uniform, "dice_ce": with_dice, "segpgd": segpgd, "cospgd": cospgd}
"""What is raised: cross-entropy, with the Dice part too, or weighed as SegPGD or CosPGD do."""
STEP = 0.25
"""Default step size, a share of the radius."""
TRADES_START = 0.001
"""Deviation of TRADES' normal start, a share of the range."""


@torch.inference_mode(False)
def pgd_restarts(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str | Fraction | Epsilon,
    loss: str = "ce",
    steps: int = 5,
    step_size: float | str | Fraction | Epsilon | None = None,
    restarts: int = 5,
    keep: Measure = "dice",
    bounds: Bounds = (0.0, 1.0),
    ignore_index: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images [B, C, *spatial] within eps: of all that were reached, for each image the one with the lowest
    measure.

    Each restart begins at U(-b, b) and takes `steps` backward and `steps` + 1 forward passes. Contract as that of
    `Attack`.

    Args:
        model: gives logits [B, K, *spatial] of images in their own units.
        images: floating point [B, C, *spatial], within the bounds.
        labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
        eps: radius as a share of high - low, in (0, 1]: 0.03, or "8/255".
        loss: one of `LOSSES`.
        steps: gradients of each restart, at least 1.
        step_size: a share of high - low like eps; None: a quarter of eps.
        restarts: at least 1.
        keep: what is measured: "dice" of the foreground, or "accuracy".
        bounds: (low, high), numbers or tensors for each image and channel, such as `image_range(images)`.
        ignore_index: label of pixels that count for nothing.
        generator: of the starts; None: PyTorch's own.

    Raises:
        ValueError: names what was given, what is allowed, and the way out.
    """
    check_choice("loss", loss, LOSSES)
    check_choice("keep", keep, get_args(Measure))
    check_range("steps", steps, AT_LEAST_1)
    check_range("restarts", restarts, AT_LEAST_1)
    budget = Epsilon.parse(eps)
    share = STEP if step_size is None else Epsilon.parse(step_size, "step_size").value / budget.value
    ball = LinfBall.around(images, budget.value, bounds)
    core = AttackCore(model, ignore_index=ignore_index)
    worst, lowest = ball.images, torch.full((len(images),), torch.inf, device=images.device)

    for _ in range(restarts):
        core.reset(ball, labels, ball.random(generator))
        for t in range(steps + 1):
            left = measure(core, keep)
            worst = torch.where(per_image(left < lowest, images), core.adversarial, worst)
            lowest = torch.minimum(left, lowest)
            if t < steps:
                core.step(core.weigh(LOSSES[loss](t, steps, RPOptions()), share), last=t == steps - 1)
        core.check_finite()
    return worst


@torch.inference_mode(False)
def trades(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str | Fraction | Epsilon,
    steps: int = 10,
    step_size: float | str | Fraction | Epsilon | None = None,
    bounds: Bounds = (0.0, 1.0),
    ignore_index: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images [B, C, *spatial] within eps whose predictions are far from those of the clean ones, whatever is right.

    It raises the mean over valid pixels of KL(softmax f(x) || softmax f(x_t)), from x + 0.001 (high - low) N(0, 1).
    `steps` backward and `steps` + 1 forward passes; contract, errors and other arguments as those of `pgd_restarts`.

    Args:
        steps: gradients, at least 1.
        step_size: a share of high - low like eps; None: a quarter of eps.
        generator: of the start; None: PyTorch's own.
    """
    check_range("steps", steps, AT_LEAST_1)
    budget = Epsilon.parse(eps)
    share = STEP if step_size is None else Epsilon.parse(step_size, "step_size").value / budget.value
    ball = LinfBall.around(images, budget.value, bounds)
    core = AttackCore(model, ignore_index=ignore_index)
    return raise_divergence(core, ball, labels, budget.value, steps, share, generator=generator)


def raise_divergence(
    core: AttackCore,
    ball: LinfBall,
    labels: Tensor,
    eps: float,
    steps: int,
    step_size: float,
    *,
    generator: torch.Generator | None = None,
    watch: Callable[[int], object] | None = None,
) -> Tensor:
    """`trades` in a ball that is known: what its training and its evaluation attack with.

    Args:
        core: of the model; afterwards it holds the attack.
        ball: of the clean images.
        labels: integers [B, *spatial], which only say what is ignored.
        eps: radius of the ball as a share of the range.
        steps: gradients.
        step_size: share of the radius.
        generator: of the start; None: PyTorch's own.
        watch: is handed t = 0, 1, ... when `core.gradient` is that of step t.

    Raises:
        ValueError: logits or gradients that are not finite.
    """
    images = ball.images
    core.reset(ball, labels)
    core.loss = divergence_from(core.logits)
    device = images.device if generator is None else generator.device
    noise = torch.randn(images.shape, dtype=images.dtype, generator=generator, device=device).to(images.device)
    core.observe(reachable(core, images + (TRADES_START / eps) * ball.radius * noise))
    for t in range(steps):
        core.update(core.weigh(Weighting(), step_size))
        if watch is not None:
            watch(t)
        if t < steps - 1:
            core.observe(core.adversarial)
    return finished(core, core.adversarial)
