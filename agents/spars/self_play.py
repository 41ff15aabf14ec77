"""Opponents of self-play: a frozen copy of the learner, refreshed between rollouts (docs/spars.md, Method 10)."""

from typing import Any, Literal

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from ...common.checkpoints import load_into
from ...envs.core import Obs
from ...envs.spars import SparsEnv
from ...envs.spars_rules import RULES

InitialOpponent = Literal["self_snapshot", "constant0", "random"]

SELF_PLAY_NOTE = (
    "self-play: the competitor is a copy of the learner, so that a mean reward near 0 is what a fair game gives and no "
    "sign that nothing is learned; watch spars/dice_eval, spars/terminal_hit and spars/score_self instead"
)


class Snapshot:
    """θ̄: a frozen copy of a policy θ, on the same device."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = type(policy)(**policy._get_constructor_parameters()).to(policy.device)
        self.policy.set_training_mode(False)
        self.policy.requires_grad_(False)
        self.refresh(policy)

    def refresh(self, policy: ActorCriticPolicy) -> None:
        """θ̄ ← copy(θ)."""
        self.policy.load_state_dict(policy.state_dict())

    def act(self, obs: Obs, deterministic: bool) -> Tensor:
        """Actions int64 [N] for observations [N, ...]; drawn from PyTorch's global generator unless deterministic."""
        with torch.no_grad():
            return self.policy.get_distribution(obs).get_actions(deterministic=deterministic)


class SelfPlay(BaseCallback):
    """Keeps the competitor of `env` a frozen copy of the learner, refreshed every `refresh_every` rollouts.

    Before the first refresh the competitor is `initial`: the untrained learner, or a rule.
    """

    def __init__(self, env: SparsEnv, refresh_every: int = 1, initial: InitialOpponent = "self_snapshot") -> None:
        super().__init__()
        if refresh_every < 1:
            raise ValueError(f"refresh_every is {refresh_every} rollouts but must be at least 1")
        self.env, self.refresh_every, self.initial = env, refresh_every, initial
        self.snapshot: Snapshot | None = None
        self.refreshed_at = 0
        """Environment step of the last refresh."""

    def _on_rollout_start(self) -> None:
        rollouts = self.model.num_timesteps // (self.model.n_steps * self.model.n_envs)  # type: ignore[attr-defined]
        if rollouts % self.refresh_every == 0 and (rollouts or self.initial == "self_snapshot"):
            self.refresh()
        elif rollouts == 0:
            self.join(self.env)

    def join(self, env: SparsEnv) -> None:
        """Let today's competitor play in `env` too."""
        env.set_opponent(self.snapshot or _Rule(env, self.initial))

    def refresh(self) -> None:
        """Copy the learner now."""
        assert isinstance(self.model.policy, ActorCriticPolicy)
        if self.snapshot is None:
            self.snapshot = Snapshot(self.model.policy)
        self.snapshot.refresh(self.model.policy)
        self.refreshed_at = self.model.num_timesteps
        self.join(self.env)

    def _on_step(self) -> bool:
        return True

    def state(self) -> dict[str, Any]:
        """The frozen copy, for a checkpoint."""
        weights = {} if self.snapshot is None else dict(self.snapshot.policy.state_dict())
        return {"refreshed_at": self.refreshed_at, "weights": weights}

    def load_state(self, state: dict[str, Any], policy: ActorCriticPolicy) -> None:
        """Continue with the frozen copy of a checkpoint; `policy` tells its architecture."""
        self.refreshed_at = state["refreshed_at"]
        if state["weights"]:
            self.snapshot = Snapshot(policy)
            load_into(self.snapshot.policy, state["weights"], "the opponent")
        self.join(self.env)


class _Rule:
    """A named rule of the environment, as a policy object."""

    def __init__(self, env: SparsEnv, name: str) -> None:
        self.env, self.rule = env, RULES[name]

    def act(self, obs: Obs, deterministic: bool) -> Tensor:
        return self.rule(self.env, 1)
