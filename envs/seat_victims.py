"""Small networks that learn under attack, all at once: a pass of a batch serves every victim (docs/seat.md, Method 19).

Symbols: E = victims; P = weights of one; B = patches of one's minibatch; x_t = patches that are reached; K =
iterations; g, G = gradients of the images and of the weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..attacks.budget import LinfBall
from ..common.device import bfloat16_on_cuda
from ..common.overlap import class_counts, dice_batch
from ..rewards.lipschitz import magnitude
from ..segmenters.dice_ce import dice_ce_of_images

BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


class Adam(NamedTuple):
    """State of Adam with amsgrad of E victims."""

    mean: Tensor
    """Of the gradients, [E, P]."""
    square: Tensor
    """Of their squares, [E, P]."""
    highest: Tensor
    """The largest `square` until now, [E, P]."""
    updates: Tensor
    """int64 [E]."""

    @classmethod
    def fresh(cls, weights: Tensor) -> "Adam":
        """That of no update."""
        zero = torch.zeros_like(weights)
        return cls(zero, zero, zero, torch.zeros(len(weights), dtype=torch.int64, device=weights.device))


def adam_step(
    weights: Tensor, gradient: Tensor, state: Adam, rate: Tensor, *, weight_decay: float = 0.0
) -> tuple[Tensor, Adam]:
    """Weights [E, P] and state after one step of `torch.optim.Adam(amsgrad=True)`.

    Args:
        weights: [E, P].
        gradient: [E, P].
        state: of the steps until now.
        rate: learning rate, [E].
        weight_decay: times the weights, added to the gradient.
    """
    gradient = gradient + weight_decay * weights
    updates = state.updates + 1
    mean = state.mean + (1 - BETAS[0]) * (gradient - state.mean)
    square = BETAS[1] * state.square + (1 - BETAS[1]) * gradient.square()
    highest = torch.maximum(state.highest, square)
    bias, bias_square = ((1 - torch.pow(beta, updates.double()))[:, None] for beta in BETAS)
    step = (rate[:, None] / bias).to(weights.dtype)
    moved = weights - step * mean / (highest.sqrt() / bias_square.sqrt().to(weights.dtype) + ADAM_EPS)
    return moved, Adam(mean, square, highest, updates)


def live_of(iterations: Tensor) -> list[Tensor]:
    """The victims that make pass 1, 2, ... of a minibatch, int64 [at most E] each, of the K of each victim, int64 [E].

    Waits for the device once.
    """
    order, numbers = iterations.argsort(descending=True, stable=True), iterations.tolist()
    return [order[: sum(k < K for K in numbers)] for k in range(max(numbers, default=0))]


class Pass(NamedTuple):
    """What one pass of E victims gives, without graph."""

    losses: Tensor
    """Of each patch, float32 [E, B]."""
    images: Tensor
    """g, of each patch's own loss, float32 [E, B, C, *spatial]."""
    weights: Tensor | None
    """G, of the mean over a victim's patches, [E, P]; None: was not asked for."""


class Victims:
    """E networks of one kind with weights, optimiser and carried noise of their own, as tensors on one device.

    Their functions are those of `attacks/replays.py:Replays` with `update="every_step"`, for all at once. A victim
    alone is passed twice: the convolution of one network rounds otherwise than that of several.

    Args:
        network: of that kind, with convolutions and layers that know no other image of the batch, and no dropout. Its
            convolutions are drawn for each victim; what else it has begins as it is here.
        number: E.
        noise: shape [B, C, *spatial] of the carried noise.
        device: where they live.
        weight_decay: of Adam.
        drawn: False where all begin with the weights of `network`.

    Raises:
        ValueError: layers with batch statistics or dropout.
    """

    def __init__(
        self,
        network: nn.Module,
        number: int,
        noise: tuple[int, ...],
        device: torch.device,
        *,
        weight_decay: float,
        drawn: bool = True,
    ) -> None:
        for name, layer in network.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
                raise ValueError(f"{name} is a {type(layer).__name__}, but victims must not draw or know other images")
        self.network = network.to(device).requires_grad_(False)
        self.weight_decay = weight_decay
        self._shapes = {name: value.shape for name, value in self.network.named_parameters()}
        self._base, self._spread = _initial(self.network, drawn)
        self.weights = self._base.repeat(number, 1)
        self.adam = Adam.fresh(self.weights)
        self.noise = torch.zeros(number, *noise, device=device)

    @property
    def size(self) -> int:
        """P, and how many numbers `begin` needs."""
        return self._base.numel()

    def begin(self, env_ids: Tensor, uniform: Tensor) -> None:
        """New weights, optimiser and noise for the victims int64 [K], from numbers float64 [K, P] in [0, 1)."""
        drawn = self._base + self._spread * (2 * uniform - 1).float()
        self.weights = self.weights.index_copy(0, env_ids, drawn)
        self.adam = Adam(*(one.index_fill(0, env_ids, 0) for one in self.adam))
        self.noise = self.noise.index_fill(0, env_ids, 0)

    # -- passes --------------------------------------------------------------------------------------------------------

    def _logits(self, weights: Tensor, images: Tensor) -> Tensor:
        """Float32 [E, B, K, *spatial] of images [E, B, C, *spatial]."""
        alone = len(weights) == 1
        if alone:
            weights, images = (torch.cat((one, one)) for one in (weights, images))
        with bfloat16_on_cuda(images.device):
            logits: Tensor = vmap(self._network)(weights, images)
        return (logits[:1] if alone else logits).float()

    def _network(self, weights: Tensor, images: Tensor) -> Tensor:
        """One victim's logits, by its weights [P]."""
        parts = torch.split(weights, [shape.numel() for shape in self._shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        logits: Tensor = functional_call(self.network, named, (images,))
        return logits

    @torch.enable_grad()
    def run(self, weights: Tensor, images: Tensor, labels: Tensor, *, learn: bool) -> Pass:
        """A pass at images [E, B, C, *spatial] with labels int64 [E, B, *spatial]; with G where they `learn`."""
        weights, images = weights.detach().requires_grad_(learn), images.detach().requires_grad_()
        losses = dice_ce_of_images(self._logits(weights, images).flatten(0, 1), labels.flatten(0, 1))
        losses = losses.view(images.shape[:2])
        wanted = (images, weights) if learn else (images,)
        g, *rest = torch.autograd.grad(losses.mean(dim=1).sum(), wanted)
        return Pass(losses.detach(), g * images.shape[1], rest[0] if rest else None)

    def replay(
        self, images: Tensor, labels: Tensor, eps: Tensor, step_share: float, live: Sequence[Tensor], rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Learn from one minibatch, each victim K times; one that is done costs no pass while others go on.

        Args:
            images: [E, B, C, *spatial].
            labels: int64 [E, B, *spatial].
            eps: share of the range of a patch, [E].
            step_share: s, share of the radius.
            live: the victims that make each pass (`live_of`).
            rate: learning rate, [E].

        Returns:
            Sums over the K passes of the mean loss, and of the mean magnitude of a patch, float32 [E] each.
        """
        wide = images.shape[:2]
        flat = LinfBall.of_range(images.flatten(0, 1), eps.repeat_interleave(wide[1]))
        reached = flat.project(flat.images + self.noise.flatten(0, 1)).view(images.shape)
        ball = [one.view(*wide, *one.shape[1:]) for one in (flat.images, flat.lower, flat.upper, flat.radius)]
        losses, magnitudes = (torch.zeros(wide[0], device=images.device) for _ in range(2))
        for rows in live:
            weights, part = self.weights[rows], LinfBall(*(one[rows] for one in ball))
            one = self.run(weights, reached[rows], labels[rows], learn=True)
            assert one.weights is not None
            moved = part.project(reached[rows] + step_share * part.radius * one.images.sign())
            reached = reached.index_copy(0, rows, moved)
            adam = Adam(*(state[rows] for state in self.adam))
            weights, adam = adam_step(weights, one.weights, adam, rate[rows], weight_decay=self.weight_decay)
            self.weights = self.weights.index_copy(0, rows, weights)
            self.adam = Adam(*(old.index_copy(0, rows, new) for old, new in zip(self.adam, adam, strict=True)))
            sizes = magnitude(one.images.flatten(0, 1)).view(len(rows), wide[1])
            losses = losses.index_add(0, rows, one.losses.mean(dim=1))
            magnitudes = magnitudes.index_add(0, rows, sizes.mean(dim=1))
        self.noise = reached - images
        return losses, magnitudes

    @torch.no_grad()
    def judge(self, images: Tensor, labels: Tensor, env_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean loss and mean Dice of the victims int64 [K], or all, on the same patches: float32 [K] each.

        Args:
            images: [B, C, *spatial], or those of each victim, [K, B, C, *spatial].
            labels: int64 [B, *spatial].
            env_ids: which victims.
        """
        weights = self.weights if env_ids is None else self.weights[env_ids]
        shared = images.dim() == labels.dim() + 1
        images = images.expand(len(weights), *images.shape) if shared else images
        truth = labels.expand(len(weights), *labels.shape).flatten(0, 1)
        logits = self._logits(weights, images).flatten(0, 1)
        dice = dice_batch(class_counts(logits.argmax(dim=1), truth, logits.shape[1]))
        losses = dice_ce_of_images(logits, truth)
        loss, worth = (one.view(len(weights), -1).mean(dim=1) for one in (losses, dice))
        return loss, worth

    def attacked(self, images: Tensor, labels: Tensor, eps: float, steps: int, env_ids: Tensor | None = None) -> Tensor:
        """The same patches [B, C, *spatial] under PGD against each victim, from the clean ones: [K, B, C, *spatial].

        Args:
            images: [B, C, *spatial].
            labels: int64 [B, *spatial].
            eps: share of the range of a patch.
            steps: of size eps / steps each.
            env_ids: which victims, int64 [K]; None: all.
        """
        weights = self.weights if env_ids is None else self.weights[env_ids]
        shape = (len(weights), *images.shape)
        truth = labels.expand(len(weights), *labels.shape)
        ball = LinfBall.of_range(images.expand(shape).flatten(0, 1), eps)
        reached = ball.images
        for _ in range(steps):
            g = self.run(weights, reached.view(shape), truth, learn=False).images.flatten(0, 1)
            reached = ball.project(reached + ball.radius / steps * g.sign())
        return reached.view(shape)

    @torch.no_grad()
    def predicted(self, env_id: int, images: Tensor) -> Tensor:
        """Classes int64 [B, *spatial] that a victim says of patches [B, C, *spatial]."""
        return self._logits(self.weights[env_id : env_id + 1], images[None])[0].argmax(dim=1)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """All that a pass changes."""
        return {"weights": self.weights, "noise": self.noise, **self.adam._asdict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        device = self.weights.device
        self.weights, self.noise = (state[name].to(device, copy=True) for name in ("weights", "noise"))
        self.adam = Adam(*(state[name].to(device, copy=True) for name in Adam._fields))


def _initial(network: nn.Module, drawn: bool) -> tuple[Tensor, Tensor]:
    """Middle and half the width of the interval that each weight is drawn from, [P] each, as PyTorch draws those of a
    convolution: +-1 / sqrt(inputs of an output), of its bias too; where they are not `drawn`, its own weights and 0."""
    spread = {name: 0.0 for name, _ in network.named_parameters()}
    for prefix, layer in network.named_modules():
        if drawn and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            for name, _ in layer.named_parameters():
                spread[f"{prefix}.{name}"] = 1 / math.sqrt(layer.weight[0].numel())
    middles, widths = [], []
    for name, value in network.named_parameters():
        middles.append(torch.zeros_like(value).flatten() if spread[name] else value.detach().flatten())
        widths.append(torch.full_like(middles[-1], spread[name]))
    return torch.cat(middles), torch.cat(widths)
