"""Pixels of a picture file, as stored: PNG and JPEG, bounded in size, damage named with the file."""

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error, zlib.error)
"""Errors of Pillow on a damaged file."""


def as_stored(picture: Image.Image) -> Image.Image:
    """The picture itself: numbers of a palette stay numbers."""
    return picture


def read_picture(
    path: Path, kinds: tuple[str, ...], change: Callable[[Image.Image], Image.Image] = as_stored
) -> npt.NDArray[Any]:
    """Pixels [Y, X], or [Y, X, channels], of a file.

    Args:
        path: the file.
        kinds: as Pillow calls them, "PNG" or "JPEG"; others are refused, whatever the file is called.
        change: brings the picture into another mode, such as grey.

    Raises:
        ValueError: no picture of these kinds, a damaged or truncated one, or one of more pixels than Pillow permits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=kinds) as picture:
                return np.asarray(change(picture))
    except (*DAMAGE, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as {' or '.join(kinds)} ({error}); fetch or convert it again"
        ) from error
