"""Drawing functions of all pictures: colours, blending, the heat scale, texts. Those of figures are in figures.py."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Heat = npt.NDArray[np.floating[Any]]
Colour = tuple[int, int, int]
"""Red, green, blue in 0..255."""
Legend = Sequence[tuple[Colour, str]]
"""Colours of a picture and what each means, in the order in which they are shown."""

GAP_PX, GAP_GREY = 4, 48
"""Between two panels of one picture."""


def beside(panels: Sequence[Bytes], axis: int = 1) -> Bytes:
    """Panels [H, W, 3] of one height beside each other, or with axis 0 of one width above each other, with gaps."""
    shape = list(panels[0].shape)
    shape[axis] = GAP_PX
    gap = np.full(shape, GAP_GREY, dtype=np.uint8)
    return np.concatenate([part for panel in panels for part in (gap, panel)][1:], axis=axis)


def enlarged(panel: Bytes, side_px: int) -> Bytes:
    """A panel [H, W, 3] whose pixels are repeated as often as brings its longer side nearest to `side_px`; never less
    than once."""
    scale = max(1, round(side_px / max(panel.shape[:2])))
    return panel.repeat(scale, axis=0).repeat(scale, axis=1)


def blend(picture: Bytes, where: Mask, colour: npt.ArrayLike, opacity: npt.ArrayLike) -> None:
    """Lays `colour` [n, 3] or [3] over the n pixels of the picture [H, W, 3] in `where` [H, W], in place.

    opacity: [n] or a number, in 0..1.
    """
    under = picture[where].astype(np.float32)
    picture[where] = np.rint(under + (np.asarray(colour) - under) * np.asarray(opacity)[..., None])


def blend_heat(picture: Bytes, heat: Heat) -> None:
    """Lays heat [H, W] in 0..1 over the picture [H, W, 3], in place; 0 is transparent.

    Raises:
        ValueError: heat outside 0..1 or NaN.
    """
    if not (heat.min() >= 0 and heat.max() <= 1):
        raise ValueError(f"heat lies in [{heat.min()}, {heat.max()}] but must lie in [0, 1], without NaN")
    level = np.ceil(heat * 255).astype(np.uint8)
    warm = level > 0
    colour, opacity = heat_table()
    blend(picture, warm, colour[level[warm]], opacity[level[warm]])


@lru_cache(maxsize=1)
def heat_table() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Colours [256, 3] in 0..255 and opacities [256] of heat above 0: the stronger, the more opaque."""
    import matplotlib  # here: environments draw seldom, and it loads slowly

    level = np.linspace(0, 1, 256)
    colour = matplotlib.colormaps["inferno"](0.15 + 0.85 * level)[:, :3] * 255  # its black end would read as tissue
    opacity = 0.35 + 0.4 * level
    return colour.astype(np.float32), opacity.astype(np.float32)


def heat_colour(level: float) -> Colour:
    """The colour of heat, level in 0..1, for legends."""
    red, green, blue = (round(float(part)) for part in heat_table()[0][round(255 * level)])
    return red, green, blue


@lru_cache(maxsize=8)
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """The font of all texts in pictures, which comes with matplotlib."""
    import matplotlib  # see heat_table

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size_px)


@lru_cache(maxsize=64)
def glyph(letter: str, size_px: int) -> npt.NDArray[np.float32]:
    """Opacity in 0..1 of each pixel of a letter, [height, width]."""
    left, top, right, bottom = font(size_px).getbbox(letter)
    drawn = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(drawn).text((-left, -top), letter, 255, font(size_px))
    return np.asarray(drawn, dtype=np.float32) / np.float32(255)
