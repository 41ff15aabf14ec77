"""Pictures of echocardiograms with masks and a map over them: one panel in arrays, and the figure of an evaluation.

Arrays are (y, x) and drawn as they lie: the probe on top. Every border between two labels is one line: LV's in LV's
colour, MYO's against the background in MYO's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import ndimage

from ..common.files import replacing
from ..datasets.echo.images import BACKGROUND, LV, MYO
from ..rewards.echo_validity import is_valid
from .echo import echo_case_metrics
from .figures import scale_bar, unit_rgb
from .pictures import Bytes, Colour, Heat, Mask, blend, heat_table

PANEL_PX = 384
"""Least height of a panel of the figure."""
PANEL_INCH = 3.3
LINE_SHARE = 200
"""Height of a picture in widths of its lines."""


class Style(NamedTuple):
    """How one mask is drawn."""

    lv: Colour
    myo: Colour
    opacity: float = 0.0
    """Of the colour over the inside of the structures; the lines are always opaque."""


# close to Okabe and Ito's colours: told apart by colour-blind readers too
TRUTH = Style(lv=(0, 200, 120), myo=(240, 228, 66))
PREDICTION = Style(lv=(86, 180, 233), myo=(230, 110, 0), opacity=0.25)
OUTLINE = Style(lv=(86, 180, 233), myo=(86, 180, 233))
"""The prediction over a map: in a colour that no heat has."""


@dataclass(frozen=True)
class EchoView:
    """One row of the figure; arrays [H, W]."""

    case_id: str
    image: Bytes
    label: Bytes | None
    """Labels 0..2, or None where no truth is known."""
    pred: Bytes
    heat: Heat | None
    """Reward or uncertainty in 0..1, or None."""
    spacing_mm: tuple[float, float]
    """(y, x) of a pixel."""

    @property
    def height_per_width(self) -> float:
        """Of the image in mm."""
        height, width = self.image.shape
        return float(height * self.spacing_mm[0] / (width * self.spacing_mm[1]))

    @property
    def verdict(self) -> str:
        """Whether the prediction is anatomically valid; where there is a truth, its Dice and Hausdorff distance too."""
        verdict = "valid" if is_valid(self.pred) else "not valid"
        if self.label is None:
            return verdict
        values = echo_case_metrics(torch.from_numpy(self.pred), torch.from_numpy(self.label), self.spacing_mm)
        dice = ", ".join(f"{name.upper()} {100 * values[f'dice_{name}']:.1f}" for name in ("endo", "epi"))
        return f"Dice {dice} %; HD EPI {values['hd_epi_mm']:.1f} mm; {verdict}"


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
        level = np.ceil(heat * 255).astype(np.uint8)[shown]
        colour, opacity = heat_table()
        blend(picture, level > 0, colour[level[level > 0]], opacity[level[level > 0]])
    thick = max(1, round(len(picture) / LINE_SHARE))
    for mask, style in masks:
        labels = mask[shown]
        for value, rgb in ((LV, style.lv), (MYO, style.myo)):
            if style.opacity:
                blend(picture, labels == value, rgb, style.opacity)
        picture[_rim(labels == LV, labels != LV, thick)] = style.lv
        picture[_rim(labels == MYO, labels == BACKGROUND, thick)] = style.myo
    return picture


def save_echo_figure(
    path: str | Path, views: Sequence[EchoView], *, title: str, heat_name: str = "uncertainty"
) -> None:
    """Writes a PNG to `path`: per view the image with the truth, the prediction over the truth, and the map.

    The panels are in true proportions. Without any map there are two columns.

    Raises:
        ValueError: no views, or arrays of a view that do not match.
    """
    if not views:
        raise ValueError("no views to draw")
    mapped = any(view.heat is not None for view in views)
    names = ("truth", "prediction", heat_name)[: 3 if mapped else 2]
    heights = [PANEL_INCH * view.height_per_width + 0.25 for view in views]  # with the line below the panel
    size = (PANEL_INCH * len(names) + 0.7 * mapped, sum(heights) + 0.9)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(len(views), len(names), squeeze=False, height_ratios=heights)
    for row, view in zip(axes, views, strict=True):
        _draw_view(row, view)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name, fontsize=11)
    if mapped:
        colours = ScalarMappable(cmap=ListedColormap(heat_table()[0] / 255))
        figure.colorbar(colours, ax=axes, label=heat_name, fraction=0.02, aspect=10 * len(views), shrink=0.7)
    styles = (("truth", TRUTH), ("prediction", PREDICTION))
    lines = [(f"{what}, {part}", getattr(style, part.lower())) for what, style in styles for part in ("LV", "MYO")]
    figure.legend(
        handles=[Line2D([], [], color=unit_rgb(rgb), label=label) for label, rgb in lines],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    with replacing(Path(path)) as unfinished:
        figure.savefig(unfinished, format="png")


def _draw_view(row: Sequence[Axes], view: EchoView) -> None:
    height = view.image.shape[0]
    scale = -(-PANEL_PX // height)
    truth = [] if view.label is None else [(view.label, TRUTH)]
    drawn = [echo_panel(view.image, masks=truth, scale=scale, spacing_mm=view.spacing_mm)]
    over = [*truth, (view.pred, PREDICTION)]
    drawn.append(echo_panel(view.image, masks=over, scale=scale, spacing_mm=view.spacing_mm))
    if view.heat is not None:
        outline = [(view.pred, OUTLINE)]
        drawn.append(echo_panel(view.image, masks=outline, heat=view.heat, scale=scale, spacing_mm=view.spacing_mm))
    for ax, picture in zip(row, drawn, strict=False):
        ax.imshow(picture)
    for ax in row:
        ax.set(xticks=[], yticks=[])
    for ax in row[len(drawn) :]:
        ax.axis("off")
    row[0].set_xlabel(view.case_id if view.label is not None else f"{view.case_id} (no truth)", fontsize=9)
    row[1].set_xlabel(view.verdict, fontsize=8)
    scale_bar(row[0], scale / view.spacing_mm[0], height * scale)


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
    if heat is not None:
        if heat.shape != image.shape or not np.issubdtype(heat.dtype, np.floating):
            raise ValueError(f"heat is {heat.dtype} {heat.shape} but must be float {image.shape}")
        if not (heat.min() >= 0 and heat.max() <= 1):
            raise ValueError(f"heat lies in [{heat.min()}, {heat.max()}] but must lie in [0, 1], without NaN")
    if len(spacing_mm) != 2 or not all(0 < s < np.inf for s in spacing_mm):
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)} but must be two positive lengths")
