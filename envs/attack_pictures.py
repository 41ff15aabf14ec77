"""Pictures of an attack: image, perturbation, regions and prediction, side by side, and what their colours mean."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..attacks.regions import BOUNDARY, FALSE, TRUE
from ..evaluation.attack_panels import class_colours, image_picture
from ..evaluation.drawing import Bytes, Colour, Legend, beside, enlarged
from .core import Frame

if TYPE_CHECKING:
    from .attack import AttackEnv

PANEL_PX = 256
REGIONS: dict[int, tuple[Colour, str]] = {
    TRUE: ((0, 158, 115), "region True: right until now"),
    BOUNDARY: ((240, 228, 66), "region Boundary: was right"),
    FALSE: ((213, 94, 0), "region False: wrong at the start"),
}
NOWHERE: Colour = (0, 0, 0)
WRONG_SHARE = 0.45
"""Brightness of a pixel of a region that is wrong now."""


def picture(env: "AttackEnv", env_id: int) -> Frame:
    """The four panels of one environment, uint8 [H', W', 3]; the regions only where the labels are shown."""
    core = env.core
    x, clean = core.adversarial[env_id].detach(), core.images[env_id]
    panels = [image_picture(x), image_picture((x - clean) / (2 * env.eps.value) + 0.5)]
    if env.shows_truth:
        panels.append(_regions(core.regions[env_id], core.right[env_id]))
    panels.append(class_colours(core.logits.shape[1])[core.logits[env_id].argmax(dim=0).cpu().numpy()])
    return beside([enlarged(panel, PANEL_PX) for panel in panels])


def legend(env: "AttackEnv") -> Legend:
    """What each colour means in the pictures of `env`."""
    rows: list[tuple[Colour, str]] = [((128, 128, 128), "second picture: perturbation, grey where there is none")]
    if env.shows_truth:
        rows += [*REGIONS.values(), (NOWHERE, "ignored; darker: wrong now")]
    names = env.pool.classes[:12]
    colours = class_colours(len(env.pool.classes))
    of_classes: list[tuple[Colour, str]] = []
    for name, (red, green, blue) in zip(names, colours.tolist(), strict=False):
        of_classes.append(((red, green, blue), f"predicted: {name}"))
    return (*rows, *of_classes)


def _regions(regions: Tensor, right: Tensor) -> Bytes:
    table = np.zeros((4, 3), np.float32)
    for region, (colour, _) in REGIONS.items():
        table[region] = colour
    light = np.where(right.cpu().numpy(), 1.0, WRONG_SHARE)[..., None]
    coloured: Bytes = np.rint(table[regions.cpu().numpy()] * light).astype(np.uint8)
    return coloured
