"""Pictures of an attack on a patch: its middle slice, perturbation, gradient and prediction, side by side."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..attacks.budget import image_range
from ..evaluation.attack_panels import class_legend, class_picture, image_picture
from ..evaluation.drawing import GAP_GREY, GAP_PX, Legend
from .core import Frame

if TYPE_CHECKING:
    from .seat_attack import SEATAttackEnv

PANEL_PX = 192


def picture(env: "SEATAttackEnv", env_id: int) -> Frame:
    """The panels of one environment, uint8 [H, W, 3], as radiologists hang slices; labels only where they are shown."""
    replays = env.replays
    low, high = (end[env_id] for end in image_range(replays.images))
    reach = (high - low).clamp(min=1e-6)
    radius = replays.ball.radius[env_id].clamp(min=1e-6)
    gradient = replays.gradient[env_id]
    steepest = gradient.abs().amax().clamp(min=1e-30)
    classes = replays.logits.shape[1]
    panels = [
        image_picture(_slice((replays.adversarial[env_id] - low) / reach)),
        image_picture(_slice(replays.delta[env_id] / (2 * radius) + 0.5)),
        image_picture(_slice((gradient / (2 * steepest) + 0.5).float())),
        class_picture(_slice(replays.logits[env_id].argmax(dim=0)), classes),
    ]
    if env.shows_truth:
        panels.append(class_picture(_slice(replays.labels[env_id]), classes))
    scale = max(1, round(PANEL_PX / max(panels[0].shape[:2])))
    large = [panel.repeat(scale, axis=0).repeat(scale, axis=1) for panel in panels]
    gap = np.full((len(large[0]), GAP_PX, 3), GAP_GREY, np.uint8)
    return np.concatenate([part for panel in large for part in (panel, gap)][:-1], axis=1)


def legend(env: "SEATAttackEnv") -> Legend:
    """What each panel and each colour means in the pictures of `env`."""
    grey = (128, 128, 128)
    rows = [(grey, "middle axial slice; then perturbation, white +b, black -b, and gradient; grey where there is none")]
    last = "prediction, then labels" if env.shows_truth else "prediction"
    of_classes = class_legend(env.pool.classes)[:-1]  # nothing is ignored
    return (*rows, *((colour, f"{last}: {name}") for colour, name in of_classes))


def _slice(volume: Tensor) -> Tensor:
    """The middle slice [..., Y, X] of a volume [..., X, Y, Z]: front up, the patient's right on the left."""
    return volume[..., volume.shape[-1] // 2].transpose(-1, -2).flip(-1, -2)
