"""Policies of RL4Seg: segmentation methods that act in its environment (docs/rl4seg.md, Method 2).

A policy is a function env -> masks on the environment's device, one for the image of each environment: uint8 [N, H, W],
or [N, H*W] as the environment's space has them.
Those that need a network are made by the run that trained it (baselines.py, evaluation.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...datasets.echo.images import BACKGROUND
from ...envs.rl4seg import EchoEnv
from ...evaluation.echo import largest_heart
from ...segmenters.inference import segment
from ..policy import RandomPolicy, Reference


@dataclass(frozen=True)
class NetworkPolicy:
    """The most probable labels by a network: argmax π."""

    net: nn.Module
    """Logits [B, 3, H, W] of images [B, 1, H, W]."""

    def __call__(self, env: EchoEnv) -> Tensor:
        return segment(self.net, env.pool.images[env.index])


@dataclass(frozen=True)
class CorrectorPolicy:
    """The same, corrected by morphology and shape prior: g(argmax π) (docs/rl4seg.md, Method 8)."""

    net: nn.Module
    """As for `NetworkPolicy`."""
    corrector: Callable[[Tensor], Tensor]
    """g: masks uint8 [B, H, W] to masks, such as rewards.corrector.Corrector."""
    valid: Callable[[Tensor], Tensor] | None = None
    """Masks uint8 [B, H, W] to bool [B], such as rewards.echo_validity.valid_masks: valid masks stay as they are, once
    cut to their largest heart, as they are scored. None: every mask is corrected."""

    def __call__(self, env: EchoEnv) -> Tensor:
        masks = NetworkPolicy(self.net)(env)
        if self.valid is None:
            return self.corrector(masks)
        hearts = largest_heart(masks)
        broken = ~self.valid(hearts).to(masks.device)
        return hearts.masked_scatter(broken[:, None, None], self.corrector(masks[broken]))


class OraclePolicy:
    """The true mask: reward 1 at every pixel with a reward that reads labels. ValueError where no truth is known."""

    def __call__(self, env: EchoEnv) -> Tensor:
        return env.truth()


@dataclass(frozen=True)
class ConstantPolicy:
    """One label everywhere: right where the truth has it."""

    label: int = BACKGROUND
    """0 background, 1 LV, 2 MYO."""

    def __call__(self, env: EchoEnv) -> Tensor:
        return torch.full_like(env.mask, self.label)


POLICIES: dict[str, Reference[EchoEnv]] = {
    "random": Reference(
        "Any label for every pixel, uniformly.", lambda env, seed: RandomPolicy(env.single_action_space, seed)
    ),
    "constant": Reference("Background everywhere.", lambda env, seed: ConstantPolicy()),
    "truth": Reference("The true mask.", lambda env, seed: OraclePolicy(), supervision="target"),
}
"""Reference policies of RL4Seg-Echo-v0 by name."""
