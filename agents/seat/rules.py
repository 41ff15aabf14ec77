"""Policies of SEAT's inner environment: the adversarial iterations of known trainings and attacks (docs/seat.md,
Method 18)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...envs.seat_attack import SEATAttackEnv
from ...envs.seat_attack_actions import encode
from ..policy import RandomPolicy, Reference
from .trainers import since_success

DEAT_LEAST = 10 / 255
"""Least step size of DEAT, as a share of the range."""


@dataclass(frozen=True)
class Steps:
    """So many steps of one size, then stop.

    Where a victim learns from every pass, Free-m has m - 1 steps: the pass of the start is the first of its m.
    """

    count: int | None
    """None: one fewer than `env.iterations`, which a controller may change."""
    share: float
    """Step size as a share of the radius."""

    def __call__(self, env: SEATAttackEnv) -> Tensor:
        """Actions [N, ...]."""
        count = env.iterations - 1 if self.count is None else self.count
        return encode(env.config.action_mode, env.t < count, self.share)


class DEAT:
    """As many passes as `env.iterations`, by steps of max(b / K, 10/255 of the range)."""

    def __call__(self, env: SEATAttackEnv) -> Tensor:
        """Actions [N, ...]."""
        share = max(1 / env.iterations, DEAT_LEAST / env.eps.value)
        return encode(env.config.action_mode, env.t < env.iterations - 1, share)


class FAT:
    """Steps of b / 4; stops `tau` steps after the Dice of hard labels was at most `dice_threshold` first."""

    def __init__(self, tau: int = 1) -> None:
        self.tau = tau
        self._since: Tensor | None = None

    def __call__(self, env: SEATAttackEnv) -> Tensor:
        """Actions [N, ...]."""
        since = torch.full_like(env.t, -1) if self._since is None else self._since
        since = torch.where(env.t == 0, -1, since)
        self._since = since_success(since, env.replays, env.config.dice_threshold)
        return encode(env.config.action_mode, self._since < self.tau, 0.25)


REPLAYED = {"update_victim": ("every_step",), "start": ("carry",)}
"""What Free-AT and SEAT need: a victim that learns from every pass, and the noise of the batch before."""
POLICIES: dict[str, Reference[SEATAttackEnv]] = {
    "random": Reference(
        "Any action, uniformly.",
        lambda env, seed: RandomPolicy(env.single_action_space, seed),
    ),
    "noop": Reference("Stop at once.", lambda env, seed: Steps(0, 1.0)),
    "fgsm": Reference("FGSM: one step of the whole radius.", lambda env, seed: Steps(1, 1.0), supervision="voxel"),
    "pgd": Reference(
        "PGD: as many steps of a quarter of the radius as `iterations` says.",
        lambda env, seed: Steps(env.config.iterations, 0.25),
        supervision="voxel",
    ),
    "free": Reference(
        "Free-AT: as many passes as `iterations` says, by steps of half the radius, each of which teaches.",
        lambda env, seed: Steps(env.config.iterations - 1, 0.5),
        supervision="voxel",
        needs=REPLAYED,
    ),
    "seat": Reference(
        "SEAT: as Free-AT, with as many passes as the controller says now (`env.iterations`).",
        lambda env, seed: Steps(None, 0.5),
        supervision="voxel",
        needs=REPLAYED,
    ),
    "deat": Reference(
        "DEAT: as many passes as the controller says, by steps of the radius / K, at least 10/255 of the range.",
        lambda env, seed: DEAT(),
        supervision="voxel",
        needs={"action_mode": ("box",)},
    ),
    "fat": Reference(
        "FAT: steps of a quarter of the radius, until one after the Dice fell to `dice_threshold`.",
        lambda env, seed: FAT(),
        supervision="voxel",
    ),
}
"""Reference policies by name."""
