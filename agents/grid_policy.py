"""Policies of Stable-Baselines3 for images whose actions are the cells of a grid: one network for actor and critic
(docs/apga.md, Method 16).

Symbols: x = images [B, C, S, S]; G = cells along each side; φ = logits of the actions [B, A]; V = values [B, 1].
"""

from math import isqrt
from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from ..segmenters.grid_network import GridNetwork, halvings


def grid_of(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> int:
    """G of an environment that shows square images and has one action for each cell of a grid: MultiBinary(G * G), or
    Discrete(G * G + 1), whose last action is none of a cell.

    Raises:
        ValueError: other spaces, or images that do not become the grid by halving them.
    """
    shape = observation_space.shape or ()
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(f"network is 'grid' but observations are {observation_space}, no square images: use 'mlp'")
    cells = spaces.flatdim(action_space) if isinstance(action_space, spaces.MultiBinary) else 0
    if isinstance(action_space, spaces.Discrete):
        cells = int(action_space.n) - 1
    grid = isqrt(cells)
    if grid < 1 or grid * grid != cells:
        raise ValueError(
            f"network is 'grid' but actions are {action_space}; it needs MultiBinary(G * G), or Discrete(G * G + 1): "
            "choose another mode of actions, or use 'mlp'"
        )
    halvings(shape[1], grid)
    return grid


class _Grid(nn.Module):
    """φ and V of images, of one pass through a `GridNetwork`; with `stops` one logit more than cells."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], width: int) -> None:
        super().__init__()
        assert observation_space.shape is not None
        channels, size, _ = observation_space.shape
        self.net = GridNetwork(size, grid_of(observation_space, action_space), channels, width)
        stops = isinstance(action_space, spaces.Discrete)
        self.stop = nn.Linear(self.net.logits.in_channels, 1) if stops else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.features(x)
        pooled, logits = features.mean(dim=(2, 3)), self.net.logits(features).flatten(1)
        if self.stop is not None:
            logits = torch.cat((logits, self.stop(pooled)), dim=1)
        return logits, self.net.value(pooled)


class GridPolicy(ActorCriticPolicy):
    """φ and V of a `GridNetwork` in place of layers of neurons, of which SB3's head for pixels would need billions.

    Args:
        observation_space: Box (C, S, S); uint8 images are divided by 255.
        action_space: MultiBinary(G * G), or Discrete(G * G + 1), whose last action is none of a cell.
        lr_schedule: SB3's argument.
        width: maps of the first level.
        given: SB3's other arguments; net_arch is not used.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        width: int = 16,
        **given: Any,
    ) -> None:
        self.width = width
        super().__init__(observation_space, action_space, lr_schedule, **given)

    def _build(self, lr_schedule: Schedule) -> None:
        self.grid = _Grid(self.observation_space, self.action_space, self.width)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _seen(self, obs: PyTorchObs) -> tuple[Distribution, Tensor]:
        """π(. | x) and V [B, 1]."""
        logits, values = self.grid(preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images))
        return self.action_dist.proba_distribution(action_logits=logits), values

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [B, ...], V [B, 1] and log π [B]."""
        distribution, values = self._seen(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions.reshape(-1, *(self.action_space.shape or ())), values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """V [B, 1], log π [B] and entropy [B] of actions."""
        distribution, values = self._seen(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """π(. | x)."""
        return self._seen(obs)[0]

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """V [B, 1]."""
        return self._seen(obs)[1]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "width": self.width}


class MaskableGridPolicy(MaskableActorCriticPolicy):
    """The same for MaskablePPO of sb3-contrib; arguments as of `GridPolicy`."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        width: int = 16,
        **given: Any,
    ) -> None:
        self.width = width
        super().__init__(observation_space, action_space, lr_schedule, **given)

    def _build(self, lr_schedule: Schedule) -> None:
        self.grid = _Grid(self.observation_space, self.action_space, self.width)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _seen(self, obs: PyTorchObs, action_masks: Any = None) -> tuple[MaskableDistribution, Tensor]:
        """π(. | x) of the actions that are not masked, and V [B, 1]."""
        logits, values = self.grid(preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images))
        distribution: MaskableDistribution = self.action_dist.proba_distribution(action_logits=logits)
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution, values

    def forward(
        self, obs: Tensor, deterministic: bool = False, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [B, ...], V [B, 1] and log π [B]."""
        distribution, values = self._seen(obs, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: Tensor, actions: Tensor, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """V [B, 1], log π [B] and entropy [B] of actions."""
        distribution, values = self._seen(obs, action_masks)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs, action_masks: Any = None) -> MaskableDistribution:
        """π(. | x) of the actions that are not masked."""
        return self._seen(obs, action_masks)[0]

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """V [B, 1]."""
        return self._seen(obs)[1]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "width": self.width}
