"""SPARS search: two windows look for tumour on one shared map, window after window (ours; docs/spars.md, Method 15).

Symbols: L = positions of the lattice; f = presence score; m, s = mean and deviation of f on other cases; μ, σ = the
same, given the windows that were seen; A = candidates, the windows that one move leads to; θ = level at which the
straddle rule looks, `mask_threshold`; M = mean f, seen or likely, of the windows over a block; M* = the same of all
scores; p, q = how likely M and M* make it that a block is tumour; D = likeness of p and q.
"""

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..segmenters.expected_dice import Calibration
from ..segmenters.score_prior import Posterior, ScorePrior
from .core import Obs
from .spars import SparsEnv, duel_of
from .spars_config import ANYWHERE, FEATURES, SparsConfig
from .spars_rules import Competitor, Model, asked, competitor

OF_SOME, OF_ALL = Calibration(1.4, -5.6), Calibration(0.9, -5.5)
"""What M of 32 seen windows, and M*, say of tumour: fitted on the validation phantoms (docs/spars.md, Method 15)."""
SCALE = 10.0
"""Reward of discovering all: D rises from 0 to 1 at most."""


class SearchEnv(SparsEnv):
    """SPARS search: windows that were not seen are looked at, one in each move, and all that was seen makes the mask.

    ## Description
    `gym.make("SPARS-LiverCT-v0", profile="search")`. There is no τ: an episode is T moves of each agent, and each move
    looks at one more window of the CT. Both agents know what either has seen: the scores f, and what is likely of all
    other windows (a Gaussian process, `fill`). The map M is the mean f, seen or likely, of the windows over a block.
    Who discovers more wins the round; labels enter neither observation nor reward.

    ## Action Space
    | action_set | space | move |
    |---|---|---|
    | leap78 | Discrete(78) | 1, 2 or 4 cells in each of 26 directions, clipped at the border; 3·direction + leap |
    | anywhere | Discrete(L) | to the window of that number |

    A move to a window that was seen discovers nothing. `action_masks()` leaves out such moves, unless all are such.

    ## Observation Space
    Dict(candidates: Box(-4, 4, (A, 15), float32), state: Box(-4, 4, (7,), float32)): of each window that a move leads
    to μ, σ, whether it was seen, f if it was, m, s, its place (3), time, highest μ and mean σ of it and its neighbours,
    mean p of its blocks, 2σ - |μ - θ|, whether it can be chosen; time, highest f seen, mean σ, predicted share of the
    volume, own place (3).

    `obs_mode="features"` adds features: Box(-inf, inf, (3, F), float32), those of the classifier at the own window, and
    their mean and maximum over all windows that were seen; 0 before any was.

    ## Rewards
    d = 10·(D after the window was seen - D before), with D = 2 Σ p q / (Σ p² + Σ q²) over blocks, p = sigmoid(1.4 logit
    M - 5.6) and q = sigmoid(0.9 logit M* - 5.5).

    | reward | term | value |
    |---|---|---|
    | sign (two agents) | duel | +1 if the learner's d of this round exceeds the competitor's, -1 if below, else 0 |
    | diff (two agents) | duel | the learner's d less the competitor's |
    | discovery | discovery | the learner's d |
    | cooperative (two agents) | discovery | the sum of both |

    ## Starting State
    One case, drawn uniformly; each agent anywhere on the lattice; nothing seen. With two agents a coin says who moves
    first in every round; the other then knows what was seen.

    ## Episode End
    Truncated after `horizon` moves of the learner; never terminated.

    ## Arguments
    The fields of `SparsConfig`; θ is `mask_threshold`.

    ## Version History
    v0: first version.
    """

    def _resolved(self, config: SparsConfig) -> SparsConfig:
        done = super()._resolved(config)
        if done.profile != "search":
            raise ValueError(f"profile is {done.profile!r} but this is the game of 'search'; give it, or use SparsEnv")
        return done

    def _make_tables(self) -> None:
        super()._make_tables()
        assert self.masks.prior is not None
        self.prior: ScorePrior = self.masks.prior
        n, size = self.num_envs, self.lattice.size
        self.posterior = Posterior(self.prior, n, self.horizon * self.config.n_agents)
        self.all_scores = torch.stack([self.table.volume(number).flatten() for number in range(len(self.cases))])
        """f of all windows of each case, float32 [C, L]."""
        self._full = self._likely(self.all_scores, OF_ALL)  # q of each case, [C, blocks]
        self._amount = self._full.square().sum(dim=1)  # [C]
        self._p = torch.zeros(n, self._full.shape[1], device=self.device)
        self.found = torch.zeros(n, device=self.device)
        """D of the map so far, in [0, 1]."""
        self._second = torch.zeros(n, dtype=torch.bool, device=self.device)  # the learner moves after the competitor
        self._pending = torch.zeros(n, device=self.device)  # d of the competitor's move that was made before
        self._pending_at = torch.zeros(n, dtype=torch.int64, device=self.device)  # its window
        self.gains = torch.zeros(2, n, device=self.device)
        """d of the learner's and of the competitor's move of the last round."""
        self.total = torch.zeros(2, n, device=self.device)
        """The same of all rounds of the episode so far."""
        self._ids = torch.arange(size, device=self.device)
        self._deviation = self.prior.variance.sqrt()

    # -- the map -----------------------------------------------------------------------------------------------------

    def scores_known(self) -> Tensor:
        """f of the windows that were seen, and what is likely of the others, float32 [N, L] in [0, 1]."""
        return torch.where(self.posterior.seen, self.all_scores[self.case], self.posterior.mean.clamp(0, 1))

    def _likely(self, scores: Tensor, calibration: Calibration) -> Tensor:
        """How likely each block is tumour, by the scores of all windows, float32 [K, L]: [K, blocks]."""
        return calibration.probability(self.lattice.average(scores).flatten(1))

    def _likeness(self, p: Tensor) -> Tensor:
        """D of p, float32 [N, blocks], with q of each environment's case: [N]."""
        return 2 * (p * self._full[self.case]).sum(dim=1) / (p.square().sum(dim=1) + self._amount[self.case])

    def _so_far(self) -> Tensor:
        """D of the map so far, [N]; keeps its p."""
        self._p = self._likely(self.scores_known(), OF_SOME)
        return self._likeness(self._p)

    def foresee(self, ids: Tensor, scores: Tensor) -> Tensor:
        """D if every environment saw the window `ids` int64 [N], unseen, with `scores` float32 [N]: [N]."""
        likely = self.posterior.mean_if(ids, scores).clamp(0, 1)
        known = torch.where(self.posterior.seen, self.scores_known(), likely)
        return self._likeness(self._likely(known.scatter(1, ids[:, None], scores[:, None]), OF_SOME))

    # -- dynamics ----------------------------------------------------------------------------------------------------

    def _place(self, env_ids: Tensor, case: Tensor, at: Tensor) -> None:
        super()._place(env_ids, case, at)
        self.posterior.reset(env_ids)
        self.total = self.total.index_fill(1, env_ids, 0.0)
        self.found.index_copy_(0, env_ids, self._so_far().index_select(0, env_ids))
        if self.config.n_agents == 2:
            second = self.streams.uniform(1, env_ids)[:, 0] < 0.5
            self._second.index_copy_(0, env_ids, second)
            moves = torch.zeros_like(self._second).index_copy_(0, env_ids, second)
            self._pending = torch.where(moves, self._look(1, self._answer(env_ids), moves), self._pending)
            self._pending_at = torch.where(moves, self.at[1], self._pending_at)

    def _look(self, player: int, actions: Tensor, moves: Tensor) -> Tensor:
        """Let `player` look at the windows that `actions` lead to where `moves`, bool [N]: d, float32 [N], 0
        elsewhere."""
        there = torch.where(moves, self._following(self.at[player], actions), self.at[player])
        self.at = torch.cat((self.at[:player], there[None], self.at[player + 1 :]))
        scores = self.table.lookup(self.case, there)
        self.posterior.see(there, scores, moves)
        after = torch.where(moves, self._so_far(), self.found)
        gain, self.found = SCALE * (after - self.found), after
        return gain

    def _step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        everywhere = torch.ones_like(self._second)
        mine = self._look(0, self._flat(actions), everywhere)
        theirs, looked = torch.zeros_like(mine), self.at  # d of the competitor, and all windows, of this round
        if self.config.n_agents == 2:
            follows = ~self._second | (self.t + 1 < self.horizon)  # one who is first makes no move after the last round
            answer = self._look(1, self._answer(), follows)
            theirs, self._pending = torch.where(self._second, self._pending, answer), answer
            looked = torch.stack((self.at[0], torch.where(self._second, self._pending_at, self.at[1])))
            self._pending_at = self.at[1]
        self.scores = self.table.lookup(self.case, self.at)
        self.gains = torch.stack((mine, theirs))
        self.total = self.total + self.gains
        self.duel = duel_of(self.scores)
        self.painting.add(looked, self.table.lookup(self.case, looked))
        terms = {
            "sign": {"duel": torch.sign(mine - theirs)},
            "diff": {"duel": mine - theirs},
            "discovery": {"discovery": mine},
            "cooperative": {"discovery": mine + theirs},
        }
        assert self.config.reward is not None
        self._terminated = torch.zeros_like(self._second)
        return terms[self.config.reward], self._terminated

    def candidates(self, player: int = 0) -> Tensor:
        """Where each action leads `player`, int64 [N, A]."""
        if self.config.action_set == ANYWHERE:
            return self._ids.expand(self.num_envs, -1)
        return self.neighbours(self.at[player]).T

    def action_masks(self, player: int = 0) -> Tensor:
        """Actions of `player` that lead to a window that was not seen, bool [N, A]; all where there is none."""
        unseen = ~self.posterior.seen.gather(1, self.candidates(player))
        return unseen | ~unseen.any(dim=1, keepdim=True)

    # -- observation -------------------------------------------------------------------------------------------------

    def observe(self, env_ids: Tensor | None = None, player: int = 0) -> Obs:
        """Observation of `player` (0 learner, 1 competitor), [N, ...], or of the environments `env_ids` only."""
        there = self.candidates(player)
        mean, sigma = (x.gather(1, there) for x in (self.posterior.mean, self.posterior.variance.sqrt()))
        seen = self.posterior.seen.gather(1, there)
        f = torch.where(seen, self.all_scores[self.case].gather(1, there), 0.0)
        time = (self.t * (2.0 / self.horizon) - 1.0)[:, None].expand_as(mean)
        columns = (
            *(mean, sigma, seen.float(), f, self.prior.mean[there], self._deviation[there]),
            *self._where[there].unbind(dim=-1),
            *(time, *(x.gather(1, there) for x in self._around())),
            *(2 * sigma - (mean - self.config.mask_threshold).abs(), self.action_masks(player).float()),
        )
        candidates = torch.stack(columns, dim=-1).clamp(-4, 4)
        highest = torch.where(self.posterior.seen, self.all_scores[self.case], 0.0).amax(dim=1)
        numbers = (time[:, 0], highest, self.posterior.variance.sqrt().mean(dim=1), self._p.mean(dim=1))
        state = torch.cat((torch.stack(numbers, dim=1), self._where[self.at[player]]), dim=1).clamp(-4, 4)
        chosen = slice(None) if env_ids is None else env_ids
        obs = {"candidates": candidates[chosen], "state": state[chosen]}
        return obs if self.config.obs_mode != FEATURES else {**obs, "features": self._read(player)[chosen]}

    def _read(self, player: int) -> Tensor:
        """Features of the window of `player`, and their mean and maximum over the windows that were seen, float32 [N,
        3, F]; 0 instead of those of windows that were not."""
        size, most, own = self.lattice.size, self.horizon * self.config.n_agents, self.at[player][:, None]
        ids = torch.where(self.posterior.seen, self._ids, size).topk(min(most, size), largest=False).values
        seen = torch.cat((self.posterior.seen.gather(1, own), ids < size), dim=1)[..., None]
        ids = torch.cat((own, torch.where(ids < size, ids, own)), dim=1)  # the own one, then all that were seen
        rows = torch.where(seen, self._features.feature_rows(self.case[:, None], ids).float(), 0.0)
        mean = rows[:, 1:].sum(dim=1) / seen[:, 1:].sum(dim=1).clamp(min=1)
        highest = torch.where(seen, rows, -torch.inf)[:, 1:].amax(dim=1)
        return torch.stack((rows[:, 0], mean, torch.where(seen.any(dim=1), highest, 0.0)), dim=1)

    def _around(self) -> tuple[Tensor, Tensor, Tensor]:
        """Highest μ and mean σ of every window and its neighbours, and mean p of its blocks: float32 [N, L] each."""
        lattice = self.lattice
        mean, sigma = (x.view(-1, *lattice.shape) for x in (self.posterior.mean, self.posterior.variance.sqrt()))
        cells = tuple(width // lattice.step for width in lattice.window)
        inner = tuple(  # the blocks of the first window come first: a phase leaves a part of one before them
            slice(int(phase > 0), int(phase > 0) + number + cell - 1)
            for phase, number, cell in zip(lattice.phase, lattice.shape, cells, strict=True)
        )
        blocks = self._p.view(-1, *lattice.block_shape)[(slice(None), *inner)]
        p, widths = _windowed(blocks, cells, torch.add) / math.prod(cells), (3, 3, 3)
        highest = _windowed(F.pad(mean, (1,) * 6, value=-torch.inf), widths, torch.maximum)
        near, number = (_windowed(F.pad(x, (1,) * 6), widths, torch.add) for x in (sigma, torch.ones_like(sigma[:1])))
        return highest.flatten(1), (near / number).flatten(1), p.flatten(1)

    def set_opponent(self, policy: Competitor | Model | None) -> None:
        """As `SparsEnv.set_opponent`.

        Raises:
            ValueError: the policy has a memory, which would count what it is asked before the first move as a step.
        """
        if getattr(competitor(policy, self.single_observation_space), "recurrent", False):
            raise ValueError(
                f"opponent is {policy!r}, a recurrent policy, but profile 'search' has none: what was seen is in the "
                f"observation; give a policy without a memory"
            )
        super().set_opponent(policy)

    def _answer(self, env_ids: Tensor | None = None) -> Tensor:
        """The competitor's actions, int64 [N]; only those of `env_ids` are drawn and matter, if it is given."""
        if self._opponent is not None:
            return asked(self, self._opponent)
        masks = self.action_masks(player=1)
        if self.config.opponent == "greedy":  # the candidate that is likeliest to hold tumour
            worth = 1.0 + self.posterior.mean.gather(1, self.candidates(1)).double().clamp(0, 1)
        else:
            drawn = 1.0 + self.streams.uniform(masks.shape[1], env_ids)
            chosen = self._all if env_ids is None else env_ids
            worth = torch.ones(masks.shape, dtype=torch.float64, device=self.device).index_copy_(0, chosen, drawn)
        return (worth * masks).argmax(dim=1)

    # -- info and checkpoints ----------------------------------------------------------------------------------------

    def _info(self) -> dict[str, Tensor]:
        mine, theirs = self.gains
        own = {"found": self.found, "windows": self.posterior.seen.sum(dim=1), "gain_self": mine, "gain_opp": theirs}
        return {**super()._info(), **own, "win": torch.sign(self.total[0] - self.total[1]).int()}

    def _episode_info(self, env_ids: Tensor) -> Callable[[], list[dict[str, Any]]]:
        make = super()._episode_info(env_ids)
        found = self.found.index_select(0, env_ids)

        def made() -> list[dict[str, Any]]:
            return [info | {"found": value} for info, value in zip(make(), found.tolist(), strict=True)]

        return made

    def caption(self, env_id: int) -> str:
        """What was seen, and how much of the map was found."""
        windows, found = int(self.posterior.seen[env_id].sum()), float(self.found[env_id])
        return f"{self.cases[int(self.case[env_id])].id}: {windows} windows seen, {100 * found:.0f} % of the map found"

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for `load_state`; without the competitor."""
        search = {"found": self.found, "second": self._second, "pending": self._pending, "gains": self.gains}
        search |= {"pending_at": self._pending_at, "total": self.total}
        return {**super().state(), "search": search, "posterior": self.posterior.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        super().load_state(state)
        self.posterior.load_state(state["posterior"])
        kept = {name: value.to(self.device, copy=True) for name, value in state["search"].items()}
        self.found, self._second, self._pending = kept["found"], kept["second"], kept["pending"]
        self.gains, self.total, self._pending_at = kept["gains"], kept["total"], kept["pending_at"]
        self._so_far()


def _windowed(volumes: Tensor, widths: tuple[int, ...], combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sums or maxima over every window of `widths` of volumes [N, X, Y, Z], axis after axis: PyTorch's pooling of
    three axes takes 60 times as long on a CPU."""
    for axis, width in enumerate(widths, start=1):
        number = volumes.shape[axis] - width + 1
        volumes = reduce(combine, (volumes.narrow(axis, first, number) for first in range(width)))
    return volumes
