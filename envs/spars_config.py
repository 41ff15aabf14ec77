"""Arguments of SPARS-LiverCT-v0 and its four profiles (docs/spars.md, Method 1, 15 and 16)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, Literal

import numpy as np

from ..classifiers.stem import CELL
from ..common.checks import AT_LEAST_0, SHARE, check
from ..datasets.liver.cases import LiverDataConfig
from ..datasets.liver.lattice import SIDE, Triple
from ..datasets.liver.phantom import SHAPE
from ..segmenters.window_masks import Reduce, Upsample

ActionSet = Literal["axis6", "axis7", "king26", "multidiscrete3", "continuous", "leap78", "anywhere", "patches"]
RewardName = Literal["sign", "diff", "score", "shaped", "discovery", "cooperative"]

_STAY = (0, 0, 0)
_CUBE = [(x, y, z) for x, y, z in product((-1, 0, 1), repeat=3)]
_AXIS = [(0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0)]
_KING = [cell for cell in _CUBE if cell != _STAY]
CONTINUOUS, ANYWHERE, PATCHES = "continuous", "anywhere", "patches"
"""The action sets that name a place instead of a move: by three numbers, by its number, by that of a patch."""
FEATURES = "features"
"""The observation that more than one game has."""
MOVES: dict[str, list[Triple]] = {
    "axis6": _AXIS,
    "axis7": [*_AXIS, _STAY],
    "king26": _KING,
    "multidiscrete3": _CUBE,
}
"""Displacement of each action in lattice cells (x, y, z), one cell = `step` voxels (docs/spars.md, Method 2)."""
SEARCH_MOVES: dict[str, list[Triple]] = {
    "leap78": [(leap * x, leap * y, leap * z) for x, y, z in _KING for leap in (1, 2, 4)],
    ANYWHERE: [],
}
"""The same of profile "search" (docs/spars.md, Method 15)."""
OF_GAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "search": {"action_set": tuple(SEARCH_MOVES), "obs_mode": ("memory", FEATURES)},
    "patch": {"action_set": (PATCHES,), "obs_mode": ("patches",)},
}
"""What a profile needs, and, but for features, no other has."""
FIXED: dict[str, dict[str, list[Any]]] = {
    "search": {
        "reduce": ["mean"],
        "accumulate": ["both"],
        "lesion_rounds": [1],
        "threshold": [0.3, 1.0],
        "tie_reward": [0.0],
        "terminal_bonus": [0.0],
        "opponent": ["snapshot", "random", "greedy"],
    },
    "patch": {
        "start": ["centre"],
        "lesion_rounds": [1],
        "threshold": [0.3, 1.0],
        "terminal_bonus": [0.0],
        "opponent": ["snapshot", "random"],
    },
}
"""Values that the fields may have in the games without τ; a threshold of 0.3, the field's default, is not looked at."""
PAID = {
    ("search", 1): ["discovery"],
    ("search", 2): ["sign", "diff", "discovery", "cooperative"],
    ("patch", 1): ["score"],
    ("patch", 2): ["sign", "diff"],
    ("default", 1): ["score", "shaped"],
    ("default", 2): ["sign", "diff", "score", "shaped"],
}
"""Rewards by profile and number of agents; those of paper are those of default."""
ROUNDS = 16
"""T of the patch game where it is left open and there are patches enough."""

RESET_OPTIONS = {"case_id", "start", "start_opponent"}
"""Options of `reset`."""
REWARDS = (-1e6, 1e6)
"""Range of a reward: float32 keeps sums of such ones."""
PROFILES: dict[str, dict[str, Any]] = {
    "default": {
        "action_set": "axis6",
        "obs_mode": "two_window",
        "start": "centre",
        "horizon": 128,
        "tie_reward": 0.0,
        "bonus": 10.0,
        "accumulate": "learner",
        "reduce": "mean",
        "upsample": "trilinear",
    },
    "paper": {
        "action_set": "axis6",
        "obs_mode": "own_window",
        "start": "corner_paper",
        "horizon": 32,
        "tie_reward": 1.0,
        "bonus": 0.0,
        "accumulate": "learner",
        "reduce": "sum",
        "upsample": "blocks",
    },
    "search": {
        "action_set": "leap78",
        "obs_mode": "memory",
        "start": "random_lattice",
        "horizon": 16,
        "tie_reward": 0.0,
        "bonus": 0.0,
        "accumulate": "both",
        "reduce": "mean",
        "upsample": "trilinear",
    },
    "patch": {
        "action_set": PATCHES,
        "obs_mode": "patches",
        "start": "centre",
        "horizon": None,
        "tie_reward": 0.0,
        "bonus": 0.0,
        "accumulate": "both",
        "reduce": "mean",
        "upsample": "trilinear",
    },
}


@dataclass(frozen=True)
class SparsConfig(LiverDataConfig):
    """Constructor arguments of SPARS-LiverCT-v0; null is filled in from profile and data."""

    profile: Literal["default", "paper", "search", "patch"] = "default"
    """The game, and values of the fields that are null. paper: those of the paper's text and program; default: the same
    game with our values; search: every move looks at one more window, all that was seen makes the mask (see
    SearchEnv); patch: both choose patches that do not overlap, until one of them ends it (see PatchEnv)."""
    window_size: Triple | None = None
    """w in voxels (x, y, z), multiples of `step`. null: (16, 16, 8) for phantoms, else (48, 48, 24)."""
    step: int = 4
    """h: length of a move in voxels."""
    action_set: ActionSet | None = None
    """Moves. axis6: one step along ± each axis; axis7: those and stay; king26: to all 26 neighbours; multidiscrete3:
    -1, 0, +1 along each axis; continuous: to any window, by its lower corner as shares of the volume; leap78: 1, 2 or 4
    steps in each of 26 directions; anywhere: to any window by its number (both of profile search); patches: to any
    patch (profile patch). null: axis6; profile search: leap78; profile patch: patches."""
    obs_mode: Literal["own_window", "two_window", "features", "memory", "patches"] | None = None
    """Observation. own_window: voxels of the own window; two_window: of both windows, and the state; features: the
    classifier's features of both windows, and the state; memory: what is known of the windows in reach (profile search
    alone, where features adds those of seen windows); patches: grey values of all patches (profile patch, always).
    null: two_window; profile paper: own_window; search: memory; patch: patches."""
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
    """τ in [0, 1]: a score above it ends the episode; 1 never does. Profiles search and patch have none."""
    horizon: int | None = None
    """T: steps after which an episode is truncated; null: 128; profile paper: 32; search, patch: 16, of each agent."""
    reward: RewardName | None = None
    """sign: ±1 for the higher score; diff: s1 - s2; score: s1; shaped: gamma·f(p') - f(p), added to sign where somebody
    competes. Profile search: sign and diff of what was discovered; discovery: what the learner did; cooperative: what
    both did. null: sign; for one agent shaped (sign and diff are then always positive, and score rewards never ending
    the episode), discovery, or in profile patch score."""
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
    anywhere with a score of at most τ. null: centre, with profile paper corner_paper; random_lattice for
    phantoms, where τ would end many episodes in their first step from there (profile patch: centre, and unused)."""
    phase: Triple | None = None
    """Offset of the lattice in voxels, each below `step`; null: the start corner modulo step."""
    accumulate: Literal["learner", "both"] | None = None
    """Agents whose windows are painted: the learner alone, or both. null: learner; profiles
    search and patch: both."""
    reduce: Reduce | None = None
    """Combination of the scores of overlapping windows in a voxel. sum: over all visits (paper); mean, max, min: of the
    windows that were visited. null: mean; profile paper: sum."""
    paint: Literal["windows", "cells"] | None = None
    """What a window is painted with. windows: its score; cells: its score, divided among its feature cells of 4³ voxels
    by its class activation map (needs a DensePresenceNet and step 4). null: cells where they can be had, but windows
    with reduce=sum; left open only where a file of weights decides."""
    fill: str | None = None
    """Scores of windows that were not visited, in the map. none: nothing is painted there; stationary: the likely score
    by the distance to visited ones; packaged: by what was learned from phantoms; or a file that was learned by
    `train`. null: packaged on phantoms with the packaged classifier and windows of the default size, else none
    (profile search: stationary)."""
    upsample: Upsample | None = None
    """Values of voxels between blocks of step³ voxels. blocks: that of their block; trilinear: between the middles of
    the blocks. null: trilinear; profile paper: blocks."""
    mask_threshold: float = 0.5
    """θ: a voxel whose painted map A exceeds it belongs to the mask of an episode (not to those of `evaluate` and
    `predict`, see evaluation.mask); in profile search also the level at which the straddle rule looks."""
    lesion_rounds: int = 1
    """m: lesions to find in an episode; after each but the last, the found window is blanked in the score volume and
    both agents return to their start."""
    eval_dice: bool = True
    """Add n_painted_blocks and, where there is a label, dice, precision and recall to the info at the end of an
    episode. gym.make_vec leaves them out unless told otherwise: they take most of its time."""

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
        alone: dict[str, RewardName] = {"search": "discovery", "patch": "score"}
        done = replace(
            self,
            grid_shape=self.working_grid,
            window_size=self.window_size or ((16, 16, 8) if phantom else (48, 48, 24)),
            obs_mode=self.obs_mode or profile["obs_mode"],
            start=self.start or ("random_lattice" if phantom and self.profile != "patch" else profile["start"]),
            horizon=profile["horizon"] if self.horizon is None else self.horizon,
            tie_reward=profile["tie_reward"] if self.tie_reward is None else self.tie_reward,
            terminal_bonus=profile["bonus"] if self.terminal_bonus is None else self.terminal_bonus,
            reward=self.reward or ("sign" if self.n_agents == 2 else alone.get(self.profile, "shaped")),
            action_set=self.action_set or profile["action_set"],
            classifier=self.classifier or ("packaged" if phantom else None),
            accumulate=self.accumulate or profile["accumulate"],
            reduce=self.reduce or profile["reduce"],
            upsample=self.upsample or profile["upsample"],
        )
        done = replace(done, fill=self.fill or done.usual_fill(), paint=self.paint or done.usual_paint())
        if self.profile in FIXED:
            done = done.without_tau()
        if self.profile == "patch":
            done = replace(done, horizon=done.rounds())
        if done.reduce == "sum" and done.paint == "cells":
            raise ValueError("paint is 'cells' but reduce 'sum' adds scores of whole windows; leave one of them out")
        if done.reduce == "sum" and done.fill != "none":
            raise ValueError(f"fill is {done.fill!r} but reduce 'sum' adds visits, which unseen windows do not have")
        paid = PAID["default" if done.profile == "paper" else done.profile, done.n_agents]
        if done.reward not in paid:
            raise ValueError(
                f"reward is {done.reward!r} but with profile {done.profile!r} and n_agents={done.n_agents} it must be "
                f"one of {', '.join(paid)}"
            )
        done.check_game()
        if done.obs_size is not None and done.obs_mode != "own_window":
            raise ValueError(f"obs_size is {done.obs_size!r} but needs obs_mode='own_window'")
        return done

    def check_game(self) -> None:
        """Check that actions, observation and opponent are those of the profile; every field is resolved.

        Raises:
            ValueError: they are not.
        """
        for name in ("action_set", "obs_mode"):
            value, own = getattr(self, name), OF_GAMES.get(self.profile, {}).get(name)
            elsewhere = [one for profile, of in OF_GAMES.items() if profile != self.profile for one in of[name]]
            if (value in elsewhere and value != FEATURES) or (own and value not in own):
                raise ValueError(
                    f"{name} is {value!r} but profile {self.profile!r} "
                    f"{'needs ' + ' or '.join(own) if own else 'has no such one'}"
                )
        if self.action_set == CONTINUOUS and self.n_agents == 2 and self.opponent in ("constant0", "greedy"):
            raise ValueError(
                f"opponent is {self.opponent!r} but action_set 'continuous' has no moves; give 'snapshot' or 'random'"
            )

    def without_tau(self) -> "SparsConfig":
        """The same without what games that have no τ lack; every field is resolved.

        Raises:
            ValueError: a value that means nothing there.
        """
        for name, values in FIXED[self.profile].items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} but with profile {self.profile!r} it must be one of {values}"
                    if name == "opponent"
                    else f"{name} is {getattr(self, name)!r} but profile {self.profile!r} knows {values[-1]!r} alone; "
                    f"leave it out"
                )
        if self.profile == "search" and self.fill == "none":
            raise ValueError("fill is 'none' but profile 'search' needs to know what is likely of unseen windows")
        return replace(self, threshold=1.0)

    @property
    def patch_shape(self) -> Triple:
        """Patches along each axis, blocks of the window's size side by side; the grid and the window are resolved."""
        assert self.grid_shape is not None
        assert self.window_size is not None
        phase = self.phase or (0, 0, 0)
        x, y, z = ((n - p) // w for n, p, w in zip(self.grid_shape, phase, self.window_size, strict=True))
        return x, y, z

    def rounds(self) -> int:
        """T of the patch game: as long as every agent finds a patch that is not blanked.

        Raises:
            ValueError: it is longer.
        """
        patches, most = prod(self.patch_shape), prod(self.patch_shape) // self.n_agents
        if most < 1 or (self.horizon or 0) > most:
            raise ValueError(
                f"horizon is {self.horizon} but the {patches} patches of window_size {self.window_size} last for "
                f"{most} rounds of n_agents={self.n_agents}; lower it, or take a smaller window_size"
            )
        return min(ROUNDS, most) if self.horizon is None else self.horizon

    @property
    def moves(self) -> list[Triple]:
        """Displacement of each action in cells; none where actions are places."""
        return {**MOVES, **SEARCH_MOVES}.get(self.action_set or PROFILES[self.profile]["action_set"], [])

    def terms(self) -> list[str]:
        """Names of the reward terms; every field is resolved."""
        if self.profile == "search":
            return ["duel" if self.reward in ("sign", "diff") else "discovery"]
        if self.profile == "patch":
            return ["score" if self.reward == "score" else "duel", "end", "early", "late", "blank"]
        given = {"duel": self.n_agents == 2 and self.reward != "score", "score": self.reward == "score"}
        given |= {"potential": self.reward == "shaped", "bonus": True}
        return [name for name in given if given[name]]

    def usual_paint(self) -> Literal["windows", "cells"] | None:
        """The value of `paint` where it is left open, by the other fields; None where the classifier's file says it."""
        if self.reduce == "sum" or self.score_source != "classifier" or self.step != CELL:
            return "windows"
        return "cells" if self.classifier == "packaged" else None

    def usual_fill(self) -> str:
        """The value of `fill` where it is left open; every other field is resolved."""
        usual = (self.window_size, self.step, self.working_grid) == ((16, 16, 8), 4, SHAPE)
        usual &= self.phase in (None, (0, 0, 0))
        packaged = (self.score_source, self.classifier) == ("classifier", "packaged")
        if usual and packaged and self.reduce != "sum" and self.start != "corner_paper":
            return "packaged"
        return "stationary" if self.profile == "search" else "none"


def profile_of(config: SparsConfig | None, settings: Mapping[str, Any]) -> Any:
    """The profile that arguments of the constructor choose."""
    return settings.get("profile", "default" if config is None else config.profile)


def masks_for_function(config: SparsConfig | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with `fill` and `paint` that fit scores of a function, of which nothing was learned."""
    usual = {"fill": "stationary" if profile_of(config, settings) == "search" else "none", "paint": "windows"}
    given = {name for name in usual if name in settings or getattr(config, name, None) is not None}
    return {**{name: value for name, value in usual.items() if name not in given}, **settings}


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
