"""What an attack may change: epsilon with its unit, the range of the image, and the ball between them.

Symbols: eps = radius as a share of the range; low, high = range of each channel; b = eps (high - low), in units of the
image. Images are [B, C, *spatial] with any number of spatial axes (docs/rp-pgd.md, Method 2).
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

GREY_LEVELS = 255
"""Steps of an 8-bit image: eps of 8/255 are eight of them."""
Bounds = tuple[float | Tensor, float | Tensor]
"""Lowest and highest intensity: numbers, or tensors that broadcast to [B, C, *spatial] with 1 along spatial axes."""


@dataclass(frozen=True)
class Epsilon:
    """Radius of an L-infinity ball as a share of the range of the image, in (0, 1]; it is shown as it was given.

    >>> print(Epsilon.parse("8/255"), "|", Epsilon.parse(0.03))
    8/255 (0.0313725) | 0.03 (7.65/255)
    """

    value: float
    """Share of the range: 0.03 is 3 % of it; of images in [0, 1] the radius itself."""
    given: str
    """As the user wrote it."""

    @classmethod
    def parse(cls, eps: "float | str | Fraction | Epsilon", name: str = "eps") -> "Epsilon":
        """Read a number or a text such as "0.03" or "8/255".

        Raises:
            ValueError: no number, 0 or below, or above the range (8 instead of 8/255); says so under `name`.
        """
        if isinstance(eps, Epsilon):
            return eps
        try:
            value = float(Fraction(eps.strip())) if isinstance(eps, str) else float(eps)
        except (ValueError, TypeError, OverflowError, ZeroDivisionError):
            value = math.nan
        if isinstance(eps, bool) or not 0 < value <= 1:
            hint = f"; {eps} grey levels are {eps}/{GREY_LEVELS}" if 1 < value <= GREY_LEVELS else ""
            raise ValueError(
                f"{name} is {eps!r} but must be above 0 and at most 1, a share of the range such as 0.03 or 8/255{hint}"
            )
        return cls(value, str(eps).strip())

    @property
    def grey_levels(self) -> float:
        """The radius in steps of an 8-bit image."""
        return self.value * GREY_LEVELS

    def __str__(self) -> str:
        other = f"{self.value:.6g}" if "/" in self.given else f"{self.grey_levels:.6g}/{GREY_LEVELS}"
        return f"{self.given} ({other})"


def image_range(images: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest intensity of each image and channel, each [B, C, 1, ...], of images [B, C, *spatial]."""
    axes = tuple(range(2, images.dim()))
    return images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)


def as_tensors(images: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Bounds as tensors of the type and on the device of the images."""
    low, high = (torch.as_tensor(end, dtype=images.dtype, device=images.device) for end in bounds)
    return low, high


def as_bounds(images: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Bounds as tensors that broadcast to the images, of their type and device.

    Raises:
        ValueError: a lower bound that is not below its upper one, or an image outside of them (NaN is). A constant
            channel, whose bounds `image_range` makes equal, is allowed: it cannot be changed.
    """
    low, high = as_tensors(images, bounds)
    if not bool((low <= high).all()) or (low.dim() == 0 and high.dim() == 0 and not bool(low < high)):
        raise ValueError(f"bounds are {bounds!r} but the lower one must be below the upper one")
    if not bool(((images >= low) & (images <= high)).all()):
        least, most = float(images.min()), float(images.max())
        raise ValueError(
            f"images have values in [{least:.6g}, {most:.6g}] but must lie within bounds={bounds!r}, without NaN; "
            "an attack works in units of the image, and what normalises it belongs into the model (Normalized)"
        )
    return low, high


@dataclass(frozen=True)
class LinfBall:
    """The images that an attack may return: at most `radius` away from the clean ones, and within the bounds."""

    images: Tensor
    """The clean ones, [B, C, *spatial]."""
    lower: Tensor
    """[B, C, *spatial]."""
    upper: Tensor
    """[B, C, *spatial]."""
    radius: Tensor
    """b in units of the image; broadcasts to [B, C, *spatial]."""

    @classmethod
    def around(cls, images: Tensor, eps: float | Tensor, bounds: Bounds = (0.0, 1.0)) -> "LinfBall":
        """The ball of b = eps (high - low) around images within `bounds`, which are copied.

        Args:
            images: floating point [B, C, *spatial].
            eps: share of the range, above 0: one, or one for each image and channel, that broadcasts to the images.
            bounds: (low, high), numbers or tensors for each image and channel (`image_range`).

        Raises:
            ValueError: another shape or type; images outside of the bounds; an eps that is not above 0.
        """
        if images.dim() < 3 or not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)} but must be floating point [B, C, *spatial]"
            )
        images = images.detach().clone()
        low, high = as_bounds(images, bounds)
        share = torch.as_tensor(eps, dtype=images.dtype, device=images.device)
        if not bool((share > 0).all()):
            raise ValueError(f"eps is {share.flatten().tolist()} but each must be above 0")
        radius = share * (high - low)
        return cls(images, torch.maximum(images - radius, low), torch.minimum(images + radius, high), radius)

    @classmethod
    def of_range(cls, images: Tensor, eps: float | Tensor, bounds: Bounds | None = None) -> "LinfBall":
        """As `around`, but within each channel's own range or a wider one, made without looking at the values.

        Nothing is checked or copied, so that a device need not be waited for; what lies outside of `bounds` may stay.

        Args:
            images: floating point [B, C, *spatial].
            eps: share of the range, above 0: one, or one for each image, [B].
            bounds: (low, high); None: the range of each image and channel.
        """
        least, most = image_range(images)
        low, high = (least, most) if bounds is None else as_tensors(images, bounds)
        least, most = torch.minimum(least, low), torch.maximum(most, high)
        share = per_image(eps.to(images.dtype), images) if isinstance(eps, Tensor) else eps
        radius = (share * (high - low)).expand_as(least)
        return cls(images, torch.maximum(images - radius, least), torch.minimum(images + radius, most), radius)

    def project(self, images: Tensor) -> Tensor:
        """The nearest images of the ball, [B, C, *spatial]."""
        return torch.minimum(torch.maximum(images, self.lower), self.upper)

    def random(self, generator: torch.Generator | None = None) -> Tensor:
        """The clean images + U(-b, b), projected: a random start, drawn in the order of the images."""
        return self.project(self.images + self.radius * signed_noise(self.images, generator))


def per_image(value: Tensor, images: Tensor) -> Tensor:
    """One value for each image, [B], so that it broadcasts to images [B, C, *spatial]."""
    return value.view(-1, *[1] * (images.dim() - 1))


def signed_noise(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """U(-1, 1) in the shape, type and on the device of the images, drawn on the generator's device."""
    device = images.device if generator is None else generator.device
    return (torch.rand(images.shape, dtype=images.dtype, generator=generator, device=device) * 2 - 1).to(images.device)
