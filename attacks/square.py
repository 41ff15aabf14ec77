"""Square attack: random search with the model's outputs alone, for segmentation (docs/rp-pgd.md, Method 26)."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_choice, check_range
from .budget import Bounds, Epsilon, LinfBall, per_image
from .core import AttackCore
from .losses import jensen_shannon
from .reach import finished, measure, reachable

FIRST_SHARE = 0.8
"""Share of the image that the first windows cover."""
HALVED_AT = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the steps after which that share is halved."""


@torch.inference_mode(False)
@torch.no_grad()
def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str | Fraction | Epsilon,
    steps: int = 1000,
    objective: Literal["js", "dice"] = "js",
    shrink: bool = True,
    bounds: Bounds = (0.0, 1.0),
    ignore_index: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images [B, C, *spatial] within eps, found without any gradient.

    It begins with stripes of +-b along the first axis. Each step sets a window of each image, a cube, or as much of one
    as a short axis has, to +-b for each channel, and keeps it where the objective rises.
    `steps` + 2 forward passes; contract and arguments as those of `Attack`.

    Args:
        model: gives logits [B, K, *spatial] of images in their own units.
        images: floating point [B, C, *spatial], within the bounds.
        labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
        eps: radius as a share of high - low, in (0, 1]: 0.03, or "8/255".
        bounds: (low, high), numbers or tensors for each image and channel.
        ignore_index: label of pixels that count for nothing.
        generator: of what is drawn; None: PyTorch's own.
        steps: windows that are tried, at least 1.
        objective: "js", the Jensen-Shannon divergence of the valid pixels, or "dice", 1 - hard Dice of the foreground
            (docs/seat.md, Method 16).
        shrink: halve the windows' share at `HALVED_AT`; False: all are of the first size.

    Raises:
        ValueError: as `Attack`.
    """
    check_range("steps", steps, AT_LEAST_1)
    check_choice("objective", objective, ("js", "dice"))
    ball = LinfBall.around(images, Epsilon.parse(eps).value, bounds)
    core = AttackCore(model, ignore_index=ignore_index, loss=jensen_shannon)
    core.reset(ball, labels)
    device, (number, channels, *spatial) = images.device, images.shape

    def draw(*shape: int) -> Tensor:
        origin = device if generator is None else generator.device
        return torch.rand(shape, generator=generator, device=origin, dtype=images.dtype).to(device)

    def value() -> Tensor:
        return core.losses.flatten(1).sum(dim=1) if objective == "js" else 1 - measure(core, "dice")

    def try_out(change: Tensor) -> Tensor:
        core.observe(reachable(core, ball.images + change), graph=False)
        return value()

    best = value()
    change = torch.zeros_like(ball.images)
    stripes = (draw(number, channels, 1, *spatial[1:]) - 0.5).sign() * ball.radius
    found = try_out(stripes.expand_as(change))
    change = torch.where(per_image(found > best, images), stripes, change)
    best = torch.maximum(best, found)
    for step in range(steps):
        share = FIRST_SHARE / 2 ** sum(shrink and step >= part * steps for part in HALVED_AT)
        inside = torch.ones(number, *spatial, dtype=torch.bool, device=device)
        for axis, (size, side) in enumerate(zip(spatial, window_sides(share, spatial), strict=True)):
            first = (draw(number) * (size - side + 1)).long().clamp(max=size - side)
            at = torch.arange(size, device=device) - first[:, None]  # [B, size]
            kept = ((at >= 0) & (at < side)).view(number, *[size if a == axis else 1 for a in range(len(spatial))])
            inside = inside & kept
        signs = (draw(number, channels) - 0.5).sign().view(number, channels, *[1] * len(spatial))
        tried = torch.where(inside.unsqueeze(1), signs * ball.radius, change)
        found = try_out(tried)
        change = torch.where(per_image(found > best, images), tried, change)
        best = torch.maximum(best, found)
    return finished(core, reachable(core, ball.images + change))


def window_sides(share: float, spatial: Sequence[int]) -> list[int]:
    """Sides of a window that covers this share of an image: those of a cube, each at most its axis and at least 1."""
    side = max(round((share * math.prod(spatial)) ** (1 / len(spatial))), 1)
    return [min(side, size) for size in spatial]
