"""Behaviour cloning: the policy of a learner begins as a reference policy acts, and is trained by PPO from there."""

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from ..common import checks
from ..envs.core import BatchedEnv
from .papers import POLICIES
from .policy import Policy, reference
from .ppo import AnyLearner


@dataclass(frozen=True)
class CloneConfig:
    """How a policy is taught to act as a reference policy before its training by PPO.

    Raises:
        ValueError: a value outside its range.
    """

    policy: str | None = None
    """Reference policy of the environment, by name, whose actions are learned first; null: none."""
    steps: int = 80
    """Steps of each environment that it is watched for."""
    epochs: int = 50
    """Passes over what was seen."""
    batch_size: int = 64
    """Samples per gradient step."""
    learning_rate: float = 1e-3
    """Adam learning rate."""

    def __post_init__(self) -> None:
        ones = dict.fromkeys(("steps", "epochs", "batch_size"), checks.AT_LEAST_1)
        checks.check(self, "clone.", learning_rate=checks.POSITIVE, **ones)


def cloned_policy(env_id: str, env: BatchedEnv, config: CloneConfig, seed: int) -> Policy[Any]:
    """The reference policy that is watched.

    Raises:
        ValueError: there is none of this name, it cannot play there, or its actions are not counted.
    """
    assert config.policy is not None
    row = reference(POLICIES.get(env_id, {}), config.policy)
    if not isinstance(env.single_action_space, spaces.Discrete | spaces.MultiDiscrete):
        raise ValueError(
            f"clone.policy is {config.policy!r} but {env_id} has actions of {env.single_action_space}; cloning needs "
            "Discrete or MultiDiscrete ones: leave it out, or choose another action mode"
        )
    return row.policy(env, seed)


def clone(model: AnyLearner, env: BatchedEnv, policy: Policy[Any], config: CloneConfig) -> float:
    """Teach the learner's policy the actions of another one; draws from PyTorch's global generator.

    Args:
        model: the learner; its value head is left as it is.
        env: N environments, seeded, in which `policy` is watched.
        policy: whose actions are learned.
        config: how long.

    Returns:
        Share of the watched actions that are the learner's likeliest at the end.
    """
    seen, chosen = list[Any](), list[Tensor]()
    env.reset()
    for _ in range(config.steps):
        seen.append(env.observe())
        chosen.append(policy(env))
        env.advance(chosen[-1])
    obs, actions = _joined(seen), torch.cat(chosen)
    heads = [one for name, one in model.policy.named_parameters() if "value" not in name]
    optimizer = torch.optim.Adam(heads, lr=config.learning_rate)
    model.policy.set_training_mode(True)
    for _ in range(config.epochs):
        order = torch.randperm(len(actions)).to(actions.device)
        for rows in torch.split(order, config.batch_size):
            _, log_prob, _ = model.policy.evaluate_actions(_taken(obs, rows), actions[rows])
            optimizer.zero_grad()
            (-log_prob.mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.policy.set_training_mode(False)
    with torch.no_grad():
        likeliest = model.policy.get_distribution(obs).get_actions(deterministic=True)
    return float((likeliest.view_as(actions) == actions).float().mean())


def _joined(seen: list[Any]) -> Any:
    if isinstance(seen[0], dict):
        return {name: torch.cat([one[name] for one in seen]) for name in seen[0]}
    return torch.cat(seen)


def _taken(obs: Any, rows: Tensor) -> Any:
    return {name: part[rows] for name, part in obs.items()} if isinstance(obs, dict) else obs[rows]
