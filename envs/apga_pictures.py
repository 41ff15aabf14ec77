"""Pictures of APGA's environment: image, mask, erased and kept, side by side, and what their colours mean."""

from typing import TYPE_CHECKING

from ..classifiers.masked_images import erased, kept
from ..evaluation.drawing import Legend
from ..evaluation.mask_panels import LEGEND, mask_panel
from .core import Frame

if TYPE_CHECKING:
    from .apga import APGAEnv


def picture(env: "APGAEnv", env_id: int) -> Frame:
    """The four panels of one environment, uint8 [H', W', 3]; the lesion's box only where the truth is shown."""
    row = slice(env_id, env_id + 1)
    x, filling, a = env.pool.at(env.index[row]), env.filling[row], env.mask[row].float()
    regions = env.pool.roi[env.index[row]] if env.pool.roi is not None and env.shows_truth else None
    return mask_panel(x, a, erased(x, a, filling), kept(x, a, filling), regions)


def legend(env: "APGAEnv") -> Legend:
    """What each colour means in the pictures of `env`."""
    known = LEGEND if env.pool.roi is not None and env.shows_truth else LEGEND[:1]
    return (*known, ((128, 128, 128), "third picture: without it; fourth: with nothing else"))


def caption(env: "APGAEnv", env_id: int) -> str:
    """The image with its class and, after a step, the losses of the classifier."""
    index = int(env.index[env_id])
    text = env.pool.ids[index]
    if env.shows_truth:
        text += f" ({env.pool.classes[int(env.pool.labels[index])]})"
    if not int(env.t[env_id]):
        return text
    info = env.info()
    losses = [
        f"{view} {float(info[f'loss_{view}'][env_id]):.3f}" for view in ("orig", "adv", "aid") if f"loss_{view}" in info
    ]
    return f"{text}: loss {', '.join(losses)}, area {float(info['mask_area'][env_id]):.2f}"
