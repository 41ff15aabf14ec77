"""Label and prediction of volumes as 3-D pictures in one HTML file, made by plotly (the extra `viz`).

They can be turned, and their parts hidden. The file holds plotly's own program, so that it opens without a network.

A mask is shown by its surface: its voxels that have a face outside.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..common.files import write_text
from .drawing import Colour, Mask
from .volume_figures import MASK, TRUTH, CaseView

ORGAN: Colour = (140, 140, 140)
MOST_POINTS = 10_000
"""Points of one surface; of a larger one every second, third, ... is shown, so that a file has a few MB."""
AXES = ("left to right (mm)", "back to front (mm)", "feet to head (mm)")
"""Of RAS+ order."""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body>
{body}
</body>
</html>
"""


def import_plotly() -> Any:
    """Plotly's graph objects.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import plotly.graph_objects
    except ImportError as missing:
        raise ValueError("3-D pictures need plotly: pip install 'segarena[viz]'") from missing
    return plotly.graph_objects


def save_case_html(path: str | Path, cases: Sequence[CaseView], *, title: str) -> None:
    """Writes an HTML file to `path`: per case the surfaces of label, prediction and, faintly, organ, in mm.

    Raises:
        ValueError: no cases, or plotly is not installed.
    """
    if not cases:
        raise ValueError("no cases to draw")
    figures = [volume_figure(case, title=f"{case.case_id}: {title}, {case.verdict}") for case in cases]
    parts = [one.to_html(full_html=False, include_plotlyjs=not number) for number, one in enumerate(figures)]
    write_text(Path(path), PAGE.format(title=_text(title), body="\n".join(parts)))


def volume_figure(case: CaseView, *, title: str) -> Any:
    """The figure of one case, of plotly, with a trace for each of label, prediction and organ."""
    graph = import_plotly()
    figure = graph.Figure()
    shown = [("label", case.label, TRUTH, 0.7), ("prediction", case.pred, MASK, 0.7)]
    if case.organ is not None:
        shown.append(("organ", case.organ, ORGAN, 0.12))
    for name, mask, colour, opacity in shown:
        x, y, z = surface_mm(mask, case.spacing_mm)
        marker = {"size": 3, "symbol": "square", "color": "rgb({},{},{})".format(*colour), "opacity": opacity}
        figure.add_trace(graph.Scatter3d(x=x, y=y, z=z, mode="markers", name=name, marker=marker, hoverinfo="name"))
    sides = zip("xyz", AXES, case.image.shape, case.spacing_mm, strict=True)
    axes = {f"{axis}axis": {"title": {"text": text}, "range": [0.0, n * mm]} for axis, text, n, mm in sides}
    scene = {**axes, "aspectmode": "data"}
    figure.update_layout(title={"text": _text(title)}, height=640, legend={"itemsizing": "constant"}, scene=scene)
    return figure


def surface_mm(mask: Mask, spacing_mm: tuple[float, float, float], most: int = MOST_POINTS) -> npt.NDArray[np.float32]:
    """Centres in mm, float32 [3, n], of the voxels of a mask [X, Y, Z] that have a face outside it, n at most `most`.

    What lies beyond the volume is outside.
    """
    inside = np.pad(mask, 1)
    core = inside.copy()
    for axis in range(3):
        core &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
    points = np.argwhere(mask & ~core[1:-1, 1:-1, 1:-1])
    points = points[:: max(1, -(-len(points) // most))]
    centres: npt.NDArray[np.float32] = ((points + 0.5) * np.asarray(spacing_mm)).T.astype(np.float32)
    return centres


def _text(text: str) -> str:
    """A text that HTML shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
