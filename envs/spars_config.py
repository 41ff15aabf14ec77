"""Arguments of SPARS-LiverCT-v0 and its two profiles (docs/spars.md, Method 1)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np

from ..common.checks import AT_LEAST_0, SHARE, check
from ..datasets.liver.cases import LiverDataConfig
from ..datasets.liver.lattice import SIDE, Triple

_STAY = (0, 0, 0)
_CUBE = [(x, y, z) for x, y, z in product((-1, 0, 1), repeat=3)]
_AXIS = [(0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0)]
MOVES: dict[str, list[Triple]] = {
    "axis6": _AXIS,
    "axis7": [*_AXIS, _STAY],
    "king26": [cell for cell in _CUBE if cell != _STAY],
    "multidiscrete3": _CUBE,
}
"""Displacement of each action in lattice cells (x, y, z), one cell = `step` voxels (docs/spars.md, Method 2)."""

RESET_OPTIONS = {"case_id", "start", "start_opponent"}
"""Options of `reset`."""
REWARDS = (-1e6, 1e6)
"""Range of a reward: float32 keeps sums of such ones."""
PROFILES: dict[str, dict[str, Any]] = {
    "default": {
        "obs_mode": "two_window",
        "start": "centre",
        "horizon": 128,
        "tie_reward": 0.0,
        "bonus": 10.0,
    },
    "paper": {
        "obs_mode": "own_window",
        "start": "corner_paper",
        "horizon": 32,
        "tie_reward": 1.0,
        "bonus": 0.0,
    },
}


@dataclass(frozen=True)
class SparsConfig(LiverDataConfig):
    """Constructor arguments of SPARS-LiverCT-v0; null is filled in from profile and data."""

    profile: Literal["default", "paper"] = "default"
    """Values of the fields that are null. paper: those of the paper's text and program; default: our recommendation."""
    window_size: Triple | None = None
    """w in voxels (x, y, z), multiples of `step`. null: (16, 16, 8) for phantoms, else (48, 48, 24)."""
    step: int = 4
    """h: length of a move in voxels."""
    action_set: Literal["axis6", "axis7", "king26", "multidiscrete3"] = "axis6"
    """Moves. axis6: one step along ± each axis; axis7: those and stay; king26: to all 26 neighbours; multidiscrete3:
    -1, 0, +1 along each axis."""
    obs_mode: Literal["own_window", "two_window", "features"] | None = None
    """Observation. own_window: voxels of the own window; two_window: of both windows, and the state; features: the
    classifier's features of both windows, and the state. null: two_window; profile paper: own_window."""
    obs_size: Triple | None = None
    """Size in voxels to which own_window observations are resized (nearest); null: window_size."""
    score_source: Literal["classifier", "oracle_fraction"] = "classifier"
    """Source of the scores. classifier; oracle_fraction: share of the tumour inside the window (reads labels: for tests
    and upper bounds)."""
    classifier: str | None = None
    """Weights (.safetensors) of the presence classifier, or "packaged": those made for phantoms. null: packaged for
    phantoms; an experiment on files then trains its own."""
    score_engine: Literal["auto", "dense", "sliding", "lazy"] = "auto"
    """dense: all windows when the case is loaded, by one forward where the classifier has one; sliding: the same window
    by window, in batches; lazy: a window when it is first visited; auto: dense where one forward serves all windows,
    else lazy."""
    threshold: float = 0.3
    """τ in [0, 1]: a score above it ends the episode; 1 never does."""
    horizon: int | None = None
    """T: steps after which an episode is truncated; null: 128; profile paper: 32."""
    reward: Literal["sign", "diff", "score", "shaped"] | None = None
    """sign: ±1 for the higher score; diff: s1 - s2; score: s1; shaped: gamma·f(p') - f(p), added to sign where somebody
    competes. null: sign; shaped for one agent (sign and diff are then always positive, and score
    rewards never ending the episode)."""
    gamma: float = 0.99
    """γ: discount of the potential in reward "shaped", 0 to 1; must be that of PPO."""
    tie_reward: float | None = None
    """Reward of "sign" for equal scores; null: 0 (zero-sum); profile paper: +1."""
    terminal_bonus: float | None = None
    """Reward added, with the sign of s1 - s2, when a score exceeds τ; null: 10; profile paper: 0."""
    n_agents: Literal[1, 2] = 2
    """Number of agents. 1: no competitor; s2 counts as -1 in comparisons and is not observed."""
    opponent: Literal["snapshot", "random", "constant0", "greedy"] = "snapshot"
    """Policy of the competitor: random, constant0 (always +z), greedy (the neighbour with the highest score), or
    snapshot: the policy given to set_opponent, random before that."""
    start: Literal["centre", "corner_paper", "random_lattice"] | None = None
    """Start position. centre: window centred; corner_paper: lower corner at half the grid; random_lattice: each agent
    anywhere with a score of at most τ. null: centre, random_lattice for phantoms (tumours fill much of their middle);
    profile paper: corner_paper."""
    phase: Triple | None = None
    """Offset of the lattice in voxels, each below `step`; null: the start corner modulo step."""
    accumulate: Literal["learner", "both"] = "learner"
    """Agents whose windows are painted: the learner alone, or both."""
    reduce: Literal["sum", "mean", "max"] = "sum"
    """Combination of the scores of overlapping windows in a voxel: sum (paper), mean per visit, or maximum."""
    mask_threshold: float = 0.5
    """θ: a voxel whose painted map A exceeds it belongs to the mask."""
    lesion_rounds: int = 1
    """m: lesions to find in an episode; after each but the last, the found window is blanked in the score volume and
    both agents return to their start."""
    eval_dice: bool = True
    """Add n_painted_blocks and, where there is a label, dice, precision and recall to the info at the end of an
    episode. gym.make_vec leaves them out unless told otherwise: they take a third of its time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, threshold=SHARE, gamma=SHARE, mask_threshold=AT_LEAST_0, lesion_rounds=(1, 1000))
        check(self, window_size=SIDE, obs_size=SIDE, step=SIDE, horizon=(1, 10**6))
        check(self, tie_reward=REWARDS, terminal_bonus=REWARDS)

    def resolved(self) -> "SparsConfig":
        """The same with every None of profile and data filled in.

        Raises:
            ValueError: a value outside its range.
        """
        profile = PROFILES[self.profile]
        phantom = self.data == "phantom"
        done = replace(
            self,
            grid_shape=self.working_grid,
            window_size=self.window_size or ((16, 16, 8) if phantom else (48, 48, 24)),
            obs_mode=self.obs_mode or profile["obs_mode"],
            start=self.start or ("random_lattice" if phantom and self.profile == "default" else profile["start"]),
            horizon=profile["horizon"] if self.horizon is None else self.horizon,
            tie_reward=profile["tie_reward"] if self.tie_reward is None else self.tie_reward,
            terminal_bonus=profile["bonus"] if self.terminal_bonus is None else self.terminal_bonus,
            reward=self.reward or ("sign" if self.n_agents == 2 else "shaped"),
            classifier=self.classifier or ("packaged" if phantom else None),
        )
        if done.n_agents == 1 and done.reward in ("sign", "diff"):
            raise ValueError(f"reward is {done.reward!r} but nobody competes with n_agents=1; use 'score' or 'shaped'")
        if done.obs_size is not None and done.obs_mode != "own_window":
            raise ValueError(f"obs_size is {done.obs_size!r} but needs obs_mode='own_window'")
        return done


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options of `reset`, but not whether there is such a case or corner.

    Raises:
        ValueError: an unknown option, or a corner that is not three integers.
    """
    if unknown := set(options) - RESET_OPTIONS:
        raise ValueError(f"unknown reset options {sorted(unknown)}; known are {sorted(RESET_OPTIONS)}")
    for name in {"start", "start_opponent"} & set(options):
        corner = np.asarray(options[name])
        if corner.shape != (3,) or corner.dtype.kind not in "iu":
            raise ValueError(f"{name} is {options[name]!r} but must be integers (x, y, z): lower corner in voxels")
