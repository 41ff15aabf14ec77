"""The attack core: one batch of images, one gradient step at a time (docs/rp-pgd.md, Method 3).

A forward pass is made once for each image that is reached: what is seen there (losses, regions, features) and the next
gradient come from the same graph, so that an episode of T steps costs T + 1 forward and T backward passes. Gradients
are those of the input alone. Images do not depend on each other, as long as the options do not say so.

Symbols: x = images [B, C, *spatial] in their own units; x_t = adversarial images; b = radius; z = logits
[B, K, *spatial]; l_p = loss of pixel p; w_p = its weight.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..segmenters.dice_ce import soft_dice_loss
from .budget import LinfBall, per_image
from .losses import PixelLoss, confidence, correct, cross_entropy
from .options import RPOptions
from .prototypes import Prototypes, class_masks, inter_class, intra_class, prototypes
from .regions import TRUE, Weighting, next_regions, pixel_weights, start_regions
from .victim import check_logits, frozen, logits_and_features

STATE = ("regions", "forwards", "backwards", "_broken_at")
"""What an attack consists of beside x_t and the last gradient and direction; the rest follows from a forward pass."""
ROWS = ("adversarial", "labels", "targets", "valid", "active", "logits", "_attached", "losses", "right", *STATE)
"""Everything that has a row for each image."""


@dataclass(frozen=True)
class StepSpec:
    """What one step raises, and how far it goes; numbers hold for all images, tensors [B] for one each."""

    weights: Tensor
    """w_p, [B, *spatial]."""
    step_size: float | Tensor
    """Share of the radius."""
    inter: float | Tensor | None = None
    """Weight of the inter-class term; None: not computed."""
    intra: float | Tensor | None = None
    """Weight of the intra-class term; None: not computed."""
    momentum: float | Tensor | None = None
    """Factor of the last direction, to which gradients divided by their L1 norm are added; None: the gradient alone."""
    dice: float | Tensor | None = None
    """Weight of 1 - soft Dice of the foreground (docs/seat.md, Method 9); None: not computed."""


class AttackCore:
    """The state of an attack on a batch of images, and the step that every attack is made of.

    Args:
        model: gives logits [B, K, *spatial] of images [B, C, *spatial] in their own units (`Normalized`). It is put
            into evaluation mode and frozen for each pass, and left as it was.
        ignore_index: label of pixels that count for nothing.
        loss: of each pixel, one of `attacks/losses.py`.
        feature_layer: submodule whose output the prototypes are made of; None: the step has no such terms.
        options: of the region-and-prototype attacks.
        twice: pass a single image twice. On a CPU oneDNN convolves one image in other blocks than several, and so
            rounds otherwise; with this an image is the same alone as among others, bit for bit.

    Attributes:
        images, adversarial: x and x_t, [B, C, *spatial].
        labels: as given; targets: int64, 0 where ignored; valid: bool; all [B, *spatial].
        active: whether an image has a valid pixel, bool [B]; another one is never changed.
        logits: [B, K, *spatial].
        losses: l_p, 0 where ignored; right: bool; regions: uint8; all [B, *spatial].
        features: [B, D, *grid], or None.
        gradient: the last one, [B, C, *spatial], or None.
        ball: the images that may be reached.
        forwards, backwards: passes of each image since its attack began, int64 [B].
        terms: each image's share of the total whose gradient was taken last: pixels, dice, inter, intra; each [B].
    """

    images: Tensor
    adversarial: Tensor
    labels: Tensor
    targets: Tensor
    valid: Tensor
    active: Tensor
    logits: Tensor
    _attached: Tensor
    """The logits with their graph, as long as there is one."""
    features: Tensor | None
    losses: Tensor
    right: Tensor
    regions: Tensor
    gradient: Tensor | None
    ball: LinfBall
    forwards: Tensor
    backwards: Tensor
    terms: dict[str, Tensor]
    _direction: Tensor | None
    _broken_at: Tensor
    _leaves: list[tuple[Tensor, Tensor | None]]
    """Images whose graphs are kept, each with its rows among all [K], or None for all of them."""

    def __init__(
        self,
        model: nn.Module,
        *,
        ignore_index: int = 255,
        loss: PixelLoss = cross_entropy,
        feature_layer: str | None = None,
        options: RPOptions = RPOptions(),  # noqa: B008 (frozen)
        twice: bool = False,
    ) -> None:
        self.model = model
        self.ignore_index = ignore_index
        self.loss = loss
        self.feature_layer = feature_layer
        self.options = options
        self.twice = twice

    def reset(self, ball: LinfBall, labels: Tensor, start: Tensor | None = None) -> None:
        """Begin an attack at `start`, or at the clean images, with one forward pass.

        Args:
            ball: the clean images and what may be reached from them.
            labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
            start: [B, C, *spatial], projected into the ball (not so with `norm_clamp_start`, which starts outside).

        Raises:
            ValueError: shapes or types that do not fit, labels that the model has no class for, or logits that are not
                finite.
        """
        _check_labels_fit(ball.images, labels)
        self._begin(ball, labels)
        if start is None:
            start = self.images
        elif start.shape != self.images.shape:
            raise ValueError(f"the start is {list(start.shape)} but the images are {list(self.images.shape)}")
        elif not self.options.norm_clamp_start:
            start = ball.project(start.to(self.images))
        self._forward(self._only_active(start), graph=True)
        self._check_classes()
        self._digest()
        self.regions = start_regions(self.right, self.valid, ignore_as_false=self.options.ignore_as_false)
        self.check_finite()

    def restart(self, rows: Tensor, ball: LinfBall, labels: Tensor, start: Tensor, *, graph: bool = True) -> None:
        """Begin new attacks in some rows, with one forward pass of these alone; the others keep all, graphs included.

        Nothing is checked and the device never waited for: labels must be classes, and the start must lie in the ball.

        Args:
            rows: numbers of the images that are replaced, int64 [K], each once.
            ball: of the K new images; a radius for each image, or the one that all have.
            labels: integers [K, *spatial].
            start: [K, C, *spatial].
            graph: keep it for a gradient.
        """
        new = copy(self)  # of the same model and settings
        new._begin(ball, labels)
        new._forward(new._only_active(start), graph)
        new._digest()
        new.regions = start_regions(new.right, new.valid, ignore_as_false=self.options.ignore_as_false)
        if len(rows) == len(self.images):  # nothing is left of what was
            self._detach()

        @torch.enable_grad()
        def placed(old: Tensor, values: Tensor) -> Tensor:
            return old.index_copy(0, rows, values.to(old.dtype))

        for name in ROWS:
            setattr(self, name, placed(getattr(self, name), getattr(new, name)))
        old, radius = self.ball, self.ball.radius
        radius = radius if radius.dim() < self.images.dim() else placed(radius, ball.radius)
        self.ball = LinfBall(
            placed(old.images, ball.images), placed(old.lower, ball.lower), placed(old.upper, ball.upper), radius
        )
        self.images = self.ball.images
        if self.features is not None and new.features is not None:
            self.features = placed(self.features, new.features)
        self.gradient, self._direction = (
            None if last is None else last.index_fill(0, rows, 0) for last in (self.gradient, self._direction)
        )
        self.terms = {name: term.index_fill(0, rows, 0) for name, term in self.terms.items()}
        self._leaves = [*self._leaves, *((leaf, rows) for leaf, _ in new._leaves)]

    def state(self) -> dict[str, Any]:
        """Tensors from which `resume` continues the attacks, without images and labels."""
        none = torch.zeros_like(self.images)
        last = {"gradient": self.gradient, "_direction": self._direction}
        kept = {name: none if value is None else value for name, value in last.items()}
        return {**{name: getattr(self, name) for name in ("adversarial", *STATE)}, **kept, "terms": self.terms}

    def resume(self, ball: LinfBall, labels: Tensor, state: Mapping[str, Any], *, graph: bool = True) -> None:
        """Continue where `state` was read, with a forward pass that is not counted."""
        self._begin(ball, labels)
        copied = {name: state[name].to(self.images.device, copy=True) for name in ("adversarial", *STATE)}
        self._forward(copied.pop("adversarial"), graph)
        self._digest()
        for name, value in copied.items():
            setattr(self, name, value)
        self.gradient, self._direction = (
            state[name].to(self.images.device, copy=True) for name in ("gradient", "_direction")
        )
        self.terms = {name: term.to(self.images.device, copy=True) for name, term in state["terms"].items()}

    def weigh(
        self, weighting: Weighting, step_size: float | Tensor, momentum: float | Tensor | None = None
    ) -> StepSpec:
        """The step that a weighting makes of the state: each pixel weighed by its group, region and confidence."""
        sure = None if weighting.confidence is None else confidence(self.logits, self.targets)
        over_batch = self.options.region_norm == "batch"
        weights = pixel_weights(self.regions, self.right, weighting, confidence=sure, over_batch=over_batch)
        return StepSpec(weights, step_size, weighting.inter, weighting.intra, momentum, weighting.dice)

    def step(self, spec: StepSpec, *, last: bool = False) -> None:
        """One gradient step, and the forward pass where it arrives, without a graph if it is the `last`."""
        self.update(spec)
        self.observe(self.adversarial, graph=not last)

    def update(self, spec: StepSpec) -> None:
        """Move to P(x_t + step_size b sign(gradient)) with one backward pass and no forward pass: the last step."""
        direction = self.differentiate(spec)
        if spec.momentum is not None:
            norm = direction.abs().flatten(1).sum(dim=1)
            direction = direction / per_image(torch.where(norm > 0, norm, 1), self.images)
            if self._direction is not None:
                direction = direction + self._factor(spec.momentum) * self._direction
            self._direction = direction
        moved = self.adversarial + self._factor(spec.step_size) * self.ball.radius * direction.sign()
        self.adversarial = self._only_active(self.ball.project(moved))
        self._mark_broken(self.adversarial)

    def shift(self, direction: Tensor, step_size: float | Tensor, *, graph: bool = False) -> None:
        """Move to P(x_t + step_size b direction) without a gradient, and the forward pass there.

        direction: in [-1, 1], [B, C, *spatial].
        """
        moved = self.adversarial + self._factor(step_size) * self.ball.radius * direction
        self.observe(self._only_active(self.ball.project(moved)), graph=graph)

    @torch.enable_grad()
    def differentiate(self, spec: StepSpec) -> Tensor:
        """Gradient of sum_p w_p l_p + dice L_Dice + inter L_inter + intra L_intra in x_t, [B, C, *spatial].

        Raises:
            ValueError: a prototype term without `feature_layer`.
            RuntimeError: a second gradient at the same image, whose graph is gone.
        """
        self._need_graph()
        terms = {"pixels": (spec.weights * self.losses).flatten(1).sum(dim=1)}
        if spec.dice is not None:
            terms["dice"] = self._weighted(spec.dice, soft_dice_loss(self._attached, self.targets, self.valid))
        if spec.inter is not None or spec.intra is not None:
            with torch.autocast(self.images.device.type, enabled=False):  # cosines in bfloat16 point elsewhere
                protos = self.class_prototypes()
                if spec.inter is not None:
                    terms["inter"] = self._weighted(spec.inter, inter_class(protos, self.options.inter_norm))
                if spec.intra is not None:
                    value = intra_class(protos, self.options.intra_skip, self.options.intra_agg)
                    terms["intra"] = self._weighted(spec.intra, value)
        self.gradient = self._gradient(torch.cat([*terms.values()]).sum())
        self.backwards = self.backwards + 1
        self.terms = {name: term.detach().expand(len(self.images)) for name, term in terms.items()}
        self._detach()
        return self.gradient

    @torch.enable_grad()
    def probe(self) -> Tensor:
        """Gradient of the sum of the valid pixels' losses at x_t, [B, C, *spatial]: no step is taken, the graph stays.

        Whoever calls counts the backward pass.
        """
        self._need_graph()
        return self._gradient(self.losses.sum(), keep=True)

    def observe(self, images: Tensor, *, graph: bool = True) -> None:
        """The forward pass at `images`, which become x_t, and the regions there; `graph` keeps it for a gradient."""
        self._forward(images.detach(), graph)
        self._digest()
        self.regions = next_regions(self.regions, self.right)

    def class_prototypes(self) -> Prototypes:
        """Prototypes of the True pixels at x_t, in float32 or better.

        Raises:
            ValueError: without `feature_layer`.
        """
        if self.features is None:
            raise ValueError("prototype terms need features: give feature_layer, the name of a submodule of the model")
        features = self.features.detach() if self.options.detach_features else self.features
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        masks = class_masks(self.targets, self.regions == TRUE, self.logits.shape[1], features)
        return prototypes(features, masks, self.options.proto_scope)

    def accuracy(self) -> Tensor:
        """Share of valid pixels that are right at x_t, [B]; 1 where no pixel is valid."""
        right, valid = (self.right & self.valid).flatten(1).sum(dim=1), self.valid.flatten(1).sum(dim=1)
        return torch.where(valid > 0, right / valid.clamp(min=1), 1.0)

    def broken(self) -> dict[int, int]:
        """The images whose logits or gradients were not finite, and after how many steps first; waits for the device
        once."""
        return {image: step for image, step in enumerate(self._broken_at.tolist()) if step >= 0}

    def broken_rows(self) -> Tensor:
        """Whether logits or gradients of an image were not finite in any step, bool [B]."""
        return self._broken_at >= 0

    def check_finite(self) -> None:
        """Refuse what NaN or infinity has been reached in any step; waits for the device once.

        Raises:
            ValueError: names the images and the step of the first.
        """
        if broken := self.broken():
            raise ValueError(
                f"logits or gradients of image(s) {[*broken]} are not finite after {min(broken.values())} step(s); "
                "look for NaN in the model's weights, or for a precision that its values do not fit in"
            )

    def _begin(self, ball: LinfBall, labels: Tensor) -> None:
        self.ball, self.images, self.labels = ball, ball.images, labels
        self.valid = labels != self.ignore_index
        self.targets = torch.where(self.valid, labels, 0).long()
        self.active = self.valid.flatten(1).any(dim=1)
        self.gradient = self._direction = None
        self.forwards, self.backwards = (torch.zeros_like(self.active, dtype=torch.int64) for _ in range(2))
        self._broken_at = torch.full_like(self.forwards, -1)
        self.terms, self._leaves = {}, []

    def _forward(self, images: Tensor, graph: bool) -> None:
        """The pass at `images`, which have no graph."""
        self.adversarial, leaf = images, images.detach().contiguous().requires_grad_(graph)
        self._leaves = [(leaf, None)] if graph else []
        with frozen(self.model), torch.set_grad_enabled(graph):
            shown = torch.cat([leaf, leaf]) if self.twice and len(leaf) == 1 else leaf
            logits, features = logits_and_features(self.model, shown, self.feature_layer)
        self.forwards = self.forwards + 1
        check_logits(logits, shown)
        with torch.set_grad_enabled(graph):  # in one layout: sums over another are rounded otherwise
            self.logits = logits[: len(leaf)].contiguous()
            self.features = None if features is None else features[: len(leaf)].contiguous()

    def _digest(self) -> None:
        """Losses, right pixels and finiteness at x_t; their graph is that of the losses."""
        with torch.set_grad_enabled(bool(self._leaves)):
            self.losses = torch.where(self.valid, self.loss(self.logits, self.targets), 0.0)
        self._attached, self.logits = self.logits, self.logits.detach()
        self.right = correct(self.logits, self.targets)
        self._mark_broken(self.logits)

    def _detach(self) -> None:
        self.losses, self._attached, self._leaves = self.losses.detach(), self.logits, []
        self.features = None if self.features is None else self.features.detach()

    def _need_graph(self) -> None:
        if not self.losses.requires_grad:
            raise RuntimeError("the gradient here was taken, or its graph not kept: take a step before the next one")

    def _gradient(self, total: Tensor, keep: bool = False) -> Tensor:
        """Gradient of a total with respect to all of x_t, put together of what was passed together."""
        leaves, rows = zip(*self._leaves, strict=True)
        whole = torch.zeros_like(self.images)
        for part, of in zip(torch.autograd.grad(total, leaves, retain_graph=keep), rows, strict=True):
            whole = part if of is None else whole.index_copy(0, of, part)
        return whole

    def _check_classes(self) -> None:
        classes = self.logits.shape[1]
        wrong = self.valid & ((self.labels < 0) | (self.labels >= classes))
        if bool(wrong.any()):
            raise ValueError(
                f"labels have values {sorted({*self.labels[wrong].tolist()})} but the model has classes 0 .. "
                f"{classes - 1}, and ignore_index is {self.ignore_index}"
            )

    def _mark_broken(self, values: Tensor) -> None:
        bad = ~values.detach().flatten(1).abs().amax(dim=1).isfinite()  # faster than to ask of each value
        self._broken_at = torch.where((self._broken_at < 0) & bad, self.backwards, self._broken_at)

    def _only_active(self, images: Tensor) -> Tensor:
        return torch.where(per_image(self.active, self.images), images.detach(), self.images)

    def _weighted(self, weight: float | Tensor, term: Tensor) -> Tensor:
        """A term of each image, [B]; one of the whole batch counts once, [1], with the mean of the weights."""
        if isinstance(weight, Tensor) and len(term) != len(self.images):
            weight = weight.mean()
        return weight * term

    def _factor(self, value: float | Tensor) -> float | Tensor:
        return per_image(value, self.images) if isinstance(value, Tensor) else value  # no copy to the device


def _check_labels_fit(images: Tensor, labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype} but must be integers")
    if labels.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"labels are {list(labels.shape)} but images of {list(images.shape)} need "
            f"{[len(images), *images.shape[2:]]}, one label for each pixel"
        )
