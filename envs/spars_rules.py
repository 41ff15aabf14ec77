"""Competitors of SPARS: an object that acts on observations, or a rule that the environment plays by its name.

A rule needs neither training nor labels: a function (env, player) -> actions int64 [N] of that player (0 learner, 1
competitor) as the environment stands now.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

import torch
from gymnasium import spaces
from torch import Tensor

from .adapters import to_numpy
from .core import Obs

if TYPE_CHECKING:
    from .spars import SparsEnv


class Competitor(Protocol):
    """Gives the competitor's actions for its own (mirrored) observations.

    One that has `masked = True` is also given action_masks, bool [N, A]: `SparsEnv.action_masks` of the competitor; one
    that has `recurrent = True` starts, bool [N]: whether an episode begins, of which it remembers nothing yet.
    """

    def act(self, obs: Obs, deterministic: bool) -> Tensor:
        """Actions int64 [N] ([N, 3] for multidiscrete3), on any device."""


class Model(Protocol):
    """A trained model of Stable-Baselines3, or what has its `predict`."""

    @property
    def predict(self) -> Callable[..., Any]:
        """Actions and memory, of observations."""


class ModelCompetitor:
    """A trained model of Stable-Baselines3 as competitor: the actions of its `predict`, and its memory."""

    def __init__(self, model: Model) -> None:
        self.model = model
        takes = signature(model.predict).parameters
        self.masked, self.recurrent = "action_masks" in takes, {"state", "episode_start"} <= takes.keys()
        self.state: Any = None
        """What the model remembers of the episode in each environment; None of one that remembers nothing."""

    def act(self, obs: Obs, deterministic: bool, starts: Tensor | None = None, **masks: Tensor) -> Tensor:
        """Actions [N, ...] for the observations [N, ...]; starts bool [N] and action_masks of those that take them."""
        told = to_numpy(masks)
        if starts is not None:
            told |= {"state": self.state, "episode_start": to_numpy(starts)}
        actions, self.state = self.model.predict(to_numpy(obs), deterministic=deterministic, **told)
        return torch.as_tensor(actions)


def competitor(opponent: Any, space: spaces.Space[Any]) -> Competitor | None:
    """`opponent` as something that acts on observations of `space`; None: None.

    Raises:
        ValueError: it can neither `act` nor `predict`, or was trained on other observations.
    """
    if opponent is None or callable(getattr(opponent, "act", None)):
        acting: Competitor | None = opponent
        return acting
    if not callable(getattr(opponent, "predict", None)):
        raise ValueError(
            f"opponent is {opponent!r} but must be one of {', '.join(map(repr, ('snapshot', *RULES)))}, a model of "
            f"Stable-Baselines3, or an object with act(obs, deterministic) -> actions"
        )
    seen = getattr(opponent, "observation_space", space)
    if seen != space:
        raise ValueError(
            f"opponent was trained on observations {seen} but here they are {space}; give the environment the obs_mode "
            f"and window_size of its training"
        )
    return ModelCompetitor(opponent)


def asked(env: SparsEnv, opponent: Competitor) -> Tensor:
    """The competitor's actions, int64 [N], as `opponent` chooses them from what player 1 sees."""
    told = {"action_masks": env.action_masks(player=1)} if getattr(opponent, "masked", False) else {}
    if getattr(opponent, "recurrent", False):
        told |= {"starts": env.t == 0}
    return env._flat(opponent.act(env.observe(player=1), deterministic=False, **told))


def random_move(env: SparsEnv, player: int) -> Tensor:
    """Any move, or any place where actions are places, uniformly: int64 [N]."""
    return (env.streams.tick() * env.n_moves).long()


def constant_move(env: SparsEnv, player: int) -> Tensor:
    """Always +z, the first opponent of the released program: int64 [N]."""
    up = env.config.moves.index((0, 0, 1))
    return torch.full((env.num_envs,), up, device=env.device)


def greedy_move(env: SparsEnv, player: int) -> Tensor:
    """The move to the neighbour with the highest score, the lowest index among equals: int64 [N]."""
    return env.scores_at(env.neighbours(env.at[player])).argmax(dim=0)


RULES: dict[str, Callable[[SparsEnv, int], Tensor]] = {
    "random": random_move,
    "constant0": constant_move,
    "greedy": greedy_move,
}
