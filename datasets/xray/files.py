"""One radiograph from a file, at the size that a network sees (docs/apga.md, Method 6)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..pictures import read_picture

KINDS = ("PNG", "JPEG")
Fit = Literal["stretch", "pad"]
Interpolation = Literal["bilinear", "nearest"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
"""Of Pillow: what has 8 bits, or fewer, in its first channel."""


@dataclass(frozen=True)
class XrayFile:
    """One radiograph on disk."""

    id: str
    label: int
    """Class number."""
    study: str
    """Images of one study are judged together."""
    patient: str
    part: str
    """Body part."""
    split: str
    """As the data set has it."""
    path: Path
    where: str
    """Line and list that name it, for errors."""


def read_xray(path: Path, size: int, fit: Fit = "stretch", interpolation: Interpolation = "bilinear") -> Tensor:
    """The radiograph uint8 [size, size]: its first channel, brought to that size.

    Args:
        path: PNG or JPEG of 8 bits.
        size: pixels along each side.
        fit: stretch: both sides become `size`; pad: the longer one does, and black lies on both sides of the rest.
        interpolation: bilinear, over all pixels that become one where an image shrinks; or the nearest pixel.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no picture, a damaged one, one without pixels, or one of 16 bits.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file; unpack the data set again")

    def change(picture: Image.Image) -> Image.Image:
        if picture.mode not in MODES:
            raise ValueError(f"its pixels are of Pillow's kind {picture.mode!r}, but 8 bits are needed")
        grey = picture if picture.mode in ("L", "RGB") else picture.convert("RGB" if picture.mode == "P" else "RGBA")
        return _fitted(grey.getchannel(0), size, fit, FILTERS[interpolation])

    pixels: npt.NDArray[np.uint8] = read_picture(path, KINDS, change)
    return torch.from_numpy(pixels.copy())


def _fitted(grey: Image.Image, size: int, fit: Fit, resampling: Image.Resampling) -> Image.Image:
    if fit == "stretch":
        return grey.resize((size, size), resampling)
    longer = max(grey.size)
    width, height = (max(1, round(size * side / longer)) for side in grey.size)
    square = Image.new("L", (size, size))
    square.paste(grey.resize((width, height), resampling), ((size - width) // 2, (size - height) // 2))
    return square
