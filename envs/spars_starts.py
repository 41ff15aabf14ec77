"""Where the episodes of SPARS begin: fixed places, moved ones, random ones, those of `reset` (docs/spars.md, Method 2).

Symbols: P = agents, N = environments, K = environments that begin, L = positions of the lattice, τ = the score that
ends an episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..datasets.liver.lattice import WindowLattice, centred_start
from .spars_config import SparsConfig

if TYPE_CHECKING:
    from .spars import SparsEnv

TRIES = 8
"""Places that are tried for a random start: the first with a score of at most τ is taken, or else the first of all."""


def start_position(config: SparsConfig, lattice: WindowLattice) -> int:
    """Number of the position at which both agents start, unless at random: the window centred, or its lower corner at
    half the grid, or as near to that as a window can stand."""
    phase = torch.tensor(lattice.phase)
    if config.start == "corner_paper":
        corner = torch.tensor([size // 2 for size in lattice.full])
        cell = torch.minimum((corner - phase) // config.step, torch.tensor(lattice.shape) - 1)
        return int(lattice.ids(cell * config.step + phase))
    return int(lattice.ids(torch.tensor(centred_start(lattice.full, lattice.window, lattice.step)) + phase))


class Starts:
    """Draws case and places of new episodes of an environment, by its streams."""

    def __init__(self, env: SparsEnv) -> None:
        self._env, self._random = env, env.config.start == "random_lattice"
        self._fixed = start_position(env.config, env.lattice)
        ranges = [len(env.cases), *[env.lattice.size] * (TRIES * env.config.n_agents)]
        self._ranges = torch.tensor(ranges, dtype=torch.float64, device=env.device)  # of what a start draws

    def draw(self, env_ids: Tensor, options: Mapping[str, Any], case: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cases int64 [K] and positions int64 [P, K] of new episodes.

        Args:
            env_ids: where they begin, int64 [K].
            options: those of `reset`, checked.
            case: the cases where they are given, int64 [K]; None: drawn.

        Raises:
            ValueError: a case or a corner that there is not.
        """
        env, players = self._env, self._env.config.n_agents
        draw = env.streams.uniform(len(self._ranges), env_ids)  # case, then candidates for p1 (and p2)
        drawn = (draw * self._ranges).long()  # [K, 1 + TRIES·P]
        case = drawn[:, 0] if case is None else case
        if "case_id" in options:
            case = torch.full_like(case, env._index_of(options["case_id"]))
        if self._random:  # the first candidate that τ would not end at once
            places = drawn[:, 1:].T.view(TRIES, players, -1)
            calm = env.table.lookup(case.expand_as(places), places) <= env.config.threshold
            at = places.gather(0, calm.int().argmax(dim=0, keepdim=True))[0]
        else:
            at = torch.full((players, len(env_ids)), self._fixed, device=env.device)
        for player, name in enumerate(("start", "start_opponent")[:players]):
            if name in options:
                at[player] = env.lattice.ids(torch.as_tensor(options[name])).to(env.device)
        return case, at

    def moved(self, case: Tensor, jitter_cells: int) -> tuple[Tensor, Tensor]:
        """Given cases int64 [N] and positions int64 [P, N] of a new episode in every environment: random ones as they
        are drawn, fixed ones moved by up to `jitter_cells` lattice cells along each axis, both agents alike."""
        env = self._env
        if self._random:
            return self.draw(env._all, {}, case)
        high = torch.tensor(env.lattice.shape, device=env.device) - 1
        jitter = (env.streams.uniform(3) * (2 * jitter_cells + 1)).long() - jitter_cells
        cells = (env._cells[self._fixed] + jitter).clamp(torch.zeros_like(high), high)
        at = (cells * torch.tensor(env.lattice.strides, device=env.device)).sum(dim=1)
        return case, at.expand(env.config.n_agents, -1)
