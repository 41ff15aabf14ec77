"""One echocardiogram with masks and a map over it, drawn with array operations: fast enough for every step.

Arrays are (y, x) and drawn as they lie: the probe on top. Every border between two labels is one line: LV's in LV's
colour, MYO's against the background in MYO's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..datasets.echo.images import BACKGROUND, LV, MYO
from .drawing import Bytes, Colour, Heat, Mask, blend, blend_heat

LINE_SHARE = 200
"""Height of a picture in widths of its lines."""


class Style(NamedTuple):
    """Colours and opacity of one drawn mask."""

    lv: Colour
    myo: Colour
    opacity: float = 0.0
    """Opacity of the colour inside the structures, 0 to 1; the lines are always opaque."""


# close to Okabe and Ito's colours: told apart by colour-blind readers too
TRUTH = Style(lv=(0, 200, 120), myo=(240, 228, 66))
PREDICTION = Style(lv=(86, 180, 233), myo=(230, 110, 0), opacity=0.25)
OUTLINE = Style(lv=(86, 180, 233), myo=(86, 180, 233))
"""The prediction over a map: in a colour that no heat has."""


def echo_panel(
    image: Bytes,
    *,
    masks: Sequence[tuple[Bytes, Style]] = (),
    heat: Heat | None = None,
    scale: int = 4,
    spacing_mm: tuple[float, float] = (1.0, 1.0),
) -> Bytes:
    """The image with a map and masks over it: uint8 [H * scale, W', 3].

    image: uint8 [H, W]. masks: labels uint8 [H, W], 0..2, later ones on top. heat: float [H, W] in 0..1, blended over
    the image, 0 is transparent. scale: rows of the picture per pixel. spacing_mm: (y, x) of a pixel; W' is such that
    the picture is not distorted, and even (for videos).

    Raises:
        ValueError: arrays of another shape or type, labels above 2, heat outside 0..1 or NaN, a scale below 1, a
            spacing that is not positive.
    """
    _check(image, [mask for mask, _ in masks], heat, spacing_mm)
    if scale < 1:
        raise ValueError(f"scale is {scale} but must be at least 1")
    height, width = image.shape
    rows = np.arange(height).repeat(scale)
    columns = 2 * max(1, round(width * scale * spacing_mm[1] / spacing_mm[0] / 2))
    cols = (2 * np.arange(columns) + 1) * width // (2 * columns)
    shown = np.ix_(rows, cols)
    picture = np.repeat(image[shown][..., None], 3, axis=-1)
    if heat is not None:
        blend_heat(picture, heat[shown])
    thick = max(1, round(len(picture) / LINE_SHARE))
    for mask, style in masks:
        labels = mask[shown]
        for value, rgb in ((LV, style.lv), (MYO, style.myo)):
            if style.opacity:
                blend(picture, labels == value, rgb, style.opacity)
        picture[_rim(labels == LV, labels != LV, thick)] = style.lv
        picture[_rim(labels == MYO, labels == BACKGROUND, thick)] = style.myo
    return picture


def _rim(inside: Mask, outside: Mask, thick: int) -> Mask:
    """The pixels of `inside` within `thick` steps of `outside`; the border of the picture is neither."""
    near: Mask = ndimage.binary_dilation(outside, iterations=thick)
    return inside & near


def _check(image: Bytes, masks: Sequence[Bytes], heat: Heat | None, spacing_mm: tuple[float, float]) -> None:
    if image.dtype != np.uint8 or image.ndim != 2 or image.size == 0:
        raise ValueError(f"image is {image.dtype} {image.shape} but must be uint8 [H, W]")
    for mask in masks:
        if mask.dtype != np.uint8 or mask.shape != image.shape or mask.max() > MYO:
            raise ValueError(f"a mask is {mask.dtype} {mask.shape} but must be uint8 {image.shape} with labels 0..2")
    if heat is not None and (heat.shape != image.shape or not np.issubdtype(heat.dtype, np.floating)):
        raise ValueError(f"heat is {heat.dtype} {heat.shape} but must be float {image.shape}")
    if len(spacing_mm) != 2 or not all(0 < s < np.inf for s in spacing_mm):
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)} but must be two positive lengths")
