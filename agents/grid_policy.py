"""Policies of Stable-Baselines3 for images whose actions are those of a grid of cells: one network for actor and critic
(docs/apga.md, Method 16).

Symbols: x = images [B, C, S, S]; G = cells along each side; φ = logits of the cells [B, 1, G, G]; V = values [B, 1].
"""

from math import isqrt
from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from ..segmenters.grid_network import GridNetwork, halvings


def grid_of(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> int:
    """G of an environment that shows square images and acts on a grid of cells.

    Actions are MultiBinary(G * G), one for each cell; Discrete(G * G + 1), whose last action is none of a cell;
    MultiDiscrete([G, G, G, G]), a box of cells; or a Box of G * G weights in [0, 1].

    Raises:
        ValueError: other spaces, or images that do not become the grid by halving them.
    """
    shape = observation_space.shape or ()
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(f"network is 'grid' but observations are {observation_space}, no square images: use 'mlp'")
    cells = 0
    if isinstance(action_space, spaces.MultiBinary):
        cells = spaces.flatdim(action_space)
    elif isinstance(action_space, spaces.Discrete):
        cells = int(action_space.n) - 1
    elif isinstance(action_space, spaces.MultiDiscrete) and action_space.shape == (4,):
        sides = {int(number) for number in action_space.nvec}
        cells = sides.pop() ** 2 if len(sides) == 1 else 0
    elif isinstance(action_space, spaces.Box) and not action_space.low.any() and (action_space.high == 1).all():
        cells = spaces.flatdim(action_space)
    grid = isqrt(cells)
    if grid < 1 or grid * grid != cells:
        raise ValueError(
            f"network is 'grid' but actions are {action_space}; it needs MultiBinary(G * G), Discrete(G * G + 1), "
            "MultiDiscrete([G] * 4) or G * G weights in [0, 1]: choose another mode of actions, or use 'mlp'"
        )
    halvings(shape[1], grid)
    return grid


class _Grid(nn.Module):
    """What the distribution of actions is made of, [B, A], and V of images, of one pass through a `GridNetwork`."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], width: int) -> None:
        super().__init__()
        assert observation_space.shape is not None
        channels, size, _ = observation_space.shape
        grid = grid_of(observation_space, action_space)
        self.net = GridNetwork(size, grid, channels, width)
        self.weights = isinstance(action_space, spaces.Box)
        stops, boxes = (isinstance(action_space, kind) for kind in (spaces.Discrete, spaces.MultiDiscrete))
        self.stop = nn.Linear(self.net.logits.in_channels, 1) if stops else None
        self.box = nn.Linear(grid * grid, 4 * grid) if boxes else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.features(x)
        pooled, actor = features.mean(dim=(2, 3)), self.net.logits(features).flatten(1)
        if self.stop is not None:  # one logit more
            actor = torch.cat((actor, self.stop(pooled)), dim=1)
        if self.box is not None:  # logits of top, left, height and width
            actor = self.box(actor)
        return actor.sigmoid() if self.weights else actor, self.net.value(pooled)


class _OverGrid(BasePolicy):
    """What both policies are but for their distributions; stands before SB3's class among the bases."""

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
        if isinstance(self.action_space, spaces.Box):
            first = torch.full((spaces.flatdim(self.action_space),), float(self.log_std_init))  # type: ignore[arg-type]
            self.log_std = nn.Parameter(first)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _look(self, obs: PyTorchObs) -> tuple[Tensor, Tensor]:
        """As `_Grid`."""
        actor, values = self.grid(preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images))
        return actor, values

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """V [B, 1]."""
        return self._look(obs)[1]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "width": self.width}


class GridPolicy(_OverGrid, ActorCriticPolicy):
    """φ and V of a `GridNetwork` in place of layers of neurons, of which SB3's head for pixels would need billions.

    The actions of a box of cells are linear in φ; weights are drawn about σ(φ), with a deviation for each cell.

    Args:
        observation_space: Box (C, S, S); uint8 images are divided by 255.
        action_space: one that `grid_of` knows.
        lr_schedule: SB3's argument.
        width: maps of the first level.
        given: SB3's other arguments; net_arch is not used.
    """

    def _seen(self, obs: PyTorchObs) -> tuple[Distribution, Tensor]:
        """π(. | x) and V [B, 1]."""
        actor, values = self._look(obs)
        if isinstance(self.action_dist, DiagGaussianDistribution):
            return self.action_dist.proba_distribution(actor, self.log_std), values
        return self.action_dist.proba_distribution(action_logits=actor), values

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


class MaskableGridPolicy(_OverGrid, MaskableActorCriticPolicy):
    """The same for MaskablePPO of sb3-contrib; arguments as of `GridPolicy`."""

    def _seen(self, obs: PyTorchObs, action_masks: Any = None) -> tuple[MaskableDistribution, Tensor]:
        """π(. | x) of the actions that are not masked, and V [B, 1]."""
        actor, values = self._look(obs)
        distribution: MaskableDistribution = self.action_dist.proba_distribution(action_logits=actor)
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
