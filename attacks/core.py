"""The attack core: one batch of images, one gradient step at a time (docs/rp-pgd.md, Method 3).

A forward pass is made once for each image that is reached: what is seen there (losses, regions, features) and the next
gradient come from the same graph, so that an episode of T steps costs T + 1 forward and T backward passes. Gradients
are those of the input alone. Images do not depend on each other, as long as the options do not say so.

Symbols: x = images [B, C, *spatial] in their own units; x_t = adversarial images; b = radius; z = logits
[B, K, *spatial]; l_p = loss of pixel p; w_p = its weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .budget import LinfBall
from .losses import PixelLoss, confidence, correct, cross_entropy
from .options import RPOptions
from .prototypes import Prototypes, class_masks, inter_class, intra_class, prototypes
from .regions import TRUE, Weighting, next_regions, pixel_weights, start_regions
from .victim import frozen, logits_and_features


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


class AttackCore:
    """The state of an attack on a batch of images, and the step that every attack is made of.

    Args:
        model: gives logits [B, K, *spatial] of images [B, C, *spatial] in their own units (`Normalized`). It is put
            into evaluation mode and frozen for each pass, and left as it was.
        ignore_index: label of pixels that count for nothing.
        loss: of each pixel, one of `attacks/losses.py`.
        feature_layer: submodule whose output the prototypes are made of; None: the step has no such terms.
        options: of the region-and-prototype attacks.

    Attributes:
        images, adversarial: x and x_t, [B, C, *spatial].
        labels: as given; targets: int64, 0 where ignored; valid: bool; all [B, *spatial].
        active: whether an image has a valid pixel, bool [B]; another one is never changed.
        logits: [B, K, *spatial].
        losses: l_p, 0 where ignored; right: bool; regions: uint8; all [B, *spatial].
        features: [B, D, *grid], or None.
        gradient: the last one, [B, C, *spatial], or None.
        ball: the images that may be reached.
        forwards, backwards: passes since the attack began.
    """

    images: Tensor
    adversarial: Tensor
    labels: Tensor
    targets: Tensor
    valid: Tensor
    active: Tensor
    logits: Tensor
    features: Tensor | None
    losses: Tensor
    right: Tensor
    regions: Tensor
    gradient: Tensor | None
    ball: LinfBall
    _direction: Tensor | None
    _broken_at: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        ignore_index: int = 255,
        loss: PixelLoss = cross_entropy,
        feature_layer: str | None = None,
        options: RPOptions = RPOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self.model = model
        self.ignore_index = ignore_index
        self.loss = loss
        self.feature_layer = feature_layer
        self.options = options
        self.forwards = self.backwards = 0

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
        self.ball, self.images, self.labels = ball, ball.images, labels
        self.valid = labels != self.ignore_index
        self.targets = torch.where(self.valid, labels, 0).long()
        self.active = self.valid.flatten(1).any(dim=1)
        self.gradient = self._direction = None
        self._broken_at = torch.full((len(labels),), -1, device=labels.device)
        self.forwards = self.backwards = 0
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

    def weigh(
        self, weighting: Weighting, step_size: float | Tensor, momentum: float | Tensor | None = None
    ) -> StepSpec:
        """The step that a weighting makes of the state: each pixel weighed by its group, region and confidence."""
        sure = None if weighting.confidence is None else confidence(self.logits, self.targets)
        over_batch = self.options.region_norm == "batch"
        weights = pixel_weights(self.regions, self.right, weighting, confidence=sure, over_batch=over_batch)
        return StepSpec(weights, step_size, weighting.inter, weighting.intra, momentum)

    def step(self, spec: StepSpec, *, last: bool = False) -> None:
        """One gradient step, and the forward pass where it arrives, without a graph if it is the `last`."""
        self.update(spec)
        self.observe(self.adversarial, graph=not last)

    def update(self, spec: StepSpec) -> None:
        """Move to P(x_t + step_size b sign(gradient)) with one backward pass and no forward pass: the last step."""
        direction = self.differentiate(spec)
        if spec.momentum is not None:
            norm = direction.abs().flatten(1).sum(dim=1)
            direction = direction / self._shaped(torch.where(norm > 0, norm, 1))
            if self._direction is not None:
                direction = direction + self._factor(spec.momentum) * self._direction
            self._direction = direction
        moved = self.adversarial.detach() + self._factor(spec.step_size) * self.ball.radius * direction.sign()
        self.adversarial = self._only_active(self.ball.project(moved))
        self._mark_broken(self.adversarial)

    @torch.enable_grad()
    def differentiate(self, spec: StepSpec) -> Tensor:
        """Gradient of sum_p w_p l_p + inter L_inter + intra L_intra with respect to x_t, [B, C, *spatial].

        Raises:
            ValueError: a prototype term without `feature_layer`.
            RuntimeError: a second gradient at the same image, whose graph is gone.
        """
        if not self.losses.requires_grad:
            raise RuntimeError("the gradient here was taken, or its graph not kept: take a step before the next one")
        total = (spec.weights * self.losses).sum()
        if spec.inter is not None or spec.intra is not None:
            protos = self.class_prototypes()
            if spec.inter is not None:
                total = total + self._weighted(spec.inter, inter_class(protos, self.options.inter_norm))
            if spec.intra is not None:
                value = intra_class(protos, self.options.intra_skip, self.options.intra_agg)
                total = total + self._weighted(spec.intra, value)
        (self.gradient,) = torch.autograd.grad(total, self.adversarial)
        self.backwards += 1
        self.logits, self.losses = self.logits.detach(), self.losses.detach()
        self.features = None if self.features is None else self.features.detach()
        return self.gradient

    def observe(self, images: Tensor, *, graph: bool = True) -> None:
        """The forward pass at `images`, which become x_t, and the regions there; `graph` keeps it for a gradient."""
        self._forward(images.detach(), graph)
        self._digest()
        self.regions = next_regions(self.regions, self.right)

    def class_prototypes(self) -> Prototypes:
        """Prototypes of the True pixels at x_t.

        Raises:
            ValueError: without `feature_layer`.
        """
        if self.features is None:
            raise ValueError("prototype terms need features: give feature_layer, the name of a submodule of the model")
        features = self.features.detach() if self.options.detach_features else self.features
        masks = class_masks(self.targets, self.regions == TRUE, self.logits.shape[1], features)
        return prototypes(features, masks, self.options.proto_scope)

    def accuracy(self) -> Tensor:
        """Share of valid pixels that are right at x_t, [B]; 1 where no pixel is valid."""
        right, valid = (self.right & self.valid).flatten(1).sum(dim=1), self.valid.flatten(1).sum(dim=1)
        return torch.where(valid > 0, right / valid.clamp(min=1), 1.0)

    def check_finite(self) -> None:
        """Refuse what NaN or infinity has been reached in any step; waits for the device once.

        Raises:
            ValueError: names the images and the step of the first.
        """
        broken = {image: step for image, step in enumerate(self._broken_at.tolist()) if step >= 0}
        if broken:
            raise ValueError(
                f"logits or gradients of image(s) {[*broken]} are not finite after {min(broken.values())} step(s); "
                "look for NaN in the model's weights, or for a precision that its values do not fit in"
            )

    def _forward(self, images: Tensor, graph: bool) -> None:
        self.adversarial = images.requires_grad_(graph)
        with frozen(self.model), torch.set_grad_enabled(graph):
            logits, self.features = logits_and_features(self.model, self.adversarial, self.feature_layer)
        self.forwards += 1
        shape = [len(images), "K", *images.shape[2:]]
        if not isinstance(logits, Tensor):
            raise ValueError(f"the model gives {type(logits).__name__} but must give logits, a tensor {shape}")
        if logits.dim() != images.dim() or [len(logits), *logits.shape[2:]] != [len(images), *images.shape[2:]]:
            raise ValueError(f"the model gives logits {list(logits.shape)} but must give {shape}")
        self.logits = logits

    def _digest(self) -> None:
        """Losses, right pixels and finiteness at x_t."""
        with torch.set_grad_enabled(self.adversarial.requires_grad):
            self.losses = torch.where(self.valid, self.loss(self.logits, self.targets), 0.0)
        self.right = correct(self.logits, self.targets)
        self._mark_broken(self.logits)

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
        return torch.where(self._shaped(self.active), images.detach(), self.images)

    def _weighted(self, weight: float | Tensor, term: Tensor) -> Tensor:
        """Sum over images; a term of the whole batch counts once, with the mean of the weights."""
        if isinstance(weight, Tensor) and len(term) != len(self.images):
            weight = weight.mean()
        return (weight * term).sum()

    def _shaped(self, value: Tensor) -> Tensor:
        """One value for each image, [B], so that it broadcasts to the images."""
        return value.view(-1, *[1] * (self.images.dim() - 1))

    def _factor(self, value: float | Tensor) -> float | Tensor:
        return self._shaped(value) if isinstance(value, Tensor) else value  # a number needs no copy to the device


def _check_labels_fit(images: Tensor, labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype} but must be integers")
    if labels.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"labels are {list(labels.shape)} but images of {list(images.shape)} need "
            f"{[len(images), *images.shape[2:]]}, one label for each pixel"
        )
