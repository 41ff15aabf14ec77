"""Pictures of an attack on a patch: its middle slice, perturbation, gradient and prediction, side by side."""

from typing import TYPE_CHECKING

from ..evaluation.attack_panels import class_legend, class_picture, image_picture, middle_slice, range_shares
from ..evaluation.drawing import Legend, beside, enlarged
from .core import Frame

if TYPE_CHECKING:
    from .seat_attack import SEATAttackEnv

PANEL_PX = 192


def picture(env: "SEATAttackEnv", env_id: int) -> Frame:
    """The panels of one environment, uint8 [H, W, 3], as radiologists hang slices; labels only where they are shown."""
    replays, row = env.replays, slice(env_id, env_id + 1)
    radius = replays.ball.radius[env_id].clamp(min=1e-6)
    gradient = replays.gradient[env_id]
    steepest = gradient.abs().amax().clamp(min=1e-30)
    classes = replays.logits.shape[1]
    panels = [
        image_picture(middle_slice(range_shares(replays.adversarial[row], replays.images[row])[0])),
        image_picture(middle_slice(replays.delta[env_id] / (2 * radius) + 0.5)),
        image_picture(middle_slice((gradient / (2 * steepest) + 0.5).float())),
        class_picture(middle_slice(replays.logits[env_id].argmax(dim=0)), classes),
    ]
    if env.shows_truth:
        panels.append(class_picture(middle_slice(replays.labels[env_id]), classes))
    return beside([enlarged(panel, PANEL_PX) for panel in panels])


def legend(env: "SEATAttackEnv") -> Legend:
    """What each panel and each colour means in the pictures of `env`."""
    grey = (128, 128, 128)
    rows = [(grey, "middle axial slice; then perturbation, white +b, black -b, and gradient; grey where there is none")]
    last = "prediction, then labels" if env.shows_truth else "prediction"
    of_classes = class_legend(env.pool.classes)[:-1]  # nothing is ignored
    return (*rows, *((colour, f"{last}: {name}") for colour, name in of_classes))
