"""Adversarial iterations while a network learns: one backward pass gives the gradient of the images, for the next step
of the attack, and that of the weights, for the optimiser (docs/seat.md, Method 11).

Environment and trainers play the same passes. Symbols: x = images [B, C, *spatial], b = radius, x_t = x + delta_t, the
images that are reached, L = loss of each image [B], g = dL/dx_t, G = gradient of the mean loss with respect to the
weights.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..common.device import bfloat16_on_cuda
from .budget import LinfBall, per_image
from .victim import check_logits, frozen

ImageLoss = Callable[[Tensor, Tensor], Tensor]
"""Losses [B] of logits float32 [B, K, *spatial] and labels int64 [B, *spatial]."""
Update = Literal["never", "every_step", "at_end"]
"""When the weights learn: never; from every pass (Free-AT, SEAT); from the last image alone (PGD-AT)."""
STATE = ("adversarial", "losses", "logits", "gradient", "passes")
"""What an attack consists of beside its ball and labels."""


class Replays:
    """A batch of images on which an attack and, perhaps, a network go on, one pass at a time.

    A pass at x_t gives `losses`, `logits` and `gradient`. With `update="never"` the network is frozen, in evaluation
    mode; else it is in the mode that it is given in, and a pass adds to the gradients of its weights: `every_step` the
    mean over the images, at once; `at_end` nothing until `learn`. Whoever calls empties these gradients, and steps the
    optimiser.

    Args:
        model: gives logits of images in their own units.
        loss: of each image.
        update: when the weights learn.
        twice: pass a single image of a frozen network twice, so that it is the same alone as among others, bit for bit
            (as in `AttackCore`).

    Attributes:
        images, adversarial: x and x_t, [B, C, *spatial].
        labels: int64 [B, *spatial].
        ball: the images that may be reached.
        losses, logits: of the last pass, without graph, float32 [B] and [B, K, *spatial].
        gradient: g, unscaled, float32 [B, C, *spatial].
        passes: forward passes of each image since its attack began, int64 [B].
    """

    images: Tensor
    adversarial: Tensor
    labels: Tensor
    ball: LinfBall
    losses: Tensor
    logits: Tensor
    gradient: Tensor
    passes: Tensor

    def __init__(self, model: nn.Module, loss: ImageLoss, update: Update = "never", *, twice: bool = False) -> None:
        self.model, self.loss, self.update, self.twice = model, loss, update, twice
        self._graph: Tensor | None = None

    def begin(self, ball: LinfBall, labels: Tensor, start: Tensor | None = None) -> None:
        """Begin at `start` [B, C, *spatial], projected into the ball, or at the clean images, with a pass."""
        self.ball, self.images, self.labels = ball, ball.images, labels
        self.adversarial = self.images if start is None else ball.project(start)
        self.passes = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
        self.losses, self.gradient = ball.images.new_zeros(len(labels)), torch.zeros_like(ball.images)
        self._graph = None
        self._pass(torch.arange(len(labels), device=labels.device))

    def restart(self, rows: Tensor, ball: LinfBall, labels: Tensor, start: Tensor | None = None) -> None:
        """Begin anew in the rows int64 [K], with a pass of these alone; arguments as of `begin`, of K images."""

        def placed(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, rows, new)

        of_old = (self.ball.images, self.ball.lower, self.ball.upper, self.ball.radius)
        of_new = (ball.images, ball.lower, ball.upper, ball.radius)
        self.ball = LinfBall(*(placed(old, new) for old, new in zip(of_old, of_new, strict=True)))
        self.images, self.labels = self.ball.images, placed(self.labels, labels)
        self.adversarial = placed(self.adversarial, ball.images if start is None else ball.project(start))
        self.passes = self.passes.index_fill(0, rows, 0)
        self._pass(rows)

    def advance(self, step_size: float | Tensor, rows: Tensor | None = None) -> None:
        """Move to P(x_t + step_size b sign(g)), and the pass there.

        Args:
            step_size: one, or one for each image [B]; 0 where an image stays.
            rows: images that are passed, int64 [K]; None: all.
        """
        self.move(step_size)
        self._graph = None
        self._pass(torch.arange(len(self.images), device=self.images.device) if rows is None else rows)

    def move(self, step_size: float | Tensor) -> None:
        """Move without a pass: what the next batch is to begin with."""
        share = per_image(step_size, self.images) if isinstance(step_size, Tensor) else step_size
        self.adversarial = self.ball.project(self.adversarial + share * self.ball.radius * self.gradient.sign())

    def learn(self, rows: Tensor | None = None) -> None:
        """Add the gradient of the mean loss of these images bool [B], or of all, to the weights' (`at_end` alone).

        Raises:
            RuntimeError: the graph of the last pass was used, or not kept.
        """
        if self._graph is None:
            raise RuntimeError("there is no graph to learn from: learn once after a pass, with update='at_end'")
        kept = self._graph if rows is None else self._graph[rows]
        kept.mean().backward()  # type: ignore[no-untyped-call]
        self._graph = None

    def state(self) -> dict[str, Any]:
        """Tensors from which `resume` continues the attacks, without images and labels."""
        return {name: getattr(self, name) for name in STATE}

    def resume(self, ball: LinfBall, labels: Tensor, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read, with the weights of then; `at_end` with a pass that is not counted."""
        kept = {name: state[name].to(ball.images.device, copy=True) for name in STATE}
        if self.update == "at_end":
            self.begin(ball, labels, kept["adversarial"])
        self.ball, self.images, self.labels = ball, ball.images, labels
        for name, value in kept.items():
            setattr(self, name, value)

    @property
    def delta(self) -> Tensor:
        """x_t - x, [B, C, *spatial]."""
        return self.adversarial - self.images

    @torch.enable_grad()
    def _pass(self, rows: Tensor) -> None:
        """The pass of these rows at x_t. The gradient is that at the projected images, not through the projection."""
        self.adversarial = self.adversarial.detach()
        leaf = self.adversarial.index_select(0, rows).requires_grad_()
        labels = self.labels.index_select(0, rows)
        if self.update == "never":
            copies = 2 if self.twice and len(rows) == 1 else 1
            with frozen(self.model):
                logits, losses = self._losses(leaf.repeat_interleave(copies, 0), labels.repeat_interleave(copies, 0))
                logits, losses = logits[: len(rows)], losses[: len(rows)]
                (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        elif self.update == "every_step":
            logits, losses = self._losses(leaf, labels)
            (losses.sum() / len(self.images)).backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None
            gradient = leaf.grad * len(self.images)
        else:
            logits, losses = self._losses(leaf, labels)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf, retain_graph=True)
            graph = torch.zeros_like(self.losses) if self._graph is None else self._graph
            self._graph = graph.index_copy(0, rows, losses)
        if len(rows) == len(self.images):
            self.logits = logits.detach()
        else:
            self.logits = self.logits.index_copy(0, rows, logits.detach())
        self.losses = self.losses.index_copy(0, rows, losses.detach())
        self.gradient = self.gradient.index_copy(0, rows, gradient)
        self.passes = self.passes.index_add(0, rows, torch.ones_like(rows))

    def _losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with bfloat16_on_cuda(images.device):
            logits = self.model(images)
        check_logits(logits, images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, self.loss(logits, labels)
