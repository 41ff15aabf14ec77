"""The figure of an evaluation on echocardiograms: one row per image, with truth, prediction and map side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..rewards.echo_validity import anatomical_metrics, broken_rules
from .drawing import Bytes, Heat
from .echo import echo_case_metrics
from .echo_pictures import OUTLINE, PREDICTION, TRUTH, echo_panel
from .figures import heat_bar, literal, save_png, scale_bar, unit_rgb

PANEL_PX = 384
"""Least height of a panel."""
PANEL_INCH = 3.3


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
    note: str | None = None
    """Line below the prediction; None: `verdict`."""
    spacing_known: bool = True
    """Whether spacing_mm is in mm; otherwise only its proportion counts, and no bar of a length is drawn."""

    @property
    def height_per_width(self) -> float:
        """Height over width of the image, both in mm."""
        height, width = self.image.shape
        return float(height * self.spacing_mm[0] / (width * self.spacing_mm[1]))

    @property
    def verdict(self) -> str:
        """Whether the prediction is anatomically valid, or the first rule that it breaks; where there is a truth, its
        Dice and Hausdorff distance too."""
        verdict = validity_text(broken_rules(anatomical_metrics(self.pred)))
        if self.label is None:
            return verdict
        values = echo_case_metrics(torch.from_numpy(self.pred), torch.from_numpy(self.label), self.spacing_mm)
        dice = ", ".join(f"{name.upper()} {100 * values[f'dice_{name}']:.1f}" for name in ("endo", "epi"))
        return f"Dice {dice} %; HD EPI {values['hd_epi_mm']:.1f} mm\n{verdict}"


def validity_text(broken: Sequence[str]) -> str:
    """One line on the anatomical rules that a mask breaks: "valid", "not valid (lv holes and 2 more)"."""
    if not broken:
        return "valid"
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return f"not valid ({broken[0].replace('_', ' ')}{more})"


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
    known = any(view.label is not None for view in views)
    names = ("truth" if known else "image", "prediction", heat_name)[: 3 if mapped else 2]
    heights = [PANEL_INCH * view.height_per_width + 0.25 for view in views]  # with the line below the panel
    size = (PANEL_INCH * len(names) + 0.7 * mapped, sum(heights) + 0.9)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(literal(title), fontsize=13)
    axes = figure.subplots(len(views), len(names), squeeze=False, height_ratios=heights)
    for row, view in zip(axes, views, strict=True):
        _draw_view(row, view)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name, fontsize=11)
    if mapped:
        heat_bar(figure, axes, heat_name, aspect=10 * len(views))
    styles = (("truth", TRUTH), ("prediction", PREDICTION))[0 if known else 1 :]
    lines = [(f"{what}, {part}", getattr(style, part.lower())) for what, style in styles for part in ("LV", "MYO")]
    figure.legend(
        handles=[Line2D([], [], color=unit_rgb(rgb), label=label) for label, rgb in lines],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    save_png(figure, path)


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
    named = literal(view.case_id)
    row[0].set_xlabel(named if view.label is not None else f"{named} (no truth)", fontsize=9)
    row[1].set_xlabel(view.verdict if view.note is None else view.note, fontsize=8)
    if view.spacing_known:
        scale_bar(row[0], scale / view.spacing_mm[0], height * scale)
