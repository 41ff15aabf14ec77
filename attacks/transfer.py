"""Black-box attack by an ensemble of other models, whose weights a few queries of the attacked one choose, as EBAD does
(docs/rp-pgd.md, Method 26)."""

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_range
from .budget import Bounds, Epsilon, LinfBall, per_image
from .core import AttackCore
from .losses import cross_entropy
from .reach import finished, reachable
from .victim import frozen

WEIGHT_STEP = 1 / 20
"""First change of a weight, as a share of the mean weight 1 / S of S models."""
REACH = 3.0
"""Steps of one attack together, in radii."""


@torch.inference_mode(False)
def transfer(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str | Fraction | Epsilon,
    surrogates: Sequence[nn.Module],
    steps: int = 10,
    queries: int = 20,
    bounds: Bounds = (0.0, 1.0),
    ignore_index: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images [B, C, *spatial] within eps, by gradients of the surrogates alone.

    PGD raises the mean cross-entropy of the surrogates, weighed alike at first. Then one weight of each image after the
    other is raised and lowered, PGD goes on from the best image so far, and what leaves the model fewer right pixels is
    kept; the change of weights is halved where a round over all of them helped nothing.

    Args:
        model: of which `queries` predictions are seen, and nothing else.
        images: floating point [B, C, *spatial], within the bounds.
        labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
        eps: radius as a share of high - low, in (0, 1]: 0.03, or "8/255".
        bounds: (low, high), numbers or tensors for each image and channel.
        ignore_index: label of pixels that count for nothing.
        surrogates: models with the same classes; left as they were.
        steps: of PGD for each query, at least 1.
        queries: predictions of the model, at least 1; with 1 the weights stay alike.
        generator: not used; nothing here is drawn.

    Raises:
        ValueError: as `Attack`; no surrogates, or one whose logits have another shape than those of the model.
    """
    check_range("steps", steps, AT_LEAST_1)
    check_range("queries", queries, AT_LEAST_1)
    if not surrogates:
        raise ValueError("surrogates is empty but transfer needs at least one model to take gradients from")
    ball = LinfBall.around(images, Epsilon.parse(eps).value, bounds)
    core = AttackCore(model, ignore_index=ignore_index)
    with ExitStack() as stack:
        for surrogate in surrogates:
            stack.enter_context(frozen(surrogate))
        core.reset(ball, labels)
        ensemble = _Ensemble(surrogates, core)
        weights = torch.full((len(images), len(surrogates)), 1 / len(surrogates), device=images.device)
        length = WEIGHT_STEP * weights[:, 0]
        best = ensemble.attack(ball.images, weights, steps)
        core.observe(best, graph=False)
        lowest = core.accuracy()
        helped = torch.zeros_like(core.active)
        trials = [(number, sign) for number in range(len(surrogates)) for sign in (1, -1)]
        for query in range(queries - 1):
            number, sign = trials[query % len(trials)]
            change = torch.zeros_like(weights)
            change[:, number] = sign * length
            tried = (weights + change).clamp(min=0)
            tried = tried / tried.sum(dim=1, keepdim=True).clamp(min=1e-12)
            found = ensemble.attack(best, tried, steps)
            core.observe(found, graph=False)
            accuracy = core.accuracy()
            better = accuracy < lowest
            best = torch.where(per_image(better, images), found, best)
            weights = torch.where(better[:, None], tried, weights)
            lowest, helped = torch.minimum(lowest, accuracy), helped | better
            if number == len(surrogates) - 1 and sign < 0:
                length = torch.where(helped, length, length / 2)
                helped = torch.zeros_like(helped)
    return finished(core, reachable(core, best))


class _Ensemble:
    """Surrogates, and the ball of a core that they are attacked in."""

    def __init__(self, surrogates: Sequence[nn.Module], core: AttackCore) -> None:
        self.surrogates, self.core = surrogates, core

    def attack(self, start: Tensor, weights: Tensor, steps: int) -> Tensor:
        """PGD that raises the sum of the losses by weights [B, S]."""
        core, x = self.core, start
        length = REACH / steps * core.ball.radius
        for _ in range(steps):
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                losses = torch.stack([self._loss(surrogate, x) for surrogate in self.surrogates], dim=1)  # [B, S]
                (gradient,) = torch.autograd.grad((weights * losses).sum(), x)
            x = reachable(core, x.detach() + length * gradient.sign())
        return x

    def _loss(self, surrogate: nn.Module, x: Tensor) -> Tensor:
        """Mean cross-entropy of the valid pixels of each image, [B]."""
        core, logits = self.core, surrogate(x)
        if not isinstance(logits, Tensor) or logits.shape != core.logits.shape:
            given = [*logits.shape] if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"a surrogate gives {given} but the model gives logits {[*core.logits.shape]}")
        losses = torch.where(core.valid, cross_entropy(logits, core.targets), 0.0).flatten(1).sum(dim=1)
        return losses / core.valid.flatten(1).sum(dim=1).clamp(min=1)
