"""Arguments of SPARS-LiverCT-v0 and its two profiles (docs/spars.md, Method 1)."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from ..common.checks import AT_LEAST_0, AT_LEAST_1, SHARE, check
from ..datasets.liver.cases import LiverDataConfig
from ..datasets.liver.lattice import Triple

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
    """Constructor arguments of SPARS-LiverCT-v0; None means "as the profile (or the data) says"."""

    profile: Literal["default", "paper"] = "default"
    """Fills in the fields that are None. paper: what text and program specify; default: what we recommend."""
    window_size: Triple | None = None
    """w in voxels (x, y, z), multiples of `step`. None: (16, 16, 8) for phantoms, else (48, 48, 24)."""
    step: int = 4
    """Length of a move in voxels."""
    action_set: Literal["axis6", "axis7", "king26", "multidiscrete3"] = "axis6"
    """axis6: ± each axis; axis7: and stay; king26: all neighbours; multidiscrete3: -1, 0, +1 per axis."""
    obs_mode: Literal["own_window", "two_window", "features"] | None = None
    """Profile default: two_window; paper: own_window."""
    obs_size: Triple | None = None
    """Size in voxels to which own_window observations are resized (nearest). None: window_size."""
    score_source: Literal["classifier", "oracle_fraction"] = "classifier"
    """classifier, or oracle_fraction: the share of the tumour inside the window (uses labels: for tests only)."""
    classifier: str | None = None
    """Weights (.safetensors) of the presence classifier, or "packaged": the one made for phantoms, their default."""
    score_engine: Literal["auto", "dense", "lazy"] = "auto"
    """dense: all windows when the case is loaded; lazy: a window when it is first visited; auto: dense where one
    forward serves all windows, else lazy."""
    threshold: float = 0.3
    """τ in [0, 1]: a score above it ends the episode; 1 never does."""
    horizon: int | None = None
    """T: steps after which an episode is truncated. Profile default: 128; paper: 32."""
    reward: Literal["sign", "diff", "score", "shaped"] | None = None
    """sign: ±1 for the higher score; diff: s1 - s2; score: s1; shaped: gamma·f(p') - f(p), added to sign where somebody
    competes. None: sign; shaped for one agent (sign and diff would say nothing, score pays for not ending)."""
    gamma: float = 0.99
    """Discount of the potential in reward "shaped"; give PPO the same."""
    tie_reward: float | None = None
    """Reward of "sign" for equal scores. Profile default: 0 (zero-sum); paper: +1."""
    terminal_bonus: float | None = None
    """Added, with the sign of s1 - s2, when a score exceeds τ. Profile default: 10; paper: 0."""
    n_agents: Literal[1, 2] = 2
    """1: nobody competes; s2 counts as -1 in comparisons and is not observed."""
    opponent: Literal["snapshot", "random", "constant0", "greedy"] = "snapshot"
    """random, constant0 (always +z), greedy, or snapshot: the policy given to set_opponent, random before that."""
    start: Literal["centre", "corner_paper", "random_lattice"] | None = None
    """centre: window centred; corner_paper: lower corner at half the grid; random_lattice: each agent anywhere that τ
    does not end at once. Profile default: centre, random_lattice for phantoms (tumours fill much of their middle);
    paper: corner_paper."""
    phase: Triple | None = None
    """Offset of the lattice in voxels, each below `step`. None: the start corner modulo step."""
    accumulate: Literal["learner", "both"] = "learner"
    """Whose windows are painted."""
    reduce: Literal["sum", "mean", "max"] = "sum"
    """What overlapping paint makes: the sum (paper), the mean per visit, the maximum."""
    mask_threshold: float = 0.5
    """θ: a voxel with A > θ belongs to the mask."""
    lesion_rounds: int = 1
    """m > 1: a found region is blanked in the score volume and both agents start again, m - 1 times an episode."""
    eval_dice: bool = True
    """Give n_painted_blocks and, where there is a label, dice, precision and recall at the end of an episode."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, threshold=SHARE, gamma=SHARE, mask_threshold=AT_LEAST_0, lesion_rounds=AT_LEAST_1)
        check(self, window_size=AT_LEAST_1, obs_size=AT_LEAST_1, step=AT_LEAST_1, horizon=AT_LEAST_1)

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
