"""Reference policies of SPARS: rules that play the same environment (docs/spars.md, Method 12).

`random`, `constant0` and `greedy` are the functions (env, player) -> actions that the environment knows by name as
opponents; here they play the learner. Beside them stand the scan of the whole volume, the shortest paths to τ and,
by labels, to the tumour, and the policy of the highest return (values.py).
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import distance_transform_cdt
from torch import Tensor

from ...datasets.liver.lesions import TUMOUR
from ...envs.spars import SparsEnv
from ...envs.spars_config import CONTINUOUS, MOVES
from ...envs.spars_rules import RULES
from ..policy import Policy, Reference
from .patch_rules import PATCH_POLICIES
from .search_rules import SEARCH_POLICIES
from .values import ValueIteration


def sweep_path(shape: tuple[int, int, int]) -> Tensor:
    """Numbers of all lattice positions in boustrophedon order from (0, 0, 0): successive ones are neighbours along z,
    then y, then x; int64 [L]."""
    ids = np.arange(np.prod(shape)).reshape(shape)
    ids[1::2] = ids[1::2, ::-1]  # every other plane backwards along y
    lines = ids.reshape(-1, shape[2])
    lines[1::2] = lines[1::2, ::-1]  # every other line backwards along z
    return torch.from_numpy(lines.flatten())


class Sweep:
    """The classical sliding-window scan, from where the episode begins on to the last position of the lattice.

    Begun in the corner (0, 0, 0), with τ = 1 and T >= number of positions, it paints every position once, its first
    move running into the border; with reduce="mean" that is the box-filtered score volume. action_set: axis6 or axis7.
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

    def __call__(self, env: SparsEnv) -> Tensor:
        at = env.at[0]
        return torch.where((env.t == 0) & (at == 0), 1, self.action[at])


class ShortestPath:
    """The shortest lattice path to one of the `goals` of each case, bool [C, sx, sy, sz].

    `distance` [C, L] is the number of moves from each position of each case, infinite where a case has no goal.
    """

    def __init__(self, env: SparsEnv, goals: Tensor) -> None:
        metric = "taxicab" if env.config.action_set in ("axis6", "axis7") else "chessboard"
        distances = []
        for goal in goals.cpu().numpy():
            steps = distance_transform_cdt(~goal, metric=metric) if goal.any() else np.full(goal.shape, np.inf)
            distances.append(torch.as_tensor(steps, dtype=torch.float32).flatten())
        self.distance = torch.stack(distances).to(env.device)

    def __call__(self, env: SparsEnv) -> Tensor:
        there = env.neighbours(env.at[0])  # [A, N]
        return self.distance[env.case, there].argmin(dim=0)


class BlindWalk(ShortestPath):
    """The way to one place, the same for every image: where scores are highest on average over other cases (the middle,
    where nothing is known of others). A policy that is no better does not look."""

    def __init__(self, env: SparsEnv) -> None:
        prior = env.masks.prior
        place = [n // 2 for n in env.lattice.shape]
        if prior is not None and prior.patterns:
            place = [int(i) for i in torch.unravel_index(prior.mean.argmax(), env.lattice.shape)]
        goal = torch.zeros(1, *env.lattice.shape, dtype=torch.bool)
        goal[0, place[0], place[1], place[2]] = True
        super().__init__(env, goal.expand(len(env.cases), -1, -1, -1))


class BfsToTau(ShortestPath):
    """The shortest lattice path to a window with f > τ; by scores alone, no labels."""

    def __init__(self, env: SparsEnv) -> None:
        scores = torch.stack([env.score_volume(case.id) for case in env.cases])
        super().__init__(env, scores > env.config.threshold)

    def optimal_steps(self, env: SparsEnv) -> Tensor:
        """Moves to τ from where player 0 stands, float32 [N], at least 1 (τ is looked at after a move)."""
        return self.distance[env.case, env.at[0]].clamp(min=1)


def random_place(env: SparsEnv) -> Tensor:
    """Any place, float32 [N, 3] in [0, 1], for continuous actions."""
    return env.streams.uniform(3).float()


class OracleBfs(ShortestPath):
    """The shortest lattice path to the window with the highest Dice with the tumour, the nearest of several; by labels.

    All windows being of one size, it is the one with the most tumour voxels. Where a case has no tumour, any way does.

    Raises:
        ValueError: a case without label.
    """

    def __init__(self, env: SparsEnv) -> None:
        goals = []
        for case in env.cases:
            if case.label is None:
                raise ValueError(f"{case.id} has no label, which oracle_bfs needs; leave the policy out")
            held = env.lattice.window_sums(case.label == TUMOUR)
            goals.append(((held == held.max()) & (held > 0)).view(env.lattice.shape))
        super().__init__(env, torch.stack(goals))


def _row(
    about: str,
    make: Callable[[SparsEnv], Policy[SparsEnv]],
    action_sets: tuple[str, ...] = tuple(MOVES),
    supervision: str = "none",
) -> Reference[SparsEnv]:
    """A rule of the paper's game."""
    needs = {"profile": ("default", "paper"), "action_set": action_sets}
    return Reference(about, lambda env, seed: make(env), supervision, needs=needs)


def _opponent(name: str, about: str) -> Reference[SparsEnv]:
    rule = RULES[name]
    return _row(about, lambda env: lambda env: rule(env, 0))


POLICIES: dict[str, Reference[SparsEnv]] = {
    "random": _opponent("random", "Any move, uniformly."),
    "constant0": _opponent("constant0", "Always +z, the first opponent of the released program."),
    "greedy": _opponent("greedy", "The move to the neighbour with the highest score."),
    "sweep": _row("The scan of the volume, from the start on, line by line.", Sweep),
    "blind_walk": _row("To one place, the same for every image.", BlindWalk),
    "bfs_to_tau": _row("The shortest path to a window with a score above τ.", BfsToTau),
    "oracle_bfs": _row(
        "The shortest path to the window with the most tumour, by labels.", OracleBfs, supervision="voxel"
    ),
    "value_iteration": _row("The highest discounted return of an agent that searches alone.", ValueIteration),
    "random_place": _row("Any place, uniformly.", lambda env: random_place, (CONTINUOUS,)),
    **SEARCH_POLICIES,
    **PATCH_POLICIES,
}
"""Reference policies of SPARS-LiverCT-v0 by name."""
LABELS_OF_RULES = {name: row.supervision for name, row in POLICIES.items() if row.supervision != "none"}
"""Labels of the case itself that some of them read, by name."""
