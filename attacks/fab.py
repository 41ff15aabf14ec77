"""FAB: steps onto the boundary to another class map, drawn towards the clean image (docs/seat.md, Method 16).

Symbols: y = labels, t = target class of each pixel, d = mean over valid pixels of z_t - z_y: the boundary is d = 0;
changes are shares of the range R of each image and channel, so that the box of each value is [0, 1].
"""

from fractions import Fraction

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, SHARE, check_range
from .budget import Bounds, Epsilon, LinfBall, as_bounds, per_image, signed_noise
from .core import AttackCore
from .losses import PixelLoss
from .reach import finished, measure, reachable
from .regions import Weighting

TINY = 1e-8
"""Least length of a step that others are divided by, a share of the range."""


@torch.inference_mode(False)
def fab(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str | Fraction | Epsilon,
    steps: int = 20,
    restarts: int = 5,
    targets: int = 9,
    alpha_max: float = 0.1,
    overshoot: float = 1.05,
    backward: float = 0.9,
    bounds: Bounds = (0.0, 1.0),
    ignore_index: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images [B, C, *spatial]: of all that were reached, cut to eps, those with the lowest Dice.

    The targets are the class maps that are second, third, ... in each pixel of the clean image. Each step projects the
    image and the clean one onto the linearised boundary within the box, overshoots, and mixes both; an image beyond the
    boundary goes back towards the clean one. For each target and restart `steps` backward and 3 `steps` + 1 forward
    passes; contract and arguments as those of `Attack`.

    Args:
        model: gives logits [B, K, *spatial] of images in their own units.
        images: floating point [B, C, *spatial], within the bounds.
        labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
        eps: radius as a share of high - low, in (0, 1]: 0.03, or "8/255".
        steps: gradients for each target and restart, at least 1.
        restarts: the first from the clean image, the others from noise of half of eps.
        targets: class maps, at most K - 1.
        alpha_max: largest share of the clean image's projection.
        overshoot: factor of a projection.
        backward: share of the change that an image beyond the boundary keeps.
        bounds: (low, high), numbers or tensors for each image and channel.
        ignore_index: label of pixels that count for nothing.
        generator: of the noise; None: PyTorch's own.

    Raises:
        ValueError: as `Attack`.
    """
    for name, number in {"steps": steps, "restarts": restarts, "targets": targets, "overshoot": overshoot}.items():
        check_range(name, number, AT_LEAST_1)
    check_range("alpha_max", alpha_max, SHARE)
    check_range("backward", backward, SHARE)
    budget = Epsilon.parse(eps)
    ball, whole = (LinfBall.around(images, radius, bounds) for radius in (budget.value, 1.0))
    low, high = as_bounds(ball.images, bounds)
    width = (high - low).expand_as(images)
    box = ((low - ball.images).expand_as(images), (high - ball.images).expand_as(images))  # of changes
    core = AttackCore(model, ignore_index=ignore_index)
    core.reset(whole, labels)
    ranked = core.logits.argsort(dim=1, descending=True)
    worst, lowest = ball.images, measure(core, "dice")

    for rank in range(1, min(targets, core.logits.shape[1] - 1) + 1):
        core.loss = _lead_of(ranked[:, rank])
        for restart in range(restarts):
            noise = 0.0 if restart == 0 else budget.value / 2 * width * signed_noise(ball.images, generator)
            core.observe(reachable(core, ball.images + noise))
            for _ in range(steps):
                change = core.adversarial - ball.images
                lead = core.losses.detach().flatten(1).sum(dim=1) / core.valid.flatten(1).sum(dim=1).clamp(min=1)
                slope = core.differentiate(core.weigh(Weighting(), 1.0))
                here = project(slope, -lead, width, box[0] - change, box[1] - change)
                clean = project(slope, (slope * change).flatten(1).sum(dim=1) - lead, width, *box)
                lengths = [_length(step, width).clamp(min=TINY) for step in (here, clean)]
                share = per_image((lengths[0] / (lengths[0] + lengths[1])).clamp(max=alpha_max), images)
                mixed = (1 - share) * (change + overshoot * here) + share * overshoot * clean
                core.observe(reachable(core, ball.images + mixed), graph=False)
                found, crossed = core.adversarial, core.losses.flatten(1).sum(dim=1) >= 0
                cut = torch.where(per_image(core.active, images), ball.project(found), ball.images)
                core.observe(cut, graph=False)
                left = measure(core, "dice")
                worst = torch.where(per_image(left < lowest, images), cut, worst)
                lowest = torch.minimum(left, lowest)
                back = ball.images + backward * (found - ball.images)
                core.observe(reachable(core, torch.where(per_image(crossed, images), back, found)))
    return finished(core, worst)


def project(slope: Tensor, gain: Tensor, width: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The smallest change in a box by which a linear function grows by `gain`, or as far as the box goes.

    Smallest in its largest value, each divided by `width`: all values change by the same share, but those that meet the
    box.

    Args:
        slope: gradient of the function, [B, *shape].
        gain: [B].
        width: unit of each value; where it is 0 nothing changes; as slope.
        lower: least change of each value, at most 0; as slope.
        upper: largest one, at least 0; as slope.
    """
    way = slope.sign() * per_image(gain.sign(), slope)
    room = torch.where(way > 0, upper, -lower).clamp(min=0) * (way != 0)
    share = (room / torch.where(width > 0, width, 1)).flatten(1)
    share, order = share.sort(dim=1)
    pull = (slope.abs() * width).flatten(1).gather(1, order).double()
    left = pull.flip(1).cumsum(dim=1).flip(1)  # of the values that have not met the box yet
    gone = torch.cumsum(pull * share, dim=1) - pull * share
    wanted = gain.abs().double()[:, None]
    reached = gone + left * share >= wanted  # if all went as far as this value can
    first = reached.int().argmax(dim=1, keepdim=True)
    length = (wanted - gone.gather(1, first)) / left.gather(1, first).clamp(min=torch.finfo(torch.float64).tiny)
    length = torch.where(reached.any(dim=1, keepdim=True), length, share[:, -1:]).to(slope.dtype)
    return way * torch.minimum(per_image(length, slope) * width, room)


def _lead_of(target: Tensor) -> PixelLoss:
    """z_t - z_y of each pixel."""
    wanted = target.unsqueeze(1)
    return lambda logits, labels: (logits.gather(1, wanted) - logits.gather(1, labels.unsqueeze(1))).squeeze(1)


def _length(change: Tensor, width: Tensor) -> Tensor:
    """Largest change of each image, a share of the range, [B]."""
    return (change.abs() / torch.where(width > 0, width, 1)).flatten(1).amax(dim=1)
