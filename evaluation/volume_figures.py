"""The figure of an evaluation on volumes: one row per case, with truth, score map and prediction side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .drawing import Bytes, Colour, Heat, Mask, blend
from .figures import heat_bar, literal, save_png, scale_bar, unit_rgb
from .metrics import dice
from .volume_pictures import PLANES, View

# close to Okabe and Ito's colours: told apart by colour-blind readers too
MASK: Colour = (86, 180, 233)
TRUTH: Colour = (0, 200, 120)
MISSED: Colour = (86, 180, 233)
WRONG: Colour = (213, 94, 0)
PANEL_PX = 300


@dataclass(frozen=True)
class CaseView:
    """One row of the figure; arrays [X, Y, Z] in RAS+ order."""

    case_id: str
    image: Bytes
    label: Mask
    pred: Mask
    heat: Heat
    """Score or painted map in 0..1."""
    spacing_mm: tuple[float, float, float]
    organ: Mask | None = None
    """The organ with what is in it, for pictures in 3-D."""

    @property
    def slice_k(self) -> int:
        """Axial slice with the largest truth; with the largest prediction where there is no truth; else the middle."""
        for mask in (self.label, self.pred):
            area = mask.sum(axis=(0, 1))
            if area.any():
                return int(np.argmax(area))
        return int(self.image.shape[2] // 2)

    @property
    def verdict(self) -> str:
        """Dice of the whole volume in %, or the false-positive volume where there is no truth."""
        if self.label.any():
            return f"Dice {100 * dice(torch.from_numpy(self.pred), torch.from_numpy(self.label)):.1f} % (whole volume)"
        return f"empty target; {self.pred.sum() * np.prod(self.spacing_mm) / 1000:.1f} ml painted"


def save_case_figure(path: str | Path, cases: Sequence[CaseView], *, title: str, heat_name: str = "score") -> None:
    """Writes a PNG to `path`: per case the image with the contour of the truth, the map, and the errors of the mask.

    Raises:
        ValueError: no cases, or arrays of a case that do not match.
    """
    if not cases:
        raise ValueError("no cases to draw")
    for case in cases:
        if case.image.ndim != 3 or any(a.shape != case.image.shape for a in (case.label, case.pred, case.heat)):
            raise ValueError(f"case {case.case_id!r}: image, label, pred and heat must be [X, Y, Z] of one shape")
    figure = Figure(figsize=(10, 0.9 + 3.1 * len(cases)), dpi=150, layout="constrained")
    figure.suptitle(literal(title), fontsize=13)
    axes = figure.subplots(len(cases), 3, squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        _draw_case(row, case)
    for ax, name in zip(axes[0], ("truth", heat_name, "prediction"), strict=True):
        ax.set_title(name, fontsize=11)
    heat_bar(figure, axes, heat_name, aspect=14 * len(cases))
    figure.legend(
        handles=[
            Line2D([], [], color=unit_rgb(TRUTH), label="contour of the truth"),
            Patch(color=unit_rgb(TRUTH), label="found"),
            Patch(color=unit_rgb(MISSED), label="missed"),
            Patch(color=unit_rgb(WRONG), label="wrongly painted"),
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    save_png(figure, path)


def _draw_case(row: Sequence[Axes], case: CaseView) -> None:
    height_mm = case.image.shape[1] * case.spacing_mm[1]
    view = View.of(case.image.shape, case.spacing_mm, "axial", case.slice_k, PANEL_PX / height_mm)
    label, pred = view.sample(case.label), view.sample(case.pred)
    errors = view.draw(case.image)
    for where, colour in ((label & pred, TRUTH), (label & ~pred, MISSED), (pred & ~label, WRONG)):
        blend(errors, where, colour, 0.6)
    truth = view.draw(case.image, contours=[(case.label, TRUTH)])
    heat = view.draw(case.image, heat=case.heat, contours=[(case.label, TRUTH)])
    for ax, picture in zip(row, (truth, heat, errors), strict=True):
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[])
    row[0].set_xlabel(f"{literal(case.case_id)}, axial slice {case.slice_k}", fontsize=10)
    row[2].set_xlabel(case.verdict, fontsize=10)
    height, width = label.shape
    for letter, x in (("R", width / 30), ("L", width * 29 / 30)):
        row[0].text(x, height / 2, letter, color="white", fontsize=8, ha="center", va="center")
    scale_bar(row[0], PANEL_PX / height_mm, PANEL_PX)


# -- predictions of images without truth -----------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictionView:
    """What a method made of one volume; arrays [X, Y, Z] in RAS+ order."""

    case_id: str
    image: Bytes
    pred: Mask
    heat: Heat
    """The map of which `pred` is what exceeds `threshold`; at least 0."""
    threshold: float
    volume_ml: float
    """Volume of the mask."""
    spacing_mm: tuple[float, float, float]

    @property
    def centre_ijk(self) -> tuple[int, int, int]:
        """Slices with most of the mask: the axial one, and of the others those with most of its part; else where the
        map is highest."""
        if self.pred.any():
            k = int(self.pred.sum(axis=(0, 1)).argmax())
            i, j = (int(self.pred[:, :, k].sum(axis=across).argmax()) for across in (1, 0))
            return i, j, k
        if self.heat.max() > 0:
            i, j, k = (int(at) for at in np.unravel_index(int(self.heat.argmax()), self.heat.shape))
            return i, j, k
        x, y, z = self.image.shape
        return x // 2, y // 2, z // 2


def save_prediction_figure(path: str | Path, view: PredictionView, *, title: str) -> None:
    """Writes a PNG to `path`: three slices through the mask, above with its contour, below with the map too.

    Raises:
        ValueError: arrays that do not match.
    """
    if view.image.ndim != 3 or any(a.shape != view.image.shape for a in (view.pred, view.heat)):
        raise ValueError(f"case {view.case_id!r}: image, pred and heat must be [X, Y, Z] of one shape")
    highest = float(view.heat.max())
    heat = view.heat / highest if highest > 0 else view.heat
    sides_mm = [n * mm for n, mm in zip(view.image.shape, view.spacing_mm, strict=True)]
    px_per_mm = 1.3 * PANEL_PX / max(sides_mm)
    widths = [sides_mm[across] for _, across, _, _ in PLANES.values()]
    tallest = max(sides_mm[up] for _, _, up, _ in PLANES.values())
    figure = Figure(figsize=(11, 1.4 + 2 * 9.6 * tallest / sum(widths)), dpi=150, layout="constrained")
    figure.suptitle(f"{view.case_id}: {title}, {view.volume_ml:.1f} ml above {view.threshold:.3g}", fontsize=12)
    axes = figure.subplots(2, 3, squeeze=False, width_ratios=widths)
    for column, (plane, (normal, _, _, letters)) in zip(axes.T, PLANES.items(), strict=True):
        index = view.centre_ijk[normal]
        shown = View.of(view.image.shape, view.spacing_mm, plane, index, px_per_mm)
        contours = [(view.pred, MASK)]
        outlined = shown.draw(view.image, contours=contours)
        column[0].imshow(outlined)
        column[1].imshow(shown.draw(view.image, heat=heat, contours=contours))
        column[0].set_title(f"{plane} {index}", fontsize=10)
        for ax in column:
            ax.set(xticks=[], yticks=[])
            thin = len(outlined) < PANEL_PX / 4  # no room for letters above each other
            places = zip(letters, (0.04, 0.96, 0.5, 0.5), (0.5, 0.5, 0.95, 0.05), strict=True)
            for letter, x, y in list(places)[: 2 if thin else 4]:
                ax.text(x, y, letter, transform=ax.transAxes, color="white", fontsize=8, ha="center", va="center")
        if plane == "axial":
            scale_bar(column[0], px_per_mm, len(outlined))
    heat_bar(figure, axes, f"map, 1 = {highest:.3g}", aspect=28)
    figure.legend(
        handles=[Line2D([], [], color=unit_rgb(MASK), label="contour of the mask")],
        loc="outside lower center",
        frameon=False,
    )
    save_png(figure, path)
