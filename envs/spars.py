"""SPARS: two windows compete to find liver tumours (Tan, Hu and Saeed, MIUA 2025, arXiv 2505.18989).

Symbols, as in the paper: w = window size, p1 and p2 = lower corners of the learner's and the competitor's window,
W(p) = the voxels of the window at p, f(p) = presence score of the frozen classifier for W(p), s1 and s2 = the scores of
the two agents, τ = the score that ends an episode, T = horizon, A = painted map, θ = mask threshold.
Positions are numbers of the lattice (datasets/liver/lattice.py): a move and a score are one gather each. Beside this
file: spars_config.py arguments, spars_tables.py lookups, spars_painting.py maps, spars_rules.py competitors.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..datasets.liver.cases import LiverCase, load_liver_cases
from ..evaluation.drawing import Legend
from ..rewards.presence import ScoreFunction
from . import spars_pictures
from .core import BatchedEnv, Frame, Obs, notice_phantom
from .spars_config import SparsConfig, check_options, masks_for_function, profile_of
from .spars_painting import Painting
from .spars_rules import RULES, Competitor, Model, asked, competitor, random_move
from .spars_starts import Starts
from .spars_tables import Windows, lattice_of, mask_maker, open_moves, placement, score_tables, spaces_of

STATE = ("case", "at", "scores", "duel", "_start_ids", "_terminated", "_found")
"""Tensors that an episode consists of, beside those of the core and the painting."""
REASONS = {(True, True): "tau_both", (True, False): "tau_self", (False, True): "tau_opp", (False, False): "time"}
"""Why an episode ended, by whether s1 and s2 exceed τ."""
GAMES = {"search": (".spars_search", "SearchEnv"), "patch": (".spars_patch", "PatchEnv")}
"""Module and class of the other games, by profile."""


class SparsEnv(BatchedEnv):
    """Two windows compete to find a tumour; what the learner paints becomes the mask.

    ## Description
    The learner and a competitor each move a window of w voxels over one liver CT. A frozen presence classifier scores
    both windows; the higher score wins the step. The learner's scores are painted into its windows; the painted map,
    thresholded, is the segmentation. Labels never enter observation or reward.

    ## Action Space
    `Discrete(6)`; one cell = `step` voxels, clipped at the border of the volume.

    | action | 0 | 1 | 2 | 3 | 4 | 5 |
    |---|---|---|---|---|---|---|
    | move (cells x, y, z) | 0,0,+1 | 0,0,-1 | 0,+1,0 | 0,-1,0 | +1,0,0 | -1,0,0 |

    `action_set="axis7"` adds 6 = stay; `"king26"` is `Discrete(26)`, all neighbours in lexicographic order;
    `"multidiscrete3"` is `MultiDiscrete([3, 3, 3])`, value v moves v - 1 cells along that axis; `"continuous"` is
    `Box(0, 1, (3,), float32)`: the window's lower corner goes to full·a, clipped and rounded to the lattice.

    ## Observation Space
    | obs_mode | space | content |
    |---|---|---|
    | two_window | Dict(windows: Box(0, 255, (2, *w), uint8), state: Box(-1, 1, (9,), float32)) | own, other; state |
    | own_window | Box(0, 255, (1, *obs_size), uint8) | own window |
    | features | Box(-inf, inf, (2F + 9,), float32) | classifier features at both windows, F = 128; state |

    Grey values are HU over [-17, 201] scaled to 0..255. state = (2·p1/(full - w) - 1, 2·p2/(full - w) - 1, 2·s1 - 1,
    2·s2 - 1, 2·t/T - 1). With `n_agents=1` the competitor's part is absent everywhere (one window, 5 numbers, F + 5).

    ## Rewards
    The sum of these terms; `info["reward/<term>"]` has each.

    | term | value | where |
    |---|---|---|
    | duel | +1 if s1 > s2, `tie_reward` if equal, -1 otherwise; s1 - s2 with `reward="diff"` | two agents |
    | score | s1 | in place of duel with `reward="score"` |
    | potential | gamma·f(p1') - f(p1), f = 0 where the episode terminated | `reward="shaped"` |
    | bonus | `terminal_bonus`·sign(s1 - s2) in the step in which a score exceeds τ, else 0 | always |

    ## Starting State
    One case, drawn uniformly; both windows at the same place, the middle of the volume; nothing painted. On phantoms
    each window stands anywhere (`start="random_lattice"`) where its score is at most τ.
    `reset(options={"case_id": ..., "start": (x, y, z), "start_opponent": (x, y, z)})` sets them (corners in voxels).

    ## Episode End
    Terminated when s1 > τ or s2 > τ (strictly). Truncated after `horizon`.

    ## Arguments
    The fields of `SparsConfig`, by name; `opponent` may also be a model of Stable-Baselines3 or an object with
    `act(obs, deterministic)`, `score_source` a function `(case, corners int64 [N, 3]) -> float32 [N]` with values in
    [0, 1]; `volumes` are cases to play on. `profile="search"` makes a `SearchEnv`, `profile="patch"` a `PatchEnv`,
    other games. `eval_dice` is off in gym.make_vec unless it is given, on elsewhere.

    >>> import gymnasium as gym, segarena
    >>> env = gym.make("SPARS-LiverCT-v0", cases=["phantom_02000"], score_source="oracle_fraction", device="cpu")
    >>> obs, info = env.reset(seed=0, options={"start": (24, 24, 20)})
    >>> obs["windows"].shape, obs["state"].shape, [int(voxel) for voxel in info["p_self"]]
    ((2, 16, 16, 8), (9,), [24, 24, 20])
    >>> obs, reward, terminated, truncated, info = env.step(4)
    >>> [int(voxel) for voxel in info["p_self"]]
    [28, 24, 20]
    >>> env.unwrapped.batched.painting.mask().shape
    torch.Size([64, 64, 48])

    ## References
    Tan, Hu, Saeed: SPARS: Self-Play Adversarial Reinforcement Learning for Segmentation of Liver Tumours (2025).

    ## Version History
    v0: first version.
    """

    config_class = SparsConfig
    reasons: ClassVar[Mapping[tuple[bool, bool], str]] = REASONS
    vector_defaults: ClassVar[Mapping[str, Any]] = {"eval_dice": False}
    config: SparsConfig

    def __init__(
        self,
        config: SparsConfig | None = None,
        *,
        opponent: str | Competitor | Model | None = None,
        score_source: str | ScoreFunction | None = None,
        volumes: Sequence[LiverCase] | None = None,
        **settings: Any,
    ) -> None:
        for name, value in (("opponent", opponent), ("score_source", score_source)):
            if isinstance(value, str):
                settings[name] = value
        super().__init__(config, **(masks_for_function(config, settings) if callable(score_source) else settings))
        cfg, self.lattice = self.config, lattice_of(self.config)
        if cfg.data == "phantom" and volumes is None:
            notice_phantom("SPARS-LiverCT-v0", "give data=<Task03_Liver folder> to play on real CT")
        self.cases = load_liver_cases(cfg) if volumes is None else list(volumes)
        self.origin = self.cases[0].origin  # that of all: `data` and `implant_lesions` decide
        function = None if isinstance(score_source, str) else score_source
        self.table, self._features, n_features = score_tables(cfg, self.cases, self.lattice, function, self.device)
        self._score_tables = list(dict.fromkeys((self.table, self._features)))
        self.masks = mask_maker(cfg, self.table)
        self._make_tables()
        self.single_observation_space, self.single_action_space = spaces_of(cfg, self.lattice, n_features)
        self.set_opponent(None if isinstance(opponent, str) else opponent)
        self.reward_weights = dict.fromkeys(cfg.terms(), 1.0)

    def __new__(cls, config: SparsConfig | None = None, **settings: Any) -> "SparsEnv":
        """With profile "search" a `SearchEnv`, with "patch" a `PatchEnv`: other games on the same windows."""
        if cls is SparsEnv and (game := GAMES.get(str(profile_of(config, settings)))):
            cls = getattr(import_module(game[0], __package__), game[1])
        return super().__new__(cls)

    def _resolved(self, config: SparsConfig) -> SparsConfig:
        return config.resolved()

    def _make_tables(self) -> None:
        """Make everything that is looked up in a step, and the state of the episodes, on the device."""
        cfg, lattice = self.config, self.lattice
        cells = torch.tensor(cfg.moves, dtype=torch.int64).view(-1, 3)
        self.n_moves = len(cells) or lattice.size  # without moves the actions are the positions
        self._next = lattice.move_table(cells).flatten().to(self.device)  # [L·A]
        self._open = open_moves(self._next.view(lattice.size, -1).cpu(), cfg).to(self.device)  # [L, A]
        self._corners = lattice.corners().to(self.device)  # [L, 3]
        self._voxels = self._corners.int()  # as the infos give them
        self._cells = (self._corners - torch.tensor(lattice.phase, device=self.device)) // cfg.step  # [L, 3]
        free = (torch.tensor(lattice.full) - torch.tensor(lattice.window)).clamp(min=1).to(self.device)
        self._where = (2.0 * self._corners / free - 1.0).float()  # [L, 3] in [-1, 1]
        self._starts = Starts(self)
        self._window = torch.tensor(lattice.window, device=self.device)
        if cfg.obs_mode in ("own_window", "two_window"):
            self._windows = Windows(self.cases, lattice, cfg.obs_size, self.device)
        players, n = cfg.n_agents, self.num_envs
        self.case = torch.zeros(n, dtype=torch.int64, device=self.device)
        self.at = torch.zeros(players, n, dtype=torch.int64, device=self.device)  # lattice positions of p1 (and p2)
        self._start_ids = torch.zeros_like(self.at)  # where the episode began
        self.scores = torch.zeros(players, n, device=self.device)  # f at those positions
        self.duel = torch.zeros(2, n, device=self.device)  # s1, s2 of the last step, s2 = -1 without a competitor
        self._terminated = torch.zeros(n, dtype=torch.bool, device=self.device)  # by τ, in the last step
        self._found = torch.full((n, cfg.lesion_rounds - 1), -1, dtype=torch.int64, device=self.device)
        self.painting = Painting(self)

    # -- the dynamics: docs/spars.md, Method 3 ---------------------------------------------------------------------

    def _reset(self, env_ids: Tensor, options: Mapping[str, Any]) -> None:
        check_options(options)
        self._place(env_ids, *self._starts.draw(env_ids, options))

    def _place(self, env_ids: Tensor, case: Tensor, at: Tensor) -> None:
        # not by an index: index_copy_ takes half the time, and index_fill_ does not wait for CUDA
        self.case.index_copy_(0, env_ids, case)
        self.at.index_copy_(1, env_ids, at)
        if self.config.lesion_rounds > 1:
            self._start_ids.index_copy_(1, env_ids, at)
            self._found.index_fill_(0, env_ids, -1)
        scores = self.table.lookup(case, at)
        self.scores.index_copy_(1, env_ids, scores)
        self.duel.index_copy_(1, env_ids, duel_of(scores))

    def begin(self, case: Tensor, jitter_cells: int = 0) -> None:
        """Begin an episode in every environment, on case number `case` int64 [N].

        Fixed starts are moved by up to `jitter_cells` lattice cells along each axis, both agents alike.
        """
        self.reset()
        self._place(self._all, *self._starts.moved(case, jitter_cells))

    def _step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        cfg = self.config
        moves = self._flat(actions)[None]  # [1, N]
        if cfg.n_agents == 2:
            moves = torch.cat((moves, self._competitor()[None]))  # it acts on the state before the learner's move
        before = self.scores[0]
        self.at = self._following(self.at, moves)  # p1, p2 move and are clipped
        self.scores = self.scores_at(self.at)  # both at their new positions
        self.duel = duel_of(self.scores)
        own, rival = self.duel.unbind()
        hit = (self.duel > cfg.threshold).any(dim=0)
        self.painting.add(self.at, self.scores)  # on the last step too
        terminated = self._terminated = self._next_round(hit) if cfg.lesion_rounds > 1 else hit
        sign = torch.sign(own - rival)
        terms = {}
        if cfg.reward == "score":
            terms["score"] = own.clone()  # a reset writes to `scores`
        elif cfg.reward == "diff":
            terms["duel"] = own - rival
        elif cfg.n_agents == 2:
            terms["duel"] = torch.where(own == rival, cfg.tie_reward, sign) if cfg.tie_reward else sign
        if cfg.reward == "shaped":  # potential f, zero in the terminal state (Ng, Harada and Russell, 1999)
            terms["potential"] = cfg.gamma * self.scores[0] * ~terminated - before
        terms["bonus"] = cfg.terminal_bonus * sign * hit  # type: ignore[operator]
        return terms, terminated

    def _next_round(self, hit: Tensor) -> Tensor:
        """Blank what was found, send both agents back to where they began; True where no round is left
        (docs/spars.md, Method 3)."""
        left = (self._found < 0).sum(dim=1)
        again = hit & (left > 0)
        rounds = self._found.shape[1]
        free = torch.arange(rounds, device=self.device) == (rounds - left)[:, None]  # [N, m - 1], the next to be filled
        winner = self.at.gather(0, (self.duel[1] > self.duel[0]).long()[None])[0]
        self._found = torch.where(free & again[:, None], winner[:, None], self._found)
        self.at = torch.where(again, self._start_ids, self.at)
        self.scores = self.scores_at(self.at)
        return hit & ~again

    def scores_at(self, at: Tensor) -> Tensor:
        """f at the positions `at` int64 [..., N], float32 [..., N]; 0 where the window overlaps a found one."""
        scores = self.table.lookup(self.case, at)
        if self.config.lesion_rounds > 1:
            found = self._corners[self._found.clamp(min=0)]  # [N, m - 1, 3]
            gap = (self._corners[at][..., None, :] - found).abs()  # [..., N, m - 1, 3]
            overlap = (gap < self._window).all(dim=-1) & (self._found >= 0)
            scores = scores.masked_fill(overlap.any(dim=-1), 0.0)
        return scores

    def _following(self, at: Tensor, moves: Tensor) -> Tensor:
        """Where the moves, numbers in MOVES or of positions, lead from the positions `at`: int64 of their shape."""
        return self._next[at * self.n_moves + moves] if self.config.moves else moves

    def neighbours(self, at: Tensor) -> Tensor:
        """Where each action leads from the positions `at` int64 [N]: int64 [A, N]."""
        moves = torch.arange(self.n_moves, device=self.device)[:, None]
        return self._next[at * self.n_moves + moves]

    def action_masks(self, player: int = 0) -> Tensor:
        """Actions of `player` that lead away from its place or mean to stay, bool [N, A] ([N, 9] for multidiscrete3:
        the three values of each axis); all where there is none. Continuous ones have no masks: ValueError."""
        return self._open[self.at[player]] if self.config.moves else super().action_masks()

    def _flat(self, actions: Tensor) -> Tensor:
        """Number in MOVES, or of the position, of each action: int64 [N] on this device."""
        actions = actions.to(self.device)
        if actions.is_floating_point():  # continuous
            return placement(actions, self.lattice)
        actions = actions.long()
        if actions.ndim == 2:  # multidiscrete3
            return (actions[:, 0] * 3 + actions[:, 1]) * 3 + actions[:, 2]
        return actions

    def _competitor(self) -> Tensor:
        if self._opponent is not None:
            return asked(self, self._opponent)
        return RULES.get(self.config.opponent, random_move)(self, 1)

    def set_opponent(self, policy: Competitor | Model | None) -> None:
        """Let `policy`, an object with `act` or a model of Stable-Baselines3, play the competitor from the next step
        on; None: the rule named by `opponent` (random for "snapshot")."""
        self._opponent = competitor(policy, self.single_observation_space)

    # -- observation: docs/spars.md, Method 4 ----------------------------------------------------------------------

    def observe(self, env_ids: Tensor | None = None, player: int = 0) -> Obs:
        """Observation of `player` (0 learner, 1 competitor, for whom own and competitor are swapped), [N, ...]."""
        cfg = self.config
        case, at, scores, t = self.case, self.at, self.scores, self.t
        if env_ids is not None:
            case, t = case.index_select(0, env_ids), t.index_select(0, env_ids)
            at, scores = at.index_select(1, env_ids), scores.index_select(1, env_ids)
        if player:
            at, scores = at.flip(0), scores.flip(0)
        if cfg.obs_mode == "own_window":
            return self._windows.crop(case, at[:1])
        where = self._where[at].unbind()  # P of [N, 3]
        time = (t * (2.0 / self.horizon) - 1.0)[:, None]
        state = (*where, (2.0 * scores - 1.0).T, time)
        if cfg.obs_mode == "features":
            return torch.cat((*self._features.feature_rows(case, at).float().unbind(), *state), dim=1)
        return {"windows": self._windows.crop(case, at), "state": torch.cat(state, dim=1)}

    # -- info: docs/spars.md, Method 3 -----------------------------------------------------------------------------

    def _info(self) -> dict[str, Tensor]:
        """Positions (voxels), scores and the winner of the last step."""
        own, rival = self.duel.unbind()
        mine, *other = self._voxels[self.at].unbind()
        return {
            "p_self": mine,
            "p_opp": other[0] if other else torch.full_like(mine, -1),
            "score_self": own,
            "score_opp": rival,
            "win": torch.sign(own - rival).int(),
            "lattice_id": self.at[0],
            "t": self.t,
        }

    def _episode_info(self, env_ids: Tensor) -> Callable[[], list[dict[str, Any]]]:
        """Case and reason of the end of each episode and, with eval_dice, how well its mask fits."""
        facts = torch.cat((self.case[None], self.t[None], self._enders())).index_select(1, env_ids)  # int64 [4, K]
        strokes = self.painting.strokes(env_ids) if self.config.eval_dice else None

        def made() -> list[dict[str, Any]]:
            cases, lengths, *ends = facts.tolist()
            infos: list[dict[str, Any]] = [
                {"case_id": self.cases[case].id, "reason": self.reasons[bool(own), bool(rival)]}
                for case, own, rival in zip(cases, *ends, strict=True)
            ]
            if strokes is not None:
                overlaps = self.painting.overlaps(*strokes, cases, steps=max(lengths))
                infos = [info | overlap for info, overlap in zip(infos, overlaps, strict=True)]
            return infos

        return made

    def _enders(self) -> Tensor:
        """Whose score ended the episode, bool [2, N]."""
        return (self.duel > self.config.threshold) & self._terminated

    def score_volume(self, case_id: str) -> Tensor:
        """f at every lattice position of a case, float32 [sx, sy, sz]; NaN where the lazy engine has not been."""
        return self.table.volume(self._index_of(case_id))

    def _render_frame(self, env_id: int) -> Frame:
        return spars_pictures.picture(self, env_id, self._corners[self.at[:, env_id]].tolist())

    def legend(self) -> Legend:
        """As `BatchedEnv.legend`."""
        return spars_pictures.legend(self)

    def caption(self, env_id: int) -> str:
        """The scores of the windows and τ."""
        return spars_pictures.caption(self, env_id)

    def action_text(self, action: Tensor) -> str:
        """Name of the move: +x, -y+z, or stay."""
        return spars_pictures.move_name(self.config.moves, int(self._flat(action[None])))

    # -- options and checkpoints -----------------------------------------------------------------------------------

    def _index_of(self, case_id: str) -> int:
        ids = [case.id for case in self.cases]
        if case_id not in ids:
            raise ValueError(f"case_id {case_id!r} is not among the cases of this environment: {', '.join(ids)}")
        return ids.index(case_id)

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for `load_state`; without the competitor."""
        tables = [table.state() for table in self._score_tables]
        tensors = {name: getattr(self, name) for name in STATE}
        return {**super().state(), "tables": tables, "painting": self.painting.state(), **tensors}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        super().load_state(state)
        for table, kept in zip(self._score_tables, state["tables"], strict=True):
            table.load_state(kept)
        self.painting.load_state(state["painting"])
        for name in STATE:
            setattr(self, name, state[name].to(self.device, copy=True))


def duel_of(scores: Tensor) -> Tensor:
    """s1 and s2 of the scores [P, ...]: [2, ...], the scores themselves or, without a competitor, s2 = -1."""
    return scores if len(scores) == 2 else torch.cat((scores, torch.full_like(scores, -1.0)))
