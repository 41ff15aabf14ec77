"""The eleven numbers of an attack's step, and how actions stand for them (docs/rp-pgd.md, Method 20).

Actions lie in [-1, 1] and are decoded in float64, so that a scripted attack is an exact point of the action space.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from ..attacks.budget import Epsilon
from ..attacks.methods import ATTACKS, PROTOTYPICAL, Attack
from ..attacks.options import RPOptions
from ..attacks.regions import GROUPS, Weighting
from ..common.checks import check_choice

if TYPE_CHECKING:
    from .attack import AttackEnv

NUMBERS = (*GROUPS, "inter", "intra", "step_size", "region_mean", "confidence", "momentum")
"""What the numbers of an action are, in their order."""
RANGES = {
    **dict.fromkeys(NUMBERS, (0.0, 1.0)),
    "intra": (-1.0, 1.0),
    "step_size": (0.01, 1.0),
    "confidence": (0.0, 2.0),
}
"""Of each number, in their order; the step size is a share of epsilon."""
RESIDUAL = 0.5
"""How far a residual action moves the script's, in units of the action space."""
GRID_GAIN = 2.0
"""Logarithm of the largest factor of a grid of weights."""


class Step(NamedTuple):
    """The numbers of one step, a row for each environment."""

    weighting: Weighting
    step_size: Tensor
    """Share of epsilon, float32 [N]."""
    momentum: Tensor
    """float32 [N]."""


def decode(actions: Tensor) -> Tensor:
    """Numbers float64 [..., 11] in their `RANGES`, in the order of `NUMBERS`, of actions [..., 11] in [-1, 1]."""
    columns = dict(zip(NUMBERS, actions.double().unbind(dim=-1), strict=True))  # no ends of ranges go to the device
    numbers = {name: low + (columns[name] + 1) / 2 * (high - low) for name, (low, high) in RANGES.items()}
    numbers["step_size"] = 10 ** (columns["step_size"] - 1)
    return torch.stack([*numbers.values()], dim=-1)


def encode(numbers: Sequence[float], what: str = "the step") -> list[float]:
    """The action of these numbers, the inverse of `decode`.

    Raises:
        ValueError: a number outside its range.
    """
    action = []
    for name, number in zip(NUMBERS, numbers, strict=True):
        low, high = RANGES[name]
        if not low - 1e-9 <= number <= high + 1e-9:
            raise ValueError(f"{what} has {name} {number:.6g} but an action has it in [{low:g}, {high:g}]")
        value = 1 + math.log10(number) if name == "step_size" else 2 * (number - low) / (high - low) - 1
        action.append(min(max(value, -1.0), 1.0))
    return action


def step_of(numbers: Tensor, *, features: bool) -> Step:
    """The step of numbers float64 [N, 11]; features: whether there are some for the prototype terms."""
    columns = dict(zip(NUMBERS, numbers.float().unbind(dim=-1), strict=True))
    step_size, momentum = columns.pop("step_size"), columns.pop("momentum")
    if not features:
        del columns["inter"], columns["intra"]
    return Step(Weighting(**columns), step_size, momentum)


def script(
    name: str,
    horizons: Sequence[int],
    eps: Epsilon,
    *,
    loss: str,
    options: RPOptions,
    step_size: float | str | None = None,
) -> Tensor:
    """The actions of an attack of `ATTACKS` for each horizon and step, float64 [H, T, 11]; after the last step of a
    shorter horizon, its last action.

    Raises:
        ValueError: there is no such attack, it raises another loss, or it has no such number of steps or no action.
    """
    check_choice("attack", name, ATTACKS)
    attack, longest = ATTACKS[name], max(horizons)
    if attack.loss.__name__ != loss:
        raise ValueError(f"{attack.title} raises {attack.loss.__name__} but loss is {loss!r}; give the former as loss")
    rows = []
    for steps in horizons:
        share = attack.step_share(eps, attack.steps(steps), step_size)
        actions = [_action_of(attack, t, steps, share, options) for t in range(steps)]
        rows.append(actions + actions[-1:] * (longest - steps))
    return torch.tensor(rows, dtype=torch.float64)


def _action_of(attack: Attack, t: int, steps: int, share: float, options: RPOptions) -> list[float]:
    weighting = attack.schedule(t, steps, options)
    given = {name: getattr(weighting, name, None) for name in NUMBERS}
    given |= {"step_size": share, "momentum": attack.momentum}
    return encode([float(given[name] or 0.0) for name in NUMBERS], f"{attack.title}, step {t} of {steps},")


def grid_factors(actions: Tensor, shape: Sequence[int]) -> Tensor:
    """Factors exp(2 a) of the weights of pixels, [N, H, W], of grids [N, G, G]: linear between the middles of cells."""
    grid = F.interpolate(actions.float()[:, None], size=tuple(shape), mode="bilinear", align_corners=False)
    return (GRID_GAIN * grid[:, 0]).exp()


def sign_map(actions: Tensor, channels: int, cells: int, shape: Sequence[int]) -> Tensor:
    """Directions -1, 0, 1, float32 [N, C, H, W], of actions 0, 1, 2 of each channel and cell, [N, C * cells^2]."""
    directions = actions.view(len(actions), channels, cells, cells).float() - 1
    return F.interpolate(directions, size=tuple(shape), mode="nearest")


def scripts_of(env: "AttackEnv") -> tuple[str, ...]:
    """The attacks that the actions of this game are made of, by name."""
    mode, core = env.config.action_mode, env.core
    if mode == "discrete":
        fitting = [name for name, attack in ATTACKS.items() if attack.loss is core.loss and not attack.single]
        return tuple(name for name in fitting if core.feature_layer is not None or name not in PROTOTYPICAL)
    if mode == "signmap":
        return ()
    script_of = env.config.residual_to or ("segpgd" if mode == "gridweight" else None)
    return () if script_of is None else (script_of,)


def action_space(env: "AttackEnv") -> spaces.Space[Any]:
    """The actions of one environment."""
    cells, mode = env.config.cells, env.config.action_mode
    if mode == "gridweight":
        return spaces.Box(-1.0, 1.0, (cells, cells), np.float32)
    if mode == "discrete":
        return spaces.Discrete(len(env.scripts))
    if mode == "signmap":
        return spaces.MultiDiscrete(np.full(env.pool.images.shape[1] * cells * cells, 3))
    return spaces.Box(-1.0, 1.0, (len(NUMBERS),), np.float32)


def move(env: "AttackEnv", actions: Tensor) -> None:
    """One step of the environment's attack by actions [N, ...]; `env.numbers` are those of the step."""
    mode, core = env.config.action_mode, env.core
    if mode == "signmap":
        of_horizons = [ATTACKS["pgd"].step_share(env.eps, steps, env.config.step_size) for steps in env.config.horizons]
        share = torch.zeros_like(env.numbers[:, 0])
        for number, value in enumerate(of_horizons):
            share = share.masked_fill(env.horizon_of == number, value)
        place = torch.arange(len(NUMBERS), device=share.device) == NUMBERS.index("step_size")
        env.numbers = torch.where(place, share[:, None], 0.0)
        channels, *shape = env.pool.images.shape[1:]
        core.shift(sign_map(actions, channels, env.config.cells, shape), share.float())
        return
    if mode == "discrete":
        tables = torch.stack(env.tables)
        chosen = tables[actions, env.horizon_of, env.t.clamp(max=tables.shape[2] - 1)]
    elif env.tables:
        chosen = env.scripted(env.tables[0])
        if mode == "schedule":
            chosen = (chosen + RESIDUAL * actions.double()).clamp(-1, 1)
    else:
        chosen = actions
    env.numbers = decode(chosen)
    step = step_of(env.numbers, features=core.features is not None)
    spec = core.weigh(step.weighting, step.step_size, step.momentum)
    if mode == "gridweight":
        spec = replace(spec, weights=spec.weights * grid_factors(actions, spec.weights.shape[1:]))
    core.step(spec)
