"""Actions of SEAT's inner environment: stop, or go on by a step size (docs/seat.md, Method 18).

Numbers are decoded in float64, so that a scripted step size is an exact point of the action space.
"""

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .seat_attack_config import ActionMode

SHARES = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Step sizes of discrete actions, as shares of the radius."""
LEAST, MOST = 0.0625, 4.0
"""Step sizes of `box`."""


def action_space(mode: ActionMode) -> spaces.Space[Any]:
    """The actions of one environment."""
    if mode == "box":
        return spaces.Box(-1.0, 1.0, (2,), np.float32)
    return spaces.Discrete(1 + len(SHARES)) if mode == "discrete" else spaces.MultiDiscrete([2, len(SHARES)])


def decode(mode: ActionMode, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each goes on, bool [N], and its step size as a share of the radius, float32 [N], of actions [N, ...]."""
    if mode == "box":
        first, second = actions.double().unbind(dim=1)
        return first >= 0, (2.0 ** (3 * second - 1)).float()
    going, number = (actions > 0, actions - 1) if mode == "discrete" else (actions[:, 0] > 0, actions[:, 1])
    return going, 0.125 * 2.0 ** number.clamp(min=0).float()


def encode(mode: ActionMode, going: Tensor, share: float) -> Tensor:
    """The actions [N, ...] that go on where `going` bool [N], by this share of the radius, and stop elsewhere.

    Raises:
        ValueError: a share that these actions do not have.
    """
    if mode == "box":
        if not LEAST <= share <= MOST:
            raise ValueError(f"a step size of {share:.6g} of the radius has no action: box has {LEAST} to {MOST}")
        number = (math.log2(share) + 1) / 3
        return torch.stack(
            [torch.where(going, 1.0, -1.0).double(), torch.full_like(going, number, dtype=torch.float64)], 1
        )
    if share not in SHARES:
        raise ValueError(
            f"a step size of {share:.6g} of the radius has no action: {mode} has {SHARES}; give action_mode='box'"
        )
    number = SHARES.index(share)
    if mode == "discrete":
        return torch.where(going, 1 + number, 0)
    return torch.stack([going.long(), torch.full_like(going, number, dtype=torch.int64)], dim=1)


def action_text(mode: ActionMode, action: Tensor) -> str:
    """One environment's action in words."""
    going, share = decode(mode, action[None])
    return f"step of {float(share[0]):.3g} b" if bool(going[0]) else "stop"
