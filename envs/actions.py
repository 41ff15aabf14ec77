"""Checks of actions that come from outside."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces


def check_actions(given: npt.NDArray[Any], space: spaces.Space[Any], num_envs: int) -> None:
    """Check the actions [N, ...] of N environments.

    Raises:
        ValueError: a wrong shape or type, or a value outside the action space of one environment.
    """
    assert space.shape is not None
    if given.shape != (num_envs, *space.shape):
        raise ValueError(f"actions have shape {given.shape} but must have {(num_envs, *space.shape)} for {space}")
    low, high, kinds = _bounds(space)
    if given.dtype.kind not in kinds:
        raise ValueError(
            f"actions have dtype {given.dtype} but {space} takes {'numbers' if 'f' in kinds else 'integers'}"
        )
    inside = (given >= low) & (given <= high)
    if isinstance(space, spaces.MultiBinary):
        inside &= given == np.floor(given)
    if not inside.all():  # NaN fails too
        raise ValueError(f"action {given[~inside][0]!r} is outside {space}")


def _bounds(space: spaces.Space[Any]) -> tuple[Any, Any, str]:
    """Lowest and highest action, and the kinds of NumPy's types that it may have."""
    if isinstance(space, spaces.Box):
        return space.low, space.high, "fiu"
    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.start + space.n - 1), "iu"
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1, "iu"
    return 0, 1, "iubf"  # MultiBinary, whose actions Stable-Baselines3 gives as floats
