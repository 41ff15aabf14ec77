"""The attacks by name, in `ATTACKS`: pure functions (model, images, labels, eps=...) -> adversarial images.

Each is a schedule of numbers (`Weighting`): the weights of five groups of pixels, what they are divided by, and those
of the prototype terms. Whatever else an attack does, the core does for all of them alike. N = steps, t = number of a
step (docs/rp-pgd.md, Method 5, 8 and 9).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_range
from .budget import Bounds, Epsilon, LinfBall, signed_noise
from .core import AttackCore
from .losses import PixelLoss, cross_entropy, jensen_shannon, margin
from .options import RPOptions
from .regions import Weighting, region_schedule
from .victim import Normalized

Schedule = Callable[[int, int, RPOptions], Weighting]
"""The weighting of step t = 0 .. N - 1 of N."""
SHORT = 3
"""Steps up to which the default step size is eps / N; that of more is `LONG_STEP`."""
LONG_STEP = 0.01
"""Default step size of a longer attack, a share of the range; at most eps, and at least eps / N, to get that far."""
RANDOM_FROM = 10
"""Steps from which a start is random by default, where the attack has one at all."""


def uniform(t: int, steps: int, options: RPOptions) -> Weighting:
    """Every valid pixel alike."""
    return Weighting()


def segpgd(t: int, steps: int, options: RPOptions) -> Weighting:
    """Right pixels 1 - t/2N, wrong ones t/2N, t = 0 .. N - 1."""
    wrong = t / (2 * steps)
    return Weighting(1 - wrong, wrong, 1 - wrong, wrong, 1 - wrong)


def cospgd(t: int, steps: int, options: RPOptions) -> Weighting:
    """Every pixel by its confidence."""
    return Weighting(confidence=1.0)


def masked(t: int, steps: int, options: RPOptions) -> Weighting:
    """Right pixels alone."""
    return Weighting(1.0, 0.0, 1.0, 0.0, 1.0)


def with_dice(t: int, steps: int, options: RPOptions) -> Weighting:
    """Every valid pixel alike, and 1 - soft Dice of the foreground."""
    return Weighting(dice=1.0)


def region(t: int, steps: int, options: RPOptions) -> Weighting:
    """Regions by the schedule of their weights, t counted from `lambda_base`."""
    true, boundary, false = (options.w_region * x for x in region_schedule(t + options.lambda_base, steps))
    mean = 0.0 if options.region_norm == "global" else 1.0
    return Weighting(true, boundary, boundary, false, false, region_mean=mean)


def region_global(t: int, steps: int, options: RPOptions) -> Weighting:
    """As `region`, divided by all valid pixels of the image."""
    return region(t, steps, replace(options, region_norm="global"))


def region_inter(t: int, steps: int, options: RPOptions) -> Weighting:
    """`region` and the inter-class term."""
    return replace(region(t, steps, options), inter=options.w_inter)


def region_inter_intra(t: int, steps: int, options: RPOptions) -> Weighting:
    """`region`, the inter-class and the intra-class term."""
    return replace(region_inter(t, steps, options), intra=options.w_intra)


@dataclass(frozen=True)
class Attack:
    """An attack as a function; `ATTACKS` has them all."""

    title: str
    """For tables and figures."""
    schedule: Schedule
    """Weights of each step."""
    loss: PixelLoss = cross_entropy
    """Raised in each pixel."""
    random: bool = True
    """Whether its start is random by default, from 10 steps on."""
    momentum: float | None = None
    """Of the sum of gradients, each divided by its L1 norm."""
    regional: bool = False
    """Whether it takes `RPOptions`."""
    single: bool = False
    """Whether it has one step, of size eps."""

    @torch.inference_mode(False)
    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        eps: float | str | Fraction | Epsilon,
        steps: int | None = None,
        step_size: float | str | Fraction | Epsilon | None = None,
        random_start: bool | None = None,
        bounds: Bounds = (0.0, 1.0),
        ignore_index: int = 255,
        feature_layer: str | None = None,
        options: RPOptions = RPOptions(),  # noqa: B008 (frozen)
        generator: torch.Generator | None = None,
        watch: Callable[[AttackCore], object] | None = None,
    ) -> Tensor:
        """Adversarial images [B, C, *spatial]: at most eps (high - low) from `images` in each pixel, and within bounds.

        `steps` forward and backward passes. The model is used in evaluation mode and left as it was. An image without a
        valid pixel is returned unchanged.

        Args:
            model: gives logits [B, K, *spatial] of images in their own units; what normalises belongs into it
                (`Normalized`).
            images: floating point [B, C, *spatial], within the bounds.
            labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
            eps: radius as a share of high - low, in (0, 1]: 0.03, or "8/255".
            steps: gradients, at least 1; 10 by default.
            step_size: of a step, a share of high - low like eps. Default: eps / N up to 3 steps, else 0.01, but at most
                eps and at least eps / N.
            random_start: from U(-eps, eps) around the images. Default: from 10 steps on, where the attack has one.
            bounds: (low, high), numbers or tensors for each image and channel, such as `image_range(images)`.
            ignore_index: label of pixels that count for nothing.
            feature_layer: submodule whose output the prototypes of RP-PGD and RP-PGD++ are made of.
            options: of the attacks whose names begin with "rp".
            generator: of the random start; None: PyTorch's own.
            watch: is handed the core before each step, to look at regions, losses or the image that is reached there.

        Raises:
            ValueError: names what was given, what is allowed, and the way out.
        """
        budget, steps = Epsilon.parse(eps), self.steps(steps)
        share = self.step_share(budget, steps, step_size)
        if options != RPOptions() and not self.regional:
            raise ValueError(f"{self.title} takes no options of region-and-prototype attacks, but got {options}")
        ball = LinfBall.around(images, budget.value, bounds)
        start = None
        if options.norm_clamp_start:
            start = released_start(model, ball.images, budget, generator)
        elif self.random and steps >= RANDOM_FROM if random_start is None else random_start:
            start = ball.random(generator)
        core = AttackCore(
            model, ignore_index=ignore_index, loss=self.loss, feature_layer=feature_layer, options=options
        )
        core.reset(ball, labels, start)
        for t in range(steps):
            if watch is not None:
                watch(core)
            spec = core.weigh(self.schedule(t, steps, options), share, self.momentum)
            if t == steps - 1:
                core.update(spec)
            else:
                core.step(spec)
        core.check_finite()
        return core.adversarial

    def steps(self, steps: int | None) -> int:
        """The number of steps, checked.

        Raises:
            ValueError: no integer, below 1, or above the one step of FGSM.
        """
        if steps is None:
            return 1 if self.single else 10
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise ValueError(f"steps is {steps!r} but must be an integer of at least 1")
        check_range("steps", steps, AT_LEAST_1)
        if self.single and steps != 1:
            raise ValueError(f"steps is {steps} but {self.title} has one step; BIM is the same with more")
        return steps

    def step_share(self, eps: Epsilon, steps: int, step_size: float | str | Fraction | Epsilon | None = None) -> float:
        """Step size as a share of the radius; without `step_size`, this attack's own."""
        if step_size is not None:
            return Epsilon.parse(step_size, "step_size").value / eps.value
        if steps <= SHORT:
            return 1 / steps
        return max(min(LONG_STEP / eps.value, 1.0), 1 / steps)


def released_start(model: nn.Module, images: Tensor, eps: Epsilon, generator: torch.Generator | None = None) -> Tensor:
    """The released program's start, [B, C, *spatial]: noise U(-eps, eps) on normalised images, clamped to [0, 1] there.

    It lies far outside of the ball: what is darker than the mean becomes the mean.

    Raises:
        ValueError: the model is not a `Normalized`.
    """
    if not isinstance(model, Normalized):
        raise ValueError(f"norm_clamp_start needs a model of class Normalized but this one is {type(model).__name__}")
    noisy = model.normalize(images) + eps.value * signed_noise(images, generator)
    return model.denormalize(noisy.clamp(0, 1))


ATTACKS: Mapping[str, Attack] = {
    "fgsm": Attack("FGSM", uniform, random=False, single=True),
    "bim": Attack("BIM", uniform, random=False),
    "pgd": Attack("PGD", uniform),
    "mi_fgsm": Attack("MI-FGSM", uniform, random=False, momentum=1.0),
    "segpgd": Attack("SegPGD", segpgd),
    "cospgd": Attack("CosPGD", cospgd),
    "masked_ce": Attack("Masked CE", masked),
    "js": Attack("Jensen-Shannon", uniform, loss=jensen_shannon),
    "cw_linf": Attack("CW-Linf", uniform, loss=margin),
    "rp_region": Attack("RP-region", region, regional=True),
    "rp_pgd": Attack("RP-PGD", region_inter, regional=True),
    "rp_pgd_pp": Attack("RP-PGD++", region_inter_intra, regional=True),
    "rp_global": Attack("RP-global", region_global, regional=True),
}
"""Every attack with a fixed number of gradients, by the name that configurations and results use."""
PROTOTYPICAL = ("rp_pgd", "rp_pgd_pp")
"""Those with terms of prototypes, which need `feature_layer`."""
