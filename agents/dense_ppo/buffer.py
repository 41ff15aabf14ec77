"""What a rollout of maps gathers, on the device: T steps of N slots, a number for every pixel (paper: RL4Seg, 11.5).

Symbols: a = action map; r = reward map; V = value map; l = log-probability of a; all [B, H, W].
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from ...envs.core import Advance, BatchedEnv
from .policy import map_shape


class Samples(NamedTuple):
    """B steps of a rollout; maps are float32 [B, H, W]."""

    observations: Tensor
    """[B, channels, H, W]."""
    actions: Tensor
    """a, uint8 [B, H, W]."""
    old_log_prob: Tensor
    """l of the policy that played."""
    ref_log_prob: Tensor
    """l of the reference."""
    old_values: Tensor
    """V when it was played; with groups, the mean return of the group."""
    returns: Tensor
    """r, and what followed it in longer episodes."""
    gold: Tensor
    """Images whose action was given, bool [B]."""


class DenseRolloutBuffer:
    """A rollout; SB3 makes and uses it as it does its own, which are NumPy's.

    Args:
        buffer_size: T.
        observation_space: images (channels, H, W).
        action_space: one action for each pixel.
        device: of all tensors.
        gae_lambda: λ of generalised advantage estimation.
        gamma: discount.
        n_envs: N.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        device: str | torch.device = "cpu",
        gae_lambda: float = 1.0,
        gamma: float = 1.0,
        n_envs: int = 1,
    ) -> None:
        self.gamma, self.gae_lambda = gamma, gae_lambda
        slots = (buffer_size, n_envs)
        maps = (*slots, *map_shape(observation_space, action_space)[1:])
        assert observation_space.shape is not None
        assert observation_space.dtype is not None
        kind = getattr(torch, observation_space.dtype.name)
        self.observations = torch.zeros(*slots, *observation_space.shape, dtype=kind, device=device)
        self.actions = torch.zeros(maps, dtype=torch.uint8, device=device)
        self.log_probs, self.ref_log_probs, self.rewards, self.values, self.returns = (
            torch.zeros(maps, device=device) for _ in range(5)
        )
        self.divergence = torch.zeros(slots, device=device)
        """Mean KL per pixel of the policy that played from the reference."""
        self.gold, self.dones = (torch.zeros(slots, dtype=torch.bool, device=device) for _ in range(2))
        self.reset()

    def reset(self) -> None:
        """Begin a new rollout."""
        self.pos = 0
        self.forward_pass: tuple[Tensor, Tensor] | None = None
        """Logits and V of the rollout, with their graph, where the first inner step may use them."""

    def add(self, **step: Tensor) -> None:
        """Keep one step of all slots: a tensor [N, ...] for each attribute, by its name."""
        for name, value in step.items():
            getattr(self, name)[self.pos] = value
        self.pos += 1

    def compute_returns(self, last_values: Tensor, group_size: int = 1) -> None:
        """GAE in every pixel: `returns` = A + V. With G > 1, `values` becomes the mean return of each group.

        last_values: V of what is observed after the last step, [N, H, W]; not used where an episode has ended there.
        """
        advantage, following = torch.zeros_like(last_values), last_values
        for step in reversed(range(len(self.values))):
            goes_on = (~self.dones[step])[:, None, None]
            delta = self.rewards[step] + self.gamma * following * goes_on - self.values[step]
            advantage = delta + self.gamma * self.gae_lambda * goes_on * advantage
            following = self.values[step]
            self.returns[step] = advantage + following
        if group_size > 1:
            steps, slots, height, width = self.returns.shape
            groups = self.returns.view(steps, slots // group_size, group_size, height, width)
            self.values = groups.mean(dim=2, keepdim=True).expand_as(groups).reshape_as(self.values)

    def get(self, batch_size: int) -> Iterator[Samples]:
        """All steps once: as they are where one batch takes them all, else in an order from PyTorch's generator."""
        kept = (
            self.observations,
            self.actions,
            self.log_probs,
            self.ref_log_probs,
            self.values,
            self.returns,
            self.gold,
        )
        flat = Samples(*(value.flatten(0, 1) for value in kept))
        total = len(flat.gold)
        if batch_size == total:
            yield flat
            return
        for rows in torch.split(torch.randperm(total, device=flat.gold.device), batch_size):
            yield Samples(*(value[rows] for value in flat))


def said(env: BatchedEnv, step: Advance, name: str) -> Tensor | None:
    """What the env said under `name` of the step just played, [N, ...], ended episodes included; None: nothing."""
    ended = step.ended
    if ended is not None and len(ended.rows) == env.num_envs:
        return ended.info.get(name)
    now = env.info().get(name)
    return now if now is None or ended is None else now.index_copy(0, ended.rows, ended.info[name])


def stretched(reward: Tensor) -> Tensor:
    """(r - min r) / (max r - min r) over each map of [B, H, W]; a constant map says nothing of pixels and stays."""
    low, high = reward.amin(dim=(1, 2), keepdim=True), reward.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (reward - low) / (high - low).clamp(min=1e-12), reward)
