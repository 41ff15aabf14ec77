"""Reference policies of SPARS: rules as players of the same environment (paper: SPARS, section 2.9).

A rule is a function (env, player) -> actions int64 [N]. Beside `random_move`, `constant_move` and `greedy_move`, which
the environment knows by name as opponents, these are the scan of the whole volume and the shortest path to τ.
"""

import numpy as np
import torch
from scipy.ndimage import distance_transform_cdt
from torch import Tensor

from ...envs.spars import RULES, SparsEnv


def sweep_path(shape: tuple[int, int, int]) -> Tensor:
    """Numbers of all lattice positions in boustrophedon order from (0, 0, 0): successive ones are neighbours along z,
    then y, then x; int64 [L]."""
    ids = np.arange(np.prod(shape)).reshape(shape)
    ids[1::2] = ids[1::2, ::-1]  # every other plane backwards along y
    rows = ids.reshape(-1, shape[2])
    rows[1::2] = rows[1::2, ::-1]  # every other row backwards along z
    return torch.from_numpy(rows.flatten())


class Sweep:
    """The classical sliding-window scan: from corner (0, 0, 0) of the lattice, every position once.

    Start the episode there. With τ = 1, T >= number of positions and reduce="mean", what it paints is the box-filtered
    score volume. Its first move runs into the border, so that the first position is painted too. action_set: axis6.
    """

    def __init__(self, env: SparsEnv) -> None:
        if env.config.action_set not in ("axis6", "axis7"):
            raise ValueError(f"sweep needs action_set='axis6' or 'axis7', not {env.config.action_set!r}")
        path = sweep_path(env.lattice.shape)
        step = path.diff()
        sx, sy, _ = env.lattice.strides
        action = torch.full((env.lattice.size,), 1)  # the last position: -z or +z, whichever the border stops
        for number, stride in enumerate((1, -1, sy, -sy, sx, -sx)):
            action[path[:-1][step == stride]] = number
        action[path[-1]] = 0 if int(path[-1]) % env.lattice.shape[2] else 1
        self.action = action.to(env.device)

    def __call__(self, env: SparsEnv, player: int) -> Tensor:
        at = env.at[player]
        return torch.where((env.t == 0) & (at == 0), 1, self.action[at])


class BfsToTau:
    """The shortest lattice path to a window with f > τ; by scores alone, no labels.

    `distance` [C, L] is the number of moves from each position of each case, infinite where no window exceeds τ.
    """

    def __init__(self, env: SparsEnv) -> None:
        metric = "taxicab" if env.config.action_set in ("axis6", "axis7") else "chessboard"
        rows = []
        for case in env.cases:
            above = (env.score_volume(case.id) > env.config.threshold).cpu().numpy()
            steps = distance_transform_cdt(~above, metric=metric) if above.any() else np.full(above.shape, np.inf)
            rows.append(torch.as_tensor(steps, dtype=torch.float32).flatten())
        self.distance = torch.stack(rows).to(env.device)

    def __call__(self, env: SparsEnv, player: int) -> Tensor:
        there = env.neighbours(env.at[player])  # [A, N]
        return self.distance[env.case, there].argmin(dim=0)

    def optimal_steps(self, env: SparsEnv) -> Tensor:
        """Moves to τ from where player 0 stands, float32 [N], at least 1 (τ is looked at after a move)."""
        return self.distance[env.case, env.at[0]].clamp(min=1)


__all__ = ["RULES", "BfsToTau", "Sweep", "sweep_path"]
