"""Policies of SEAT-MSD-v0: constant K, SEAT's controller, its rivals, a bandit (docs/seat.md, Method 13 and 19)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...envs.seat import SEATEnv
from ..policy import Policy, RandomPolicy, Reference
from .controller import DEAT, SEAT, MPlus, Schedule

CONSTANTS = (1, 2, 3, 4, 5)
BONUS = 0.02
"""Weight of what is not known yet in the bandit's choice, in units of the reward of a step."""


def actions_towards(env: SEATEnv, wanted: Tensor) -> Tensor:
    """Actions [N] or [N, 2] by which K becomes `wanted`, int64 [N]: at once, or by one where they are relative.

    Epsilon is left as it is.
    """
    relative = env.config.action_mode == "relative"
    choice = (wanted - env.iterations).clamp(-1, 1) + 1 if relative else wanted.clamp(1, env.config.most_iterations) - 1
    return torch.stack((choice, torch.zeros_like(choice)), dim=1) if env.config.eps_enlarger else choice


class SchedulePolicy:
    """A schedule of `controller.py` for each environment: it is told each segment's magnitude, as a trainer would.

    Args:
        make: a schedule, from K_max.
    """

    def __init__(self, make: Callable[[int], Schedule]) -> None:
        self._make = make
        self.schedules: list[Schedule] = []

    def __call__(self, env: SEATEnv) -> Tensor:
        """Actions towards the K of each schedule; its threshold is told to the environment."""
        if len(self.schedules) != env.num_envs:
            self.schedules = [self._make(env.config.most_iterations) for _ in range(env.num_envs)]
        told = zip(env.t.tolist(), env.info()["mag"].tolist(), strict=True)
        for number, (segment, magnitude) in enumerate(told):
            if segment == 0:
                self.schedules[number] = self._make(env.config.most_iterations)
            else:
                self.schedules[number].update(segment, magnitude)
        thresholds = [getattr(one, "threshold", 0.0) for one in self.schedules]
        env.threshold = torch.tensor(thresholds, dtype=torch.float32, device=env.device)
        wanted = torch.tensor([one.iterations for one in self.schedules], device=env.device)
        return actions_towards(env, wanted)


@dataclass(frozen=True)
class Constant:
    """Always K iterations: Free-K."""

    iterations: int

    def __call__(self, env: SEATEnv) -> Tensor:
        """Actions towards K, at most K_max."""
        return actions_towards(env, torch.full_like(env.iterations, min(self.iterations, env.config.most_iterations)))


class Bandit:
    """UCB1 over K, for each environment by itself: the mean reward of the segments with this K, and a bonus for what
    was seldom tried; each K once at first, from 1 on."""

    def __init__(self) -> None:
        self._sums = self._counts = torch.zeros(0, 0)

    def __call__(self, env: SEATEnv) -> Tensor:
        """Actions towards the K of the highest bound."""
        shape = (env.num_envs, env.config.most_iterations)
        if self._sums.shape != shape:
            self._sums = self._counts = torch.zeros(shape, device=env.device)
        begun = env.t == 0
        played = torch.nn.functional.one_hot(env.iterations - 1, shape[1]).float()
        reward = sum(env.reward_terms.values(), torch.zeros_like(env.rate))
        self._sums = torch.where(begun[:, None], 0.0, self._sums + played * reward[:, None])
        self._counts = torch.where(begun[:, None], 0.0, self._counts + played)
        total = self._counts.sum(dim=1, keepdim=True).clamp(min=1)
        bound = self._sums / self._counts + BONUS * (2 * total.log() / self._counts).sqrt()
        untried = self._counts == 0
        order = -torch.arange(shape[1], device=env.device).float()
        return actions_towards(env, 1 + torch.where(untried, 1e6 + order, bound).argmax(dim=1))


def _schedule(about: str, make: Callable[[int], Schedule]) -> Reference[SEATEnv]:
    return Reference(about, lambda env, seed: SchedulePolicy(make))


def _constant(iterations: int) -> Reference[SEATEnv]:
    def made(env: SEATEnv, seed: int) -> Policy[SEATEnv]:
        return Constant(iterations)

    return Reference(f"K = {iterations}: Free-{iterations}.", made)


POLICIES: dict[str, Reference[SEATEnv]] = {
    "random": Reference("Any action, uniformly.", lambda env, seed: RandomPolicy(env.single_action_space, seed)),
    **{f"constant_{iterations}": _constant(iterations) for iterations in CONSTANTS},
    "seat": _schedule("SEAT's controller: K follows the magnitude of the gradient.", SEAT),
    "m_plus": _schedule("SEAT's controller without a fall of K.", MPlus),
    "deat_d": _schedule("K rises by one every three segments.", DEAT),
    "bandit": Reference("UCB1 over K, by the reward of each segment.", lambda env, seed: Bandit()),
}
"""Reference policies by name. Where actions are relative, they come to their K by one a segment."""
