"""What all figures of matplotlib share: the bar of the heat scale, scale bars in mm, texts, PNG files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ..common.files import replacing
from .drawing import Colour, heat_table


def heat_bar(figure: Figure, axes: npt.NDArray[np.object_], name: str, *, aspect: float) -> None:
    """The colours of heat from 0 to 1, right of the axes. aspect: height per width."""
    colours = ScalarMappable(cmap=ListedColormap(heat_table()[0] / 255))
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
