"""Pictures of APGA's environment: image, mask, erased and kept, side by side, and what their colours mean."""

from typing import TYPE_CHECKING

from scipy import ndimage

from ..classifiers.masked_images import erased, kept
from ..evaluation.attack_panels import image_picture
from ..evaluation.drawing import Bytes, Colour, Legend, beside, blend, enlarged
from .core import Frame

if TYPE_CHECKING:
    from .apga import APGAEnv

PANEL_PX = 256
SELECTED: Colour = (230, 110, 0)
LESION: Colour = (0, 200, 120)
OPACITY = 0.45


def picture(env: "APGAEnv", env_id: int) -> Frame:
    """The four panels of one environment, uint8 [H', W', 3]; the lesion's box only where the truth is shown."""
    x, filling = env.pool.at(env.index[env_id : env_id + 1])[0], env.filling[env_id]
    a = env.mask[env_id].float()
    over = image_picture(x).copy()
    weight = a[0].cpu().numpy()
    selected = weight > 0
    blend(over, selected, SELECTED, OPACITY * weight[selected])
    panels = [image_picture(x), over, image_picture(erased(x, a, filling)), image_picture(kept(x, a, filling))]
    shown: list[Bytes] = [enlarged(panel, PANEL_PX) for panel in panels]
    if env.pool.roi is not None and env.shows_truth:
        roi = enlarged(env.pool.roi[int(env.index[env_id])].cpu().numpy()[..., None], PANEL_PX)[..., 0]
        rim = roi & ~ndimage.binary_erosion(roi, iterations=2)
        shown[1][rim] = LESION
    return beside(shown)


def legend(env: "APGAEnv") -> Legend:
    """What each colour means in the pictures of `env`."""
    rows: list[tuple[Colour, str]] = [(SELECTED, "selected")]
    if env.pool.roi is not None and env.shows_truth:
        rows.append((LESION, "box around the lesion"))
    return (*rows, ((128, 128, 128), "third picture: without it; fourth: with nothing else"))


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
