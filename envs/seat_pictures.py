"""Pictures of a training: curves of what is known of each segment, and a patch of the probe with its predictions."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..evaluation.attack_panels import class_legend, class_picture, image_picture, middle_slice, range_shares
from ..evaluation.drawing import GAP_PX, Bytes, Colour, Legend, beside, enlarged, font
from .core import Frame

if TYPE_CHECKING:
    from .seat import SEATEnv

PANEL_PX = 192
MARGIN_PX, TEXT_PX = 10, 14
CHARTS: tuple[tuple[str, tuple[tuple[int, Colour], ...]], ...] = (
    ("iterations K", ((0, (86, 180, 233)),)),
    ("magnitude", ((1, (230, 159, 0)),)),
    ("Dice, and under attack", ((4, (0, 158, 115)), (5, (213, 94, 0)))),
)
"""Title of each chart, and column of `CURVES` and colour of its lines."""


def picture(env: "SEATEnv", env_id: int) -> Frame:
    """Three charts, and below them a patch: it, it under attack, its labels where they are shown, what is predicted of
    both; uint8 [H, W, 3]."""
    images, labels = (one[:1] for one in env.probe)
    row = torch.tensor([env_id], device=env.device)
    reached = env.victims.attacked(images, labels, env.eps, env.config.probe_steps, row)[0]
    panels = [image_picture(middle_slice(range_shares(one, images)[0])) for one in (images, reached)]
    maps = [env.victims.predicted(env_id, one) for one in (images, reached)]
    for one in [labels, *maps] if env.shows_truth else maps:
        panels.append(class_picture(middle_slice(one[0]), len(env.classes)))
    patch = beside([enlarged(panel, PANEL_PX) for panel in panels])
    return beside([_charts(env, env_id, patch.shape[1]), patch], axis=0)


def legend(env: "SEATEnv") -> Legend:
    """What each line, panel and colour means in the pictures of `env`."""
    names = ("iterations K", "magnitude of the gradient", "Dice of clean patches", "Dice of the probe under attack")
    lines = [*zip((colour for _, lines in CHARTS for _, colour in lines), names, strict=True)]
    known = "labels, " if env.shows_truth else ""
    below = f"below, middle axial slice: patch, it under attack, {known}what is predicted of both"
    return [*lines, ((128, 128, 128), below), *class_legend(env.classes)[:-1]]  # nothing is ignored


def _charts(env: "SEATEnv", env_id: int, width: int) -> Bytes:
    """The charts beside each other, so many pixels wide."""
    done = int(env.t[env_id].clamp(max=env.horizon))
    curves = env.curves[env_id, : done + 1].nan_to_num(0.0, 0.0, 0.0).cpu().numpy()
    inner = width - (len(CHARTS) - 1) * GAP_PX
    charts = []
    for number, (title, lines) in enumerate(CHARTS):
        judged = lines[0][0] > 2  # known of the start, too
        shown = [(curves[0 if judged else 1 :, column], colour) for column, colour in lines]
        most = (
            1.0
            if judged
            else float(env.config.most_iterations)
            if lines[0][0] == 0
            else max([1e-6, *shown[0][0].tolist()])
        )
        wide = inner * (number + 1) // len(CHARTS) - inner * number // len(CHARTS)
        charts.append(_chart(title, shown, most, env.horizon + (1 if judged else 0), wide))
    return beside(charts)


def _chart(title: str, lines: list[tuple[np.ndarray, Colour]], most: float, places: int, width: int) -> Bytes:
    """Lines of values in 0 .. `most` at the first of so many places, with the last value in the title."""
    canvas = Image.new("RGB", (width, PANEL_PX), (16, 16, 16))
    draw, top = ImageDraw.Draw(canvas), MARGIN_PX + TEXT_PX + MARGIN_PX
    values = ", ".join(f"{line[-1]:.3g}" for line, _ in lines if len(line))
    draw.text((MARGIN_PX, MARGIN_PX), f"{title}: {values}", (220, 220, 220), font(TEXT_PX))
    draw.rectangle((MARGIN_PX, top, width - MARGIN_PX, PANEL_PX - MARGIN_PX), outline=(70, 70, 70))
    wide, high = width - 2 * MARGIN_PX, PANEL_PX - MARGIN_PX - top
    for line, colour in lines:
        x = MARGIN_PX + wide * np.arange(len(line)) / max(places - 1, 1)
        y = PANEL_PX - MARGIN_PX - high * np.clip(line / most, 0, 1)
        points = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
        if len(points) == 1:
            (a, b) = points[0]
            draw.ellipse((a - 2, b - 2, a + 2, b + 2), fill=colour)
        elif points:
            draw.line(points, fill=colour, width=2)
    return np.asarray(canvas)
