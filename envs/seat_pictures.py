"""Pictures of a training: curves of what is known of each segment, and a patch of the probe with its predictions."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..evaluation.attack_panels import class_picture, image_picture
from ..evaluation.drawing import GAP_GREY, GAP_PX, Bytes, Colour, Legend, font
from .core import Frame

if TYPE_CHECKING:
    from .seat import ScheduleEnv

PANEL_PX = 192
WIDE_PX = 2 * PANEL_PX + GAP_PX
MARGIN_PX, TEXT_PX = 10, 14
CHARTS: tuple[tuple[str, tuple[tuple[int, Colour], ...]], ...] = (
    ("iterations K", ((0, (86, 180, 233)),)),
    ("magnitude", ((1, (230, 159, 0)),)),
    ("Dice, and under attack", ((4, (0, 158, 115)), (5, (213, 94, 0)))),
)
"""Title of each chart, and column of `CURVES` and colour of its lines."""


def picture(env: "ScheduleEnv", env_id: int) -> Frame:
    """Three charts, and a patch: it, it under attack, its labels, what is predicted of both; uint8 [H, W, 3]."""
    done = int(env.t[env_id].clamp(max=env.horizon))
    curves = env.curves[env_id, : done + 1].nan_to_num(0.0, 0.0, 0.0).cpu().numpy()
    charts = []
    for title, lines in CHARTS:
        judged = lines[0][0] > 2  # known of the start, too
        shown = [(curves[0 if judged else 1 :, column], colour) for column, colour in lines]
        most = 1.0 if judged else float(env.config.most) if lines[0][0] == 0 else max([1e-6, *shown[0][0].tolist()])
        charts.append(_chart(title, shown, most, env.horizon + (1 if judged else 0)))
    images, labels = (one[:1] for one in env.probe)
    row = torch.tensor([env_id], device=env.device)
    reached = env.victims.attacked(images, labels, env.eps, env.config.probe_steps, row)[0]
    low, high = images.min(), images.max()
    middle, number = images.shape[-1] // 2, len(env.classes)
    panels = [image_picture((one[0, ..., middle] - low) / (high - low).clamp(min=1e-6)) for one in (images, reached)]
    maps = [env.victims.predicted(env_id, one) for one in (images, reached)]
    for one in [labels, *maps] if env.shows_truth else maps:
        panels.append(class_picture(one[0, ..., middle], number))
    tiles = [_sized(panel) for panel in panels]
    if len(tiles) % 2:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [_beside(tiles[first : first + 2]) for first in range(0, len(tiles), 2)]
    height = sum(len(one) for one in rows) + GAP_PX * (len(rows) - 1)
    column = _sized(_above(charts), height, WIDE_PX)
    return _beside([column, _above(rows)])


def legend(env: "ScheduleEnv") -> Legend:
    """What each colour means in the pictures of `env`."""
    names = ("iterations K", "magnitude of the gradient", "Dice of clean patches", "Dice of the probe under attack")
    colours = [colour for _, lines in CHARTS for _, colour in lines]
    table = class_picture(torch.arange(len(env.classes))[None], len(env.classes))[0].tolist()
    classes: list[tuple[Colour, str]] = [
        ((red, green, blue), name) for (red, green, blue), name in zip(table, env.classes, strict=True)
    ]
    return [*zip(colours, names, strict=True), *classes]


def _chart(title: str, lines: list[tuple[np.ndarray, Colour]], most: float, places: int) -> Bytes:
    """Lines of values in 0 .. `most` at the first of so many places, with the last value in the title."""
    canvas = Image.new("RGB", (WIDE_PX, PANEL_PX), (16, 16, 16))
    draw, top = ImageDraw.Draw(canvas), MARGIN_PX + TEXT_PX + MARGIN_PX
    values = ", ".join(f"{line[-1]:.3g}" for line, _ in lines if len(line))
    draw.text((MARGIN_PX, MARGIN_PX), f"{title}: {values}", (220, 220, 220), font(TEXT_PX))
    draw.rectangle((MARGIN_PX, top, WIDE_PX - MARGIN_PX, PANEL_PX - MARGIN_PX), outline=(70, 70, 70))
    wide, high = WIDE_PX - 2 * MARGIN_PX, PANEL_PX - MARGIN_PX - top
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


def _sized(panel: Bytes, height: int = PANEL_PX, width: int = PANEL_PX) -> Bytes:
    return np.asarray(Image.fromarray(panel).resize((width, height), Image.Resampling.NEAREST))


def _beside(panels: list[Bytes]) -> Bytes:
    gap = np.full((len(panels[0]), GAP_PX, 3), GAP_GREY, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def _above(panels: list[Bytes]) -> Bytes:
    gap = np.full((GAP_PX, panels[0].shape[1], 3), GAP_GREY, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=0)
