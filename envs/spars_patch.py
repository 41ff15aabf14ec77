"""The patch game of RLSP, a predecessor of SPARS, in three dimensions (docs/spars.md, Method 16).

Symbols: P = patches, blocks of the window's size side by side; f = presence score; s1, s2 = the scores of the patches
that learner and competitor chose in a round; T = rounds; N = environments; L = positions of the lattice.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from .core import Obs
from .spars import SparsEnv, duel_of
from .spars_config import SparsConfig, check_options
from .spars_rules import asked
from .spars_tables import patch_parts

END = 100.0
"""Factor of the reward of the round that an agent ends the episode with."""
T_MIN = 2
"""Rounds that are to be played before the one that ends the episode."""
PENALTY = 1.0
"""What is taken off for a blank patch, an early and a late end."""


class PatchEnv(SparsEnv):
    """The patch game: both agents choose patches of one CT in turn, chosen ones are blanked, either ends the episode.

    ## Description
    `gym.make("SPARS-LiverCT-v0", profile="patch")`. The volume is divided into P patches of w voxels that do not
    overlap. In each round the learner chooses a patch, which is blanked; then the competitor, who sees that, chooses
    one, which is blanked too. The higher score of the frozen classifier wins the round. There is no τ: with any choice
    either agent may end the episode. What was looked at makes the mask; labels enter neither observation nor reward.

    ## Action Space
    `MultiDiscrete([P, 2])`: number of the patch, in the order x, y, z; 1 ends the episode after this round.
    `action_masks()` leaves out blanked patches.

    ## Observation Space
    Dict(candidates: Box(0, 1, (P, 37), float32), state: Box(-1, 1, (5,), float32)): of each patch the mean grey values
    of its 4 x 4 x 2 parts, 0 where it is blanked; its place (3); f if it was looked at in an earlier round, else 0;
    whether it is not blanked. Of the whole: time, share of blanked patches, highest f seen, own last f, the other's
    last f. f of a patch that nobody chose is nowhere in it.

    ## Rewards
    The sum of these terms; s = 0 for a patch that was blank already.

    | term | value |
    |---|---|
    | duel | +1 if s1 > s2, `tie_reward` if equal, -1 otherwise; s1 - s2 with `reward="diff"` |
    | score | s1, in place of duel, with one agent |
    | end | 99 times that, in the round that ends the episode: together 100 times |
    | early | -1 if the episode is ended in the first or second round |
    | late | -1 if nobody ended it in T rounds |
    | blank | -1 if the learner chose a patch that was blank already |

    ## Starting State
    One case, drawn uniformly; no patch blanked. `reset(options={"case_id": ...})` sets the case.

    ## Episode End
    Terminated after the round in which either agent ended it. Truncated after `horizon` rounds.

    ## Arguments
    The fields of `SparsConfig`.

    ## Version History
    v0: first version.
    """

    reasons: ClassVar[Mapping[tuple[bool, bool], str]] = {
        (True, True): "end_both",
        (True, False): "end_self",
        (False, True): "end_opp",
        (False, False): "time",
    }

    def _resolved(self, config: SparsConfig) -> SparsConfig:
        done = super()._resolved(config)
        if done.profile != "patch":
            raise ValueError(f"profile is {done.profile!r} but this is the game of 'patch'; give it, or use SparsEnv")
        return done

    def _make_tables(self) -> None:
        super()._make_tables()
        n, lattice = self.num_envs, self.lattice
        x, y, z = (
            phase + w * torch.arange(number)
            for number, w, phase in zip(self.config.patch_shape, lattice.window, lattice.phase, strict=True)
        )
        corners = torch.cartesian_prod(x, y, z)  # [P, 3]
        self.patches = lattice.ids(corners).to(self.device)
        """Position of each patch, int64 [P]."""
        self._parts_of = patch_parts(self.cases, lattice).to(self.device)  # [C, P, parts]
        self._places = (0.5 * self._where[self.patches] + 0.5).clamp(0, 1)  # [P, 3]
        self.blanked = torch.zeros(n, len(self.patches), dtype=torch.bool, device=self.device)
        """Patches that were chosen, bool [N, P]."""
        self.known = torch.zeros(n, len(self.patches), device=self.device)
        """f of the patches that were looked at in earlier rounds, 0 for others: float32 [N, P]."""
        self._ends = torch.zeros(2, n, dtype=torch.bool, device=self.device)  # who ended it in the last round

    # -- dynamics ----------------------------------------------------------------------------------------------------

    def _reset(self, env_ids: Tensor, options: Mapping[str, Any]) -> None:
        check_options(options)
        if placed := sorted(set(options) - {"case_id"}):
            raise ValueError(f"reset option {placed[0]!r} sets where a window starts, but patches have no start")
        super()._reset(env_ids, options)

    def _place(self, env_ids: Tensor, case: Tensor, at: Tensor) -> None:
        middle = self.patches[len(self.patches) // 2]  # what pictures show before anything was chosen
        self.case.index_copy_(0, env_ids, case)
        self.at.index_copy_(1, env_ids, middle.expand_as(at))
        self.scores.index_fill_(1, env_ids, 0.0)
        self.duel.index_copy_(1, env_ids, duel_of(self.scores.index_select(1, env_ids)))
        self._ends.index_fill_(1, env_ids, False)
        for tensor in (self.blanked, self.known):
            tensor.index_fill_(0, env_ids, 0)

    def _flat(self, actions: Tensor) -> Tensor:
        """2 · patch + whether it ends the episode, int64 [N], of actions [N, 2]."""
        actions = actions.to(self.device, torch.int64)
        return actions[:, 0] * 2 + actions[:, 1] if actions.ndim == 2 else actions

    def _choose(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Blank the chosen patches: their numbers, whether they were blank already, who ends; each [N]."""
        patch, ends = flat // 2, flat % 2 == 1
        blank = self.blanked.gather(1, patch[:, None])[:, 0]
        self.blanked = self.blanked.scatter(1, patch[:, None], True)
        return patch, blank, ends

    def _step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        cfg, chosen = self.config, [self._choose(self._flat(actions))]
        if cfg.n_agents == 2:
            chosen.append(self._choose(self._competitor()))  # it sees the learner's patch blanked
        patch, blank, ends = (torch.stack(parts) for parts in zip(*chosen, strict=True))  # [players, N] each
        self.at = self.patches[patch]
        self.scores = self.table.lookup(self.case, self.at).masked_fill(blank, 0.0)
        self.duel = duel_of(self.scores)
        for number, score in zip(patch, self.scores, strict=True):
            self.known = self.known.scatter_reduce(1, number[:, None], score[:, None], "amax")
        self.painting.add(self.at.masked_fill(blank, -1), self.scores)  # a blank patch shows nothing
        self._ends = torch.zeros_like(self._ends).index_copy(0, torch.arange(len(ends), device=self.device), ends)
        self._terminated = ended = ends.any(dim=0)
        own, rival = self.duel.unbind()
        if cfg.reward == "score":
            name, gain = "score", own.clone()
        elif cfg.reward == "diff":
            name, gain = "duel", own - rival
        else:
            sign = torch.sign(own - rival)
            name, gain = "duel", torch.where(own == rival, cfg.tie_reward, sign) if cfg.tie_reward else sign
        terms = {
            name: gain,
            "end": (END - 1.0) * gain * ended,
            "early": -PENALTY * (ended & (self.t < T_MIN)),
            "late": -PENALTY * (~ended & (self.t + 1 >= self.horizon)),
            "blank": -PENALTY * blank[0],
        }
        return terms, ended

    def _competitor(self) -> Tensor:
        if self._opponent is not None:
            return asked(self, self._opponent)
        return 2 * self.random_patch()

    def random_patch(self) -> Tensor:
        """A patch that is not blanked, uniformly: int64 [N]."""
        drawn = self.streams.uniform(len(self.patches)) + 1.0
        return drawn.masked_fill(self.blanked, 0.0).argmax(dim=1)

    def action_masks(self, player: int = 0) -> Tensor:
        """Patches that are not blanked (all where none is left) and both ends, bool [N, P + 2]; alike for both."""
        free = ~self.blanked
        free = free | ~free.any(dim=1, keepdim=True)
        return torch.cat((free, torch.ones_like(free[:, :1]).expand(-1, 2)), dim=1)

    # -- observation -------------------------------------------------------------------------------------------------

    def observe(self, env_ids: Tensor | None = None, player: int = 0) -> Obs:
        """Observation of `player` (0 learner, 1 competitor), [N, ...], or of the environments `env_ids` only."""
        chosen = self._all if env_ids is None else env_ids
        blanked, known, t = (x.index_select(0, chosen) for x in (self.blanked, self.known, self.t))
        parts = self._parts_of[self.case.index_select(0, chosen)].masked_fill(blanked[..., None], 0.0)
        free = self.action_masks(player).index_select(0, chosen)[:, : len(self.patches)]
        columns = (parts, self._places.expand(len(chosen), -1, -1), known[..., None], free[..., None].float())
        last = self.scores.index_select(1, chosen)
        own, other = last[player], last[1 - player] if len(last) == 2 else torch.zeros_like(last[0])
        time = t * (2.0 / self.horizon) - 1.0
        state = (time, blanked.float().mean(dim=1), known.amax(dim=1), own, other)
        return {"candidates": torch.cat(columns, dim=2), "state": torch.stack(state, dim=1)}

    # -- info, pictures and checkpoints ------------------------------------------------------------------------------

    def _info(self) -> dict[str, Tensor]:
        return {**super()._info(), "windows": self.blanked.sum(dim=1)}

    def _enders(self) -> Tensor:
        return self._ends

    def caption(self, env_id: int) -> str:
        """The scores of the last round, and how much was looked at."""
        own, rival = self.duel[:, env_id].tolist()
        against = f", competitor's {rival:.2f}" if self.config.n_agents == 2 else ""
        seen, case = int(self.blanked[env_id].sum()), self.cases[int(self.case[env_id])]
        return f"{case.id}: score {own:.2f}{against}; {seen} of {len(self.patches)} patches blanked"

    def action_text(self, action: Tensor) -> str:
        """The patch, and whether the episode is ended."""
        patch, end = action.tolist()
        return f"patch {patch}, end" if end else f"patch {patch}"

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for `load_state`; without the competitor."""
        board = {"blanked": self.blanked, "known": self.known, "ends": self._ends}
        return {**super().state(), "board": board}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        super().load_state(state)
        kept = {name: value.to(self.device, copy=True) for name, value in state["board"].items()}
        self.blanked, self.known, self._ends = kept["blanked"], kept["known"], kept["ends"]
