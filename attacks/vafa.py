"""VAFA: an attack on the frequencies of a volume, which are rounded to tables that gradients make coarser or finer
(docs/seat.md, Method 16).

Symbols: q = table, a number for each frequency of each block, in steps of an 8-bit image; a = softness of the rounding.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.checks import ABOVE_0, AT_LEAST_1, check_range
from .budget import GREY_LEVELS, Bounds, Epsilon, LinfBall, as_bounds, per_image
from .core import AttackCore, StepSpec
from .reach import finished, measure, reachable

BLOCK = 32
"""Side of a block, at most that of the image."""
SOFTNESS = 0.1
"""a in the first step; it falls to 0 evenly."""
MIDDLE = 128
"""Grey level that is 0 before the cosine transform."""
SSIM_WINDOW = 3


@torch.inference_mode(False)
def vafa(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str | Fraction | Epsilon = 1,
    steps: int = 20,
    q_max: float = 20,
    q_min: float = 5,
    q_start: float | None = None,
    bounds: Bounds = (0.0, 1.0),
    ignore_index: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images [B, C, *spatial] whose frequencies are rounded: of all steps, that with the lowest Dice.

    Each step renders the image, asks the model, and moves each q by 1 down the sign of the gradient of -(soft Dice
    loss) + (1 - SSIM). q bounds the change, and eps = 1 nothing but the range. `steps` backward and `steps` + 2 forward
    passes; contract and arguments as those of `Attack`.

    Args:
        model: gives logits [B, K, *spatial] of images in their own units.
        images: floating point [B, C, *spatial] with two or three spatial axes, within the bounds.
        labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
        eps: radius that the images are cut to, as a share of high - low.
        steps: gradients, at least 1.
        q_max: coarsest step of a frequency, in steps of an 8-bit image.
        q_min: the finest, above 0 and at most q_max.
        q_start: of all frequencies; None: q_max, as in the program. In the paper 1, as q_min.
        bounds: (low, high), numbers or tensors for each image and channel.
        ignore_index: label of pixels that count for nothing.
        generator: not used; nothing here is drawn.

    Raises:
        ValueError: as `Attack`, or tables outside of their range.
    """
    check_range("steps", steps, AT_LEAST_1)
    check_range("q_min", q_min, (ABOVE_0, q_max))
    start = q_max if q_start is None else q_start
    check_range("q_start", start, (q_min, q_max))
    ball = LinfBall.around(images, Epsilon.parse(eps).value, bounds)
    low, high = as_bounds(ball.images, bounds)
    width = torch.where(high > low, high - low, 1)
    core = AttackCore(model, ignore_index=ignore_index)
    core.reset(ball, labels)
    clean = (ball.images - low) / width
    sides = images.shape[2:]
    blocks = [min(BLOCK, side) for side in sides]
    unpadded: tuple[Any, ...] = (..., *(slice(side) for side in sides))
    frequencies = cosines(_padded(GREY_LEVELS * clean - MIDDLE, blocks), blocks)
    tables = torch.full_like(frequencies, start)
    worst, lowest = ball.images, torch.full((len(images),), torch.inf, device=images.device)
    nothing = torch.zeros_like(core.losses)

    for t in range(steps + 1):
        softness = SOFTNESS * (1 - min(t, steps - 1) / steps)
        with torch.enable_grad():
            tables.requires_grad_()
            levels = cosines(tables * soft_round(frequencies / tables, softness), blocks, inverse=True)
            shown = (levels + MIDDLE)[unpadded] / GREY_LEVELS  # in shares of the range
        reached = reachable(core, torch.where(high > low, low + width * shown.detach(), ball.images))
        core.observe(reached, graph=t < steps)
        left = measure(core, "dice")
        worst = torch.where(per_image(left < lowest, images), reached, worst)
        lowest = torch.minimum(left, lowest)
        if t == steps:
            break
        slope = _unlike(clean, (reached - low) / width) - core.differentiate(StepSpec(nothing, 1.0, dice=1.0)) * width
        (change,) = torch.autograd.grad(shown, tables, slope)
        tables = (tables.detach() - change.sign()).clamp(q_min, q_max)
    return finished(core, worst)


def soft_round(values: Tensor, softness: float) -> Tensor:
    """floor(u) + (s tanh(k (u - floor(u) - 1/2)) + 1) / 2, k = ln(2 / a - 1), s = 1 / (1 - a): rounding, for a -> 0.

    Args:
        values: u, of any shape.
        softness: a, in (0, 1).
    """
    whole = values.floor()
    bend = ((values - whole - 0.5) * math.log(2 / softness - 1)).tanh() / (1 - softness)
    return whole + (bend + 1) / 2


def cosines(values: Tensor, blocks: Sequence[int], *, inverse: bool = False) -> Tensor:
    """Orthonormal cosine transform of each block, in place of its values; as `values` [B, C, *spatial].

    Args:
        values: each spatial side a multiple of its block.
        blocks: sides of a block.
        inverse: values of frequencies.
    """
    for axis, side in enumerate(blocks, start=2):
        at = torch.arange(side, dtype=torch.float64, device=values.device)
        waves = (math.pi / side * (at + 0.5) * at[:, None]).cos() * math.sqrt(2 / side)  # [frequency, place]
        waves[0] /= math.sqrt(2)
        matrix = (waves if inverse else waves.T).to(values.dtype)
        lines = values.movedim(axis, -1)
        values = (lines.reshape(-1, side) @ matrix).reshape(lines.shape).movedim(-1, axis)
    return values


def _padded(values: Tensor, blocks: Sequence[int]) -> Tensor:
    """Repeated at the far end of each axis, up to a whole number of blocks."""
    pad: list[int] = []
    for size, side in zip(values.shape[2:], blocks, strict=True):
        pad = [0, -size % side, *pad]
    return F.pad(values, pad, mode="replicate")


@torch.enable_grad()
def _unlike(clean: Tensor, reached: Tensor) -> Tensor:
    """Gradient of 1 - SSIM of each image in the second one, [B, C, *spatial]; both in [0, 1]."""
    from monai.losses.ssim_loss import SSIMLoss  # here: it loads slowly

    reached = reached.detach().requires_grad_()
    loss = SSIMLoss(clean.dim() - 2, data_range=1.0, win_size=SSIM_WINDOW, reduction="none")(reached, clean)
    (slope,) = torch.autograd.grad(loss.sum(), reached)
    return slope
