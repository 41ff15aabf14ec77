"""Competitors of SPARS: an object that acts on observations, or a rule that the environment plays by its name.

A rule needs neither training nor labels: a function (env, player) -> actions int64 [N] of that player (0 learner, 1
competitor) as the environment stands now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .core import Obs
from .spars_config import MOVES

if TYPE_CHECKING:
    from .spars import SparsEnv


class Competitor(Protocol):
    """Gives the competitor's actions for its own (mirrored) observations."""

    def act(self, obs: Obs, deterministic: bool) -> Tensor:
        """Actions int64 [N] ([N, 3] for multidiscrete3), on any device."""


def checked(opponent: Competitor | None) -> Competitor | None:
    """`opponent`, if it can act.

    Raises:
        ValueError: it has no method `act`.
    """
    if opponent is not None and not callable(getattr(opponent, "act", None)):
        raise ValueError(
            f"opponent is {opponent!r} but must be a name or an object with act(obs, deterministic) -> actions, "
            f"such as agents.spars.self_play.Snapshot of a policy of Stable-Baselines3"
        )
    return opponent


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
