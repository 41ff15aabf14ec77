"""Drawing functions of all pictures: colours, blending, the heat scale, and scale bars in mm."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ..common.files import replacing

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Heat = npt.NDArray[np.floating[Any]]
Colour = tuple[int, int, int]
"""Red, green, blue in 0..255."""

GAP_PX, GAP_GREY = 4, 48
"""Between two panels of one picture."""


# -- on arrays -----------------------------------------------------------------------------------------------------


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
    colour, opacity = _heat_table()
    blend(picture, warm, colour[level[warm]], opacity[level[warm]])


@lru_cache(maxsize=1)
def _heat_table() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Colours [256, 3] in 0..255 and opacities [256] of heat above 0: the stronger, the more opaque."""
    level = np.linspace(0, 1, 256)
    colour = matplotlib.colormaps["inferno"](0.15 + 0.85 * level)[:, :3] * 255  # its black end would read as tissue
    opacity = 0.35 + 0.4 * level
    return colour.astype(np.float32), opacity.astype(np.float32)


# -- on matplotlib's figures ---------------------------------------------------------------------------------------


def heat_bar(figure: Figure, axes: npt.NDArray[np.object_], name: str, *, aspect: float) -> None:
    """The colours of heat from 0 to 1, right of the axes. aspect: height per width."""
    colours = ScalarMappable(cmap=ListedColormap(_heat_table()[0] / 255))
    figure.colorbar(colours, ax=axes, label=name, fraction=0.02, aspect=aspect, shrink=0.7)


def scale_bar(ax: Axes, px_per_mm: float, height_px: float) -> None:
    """A bar of a round length, at most a quarter of the picture's height, in its lower left corner."""
    length_mm = max((mm for mm in (1, 2, 5, 10, 20, 50, 100) if mm * px_per_mm <= height_px / 4), default=1)
    x, y = height_px / 24, height_px * 23 / 24
    ax.plot([x, x + length_mm * px_per_mm], [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    ax.text(x, y - height_px / 60, f"{length_mm} mm", color="white", fontsize=8, va="bottom")


def unit_rgb(colour: Colour) -> tuple[float, float, float]:
    """The colour in 0..1, as matplotlib wants it."""
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def literal(text: str) -> str:
    """The text as matplotlib shows it as it is: no mathematics between dollar signs."""
    return text.replace("$", r"\$")


def save_png(figure: Figure, path: str | Path) -> None:
    """Writes the figure to `path`, whole or not at all."""
    with replacing(Path(path)) as unfinished:
        figure.savefig(unfinished, format="png")
