"""An open-loop schedule: the same actions in every episode, whatever is observed, tuned by an evolution strategy.

It is the control of a learned policy with continuous actions: one that does no better has learned nothing from what it
observes. CMA-ES (Hansen, 2016, arXiv 1604.00772; by `cma`) searches the actions of all steps of an episode, [T, A].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..common.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, check
from ..common.runs import Run
from ..common.stopping import stop_if_asked
from ..envs.core import BatchedEnv
from .policy import play

MOST_NUMBERS = 4096
"""Numbers of a schedule, T times A, at most: CMA-ES keeps a matrix of their covariances."""


@dataclass(frozen=True)
class OpenLoopConfig:
    """Tuning of an open-loop schedule by CMA-ES."""

    generations: int = 0
    """Generations; 0: there is no such schedule."""
    population: int | None = None
    """Schedules in a generation; null: 4 + 3 ln(number of their actions)."""
    sigma: float = 0.3
    """Deviation of the first generation, as a share of each action's range."""
    episodes: int = 96
    """Episodes that each schedule plays, the same for all of a generation and others in the next."""

    def __post_init__(self) -> None:
        check(self, "open_loop.", generations=AT_LEAST_0, population=(2, 10_000), sigma=POSITIVE, episodes=AT_LEAST_1)

    def steps(self, env: BatchedEnv) -> int:
        """Environment steps that the search takes."""
        steps, width = schedule_shape(env)
        population = self.population or 4 + int(3 * math.log(steps * width))
        return self.generations * population * self.episodes * steps


@dataclass(frozen=True)
class OpenLoop:
    """A policy that plays a schedule, actions [T, ...] of the first T steps of an episode, the last one after them."""

    schedule: Tensor

    def __call__(self, env: BatchedEnv) -> Tensor:
        """Actions float32 [N, ...] of the steps that the episodes are in."""
        return self.schedule.to(env.device)[env.t.clamp(max=len(self.schedule) - 1)]


def schedule_shape(env: BatchedEnv) -> tuple[int, int]:
    """Steps T and numbers A of an action of a schedule for this environment.

    Raises:
        ValueError: its actions are not continuous and bounded, or a schedule has too many numbers.
    """
    space = env.single_action_space
    if not isinstance(space, spaces.Box) or not space.is_bounded():
        raise ValueError(f"open_loop needs continuous actions with bounds, but those of this environment are {space}")
    shape = env.horizon, int(np.prod(space.shape))
    if shape[0] * shape[1] > MOST_NUMBERS:
        raise ValueError(
            f"open_loop has {shape[0]} steps of {shape[1]} numbers but a schedule has at most {MOST_NUMBERS} in all; "
            "choose a shorter horizon or another action mode"
        )
    return shape


def evolution_strategy() -> Callable[..., Any]:
    """CMA-ES of `cma`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from cma import CMAEvolutionStrategy
    except ImportError as missing:
        raise ValueError(
            "open_loop needs cma: pip install 'segarena[attacks]', or leave the schedule out by open_loop.generations 0"
        ) from missing
    strategy: Callable[..., Any] = CMAEvolutionStrategy
    return strategy


def tune_schedule(env: BatchedEnv, config: OpenLoopConfig, seed: int, run: Run) -> Tensor:
    """The mean of CMA-ES's last generation, about the schedule with the highest mean return: float32 [T, ...], on the
    environment's device.

    It begins at the middle of each action's range. A run that was killed goes on from its last generation.

    Args:
        env: `config.episodes` environments or fewer.
        config: of the search.
        seed: of the search.
        run: the stage; gets scalars and checkpoints.

    Raises:
        ValueError: actions that are not continuous, or `cma` is not installed.
        Stopped: a signal asked for it; the last generation is kept.
    """
    steps, width = schedule_shape(env)
    space = env.single_action_space
    assert isinstance(space, spaces.Box)
    low, high = (np.tile(np.asarray(end, dtype=np.float64).ravel(), steps) for end in (space.low, space.high))

    def decode(numbers: np.ndarray[Any, np.dtype[np.float64]]) -> Tensor:
        actions = low + (high - low) * np.clip(numbers, 0.0, 1.0)
        return torch.from_numpy(actions.astype(np.float32)).view(steps, *space.low.shape).to(env.device)

    search = evolution_strategy()(np.full(steps * width, 0.5), config.sigma, _options(config, seed))
    checkpoint = run.resume()
    returns: list[list[float]] = checkpoint.state["returns"] if checkpoint else []
    for known in returns:  # what was asked follows from the seed: nothing is played again
        search.tell(search.ask(), [-value for value in known])
    with run.progress.bar(config.generations, initial=len(returns), title="open loop", unit="generation") as bar:
        for generation in range(len(returns), config.generations):
            asked = search.ask()
            found = [_mean_return(env, decode(one), config, generation) for one in asked]
            search.tell(asked, [-value for value in found])
            returns.append(found)
            mean, best = sum(found) / len(found), max(found)
            run.log(generation + 1, {"open_loop/mean_return": mean, "open_loop/best_return": best})
            run.save(generation + 1, {"schedule": decode(search.result.xfavorite)}, {"returns": returns})
            bar.reach(generation + 1, {"mean_return": mean})
            stop_if_asked()
    return decode(search.result.xfavorite)


def _mean_return(env: BatchedEnv, schedule: Tensor, config: OpenLoopConfig, generation: int) -> float:
    """Over the episodes of a generation, as many of them at once as there are environments."""
    policy, total, played = OpenLoop(schedule), 0.0, 0
    while played < config.episodes:
        begin = generation * config.episodes + played
        env.seed([begin + number for number in range(env.num_envs)])
        env.reset()
        returns = play(env, policy).returns[: config.episodes - played]
        total, played = total + float(returns.sum()), played + len(returns)
    return total / config.episodes


def _options(config: OpenLoopConfig, seed: int) -> dict[str, Any]:
    population = {} if config.population is None else {"popsize": config.population}
    # cma takes seed 0 for the clock's
    return {"bounds": [0.0, 1.0], "seed": seed + 1, "verbose": -9, "maxiter": np.inf, **population}
