"""How an attack's episode begins: its start, and the damage that a scripted attack does from there
(docs/rp-pgd.md, Method 19 and 22)."""

from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..attacks.budget import LinfBall, per_image
from ..attacks.methods import RANDOM_FROM
from ..rewards.damage import measures
from .attack_actions import decode, step_of
from .attack_config import AttackConfig

if TYPE_CHECKING:
    from .attack import AttackEnv


def ball_of(images: Tensor, eps: float) -> LinfBall:
    """The ball of images in [0, 1], which are not looked at, so that the device need not be waited for."""
    radius = torch.full((), eps, device=images.device)
    return LinfBall(images, (images - radius).clamp(min=0), (images + radius).clamp(max=1), radius)


def may_start_at_random(config: AttackConfig) -> bool:
    """Whether some episode begins at random: as chosen, else where there are long ones."""
    return config.horizon >= RANDOM_FROM if config.rand_start is None else config.rand_start


def start_of(config: AttackConfig, ball: LinfBall, noise: Tensor, steps: Tensor) -> Tensor:
    """x_0 [K, C, H, W] of episodes of so many steps, int64 [K].

    noise: in [0, 1), float64 [K, C H W]; not used where no episode begins at random.
    """
    if not may_start_at_random(config):
        return ball.images
    signed = (2 * noise - 1).float().view_as(ball.images)
    start = ball.project(ball.images + ball.radius * signed)
    return start if config.rand_start else torch.where(per_image(steps >= RANDOM_FROM, start), start, ball.images)


class PairedBaseline:
    """The damage of a scripted attack in the episodes that begin, which is taken off their last reward.

    Where all start at the clean image, it is computed once for each image and number of steps.
    """

    def __init__(self, env: "AttackEnv", table: Tensor) -> None:
        """table: of `AttackEnv.script`."""
        self._env, self._table = env, table
        self._keeps = not may_start_at_random(env.config)
        self._known = torch.full((len(env.pool), len(table)), torch.nan, device=env.device)

    def damage(self, index: Tensor, horizon_of: Tensor, ball: LinfBall, labels: Tensor, start: Tensor) -> Tensor:
        """float32 [K], for images and horizons of these numbers, int64 [K], from these starts; it is not counted."""
        known = self._known[index, horizon_of]
        if self._keeps and not bool(known.isnan().any()):
            return known
        env, table = self._env, self._table
        core = copy(env.core)  # of the same victim and settings
        core.reset(ball, labels, start)
        steps = env.horizons[horizon_of]
        first = last = measures(core)[env.config.reward]
        over = torch.zeros_like(core.active)
        for t in range(table.shape[1]):
            step = step_of(decode(table[horizon_of, t]), features=core.features is not None)
            core.step(core.weigh(step.weighting, step.step_size, step.momentum), last=t == table.shape[1] - 1)
            now = measures(core)[env.config.reward]
            last = torch.where(over, last, torch.minimum(last, now) if env.config.best_iterate else now)
            over = over | (t + 1 >= steps) | (core.accuracy() == 0)
        if self._keeps:
            self._known[index, horizon_of] = first - last
        return first - last
