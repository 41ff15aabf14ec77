"""SPARS: two windows compete to find liver tumours (Tan, Hu and Saeed, MIUA 2025, arXiv 2505.18989).

Symbols, as in the paper: w = window size, p1 and p2 = lower corners of the learner's and the competitor's window,
W(p) = the voxels of the window at p, f(p) = presence score of the frozen classifier for W(p), s1 and s2 = the scores of
the two agents, τ = the score that ends an episode, T = horizon, A = painted map, θ = mask threshold.
Positions are numbers of the lattice (datasets/lattice.py), so that a move and a score are one gather each.
"""

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..classifiers.presence import PresenceNet, load_presence
from ..datasets.liver.cases import HU_WINDOW, load_liver_cases
from ..datasets.liver.lattice import WindowLattice, centred_start
from ..datasets.liver.lesions import TUMOUR
from ..evaluation.volume_pictures import orthogonal_slices
from ..rewards.presence import ScoreFunction, ScoreTable
from .core import BatchedEnv, Frame, Obs
from .spars_config import MOVES, SparsConfig

log = logging.getLogger(__name__)


STATE = ("case", "at", "scores", "duel", "_home", "_over", "_log_at", "_log_score", "_clock", "_found")
"""What an episode consists of, beside what the core keeps."""
TRIES = 8
"""Places that are tried for a random start: the first with a score of at most τ is taken, or else the first of all."""
REASONS = {(True, True): "tau_both", (True, False): "tau_self", (False, True): "tau_opp", (False, False): "time"}
"""Why an episode ended, by whether s1 and s2 exceed τ."""


class Policy(Protocol):
    """A competitor: gives an action per episode for its (mirrored) observation."""

    def act(self, obs: Obs, deterministic: bool) -> Tensor:
        """Actions int64 [N] ([N, 3] for multidiscrete3)."""


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
    `"multidiscrete3"` is `MultiDiscrete([3, 3, 3])`, value v moves v - 1 cells along that axis.

    ## Observation Space
    | obs_mode | space | content |
    |---|---|---|
    | two_window | Dict(windows: Box(0, 255, (2, *w), uint8), state: Box(-1, 1, (9,), float32)) | own, other; state |
    | own_window | Box(0, 255, (1, *obs_size), uint8) | own window |
    | features | Box(-inf, inf, (2F + 9,), float32) | classifier features at both windows, F = 128; state |

    Grey values are HU over [-17, 201] scaled to 0..255. state = (2·p1/(full - w) - 1, 2·p2/(full - w) - 1, 2·s1 - 1,
    2·s2 - 1, 2·t/T - 1). With `n_agents=1` the competitor's part is absent everywhere (one window, 5 numbers, F + 5).

    ## Rewards
    +1 if s1 > s2, `tie_reward` if equal, -1 otherwise (`reward="sign"`), plus `terminal_bonus`·sign(s1 - s2) in the
    step in which a score exceeds τ.

    ## Starting State
    One case, drawn uniformly; both windows at the same place, the middle of the volume; nothing painted. On phantoms
    each window stands anywhere (`start="random_lattice"`) where its score is at most τ.
    `reset(options={"case_id": ..., "start": (x, y, z), "start_opponent": (x, y, z)})` sets them (corners in voxels).

    ## Episode End
    Terminated when s1 > τ or s2 > τ (strictly). Truncated after `horizon`.

    ## Arguments
    The fields of `SparsConfig`, by name; `opponent` may also be an object with `act(obs, deterministic)`, and
    `score_source` a function `(case, corners int64 [N, 3]) -> float32 [N]` with values in [0, 1].

    >>> import gymnasium as gym, segarena
    >>> env = gym.make("SPARS-LiverCT-v0", cases=["phantom_02000"], score_source="oracle_fraction", device="cpu")
    >>> obs, info = env.reset(seed=0, options={"start": (24, 24, 20)})
    >>> obs["windows"].shape, obs["state"].shape, [int(voxel) for voxel in info["p_self"]]
    ((2, 16, 16, 8), (9,), [24, 24, 20])
    >>> obs, reward, terminated, truncated, info = env.step(4)
    >>> [int(voxel) for voxel in info["p_self"]]
    [28, 24, 20]
    >>> env.unwrapped.batched.mask().shape
    torch.Size([64, 64, 48])

    ## References
    Tan, Hu, Saeed: SPARS: Self-Play Adversarial Reinforcement Learning for Segmentation of Liver Tumours (2025).

    ## Version History
    v0: first version.
    """

    def __init__(
        self,
        config: SparsConfig | None = None,
        *,
        num_envs: int = 1,
        device: str | torch.device = "auto",
        render_mode: str | None = None,
        opponent: str | Policy | None = None,
        score_source: str | ScoreFunction | None = None,
        **settings: Any,
    ) -> None:
        known = [field.name for field in fields(SparsConfig)]
        for name in settings:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                raise ValueError(
                    f"unknown argument {name!r}" + (f"; did you mean {close[0]!r}?" if close else f": {known}")
                )
        if isinstance(opponent, str):
            settings["opponent"] = opponent
        if isinstance(score_source, str):
            settings["score_source"] = score_source
        self.config = cfg = replace(config or SparsConfig(), **settings).resolved()
        assert cfg.grid_shape is not None
        assert cfg.window_size is not None
        assert cfg.horizon is not None
        super().__init__(num_envs=num_envs, device=device, horizon=cfg.horizon, render_mode=render_mode)
        corner = [size // 2 for size in cfg.grid_shape]
        phase = cfg.phase or (tuple(c % cfg.step for c in corner) if cfg.start == "corner_paper" else (0, 0, 0))
        self.lattice = WindowLattice(cfg.grid_shape, cfg.window_size, cfg.step, phase)  # type: ignore[arg-type]
        if cfg.data == "phantom":
            _say_phantom()
        self.cases = load_liver_cases(cfg)
        self._scores(score_source)
        self._opponent: Policy | None = None if opponent is None or isinstance(opponent, str) else opponent
        self._tables(corner)
        self._spaces()

    def _scores(self, function: str | ScoreFunction | None) -> None:
        """The score table, and the table of features where they are observed."""
        cfg, observed = self.config, self.config.obs_mode == "features"
        scored_by_net = cfg.score_source == "classifier" and not callable(function)
        net = self._classifier() if scored_by_net or observed else None
        table = partial(ScoreTable, self.cases, self.lattice, engine=cfg.score_engine, device=self.device)
        if scored_by_net and net is not None:
            self.table = table(net, features=observed, cache_dir=cfg.cache_dir)
        else:
            self.table = table(function if callable(function) else "oracle_fraction")
        self._features = self.table
        if observed and net is not None:
            self._n_features = net.num_features
            if not scored_by_net:
                self._features = table(net, features=True, cache_dir=cfg.cache_dir)

    @property
    def _score_tables(self) -> list[ScoreTable]:
        return [self.table] if self._features is self.table else [self.table, self._features]

    def _classifier(self) -> PresenceNet:
        cfg = self.config
        if cfg.classifier is None:
            raise ValueError(
                f"no classifier for data={cfg.data!r}: give classifier=<presence.safetensors> (train one with "
                f"`run_rl.py train`); 'packaged' names the one that was made for phantoms"
            )
        net = load_presence(cfg.classifier)
        seen = cfg.hu_window or HU_WINDOW
        if tuple(net.hu_window) != tuple(seen):
            raise ValueError(
                f"hu_window is {seen} but classifier {cfg.classifier!r} was trained with another one; "
                f"give hu_window={tuple(net.hu_window)}"
            )
        return net

    def _tables(self, corner: list[int]) -> None:
        """Everything that is looked up in a step, on the device."""
        cfg, lattice = self.config, self.lattice
        cells = torch.tensor(MOVES[cfg.action_set])
        self.n_moves = len(cells)
        self._next = lattice.move_table(cells).flatten().to(self.device)  # [L·A]
        self._corners = lattice.corners().to(self.device)  # [L, 3]
        self._cells = (self._corners - torch.tensor(lattice.phase, device=self.device)) // cfg.step  # [L, 3]
        free = (torch.tensor(lattice.full) - torch.tensor(lattice.window)).clamp(min=1).to(self.device)
        self._where = (2.0 * self._corners / free - 1.0).float()  # [L, 3] in [-1, 1]
        if cfg.start == "corner_paper":
            high = torch.tensor(lattice.shape) - 1
            phase = torch.tensor(lattice.phase)
            cell = torch.minimum((torch.tensor(corner) - phase) // cfg.step, high)
            self._start = int(lattice.ids(cell * cfg.step + phase))
        else:
            centre = torch.tensor(centred_start(lattice.full, lattice.window, lattice.step))
            self._start = int(lattice.ids(centre + torch.tensor(lattice.phase)))
        if cfg.obs_mode != "features":
            images = torch.stack([case.image for case in self.cases]).to(self.device).flatten()  # [C·X·Y·Z]
            (_, ny, nz), (wx, wy, wz) = lattice.full, lattice.window
            self._lines = images.as_strided((len(images) - wz + 1, wz), (1, 1))  # a view: row v is wz voxels from v on
            self._first = (lattice.corners() * torch.tensor((ny * nz, nz, 1))).sum(dim=1).to(self.device)  # [L]
            lines = (torch.arange(wx)[:, None] * ny + torch.arange(wy)) * nz
            self._window_lines = lines.flatten().to(self.device)  # [wx·wy], from the first voxel of a window
            sizes = zip(lattice.window, cfg.obs_size or lattice.window, strict=True)
            self._resize = [nearest_index(size, out).to(self.device) for size, out in sizes]
        self._tumour: dict[int, Tensor] = {}
        players, n, steps = cfg.n_agents, self.num_envs, self.horizon
        self.case = torch.zeros(n, dtype=torch.int64, device=self.device)
        self.at = torch.zeros(players, n, dtype=torch.int64, device=self.device)  # lattice positions of p1 (and p2)
        self._home = torch.zeros_like(self.at)  # where the episode began
        self.scores = torch.zeros(players, n, device=self.device)  # f at those positions
        self.duel = torch.zeros(2, n, device=self.device)  # s1, s2 of the last step, s2 = -1 without a competitor
        self._log_at = torch.zeros(steps, players, n, dtype=torch.int64, device=self.device)  # rings: row = clock mod T
        self._log_score = torch.zeros(steps, players, n, device=self.device)
        self._clock = 0
        self._over = torch.zeros(n, dtype=torch.bool, device=self.device)  # by τ, in the last step
        self._found = torch.full((n, cfg.lesion_rounds - 1), -1, dtype=torch.int64, device=self.device)

    def _spaces(self) -> None:
        cfg, players = self.config, self.config.n_agents
        self.single_action_space = (
            spaces.MultiDiscrete([3, 3, 3]) if cfg.action_set == "multidiscrete3" else spaces.Discrete(self.n_moves)
        )
        numbers = 4 * players + 1
        if cfg.obs_mode == "features":
            size = players * self._n_features + numbers
            self.single_observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        elif cfg.obs_mode == "own_window":
            self.single_observation_space = spaces.Box(0, 255, (1, *(cfg.obs_size or self.lattice.window)), np.uint8)
        else:
            self.single_observation_space = spaces.Dict(
                windows=spaces.Box(0, 255, (players, *self.lattice.window), np.uint8),
                state=spaces.Box(-1.0, 1.0, (numbers,), np.float32),
            )

    # -- the env: sections 2.3 and 2.5 ----------------------------------------------------------------------------

    def _reset(self, rows: Tensor, options: Mapping[str, Any], case: Tensor | None = None) -> None:
        self._check_options(options)
        players = self.config.n_agents
        draw = self.streams.uniform(1 + TRIES * players, rows)  # case, then candidates for p1 (and p2)
        case = (draw[:, 0] * len(self.cases)).long() if case is None else case
        if "case_id" in options:
            case = torch.full_like(case, self._index_of(options["case_id"]))
        if self.config.start == "random_lattice":  # the first candidate that τ would not end at once
            places = (draw[:, 1:].T * self.lattice.size).long().view(TRIES, players, -1)
            calm = self.table.lookup(case.expand_as(places), places) <= self.config.threshold
            at = places.gather(0, calm.int().argmax(dim=0)[None])[0]
        else:
            at = torch.full((players, len(rows)), self._start, device=self.device)
        for player, name in enumerate(("start", "start_opponent")[:players]):
            if name in options:
                at[player] = self.lattice.ids(torch.as_tensor(options[name])).to(self.device)
        self._place(rows, case, at)

    def _place(self, rows: Tensor, case: Tensor, at: Tensor) -> None:
        self.case[rows], self.at[:, rows], self._home[:, rows], self._found[rows] = case, at, at, -1
        self.scores[:, rows] = self.table.lookup(case, at)
        self.duel[0, rows] = self.scores[0, rows]
        self.duel[1, rows] = self.scores[1, rows] if self.config.n_agents == 2 else -1.0

    def begin(self, case: Tensor, jitter_cells: int = 0) -> None:
        """Begin an episode in every slot, on case number `case` int64 [N].

        Fixed starts are moved by up to `jitter_cells` lattice cells along each axis, both agents alike.
        """
        self.reset()
        rows = torch.arange(self.num_envs, device=self.device)
        if self.config.start == "random_lattice":
            return self._reset(rows, {}, case)
        high = torch.tensor(self.lattice.shape, device=self.device) - 1
        jitter = (self.streams.uniform(3) * (2 * jitter_cells + 1)).long() - jitter_cells
        cells = (self._cells[self.at[0]] + jitter).clamp(torch.zeros_like(high), high)
        at = (cells * torch.tensor(self.lattice.strides, device=self.device)).sum(dim=1)
        return self._place(rows, case, at.expand(self.config.n_agents, -1))

    def _step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        cfg = self.config
        moves = self._flat(actions)[None]  # [1, N]
        if cfg.n_agents == 2:
            moves = torch.cat((moves, self._competitor()[None]))  # it acts on the state before the learner's move
        before = self.scores[0]
        self.at = self._next[self.at * self.n_moves + moves]  # p1, p2 move and are clipped
        self.scores = self.scores_at(self.at)  # both at their new positions
        own = self.scores[0]
        rival = self.scores[1] if cfg.n_agents == 2 else torch.full_like(own, -1.0)
        self.duel = torch.stack((own, rival))
        hit = (self.duel > cfg.threshold).any(dim=0)
        row = self._clock % self.horizon
        self._log_at[row], self._log_score[row] = self.at, self.scores  # paint, on the last step too
        self._clock += 1
        terminated = self._next_round(hit) if cfg.lesion_rounds > 1 else hit
        sign = torch.sign(own - rival)
        if cfg.reward == "diff":
            reward = own - rival
        elif cfg.reward == "score":
            reward = own
        elif cfg.n_agents == 2:
            reward = torch.where(own == rival, cfg.tie_reward, sign) if cfg.tie_reward else sign
        else:
            reward = torch.zeros_like(own)
        if cfg.reward == "shaped":  # potential f, zero in the terminal state (Ng, Harada and Russell, 1999)
            reward = reward + cfg.gamma * self.scores[0] * ~terminated - before
        self._over = terminated
        return reward + cfg.terminal_bonus * sign * hit, terminated  # type: ignore[operator]

    def _next_round(self, hit: Tensor) -> Tensor:
        """Blank what was found, send both agents back to where they began; True where no round is left (section 12)."""
        left = (self._found < 0).sum(dim=1)
        again = hit & (left > 0)
        slot = self._found.shape[1] - left
        winner = self.at.gather(0, (self.duel[1] > self.duel[0]).long()[None])[0]
        rows = again.nonzero().flatten()
        self._found[rows, slot[rows]] = winner[rows]
        self.at[:, rows] = self._home[:, rows]
        self.scores = self.scores_at(self.at)
        return hit & ~again

    def scores_at(self, at: Tensor) -> Tensor:
        """f at the positions `at` int64 [..., N], float32 [..., N]; 0 where the window overlaps a found one."""
        scores = self.table.lookup(self.case, at)
        if self.config.lesion_rounds > 1:
            gap = (
                self._corners[at][..., None, :] - self._corners[self._found.clamp(min=0)]
            ).abs()  # [..., N, m - 1, 3]
            overlap = (gap < torch.tensor(self.lattice.window, device=self.device)).all(dim=-1) & (self._found >= 0)
            scores = scores.masked_fill(overlap.any(dim=-1), 0.0)
        return scores

    def neighbours(self, at: Tensor) -> Tensor:
        """Where each action leads from the positions `at` int64 [N]: int64 [A, N]."""
        moves = torch.arange(self.n_moves, device=self.device)[:, None]
        return self._next[at * self.n_moves + moves]

    def _flat(self, actions: Tensor) -> Tensor:
        """Row of the table of moves, int64 [N]."""
        if actions.ndim == 2:  # multidiscrete3
            return (actions[:, 0] * 3 + actions[:, 1]) * 3 + actions[:, 2]
        return actions.to(torch.int64)

    def _competitor(self) -> Tensor:
        if self._opponent is not None:
            return self._flat(self._opponent.act(self.observe(player=1), deterministic=False).to(self.device))
        return RULES.get(self.config.opponent, random_move)(self, 1)

    def set_opponent(self, policy: Policy | None) -> None:
        """Let `policy` play the competitor from the next step on; None: the rule named by `opponent` (random for
        "snapshot")."""
        self._opponent = policy

    # -- what is seen: section 2.4 ---------------------------------------------------------------------------------

    def observe(self, rows: Tensor | None = None, player: int = 0) -> Obs:
        """Observation of `player` (0 learner, 1 competitor, for whom own and competitor are swapped), [N, ...]."""
        cfg = self.config
        case, at, scores, t = self.case, self.at, self.scores, self.t
        if rows is not None:
            case, at, scores, t = case[rows], at[:, rows], scores[:, rows], t[rows]
        if player:
            at, scores = at.flip(0), scores.flip(0)
        if cfg.obs_mode == "own_window":
            return self._crop(case, at[:1])
        where = self._where[at]  # [P, N, 3]
        time = (t * (2.0 / self.horizon) - 1.0)[:, None]
        state = torch.cat((*where, (2.0 * scores - 1.0).T, time), dim=1)
        if cfg.obs_mode == "features":
            return torch.cat((*self._features.feature_rows(case, at).float(), state), dim=1)
        return {"windows": self._crop(case, at), "state": state}

    def _crop(self, case: Tensor, at: Tensor) -> Tensor:
        """Windows at the positions `at` [P, N], uint8 [N, P, *obs_size]."""
        first = case[:, None] * prod(self.lattice.full) + self._first[at.T]  # [N, P]
        lines = (first[..., None] + self._window_lines).flatten()
        crops = self._lines.index_select(0, lines).view(*first.shape, *self.lattice.window)  # 10 times a plain index
        if self.config.obs_size:
            for axis, index in enumerate(self._resize):
                crops = crops.index_select(axis + 2, index)
        return crops

    # -- what is said: section 2.7 ---------------------------------------------------------------------------------

    def info(self) -> dict[str, Tensor]:
        """Positions (voxels), scores and the winner of the last step."""
        own, rival = self.duel
        corners = self._corners[self.at].int()
        return {
            "p_self": corners[0],
            "p_opp": corners[1] if self.config.n_agents == 2 else torch.full_like(corners[0], -1),
            "score_self": own,
            "score_opp": rival,
            "win": torch.sign(own - rival).int(),
            "lattice_id": self.at[0],
            "t": self.t,
        }

    def last_step(self) -> tuple[Tensor, Tensor]:
        """Positions int64 [P, N] and scores float32 [P, N] after the last step, of the episodes that it ended too."""
        row = (self._clock - 1) % self.horizon
        return self._log_at[row].clone(), self._log_score[row].clone()

    def episode_info(self, rows: Tensor) -> list[dict[str, Any]]:
        """Case and reason of the end of each episode and, with eval_dice, how well its mask fits."""
        hits = ((self.duel[:, rows] > self.config.threshold) & self._over[rows]).T.tolist()
        cases = self.case[rows].tolist()
        said: list[dict[str, Any]] = [
            {"case_id": self.cases[case].id, "reason": REASONS[own, rival]}
            for case, (own, rival) in zip(cases, hits, strict=True)
        ]
        if self.config.eval_dice:
            for info, case, blocks in zip(said, cases, self.block_maps(rows), strict=True):
                info["n_painted_blocks"] = int((blocks > 0).sum())
                if self.cases[case].label is not None:
                    info |= self._overlap(blocks, case)
        return said

    # -- what is painted: sections 2.8 and 11.4 --------------------------------------------------------------------

    def block_maps(self, rows: Tensor) -> Tensor:
        """A of the slots `rows` int64 [K], one value per block: float64 [K, Bx, By, Bz]."""
        steps = self.horizon
        players = self.config.n_agents if self.config.accumulate == "both" else 1
        age = torch.arange(steps, device=self.device)  # 0: the last step
        ring = (self._clock - 1 - age) % steps
        live = (age[:, None] < self.t[rows])[:, None]  # [T, 1, K]
        at, painted = (
            log[:, :players].index_select(2, rows).index_select(0, ring) for log in (self._log_at, self._log_score)
        )
        at = torch.where(live, at, -1)  # [T, P, K]
        return self.lattice.paint(at.flatten(0, 1).T, painted.flatten(0, 1).T, self.config.reduce)

    def block_map(self, row: int = 0) -> Tensor:
        """A of slot `row`, one value per block: float64 [Bx, By, Bz]."""
        return self.block_maps(torch.tensor([row], device=self.device))[0]

    def accumulated_map(self, row: int = 0) -> Tensor:
        """A of slot `row`, float32 [X, Y, Z]."""
        return self.lattice.expand(self.block_map(row)).float()

    @property
    def theta(self) -> float:
        """θ at the precision of the scores, so that "A > θ" is strict for what was painted."""
        return float(np.float32(self.config.mask_threshold))

    def mask(self, row: int = 0) -> Tensor:
        """M = A > θ of slot `row`, bool [X, Y, Z]."""
        return self.lattice.expand(self.block_map(row) > self.theta)

    def dice(self, row: int = 0) -> float:
        """Dice of the mask with the case's tumour, in [0, 1]; both empty: 1.

        Raises:
            ValueError: the case has no label.
        """
        return self._overlap(self.block_map(row), int(self.case[row]))["dice"]

    def _overlap(self, blocks: Tensor, case: int) -> dict[str, float]:
        """Dice, precision and recall from block counts: exact integers, no voxel is touched (section 11.4)."""
        counts = self.lattice.block_overlap(blocks > self.theta, self.tumour_blocks(case))
        common, painted, truth = (int(count) for count in counts)
        return {
            "dice": 2 * common / (painted + truth) if painted + truth else 1.0,
            "precision": common / painted if painted else float(truth == 0),
            "recall": common / truth if truth else float(painted == 0),
        }

    def tumour_blocks(self, case: int) -> Tensor:
        """g_b of case number `case`: tumour voxels in each block, int64 [Bx, By, Bz].

        Raises:
            ValueError: the case has no label.
        """
        if case not in self._tumour:
            label = self.cases[case].label
            if label is None:
                raise ValueError(f"case {self.cases[case].id!r} has no label: dice is not known")
            self._tumour[case] = self.lattice.block_sums(label == TUMOUR).to(self.device)
        return self._tumour[case]

    def save_mask(self, path: str | Path, row: int = 0) -> None:
        """Write the mask of slot `row` as NIfTI in the space, shape and orientation of the case's own file."""
        self.cases[int(self.case[row])].save_mask(self.mask(row).cpu(), Path(path))

    def score_volume(self, case_id: str) -> Tensor:
        """f at every lattice position of a case, float32 [sx, sy, sz]; NaN where the lazy engine has not been."""
        return self.table.volume(self._index_of(case_id))

    def _render_frame(self, row: int) -> Frame:
        case, colours = self.cases[int(self.case[row])], ((64, 200, 255), (255, 120, 64))
        corners = self._corners[self.at[:, row]].tolist()
        heat = np.asarray(self.accumulated_map(row).cpu().numpy(), dtype=np.float32)
        tumour = [] if case.label is None else [((case.label == TUMOUR).numpy(), (80, 255, 80))]
        return orthogonal_slices(
            case.image.numpy(),
            centre_ijk=tuple(c + w // 2 for c, w in zip(corners[0], self.lattice.window, strict=True)),
            boxes=[(tuple(low), self.lattice.window, colour) for low, colour in zip(corners, colours, strict=False)][
                ::-1
            ],
            heat=heat / np.float32(max(1.0, float(heat.max()))),
            contours=tumour,
            spacing_mm=case.spacing_mm,
        )

    # -- the rest --------------------------------------------------------------------------------------------------

    def _check_options(self, options: Mapping[str, Any]) -> None:
        known = {"case_id", "start", "start_opponent"}
        if unknown := set(options) - known:
            raise ValueError(f"unknown reset options {sorted(unknown)}; known are {sorted(known)}")
        if "case_id" in options:
            self._index_of(options["case_id"])

    def _index_of(self, case_id: str) -> int:
        ids = [case.id for case in self.cases]
        if case_id not in ids:
            raise ValueError(f"case_id {case_id!r} is not among the cases of this environment: {', '.join(ids)}")
        return ids.index(case_id)

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs; not the competitor."""
        tables = [table.state() for table in self._score_tables]
        return {**super().state(), "tables": tables, **{name: getattr(self, name) for name in STATE}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        super().load_state(state)
        for table, kept in zip(self._score_tables, state["tables"], strict=True):
            table.load_state(kept)
        for name in STATE:
            value = state[name]
            setattr(self, name, value.to(self.device, copy=True) if isinstance(value, Tensor) else value)


# -- the rules that can be named as opponents; agents/reference.py has the rest ----------------------------------------


def random_move(env: SparsEnv, player: int) -> Tensor:
    """Any action, uniformly: int64 [N]."""
    return (env.streams.tick() * env.n_moves).long()


def constant_move(env: SparsEnv, player: int) -> Tensor:
    """Always +z, the first opponent of the released program: int64 [N]."""
    up = MOVES[env.config.action_set].index((0, 0, 1))
    return torch.full((env.num_envs,), up, device=env.device)


def greedy_move(env: SparsEnv, player: int) -> Tensor:
    """The move to the neighbour with the highest score, the lowest index among equals: int64 [N]."""
    return env.scores_at(env.neighbours(env.at[player])).argmax(dim=0)


RULES: dict[str, Callable[[SparsEnv, int], Tensor]] = {
    "random": random_move,
    "constant0": constant_move,
    "greedy": greedy_move,
}


def nearest_index(size: int, out: int) -> Tensor:
    """Source index of each of `out` samples of an axis of `size` voxels: ⌊i·size/out⌋, int64 [out] (oracle 13-2)."""
    return torch.arange(out) * size // out


@cache
def _say_phantom() -> None:
    log.warning("SPARS-LiverCT-v0 plays on phantoms; give data=<Task03_Liver folder> to play on real CT")
