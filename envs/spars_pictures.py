"""Pictures of SPARS: three slices through the learner's window, and what the colours in them mean."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..datasets.liver.lesions import TUMOUR
from ..evaluation.drawing import Colour, Legend, heat_colour
from ..evaluation.volume_pictures import orthogonal_slices
from .core import Frame

if TYPE_CHECKING:
    from .spars import SparsEnv

OWN: Colour = (64, 200, 255)
RIVAL: Colour = (255, 120, 64)
TRUTH: Colour = (80, 255, 80)
BLACK: Colour = (0, 0, 0)


def legend(env: "SparsEnv") -> Legend:
    """What each colour means in the pictures of `env`."""
    rows = [(OWN, "learner's window (dashed: not in this slice)")]
    if env.config.n_agents == 2:
        rows.append((RIVAL, "competitor's window"))
    rows.append((heat_colour(0.5), "painted map A, brighter where it is higher"))
    if env.shows_truth and any(case.label is not None for case in env.cases):
        rows.append((TRUTH, "contour of the tumour (truth)"))
    return (*rows, (BLACK, "air or outside the image, where windows may go too"))


def caption(env: "SparsEnv", env_id: int) -> str:
    """The scores of the windows, and what ends an episode."""
    own, rival = env.duel[:, env_id].tolist()
    against = f", competitor's {rival:.2f}" if env.config.n_agents == 2 else ""
    return f"{env.cases[int(env.case[env_id])].id}: score {own:.2f}{against}; ends above τ = {env.config.threshold:.2f}"


def picture(env: "SparsEnv", env_id: int, corners: Sequence[Sequence[int]]) -> Frame:
    """The slices of environment `env_id` through the middle of the learner's window, uint8 [256, W, 3].

    corners: lower corner (x, y, z) in voxels of each agent's window.
    """
    case, window = env.cases[int(env.case[env_id])], env.lattice.window
    heat = np.asarray(env.painting.voxel_map(env_id).cpu().numpy(), dtype=np.float32)
    boxes = [(tuple(low), window, colour) for low, colour in zip(corners, (OWN, RIVAL), strict=False)]
    return orthogonal_slices(
        case.image.numpy(),
        centre_ijk=tuple(c + w // 2 for c, w in zip(corners[0], window, strict=True)),
        boxes=boxes[::-1],
        heat=heat / np.float32(max(1.0, float(heat.max()))),
        contours=[((case.label == TUMOUR).numpy(), TRUTH)] if env.shows_truth and case.label is not None else [],
        spacing_mm=case.spacing_mm,
    )


def move_name(moves: Sequence[Sequence[int]], number: int) -> str:
    """Name of one of the moves, in cells: +x, -2y+2z, or stay; without moves that of a position."""
    if not moves:
        return f"window {number}"
    move = zip("xyz", moves[number], strict=True)
    leaps = (f"{'+' if step > 0 else '-'}{abs(step) if abs(step) > 1 else ''}{axis}" for axis, step in move if step)
    return "".join(leaps) or "stay"
