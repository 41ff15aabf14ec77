"""Reference policies of RL4Seg: other ways to segment, as players of the same environment (paper: RL4Seg, section 2.2).

A policy is a function env -> masks uint8 [N, H, W] on the env's device, one for the image of each slot. The
evaluation protocol asks the same networks about all images at once (rl4seg_evaluation.py); these play the episodes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...datasets.echo.images import BACKGROUND, CLASSES
from ...envs.rl4seg import EchoEnv
from ...segmenters.inference import segment

Policy = Callable[[EchoEnv], Tensor]


@dataclass(frozen=True)
class SourceOnlyPolicy:
    """The most probable labels by a network that never saw the target: argmax π_0."""

    net: nn.Module
    """Logits [B, 3, H, W] of images [B, 1, H, W]."""

    def __call__(self, env: EchoEnv) -> Tensor:
        return segment(self.net, env.pool.images[env.index])


@dataclass(frozen=True)
class CorrectorPolicy:
    """The same, corrected by morphology and shape prior: g(argmax π_0), section 3.4."""

    net: nn.Module
    """As for `SourceOnlyPolicy`."""
    corrector: Callable[[Tensor], Tensor]
    """g: masks uint8 [B, H, W] to masks, such as rewards.shape_prior.Corrector."""

    def __call__(self, env: EchoEnv) -> Tensor:
        return self.corrector(SourceOnlyPolicy(self.net)(env))


class OraclePolicy:
    """The truth: earns 1 at every pixel where the truth decides. ValueError where none is known."""

    def __call__(self, env: EchoEnv) -> Tensor:
        return env.truth()


class RandomPolicy:
    """Any label, uniformly and independently: right in a third of the pixels.

    Args:
        seed: of its own generator, so that it leaves the env's decks alone; on the CPU, so that devices agree.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, env: EchoEnv) -> Tensor:
        shape = tuple(env.mask.shape)
        return torch.randint(len(CLASSES), shape, generator=self._generator, dtype=torch.uint8).to(env.device)


@dataclass(frozen=True)
class ConstantPolicy:
    """One label everywhere: right where the truth has it."""

    label: int = BACKGROUND
    """0 background, 1 LV, 2 MYO."""

    def __call__(self, env: EchoEnv) -> Tensor:
        return torch.full_like(env.mask, self.label)
