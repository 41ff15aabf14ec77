"""What the weights learn from a batch of patches: replays, PGD-AT, TRADES (docs/seat.md, Method 11, 12 and 14).

Symbols as in `attacks/replays.py`; K = adversarial iterations, s = step size as a share of the radius.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...attacks.budget import Bounds, Epsilon, LinfBall, image_range
from ...attacks.core import AttackCore
from ...attacks.replays import Replays
from ...attacks.restarts import raise_divergence
from ...common.device import bfloat16_on_cuda
from ...common.overlap import class_counts, dice_batch
from ...common.workers import ONE_PROCESS, Workers
from ...rewards.lipschitz import magnitude, relative_magnitude
from ...segmenters.dice_ce import dice_ce_of_images, kl_divergence
from .config import TrainingConfig


class NoiseBuffer:
    """The perturbation that one batch leaves to the next, zero at first; a training keeps it (`Stateful`).

    workers: the processes that train together, each with a buffer of its own.
    """

    def __init__(self, workers: Workers = ONE_PROCESS) -> None:
        self.workers = workers
        self.delta: Tensor | None = None

    def start(self, images: Tensor) -> Tensor:
        """Images [B, C, *spatial] with what the last batch left to them; rows that it had not begin clean."""
        if self.delta is None:
            return images
        moved, rows = images.clone(), min(len(images), len(self.delta))
        moved[:rows] += self.delta[:rows].to(images)
        return moved

    def keep(self, delta: Tensor) -> None:
        """Take over what a batch leaves [B, C, *spatial]; rows beyond it stay."""
        rest = None if self.delta is None else self.delta[len(delta) :]
        self.delta = delta if rest is None or not len(rest) else torch.cat([delta, rest.to(delta)])

    def state_dict(self) -> dict[str, Any]:
        """The buffers of all workers, by rank."""
        return {"deltas": self.workers.gather(None if self.delta is None else self.delta.cpu())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with this worker's buffer; one more than before begins with none."""
        deltas = state["deltas"]
        self.delta = deltas[self.workers.rank] if self.workers.rank < len(deltas) else None


class Trainer:
    """Takes a network through a batch as its configuration says; sums up magnitudes and passes on the way.

    Args:
        net: the network in training.
        optimizer: of its weights.
        config: method, attack and magnitude.
        buffer: what is carried from batch to batch.
        workers: the processes that train together, each with its share of the batch.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        config: TrainingConfig,
        buffer: NoiseBuffer,
        workers: Workers = ONE_PROCESS,
    ) -> None:
        self.net, self.optimizer, self.config, self.buffer, self.workers = net, optimizer, config, buffer, workers
        self.radius = Epsilon.parse(config.eps).value * config.eps_enlarger
        self.forget()

    def forget(self) -> None:
        """Begin the sums of an epoch anew."""
        self.sums = dict[str, Tensor]()
        self.passes = self.images = 0

    def batch(self, images: Tensor, labels: Tensor, iterations: int, bounds: Bounds | None = None) -> None:
        """Learn from a batch.

        Args:
            images: patches float32 [B, C, *spatial].
            labels: int64 [B, *spatial].
            iterations: K.
            bounds: what epsilon is a share of; None: the range of each patch and channel.
        """
        ball = LinfBall.of_range(images, self.radius, bounds)
        self.images += len(images)
        if self.config.method == "replay":
            self._replay(ball, labels, iterations)
        elif self.config.method == "pgd":
            self._pgd(ball, labels, iterations)
        else:
            self._trades(ball, labels)

    def _replay(self, ball: LinfBall, labels: Tensor, iterations: int) -> None:
        config, share = self.config, self.config.step(iterations) if self.config.noise else 0.0
        replays = Replays(self.net, self.loss, "every_step")
        start = self._start(ball) if config.noise else None
        for k in range(iterations):
            self.optimizer.zero_grad(set_to_none=True)
            if k == 0:
                replays.begin(ball, labels, start)
                self._add("first_loss", replays.losses)
            else:
                replays.advance(share)
            self._measure(replays.gradient, ball.images, k, iterations)
            self._descend(len(labels))
        self._add("loss", replays.losses)
        if config.noise and config.start == "carry":
            replays.move(share)
            self.buffer.keep(replays.delta)
        self._add("delta", _share_of(ball, replays.adversarial))

    def _pgd(self, ball: LinfBall, labels: Tensor, iterations: int) -> None:
        config, learns, share = self.config, self.config.attack_mode == "train", self.config.step(iterations)
        replays = Replays(self.net, self.loss, "at_end" if learns else "never")
        self.optimizer.zero_grad(set_to_none=True)
        replays.begin(ball, labels, self._start(ball))
        self._add("first_loss", replays.losses)
        self._measure(replays.gradient, ball.images, 0, iterations)
        since = torch.full_like(replays.passes, -1)

        def step_size() -> float | Tensor:
            nonlocal since
            if config.tau is None:
                return share
            since = since_success(since, replays, config.dice_threshold)
            return share * (since < config.tau)

        for k in range(1, iterations):
            replays.advance(step_size())
            self._measure(replays.gradient, ball.images, k, iterations)
        if learns:
            replays.advance(step_size())
            replays.learn()
        else:  # dropout and batch statistics are for what teaches
            replays.move(step_size())
            reached, replays = replays.adversarial, Replays(self.net, self.loss, "every_step")
            replays.begin(ball, labels, reached)
        self.passes += 1
        self._descend(len(labels))
        self._add("loss", replays.losses)
        self._add("delta", _share_of(ball, replays.adversarial))
        if config.start == "carry":
            self.buffer.keep(replays.delta)

    def _trades(self, ball: LinfBall, labels: Tensor) -> None:
        config, images, core = self.config, ball.images, AttackCore(self.net)
        steps = config.trades_steps

        def watch(t: int) -> None:
            assert core.gradient is not None
            self._measure(core.gradient, images, t, steps)

        with bfloat16_on_cuda(images.device):
            reached = raise_divergence(core, ball, labels, self.radius, steps, 1 / steps, watch=watch)
        self.optimizer.zero_grad(set_to_none=True)
        with bfloat16_on_cuda(images.device):
            logits = self.net(torch.cat([images, reached])).float()
        before, after = logits.chunk(2)
        losses, apart = self.loss(before, labels), mean_kl(before, after)
        (losses + config.beta * apart).mean().backward()  # type: ignore[no-untyped-call]
        self.passes += 3  # the clean images of the attack, and both of the loss
        self._descend(len(labels))
        self._add("loss", losses)
        self._add("kl", apart)
        self._add("delta", _share_of(ball, reached))

    def _start(self, ball: LinfBall) -> Tensor | None:
        """Where the noise of a batch begins; None: at the clean images."""
        if self.config.start == "zero":
            return None
        return self.buffer.start(ball.images) if self.config.start == "carry" else ball.random()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Dice + cross-entropy of each image, [B]."""
        return dice_ce_of_images(logits, labels, ignore_absent=self.config.ignore_absent)

    def _descend(self, rows: int) -> None:
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        self.workers.average_gradients(parameters, rows)
        self.optimizer.step()

    def _measure(self, gradient: Tensor, images: Tensor, k: int, iterations: int) -> None:
        """Count a pass, and add the magnitudes of its gradient [B, C, *spatial], where they count."""
        self.passes += 1
        if {"all": True, "first": k == 0, "last": k == iterations - 1, "probe": False}[self.config.magnitude]:
            self._add("grad_l1_raw", magnitude(gradient))
            self._add("grad_l1_rel", relative_magnitude(gradient, *image_range(images)))
            self._add("measured", images.new_ones(len(images)))

    def _add(self, name: str, values: Tensor) -> None:
        self.sums[name] = self.sums.get(name, torch.zeros((), device=values.device)) + values.detach().sum()


def mean_kl(clean: Tensor, other: Tensor) -> Tensor:
    """Mean over the voxels of KL(softmax clean || softmax other), [B]; of logits [B, K, *spatial]."""
    return kl_divergence(clean, other).flatten(1).mean(dim=1)


def since_success(since: Tensor, replays: Replays, threshold: float) -> Tensor:
    """Steps since the Dice of each image was at most `threshold` first, int64 [B]; -1: it was not yet (FAT).

    since: the same at the pass before; -1 at first.
    """
    dice = dice_batch(class_counts(replays.logits.argmax(dim=1), replays.labels, replays.logits.shape[1]))
    return torch.where(since >= 0, since + 1, torch.where(dice <= threshold, 0, -1))


def _share_of(ball: LinfBall, reached: Tensor) -> Tensor:
    """Mean |delta| / b of each image that was reached, [B]; 0 where nothing may move."""
    radius, delta = ball.radius.expand_as(reached), reached - ball.images
    return torch.where(radius > 0, delta.abs() / radius.clamp(min=1e-12), 0.0).flatten(1).mean(dim=1)
