"""Rollouts that stay on the device: T steps of N environments as tensors [T, N, ...].

Stable-Baselines3 makes and reads these buffers like its own, which hold NumPy arrays. Symbols: r = reward, V = value,
A = advantage, γ = discount factor, λ = that of generalised advantage estimation (Schulman et al., 2016).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib.common.maskable.buffers import MaskableRolloutBufferSamples
from torch import Tensor


def advantages(
    rewards: Tensor, values: Tensor, dones: Tensor, last_values: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """A by generalised advantage estimation, of the shape of the rewards.

    Args:
        rewards: r, float32 [T, N, ...].
        values: V of what was observed before each step, float32 [T, N, ...].
        dones: episodes that ended in the step, bool [T, N]; nothing is handed on over an end.
        last_values: V of what is observed after the last step, [N, ...]; not used where an episode has ended there.
        gamma: γ.
        gae_lambda: λ.
    """
    goes_on = (~dones).view(*dones.shape, *[1] * (rewards.ndim - 2))
    following = torch.cat((values[1:], last_values[None]))  # V after each step
    delta = rewards + gamma * following * goes_on - values
    kept = gamma * gae_lambda * goes_on
    for step in reversed(range(len(delta) - 1)):
        delta[step] += kept[step] * delta[step + 1]  # from here on A
    return delta


class TensorBuffer:
    """One rollout, each part of it an attribute, made as a tensor [T, N, ...] when the first step is added.

    Args:
        buffer_size: T.
        spaces: SB3's observation and action space; the tensors of the steps say it themselves.
        gamma: γ.
        gae_lambda: λ.
        told: what else SB3 says of device and environments.
    """

    rewards: Tensor
    dones: Tensor
    """Episodes that ended in the step, bool [T, N]."""

    def __init__(
        self, buffer_size: int, *spaces: Any, gamma: float = 1.0, gae_lambda: float = 1.0, **told: Any
    ) -> None:
        self.steps, self.gamma, self.gae_lambda = buffer_size, gamma, gae_lambda
        self.reset()

    def reset(self) -> None:
        """Begin a new rollout."""
        self.pos = 0

    @torch.no_grad()
    def add(self, **step: Tensor | dict[str, Tensor]) -> None:
        """Keep one step of all environments: a tensor [N, ...], or a dict of them, for each attribute, by its name.

        An environment's graph stays its own.
        """
        for name, value in step.items():
            kept = getattr(self, name, None)
            if kept is None:
                kept = self._room(value)
                setattr(self, name, kept)
            if isinstance(value, dict):
                for key, part in value.items():
                    kept[key][self.pos] = part
            else:
                kept[self.pos] = value
        self.pos += 1

    def _room(self, value: Tensor | dict[str, Tensor]) -> Any:
        if isinstance(value, dict):
            return {key: self._room(part) for key, part in value.items()}
        return torch.empty(self.steps, *value.shape, dtype=value.dtype, device=value.device)

    def order(self, batch_size: int) -> Iterator[Tensor | None]:
        """Numbers of the steps of each batch, int64 [batch_size], on the device, in an order from PyTorch's generator;
        None: one batch takes them all, as they are."""
        total = self.dones.numel()
        if batch_size == total:
            yield None
        else:
            yield from torch.split(torch.randperm(total, device=self.dones.device), batch_size)


def chosen(kept: Any, steps: Tensor | None) -> Any:
    """The steps of a tensor [T, N, ...], or of a dict of them, by their numbers; None: all; None of what is None."""
    if isinstance(kept, dict):
        return {name: chosen(part, steps) for name, part in kept.items()}
    if kept is None:
        return None
    flat = kept.flatten(0, 1)
    return flat if steps is None else flat.index_select(0, steps)


class FlatRolloutBuffer(TensorBuffer):
    """One rollout of PPO or MaskablePPO."""

    observations: Tensor | dict[str, Tensor]
    actions: Tensor
    """As the policy drew them, not clipped to the space: int64 or, of Box, float32 [T, N, number of actions]."""
    old_values: Tensor
    """V of the policy that played, float32 [T, N]."""
    old_log_prob: Tensor
    """Log-probability of the actions, float32 [T, N]."""
    action_masks: Tensor | None = None
    """Actions that could be chosen, bool [T, N, A]; None: all."""
    advantages: Tensor
    """A, float32 [T, N]."""

    def reset(self) -> None:
        """Begin a new rollout, perhaps without masks."""
        super().reset()
        self.action_masks = None

    def compute_advantages(self, last_values: Tensor) -> None:
        """Fill `advantages`; last_values: V of what is observed after the last step, [N]."""
        rows = self.rewards, self.old_values, self.dones, last_values
        self.advantages = advantages(*rows, gamma=self.gamma, gae_lambda=self.gae_lambda)

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """V, as SB3 reads it for the explained variance: NumPy's, once per update."""
        array: npt.NDArray[np.float32] = self.old_values.cpu().numpy()
        return array

    @property
    def returns(self) -> npt.NDArray[np.float32]:
        """λ-returns A + V, as SB3 reads them for the explained variance."""
        array: npt.NDArray[np.float32] = (self.advantages + self.old_values).cpu().numpy()
        return array

    def get(self, batch_size: int) -> Iterator[MaskableRolloutBufferSamples]:
        """All steps once, in batches; PPO does not look at their `action_masks`."""
        returns = self.advantages + self.old_values
        for steps in self.order(batch_size):
            yield MaskableRolloutBufferSamples(
                observations=chosen(self.observations, steps),
                actions=chosen(self.actions, steps),
                old_values=chosen(self.old_values, steps),
                old_log_prob=chosen(self.old_log_prob, steps),
                advantages=chosen(self.advantages, steps),
                returns=chosen(returns, steps),
                action_masks=chosen(self.action_masks, steps),
            )
