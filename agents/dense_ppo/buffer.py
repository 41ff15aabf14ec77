"""Rollouts of maps, kept on the device: T steps of N environments.

Symbols: a = action map; r = reward map; V = value map; l = log-probability of a; all [B, H, W], H and W being the grid
of actions.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...envs.core import Advance, BatchedEnv
from ..rollout_buffer import TensorBuffer, advantages, chosen


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


class DenseRolloutBuffer(TensorBuffer):
    """One rollout of maps."""

    observations: Tensor
    """Images [T, N, channels, height, width]."""
    actions: Tensor
    old_log_prob: Tensor
    old_values: Tensor
    returns: Tensor
    ref_log_prob: Tensor | None = None
    """The reference network's log-probabilities."""
    divergence: Tensor | None = None
    """Mean KL per pixel of the policy that played from the reference network, [T, N]."""
    gold: Tensor | None = None
    """Actions that were given, bool [T, N]."""

    def reset(self) -> None:
        """Begin a new rollout."""
        super().reset()
        self.forward_pass: tuple[Tensor, Tensor] | None = None
        """Logits and V of the rollout, with their graph, where the first inner step may use them."""

    def compute_returns(self, last_values: Tensor, group_size: int = 1) -> None:
        """Fill `returns` with A + V, A by GAE in every pixel; with G > 1 `old_values` too, each group's mean.

        Without a critic V is 0, and λ = 1 gives Monte Carlo returns; a smaller λ would discount a second time.

        last_values: V of what is observed after the last step, [N, H, W]; not used where an episode has ended there.
        """
        rows = self.rewards, self.old_values, self.dones, last_values
        self.returns = advantages(*rows, gamma=self.gamma, gae_lambda=self.gae_lambda) + self.old_values
        if group_size > 1:
            steps, envs, height, width = self.returns.shape
            groups = self.returns.view(steps, envs // group_size, group_size, height, width)
            self.old_values = groups.mean(dim=2, keepdim=True).expand_as(groups).reshape_as(self.old_values)

    def get(self, batch_size: int) -> Iterator[Samples]:
        """All steps once: as they are where one batch takes them all, else in an order from PyTorch's generator."""
        for steps in self.order(batch_size):
            yield Samples(**{name: chosen(getattr(self, name), steps) for name in Samples._fields})


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
