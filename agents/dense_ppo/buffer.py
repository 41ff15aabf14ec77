"""Rollouts of maps, kept on the device: T steps of N environments.

Symbols: a = action map; r = reward map; V = value map; l = log-probability of a; all [B, H, W], H and W being the grid
of actions.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...envs.core import Advance, BatchedEnv
from .policy import map_shape


class Samples(NamedTuple):
    """B steps of a rollout; maps are float32 [B, H, W]."""

    observations: Tensor
    """Images [B, channels, height, width]."""
    actions: Tensor
    """a, uint8 [B, H, W]."""
    old_log_prob: Tensor
    """l of the policy that played."""
    old_values: Tensor
    """V when it was played; with groups, the mean return of the group."""
    returns: Tensor
    """λ-return per pixel; equal to the reward r when an episode is one step. [B, H, W]"""
    ref_log_prob: Tensor | None
    """l of the reference network; None without one."""
    gold: Tensor | None
    """True for images whose action was given, bool [B]; None without imitation."""


class DenseRolloutBuffer:
    """One rollout, as tensors on the device; SB3 makes and uses it like its own buffers, which hold NumPy arrays.

    Args:
        buffer_size: T.
        observation_space: images (channels, height, width).
        action_space: flat, one action for each place of the grid.
        device: device of all tensors.
        gae_lambda: λ of generalised advantage estimation.
        gamma: discount factor.
        n_envs: N.
        action_shape: H, W of the grid of actions; None: the images' own.
        reference: keep the reference network's log-probabilities, and the divergence from it.
        imitate: keep which actions were given.
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
        *,
        action_shape: tuple[int, int] | None = None,
        reference: bool = False,
        imitate: bool = False,
    ) -> None:
        self.gamma, self.gae_lambda = gamma, gae_lambda
        steps = (buffer_size, n_envs)
        maps = (*steps, *map_shape(observation_space, action_space, action_shape)[1:])
        assert observation_space.shape is not None
        assert observation_space.dtype is not None
        kind = getattr(torch, observation_space.dtype.name)
        self.observations = torch.zeros(*steps, *observation_space.shape, dtype=kind, device=device)
        self.actions = torch.zeros(maps, dtype=torch.uint8, device=device)
        self.log_probs, self.rewards, self.values, self.returns = (torch.zeros(maps, device=device) for _ in range(4))
        self.dones = torch.zeros(steps, dtype=torch.bool, device=device)
        self.ref_log_probs = torch.zeros(maps, device=device) if reference else None
        self.divergence = torch.zeros(steps, device=device) if reference else None
        """Mean KL per pixel of the policy that played from the reference network."""
        self.gold = torch.zeros(steps, dtype=torch.bool, device=device) if imitate else None
        self.reset()

    def reset(self) -> None:
        """Begin a new rollout."""
        self.pos = 0
        self.forward_pass: tuple[Tensor, Tensor] | None = None
        """Logits and V of the rollout, with their graph, where the first inner step may use them."""

    def add(self, **step: Tensor) -> None:
        """Keep one step of all environments: a tensor [N, ...] for each attribute, by its name."""
        for name, value in step.items():
            getattr(self, name)[self.pos] = value
        self.pos += 1

    def compute_returns(self, last_values: Tensor, group_size: int = 1) -> None:
        """Fill `returns` with A + V, A by GAE in every pixel; with G > 1 also `values`, with each group's mean return.

        Without a critic V is 0, and λ = 1 gives Monte Carlo returns; a smaller λ would discount a second time.

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
            steps, envs, height, width = self.returns.shape
            groups = self.returns.view(steps, envs // group_size, group_size, height, width)
            self.values = groups.mean(dim=2, keepdim=True).expand_as(groups).reshape_as(self.values)

    def get(self, batch_size: int) -> Iterator[Samples]:
        """All steps once: as they are where one batch takes them all, else in an order from PyTorch's generator."""
        names = ("observations", "actions", "log_probs", "values", "returns", "ref_log_probs", "gold")
        flat: list[Any] = [None if (kept := getattr(self, name)) is None else kept.flatten(0, 1) for name in names]
        total = self.returns.shape[0] * self.returns.shape[1]
        if batch_size == total:
            yield Samples(*flat)
            return
        for chosen in torch.split(torch.randperm(total, device=self.returns.device), batch_size):
            batch: list[Any] = [None if value is None else value[chosen] for value in flat]
            yield Samples(*batch)


def info_of_step(env: BatchedEnv, step: Advance, name: str) -> Tensor | None:
    """`info[name]` of the step just played, [N, ...], that of ended episodes included; None: there is no such info."""
    ended = step.ended
    if ended is not None and len(ended.env_ids) == env.num_envs:
        return ended.info.get(name)
    now = env.info().get(name)
    return now if now is None or ended is None else now.index_copy(0, ended.env_ids, ended.info[name])


def dones_of_step(step: Advance) -> npt.NDArray[np.bool_]:
    """True for episodes that ended in the step, bool [N]; waits for the device only where others go on."""
    envs = len(step.terminated)
    ended = 0 if step.ended is None else len(step.ended.env_ids)
    if ended in (0, envs):
        return np.full(envs, ended == envs)
    return (step.terminated | step.truncated).cpu().numpy()
