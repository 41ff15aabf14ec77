"""Random changes of a photograph and its labels, in the order of the released program (docs/rp-pgd.md, Method 15):
scale, rotation, blur, flip, crop. What lies outside is ignored; it has ImageNet's mean colour, of grey images black.

Images are float32 [C, H, W] in [0, 1], labels uint8 [H, W], on one device; networks normalise by themselves. Pixel (y,
x) of the program is that of OpenCV: middles at whole numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ...common.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, SHARE, check
from ..images import IGNORED, IMAGENET_MEAN

BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""What OpenCV takes as a Gaussian of 5 pixels whose deviation follows from them (1.1)."""


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of photographs while a network learns from them.

    Raises:
        ValueError: a value outside its range, or a lowest factor above the highest.
    """

    crop: int = 473
    """Height and width of what the network sees, in pixels; 8 k + 1 for networks of stride 8."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Lowest and highest factor of both sides; (1, 1): none."""
    rotation: float = 0.5
    """Share of the photographs that are turned."""
    degrees: float = 10.0
    """Greatest angle, either way."""
    blur: float = 0.5
    """Share of the photographs that are blurred."""
    flip: float = 0.5
    """Share of the photographs that are mirrored left to right."""

    def __post_init__(self) -> None:
        check(self, "augmentation.", crop=AT_LEAST_1, scale=POSITIVE, rotation=SHARE, degrees=AT_LEAST_0)
        check(self, "augmentation.", blur=SHARE, flip=SHARE)
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"augmentation.scale is {self.scale} but the lowest factor comes first")


AUGMENTATIONS = {
    "voc": AugmentationConfig(),
    "cityscapes": AugmentationConfig(crop=449, scale=(0.25, 1.0)),
    "ade20k": AugmentationConfig(crop=465),
}
"""The released program's numbers for each data set."""


class Change(NamedTuple):
    """One random change."""

    factor: float
    """Of both sides."""
    degrees: float | None
    """Counter-clockwise; None: not turned."""
    blurred: bool
    flipped: bool
    place: tuple[float, float]
    """Of the crop among all places it can have, (y, x), each in [0, 1)."""


class Edges(NamedTuple):
    """Columns and rows around an image."""

    before: int
    behind: int
    above: int
    below: int


def draw_change(config: AugmentationConfig, generator: torch.Generator) -> Change:
    """A change with seven numbers of the generator, whatever the configuration is: options do not shift each other."""
    factor, turned, angle, blurred, flipped, y, x = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
    low, high = config.scale
    return Change(
        factor=low + (high - low) * factor,
        degrees=config.degrees * (2 * angle - 1) if turned < config.rotation else None,
        blurred=blurred < config.blur,
        flipped=flipped < config.flip,
        place=(y, x),
    )


def augment(
    image: Tensor, label: Tensor, config: AugmentationConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random crop of the changed photograph, float32 [C, crop, crop] in [0, 1], and its labels uint8 [crop, crop].

    Args:
        image: float32 [C, H, W] in [0, 1], or uint8.
        label: uint8 [H, W].
        config: ranges and shares.
        generator: on the CPU; the same state gives the same crop.

    >>> import torch
    >>> from segarena.datasets.scenes.augmentation import AugmentationConfig, augment
    >>> image, label = torch.rand(3, 50, 40), torch.zeros(50, 40, dtype=torch.uint8)
    >>> changed, labels = augment(image, label, AugmentationConfig(crop=33), torch.Generator().manual_seed(0))
    >>> changed.shape, labels.shape
    (torch.Size([3, 33, 33]), torch.Size([33, 33]))
    """
    if image.dtype == torch.uint8:
        image = image.float() / 255
    return apply_change(image, label, draw_change(config, generator), config.crop)


def apply_change(image: Tensor, label: Tensor, change: Change, crop: int) -> tuple[Tensor, Tensor]:
    """The changed photograph float32 [C, crop, crop] and its labels uint8 [crop, crop]; as `augment`.

    Raises:
        ValueError: images or labels of another type or rank, or of different sizes.
    """
    if image.ndim != 3 or label.shape != image.shape[1:] or label.dtype != torch.uint8:
        raise ValueError(
            f"image is {image.dtype} {list(image.shape)} and label {label.dtype} {list(label.shape)} but must be "
            "float32 [C, H, W] and uint8 [H, W]"
        )
    height, width = (max(1, round(n * change.factor)) for n in label.shape)
    image, label = resized(image, height, width), _resized_label(label, height, width)
    if change.degrees is not None:
        image, label = _rotated(image, label, change.degrees)
    if change.blurred:
        image = _blurred(image)
    if change.flipped:
        image, label = image.flip(-1), label.flip(-1)
    edges = padding(label.shape[0], label.shape[1], crop, crop)
    image, label = padded(image, edges, _outside(image)), _padded_label(label, edges)
    top, left = (int(share * (n - crop + 1)) for share, n in zip(change.place, label.shape, strict=True))
    return image[:, top : top + crop, left : left + crop], label[top : top + crop, left : left + crop]


def centred(image: Tensor, label: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """The middle size x size pixels of a photograph and its labels, padded where it is smaller."""
    height, width = image.shape[1:]
    edges = padding(height, width, size, size)
    top, left = (max(n - size, 0) // 2 for n in (height, width))
    rows, columns = slice(top, top + size), slice(left, left + size)
    cut = None if label is None else _padded_label(label, edges)[rows, columns]
    return padded(image, edges, _outside(image))[:, rows, columns], cut


def long_side_resized(image: Tensor, label: Tensor | None, long_side: int) -> tuple[Tensor, Tensor | None]:
    """Photograph and labels with the longer side brought to `long_side`; the aspect is kept."""
    height, width = sides(image.shape[1], image.shape[2], long_side)
    return resized(image, height, width), None if label is None else _resized_label(label, height, width)


def sides(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Height and width of the same aspect whose larger one is `long_side`."""
    longer = max(height, width)
    return max(1, round(long_side * height / longer)), max(1, round(long_side * width / longer))


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Images float32 [..., C, height, width], bilinear without a low-pass, as OpenCV does it."""
    if images.shape[-2:] == (height, width):
        return images
    stack = images if images.ndim == 4 else images[None]
    stack = functional.interpolate(stack, (height, width), mode="bilinear", align_corners=False)
    return stack if images.ndim == 4 else stack[0]


def padding(height: int, width: int, to_height: int, to_width: int) -> Edges:
    """What brings the sides to at least these; of an odd number one more row below, one more column to the right."""
    rows, columns = max(to_height - height, 0), max(to_width - width, 0)
    return Edges(columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)


def padded(images: Tensor, edges: Edges, colour: Sequence[float]) -> Tensor:
    """Images [..., C, H, W] with rows and columns of one colour, a number for each channel, around them."""
    if not any(edges):
        return images
    height, width = images.shape[-2:]
    fill = torch.tensor(colour, dtype=images.dtype, device=images.device)[:, None, None]
    canvas = fill.expand(*images.shape[:-2], edges.above + height + edges.below, edges.before + width + edges.behind)
    canvas = canvas.clone()
    canvas[..., edges.above : edges.above + height, edges.before : edges.before + width] = images
    return canvas


def _outside(image: Tensor) -> Sequence[float]:
    """What lies outside of an image [C, H, W], a number for each channel."""
    return IMAGENET_MEAN if len(image) == len(IMAGENET_MEAN) else [0.0] * len(image)


def _resized_label(label: Tensor, height: int, width: int) -> Tensor:
    """By the nearest pixel."""
    if label.shape == (height, width):
        return label
    return functional.interpolate(label[None, None], (height, width), mode="nearest")[0, 0]


def _padded_label(label: Tensor, edges: Edges) -> Tensor:
    return functional.pad(label, list(edges), value=IGNORED)


def _rotated(image: Tensor, label: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Turned counter-clockwise about (height / 2, width / 2)."""
    height, width = label.shape
    angle = math.radians(degrees)
    y = torch.arange(height, dtype=torch.float32, device=image.device)[:, None] - height / 2
    x = torch.arange(width, dtype=torch.float32, device=image.device)[None] - width / 2
    from_x = math.cos(angle) * x - math.sin(angle) * y + width / 2
    from_y = math.sin(angle) * x + math.cos(angle) * y + height / 2
    steps = [2 * at / max(n - 1, 1) - 1 for at, n in ((from_x, width), (from_y, height))]
    grid = torch.stack(steps, dim=-1)[None]
    mean = torch.tensor(_outside(image), device=image.device)[:, None, None]
    image = functional.grid_sample((image - mean)[None], grid, mode="bilinear", align_corners=True)[0] + mean
    lifted = label[None, None].float() - IGNORED  # 0, which is what lies outside, is ignored
    turned = functional.grid_sample(lifted, grid, mode="nearest", align_corners=True)[0, 0] + IGNORED
    return image, turned.round().to(torch.uint8)


def _blurred(image: Tensor) -> Tensor:
    """Each row and column convolved with `BLUR`; mirrored at the edges, the outermost pixel not twice."""
    kernel = torch.tensor(BLUR, dtype=image.dtype, device=image.device)
    around = functional.pad(image[None], (2, 2, 2, 2), mode="reflect" if min(image.shape[1:]) > 2 else "replicate")[0]
    rows = functional.conv2d(around[:, None], kernel.view(1, 1, 5, 1))
    return functional.conv2d(rows, kernel.view(1, 1, 1, 5))[:, 0]
