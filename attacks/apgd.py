"""APGD with the losses and the schedule of radii of SEA (docs/rp-pgd.md, Method 11), and with those of volumes, DLR and
Dice + cross-entropy (docs/seat.md, Method 16).

Short code of our own: the attack libraries that have APGD (adversarial-library, torchattacks) want one label for each
image, know neither ignored pixels nor three spatial axes, and have no such schedule for an L-infinity ball.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import get_args

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_choice, check_range
from ..segmenters.dice_ce import soft_dice_loss
from .budget import Bounds, Epsilon, LinfBall, per_image
from .core import AttackCore
from .losses import PixelLoss, class_balance, cross_entropy, dlr, jensen_shannon, spherical
from .methods import Schedule, masked, segpgd, uniform, with_dice
from .options import RPOptions
from .reach import Measure, measure

INERTIA = 0.75
"""Share of the projected gradient step in a move; the rest repeats the last move."""
GROWTH = 0.75
"""Share of the moves between two check points that must have raised the loss, or the step is halved."""
SEA_RADII = ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))
"""SEA's stages: factor of eps, share of the steps."""
ONE_RADIUS = ((1.0, 1.0),)
"""Plain APGD."""


@dataclass(frozen=True)
class Objective:
    """What APGD raises."""

    loss: PixelLoss
    schedule: Schedule
    balanced: bool = False
    """Whether a pixel counts by the rarity of its class."""
    followed: bool = False
    """Whether the step size follows it; else the cross-entropy of all valid pixels."""


OBJECTIVES: Mapping[str, Objective] = {
    "ce": Objective(cross_entropy, uniform),
    "masked_ce": Objective(cross_entropy, masked),
    "masked_balanced_ce": Objective(cross_entropy, masked, balanced=True),
    "js": Objective(jensen_shannon, uniform),
    "segpgd": Objective(cross_entropy, segpgd),
    "masked_spherical": Objective(spherical, masked),
    "dlr": Objective(dlr, uniform, followed=True),
    "dice_ce": Objective(cross_entropy, with_dice, followed=True),
}
"""Objectives by name."""
SEA_LOSSES = ("masked_ce", "masked_balanced_ce", "js")
"""Objectives whose worst result for each image is SEA's."""
SEA_LOSSES_V1 = ("masked_ce", "segpgd", "js", "masked_spherical")
"""Those of SEA's first program, which need no counts of classes."""


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str | Fraction | Epsilon,
    loss: str = "masked_ce",
    steps: int = 300,
    radii: Sequence[tuple[float, float]] = SEA_RADII,
    random_start: bool = True,
    restarts: int = 1,
    keep: Measure = "accuracy",
    bounds: Bounds = (0.0, 1.0),
    ignore_index: int = 255,
    class_counts: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images [B, C, *spatial] within eps: of the last stage, those with the lowest measure.

    `steps` backward passes, and one forward pass more for each stage, of each restart. Contract as that of `Attack`.

    Args:
        model: gives logits [B, K, *spatial] of images in their own units (`Normalized`).
        images: floating point [B, C, *spatial], within the bounds.
        labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
        eps: radius as a share of high - low, in (0, 1]: 0.03, or "8/255".
        loss: one of `OBJECTIVES`.
        steps: gradients of all stages together, at least 1.
        radii: of each stage the factor of eps and its share of the steps; the last takes what is left, with factor 1.
            A stage starts at the projection of what the one before it found.
        random_start: of the first stage, in its own ball.
        restarts: runs from other random starts, of which each image's best is kept.
        keep: what is brought down: "accuracy", the share of right pixels, or "dice", that of the foreground.
        bounds: (low, high), numbers or tensors for each image and channel.
        ignore_index: label of pixels that count for nothing.
        class_counts: pixels of each class in the training set, [K]; for "masked_balanced_ce".
        generator: of the random start.

    Raises:
        ValueError: names what was given, what is allowed, and the way out.
    """
    check_range("restarts", restarts, AT_LEAST_1)
    check_choice("keep", keep, get_args(Measure))
    budget = Epsilon.parse(eps)
    return _worst(
        _apgd(
            model, images, labels, budget, loss, steps, radii, random_start, keep, bounds, ignore_index, class_counts,
            generator,
        )
        for _ in range(restarts)
    )  # fmt: skip


def sea(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str | Fraction | Epsilon,
    losses: Sequence[str] = SEA_LOSSES,
    steps: int = 300,
    random_start: bool = True,
    keep: Measure = "accuracy",
    bounds: Bounds = (0.0, 1.0),
    ignore_index: int = 255,
    class_counts: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """SEA: of `apgd` with each of the losses, for each image the result with the lowest measure, [B, C, *spatial].

    Arguments and errors as those of `apgd`; `steps` for each of `losses`.
    """
    if not losses:
        raise ValueError(f"losses is empty but must name some of {[*OBJECTIVES]}")
    check_choice("keep", keep, get_args(Measure))
    budget = Epsilon.parse(eps)
    return _worst(
        _apgd(
            model, images, labels, budget, loss, steps, SEA_RADII, random_start, keep, bounds, ignore_index,
            class_counts, generator,
        )
        for loss in losses
    )  # fmt: skip


def checkpoints(steps: int) -> list[int]:
    """Steps after which the step size may be halved: 22 % of them apart at first, then each 3 % less, at least 6 %."""
    interval, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found = [interval]
    while found[-1] + (interval := max(interval - shrink, least)) <= steps:
        found.append(found[-1] + interval)
    return found


def stages(steps: int, radii: Sequence[tuple[float, float]]) -> list[tuple[float, int]]:
    """Factor of eps and number of steps of each stage that has any."""
    counts = [int(share * steps) for _, share in radii[:-1]]
    counts.append(steps - sum(counts))
    return [(factor, count) for (factor, _), count in zip(radii, counts, strict=True) if count > 0]


def stalled(rises: Tensor, moves: int, gained: Tensor, halved: Tensor) -> Tensor:
    """Whether the step size is halved at a check point, bool [B].

    Args:
        rises: moves since the last check point that raised the loss, [B].
        moves: all of them.
        gained: whether the highest loss has grown since, bool [B].
        halved: whether the step size was halved there, bool [B].
    """
    return (rises <= GROWTH * moves) | ~(gained | halved)


def _worst(runs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Of several runs, each images and their measures [B], for each image the first with the lowest one."""
    worst, lowest = next(runs := iter(runs))
    for found, left in runs:
        worst = torch.where(per_image(left < lowest, found), found, worst)
        lowest = torch.minimum(left, lowest)
    return worst


@torch.inference_mode(False)
def _apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: Epsilon,
    loss: str,
    steps: int,
    radii: Sequence[tuple[float, float]],
    random_start: bool,
    keep: Measure,
    bounds: Bounds,
    ignore_index: int,
    class_counts: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Adversarial images, and their measure [B]."""
    check_choice("loss", loss, OBJECTIVES)
    check_range("steps", steps, AT_LEAST_1)
    if not radii or radii[-1][0] != 1 or sum(share for _, share in radii[:-1]) >= 1:
        raise ValueError(f"radii is {radii!r} but the last factor must be 1, and the shares before it below 1 together")
    objective = OBJECTIVES[loss]
    if objective.balanced and class_counts is None:
        raise ValueError(
            f"loss {loss!r} needs class_counts, the pixels of each class in the training set; or leave it out"
        )
    start = lowest = None
    for factor, count in stages(steps, radii):
        ball = LinfBall.around(images, factor * eps.value, bounds)
        if start is None and random_start:
            start = ball.random(generator)
        core = AttackCore(model, ignore_index=ignore_index, loss=objective.loss)
        core.reset(ball, labels, start)
        balance = None
        if objective.balanced and class_counts is not None:
            if class_counts.shape != (core.logits.shape[1],):
                raise ValueError(f"class_counts are {list(class_counts.shape)} but must be [{core.logits.shape[1]}]")
            balance = class_balance(core.targets, class_counts)
        start, lowest = _stage(core, objective, count, balance, keep)
    assert start is not None
    assert lowest is not None
    return start, lowest


def _stage(
    core: AttackCore, objective: Objective, steps: int, balance: Tensor | None, keep: Measure
) -> tuple[Tensor, Tensor]:
    """APGD in one ball: the images with the lowest measure, and that."""
    x = x_old = core.adversarial.detach()
    worst, lowest = x, measure(core, keep)
    best, highest = x, _tracked(core, objective)
    best_gradient = torch.zeros_like(x)
    improved = torch.ones_like(core.active)
    restart = torch.zeros_like(core.active)
    reduced = torch.ones_like(core.active)
    at_check, grown, since = highest, torch.zeros_like(highest), 0
    step = torch.full_like(highest, 2.0)  # in radii
    checks, last = {*checkpoints(steps)}, highest
    for number in range(steps):
        spec = core.weigh(objective.schedule(number, steps, RPOptions()), 1.0)
        if balance is not None:
            spec = replace(spec, weights=spec.weights * balance)
        gradient = core.differentiate(spec)
        best_gradient = torch.where(per_image(improved, x), gradient, best_gradient)
        x = torch.where(per_image(restart, x), best, x)
        gradient = torch.where(per_image(restart, x), best_gradient, gradient)
        inertia = INERTIA if number else 1.0
        aimed = core.ball.project(x + per_image(step, x) * core.ball.radius * gradient.sign())
        moved = core.ball.project(x + inertia * (aimed - x) + (1 - inertia) * (x - x_old))
        x, x_old = torch.where(per_image(core.active, x), moved, x), x
        core.observe(x, graph=number < steps - 1)

        left, loss = measure(core, keep), _tracked(core, objective)
        worst = torch.where(per_image(left <= lowest, x), x, worst)
        lowest = torch.minimum(left, lowest)
        improved = loss > highest
        best = torch.where(per_image(improved, x), x, best)
        highest = torch.maximum(loss, highest)
        grown, since, last = grown + (loss > last), since + 1, loss
        restart = torch.zeros_like(restart)
        if number + 1 in checks:
            restart = reduced = stalled(grown, since, highest > at_check, reduced)
            step = torch.where(restart, step / 2, step)
            at_check, grown, since = highest, torch.zeros_like(grown), 0
    core.check_finite()
    return worst, lowest


def _tracked(core: AttackCore, objective: Objective) -> Tensor:
    """What the step size follows, [B]: masked objectives may themselves fall while pixels are lost."""
    losses = core.losses.detach() if objective.followed else cross_entropy(core.logits, core.targets)
    valid = core.valid.flatten(1)
    found = (losses.flatten(1) * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
    if objective.schedule is with_dice:
        found = found + soft_dice_loss(core.logits, core.targets, core.valid)
    return found
