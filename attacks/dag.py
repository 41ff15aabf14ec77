"""DAG, Dense Adversary Generation: a small change that turns nearly all pixels wrong (docs/rp-pgd.md, Method 26)."""

from fractions import Fraction

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, SHARE, check_range
from .budget import Bounds, Epsilon, LinfBall, per_image
from .core import AttackCore
from .losses import margin
from .reach import finished, reachable
from .regions import Weighting

LOOK_EVERY = 10
"""Steps between two looks at whether all images are done, which wait for the device."""


@torch.inference_mode(False)
def dag(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str | Fraction | Epsilon,
    steps: int = 200,
    step_size: float | str | Fraction | Epsilon = 0.003,
    wrong: float = 0.99,
    bounds: Bounds = (0.0, 1.0),
    ignore_index: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images [B, C, *spatial]: where nearly all pixels are wrong for the first time, then cut to eps.

    The change is bounded while it is sought by the bounds alone: with eps = 1 it is returned as it was found, and its
    largest value is the radius that the image needs. Each step goes along the gradient of the margins of right pixels,
    divided by its largest value. At most `steps` forward and backward passes; arguments as those of `Attack`.

    Args:
        model: gives logits [B, K, *spatial] of images in their own units.
        images: floating point [B, C, *spatial], within the bounds.
        labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
        eps: radius as a share of high - low, in (0, 1]: 0.03, or "8/255".
        bounds: (low, high), numbers or tensors for each image and channel.
        ignore_index: label of pixels that count for nothing.
        steps: at most, at least 1.
        step_size: largest change of a value in one step, a share of the range.
        wrong: share of the valid pixels at which an image is done.
        generator: not used; nothing here is drawn.

    Raises:
        ValueError: as `Attack`.
    """
    check_range("steps", steps, AT_LEAST_1)
    check_range("wrong", wrong, SHARE)
    length = Epsilon.parse(step_size, "step_size").value
    ball, whole = (LinfBall.around(images, radius, bounds) for radius in (Epsilon.parse(eps).value, 1.0))
    core = AttackCore(model, ignore_index=ignore_index, loss=margin)
    core.reset(whole, labels)
    done, found = core.accuracy() <= 1 - wrong, whole.images
    for t in range(steps):
        if t % LOOK_EVERY == 0 and bool((done | ~core.active).all()):
            break
        slope = core.differentiate(core.weigh(Weighting(), 1.0)) * whole.radius  # by shares of the range
        largest = per_image(slope.abs().flatten(1).amax(dim=1), images)
        step = length * whole.radius * slope / torch.where(largest > 0, largest, 1)
        found = reachable(core, core.adversarial + torch.where(per_image(done, images), 0.0, step))
        if t < steps - 1:
            core.observe(found)
            done = done | (core.accuracy() <= 1 - wrong)
    return finished(core, torch.where(per_image(core.active, images), ball.project(found), ball.images))
