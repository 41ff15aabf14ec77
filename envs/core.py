"""The contract of every environment: `BatchedEnv` plays N episodes at once, as tensors on one device.

It is the only place where dynamics live; faces.py shows it to Gymnasium and to Stable-Baselines3.
"""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ..common.device import resolve_device

Obs = Tensor | dict[str, Tensor]
Frame = npt.NDArray[np.uint8]

_HAS_DISPLAY = sys.platform in ("win32", "darwin") or bool(
    os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
)


class Streams:
    """One stream of random numbers per episode slot: number k of slot n is a hash of (seed of n, k).

    Counter-based (SplitMix64), so that a slot draws the same numbers alone or among a thousand others, on CPU or CUDA,
    all slots in one call; its state is two integers a slot, and the number of ticks.
    """

    AHEAD = 64
    """Ticks that are drawn at once."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self.key = torch.zeros(slots, dtype=torch.int64, device=device)
        self.drawn = torch.zeros(slots, dtype=torch.int64, device=device)
        self.ticks = 0
        self._ahead: Tensor | None = None

    def seed(self, seeds: Sequence[int]) -> None:
        """Start the stream of every slot anew."""
        signed = [(seed & (2**64 - 1)) - (seed & 2**63) * 2 for seed in seeds]
        self.key = _mix(torch.tensor(signed, dtype=torch.int64, device=self.key.device) + _GOLDEN)
        self.drawn = torch.zeros_like(self.drawn)
        self.ticks, self._ahead = 0, None

    def uniform(self, lanes: int, rows: Tensor | None = None) -> Tensor:
        """The next `lanes` numbers of each slot (of the slots `rows`), float64 [N, lanes] in [0, 1)."""
        key, drawn = (self.key, self.drawn) if rows is None else (self.key[rows], self.drawn[rows])
        number = drawn[:, None] + torch.arange(1, lanes + 1, device=key.device)
        if rows is None:
            self.drawn = drawn + lanes
        else:
            self.drawn[rows] = drawn + lanes
        return _shift(_mix(key[:, None] + number * _GOLDEN), 11).double() * 2.0**-53

    def tick(self) -> Tensor:
        """One number of every slot, float64 [N] in [0, 1), from a second stream that is drawn `AHEAD` of its use.

        For draws that every slot makes in every step: the cost of a draw is a row of a table.
        """
        row = self.ticks % self.AHEAD
        if row == 0 or self._ahead is None:
            number = self.ticks - row + torch.arange(1, self.AHEAD + 1, device=self.key.device)
            self._ahead = _shift(_mix(_mix(self.key) + number[:, None] * _GOLDEN), 11).double() * 2.0**-53
        self.ticks += 1
        return self._ahead[row]

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs."""
        return {"key": self.key, "drawn": self.drawn, "ticks": self.ticks}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self.key, self.drawn = (state[name].to(self.key.device, copy=True) for name in ("key", "drawn"))
        self.ticks, self._ahead = state["ticks"], None


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser."""
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class Ended:
    """The K episodes that ended in a step, read before the next ones began; tensors stay on the device."""

    rows: Tensor
    """Their slots, int64 [K]."""
    obs: Obs
    """Their last observations, [K, ...]."""
    info: dict[str, Tensor]
    """`info()` of their last step, each [K, ...]."""
    said: list[dict[str, Any]]
    """`episode_info()` of each."""


@dataclass(frozen=True)
class Advance:
    """What one step of N episodes with automatic reset gives; obs belongs to the new episode where one ended."""

    obs: Obs
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    ended: Ended | None


class BatchedEnv(ABC):
    """N independent episodes on one device.

    A subclass sets the two spaces and writes `_reset`, `_step`, `observe` and `_render_frame`; `info` and
    `episode_info` add tensors and, for an episode that ended, anything else. It may keep what it likes between steps, a
    gradient graph or networks in training; one that needs gradients opens `torch.enable_grad()` in `_reset` and `_step`
    itself, since learners step under `no_grad`. What leaves it (reward, `Ended.info`, NumPy observations) is detached
    here.

    Args:
        num_envs: N, episodes at once.
        device: "auto", "cpu", "cuda" or "cuda:N".
        horizon: T, steps after which an episode is truncated. (gym.make keeps the name max_episode_steps to itself, for
            its own wrapper, and does not hand it on.)
        render_mode: None, "rgb_array", or "human" where there is a display.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["rgb_array", *(["human"] if _HAS_DISPLAY else [])],
        "render_fps": 8,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    single_observation_space: gym.Space[Any]
    single_action_space: gym.Space[Any]
    action_shape: tuple[int, int] | None = None
    """Height and width of the grid of a flat action space with fewer actions than the observed image has pixels; the
    image's height and width must be multiples of it. None: one action for each pixel, or no grid."""

    def __init__(
        self,
        *,
        num_envs: int = 1,
        device: str | torch.device = "auto",
        horizon: int,
        render_mode: str | None = None,
    ) -> None:
        for name, value in (("num_envs", num_envs), ("horizon", horizon)):
            if value < 1:
                raise ValueError(f"{name} is {value!r} but must be at least 1")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode is {render_mode!r} but must be None or one of {self.metadata['render_modes']}"
            )
        self.num_envs, self.device = num_envs, resolve_device(device)
        self.horizon, self.render_mode = horizon, render_mode
        self.streams = Streams(num_envs, self.device)
        self.t = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.running = False
        self.reward_terms: dict[str, Tensor] = {}
        """The weighted terms of the last step's reward, each float32 [N]; their sum is the reward."""

    # -- the env --------------------------------------------------------------------------------------------------

    @abstractmethod
    def _reset(self, rows: Tensor, options: Mapping[str, Any]) -> None:
        """Put the slots `rows` (int64 [K]) at the start of a new episode; t is 0 there already."""

    @abstractmethod
    def _step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """One move in every slot; t counts it afterwards. Reward float32 [N], terminated bool [N]."""

    @abstractmethod
    def observe(self, rows: Tensor | None = None) -> Obs:
        """What the learner sees now, [N, ...]; of the slots `rows` only, [K, ...]."""

    def info(self) -> dict[str, Tensor]:
        """What may be said of the slots as they are now, each [N, ...]: of the last step, or of a fresh start."""
        return {}

    def episode_info(self, rows: Tensor) -> list[dict[str, Any]]:
        """What may be said of each of the episodes that just ended in the slots `rows` int64 [K]."""
        return [{} for _ in rows]

    @abstractmethod
    def _render_frame(self, row: int) -> Frame:
        """The picture that a reader of the paper would draw, uint8 [H, W, 3]."""

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs to continue these episodes (tensors, numbers, strings); subclasses add theirs."""
        return {"t": self.t, "streams": self.streams.state(), "running": self.running}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self.t = state["t"].to(self.device, copy=True)
        self.streams.load_state(state["streams"])
        self.running = state["running"]

    # -- what the faces call ---------------------------------------------------------------------------------------

    def seed(self, seeds: Sequence[int]) -> None:
        """Seed every slot; the next `reset` begins from there."""
        self.streams.seed(seeds)

    def reset(self, rows: Tensor | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Begin new episodes in the slots `rows` (int64 [K]), or in all."""
        rows = torch.arange(self.num_envs, device=self.device) if rows is None else rows
        self.t[rows] = 0
        self._reset(rows, options or {})
        self.running = True

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward float32 [N], terminated bool [N], truncated bool [N] of one move in every slot.

        Raises:
            ResetNeeded: no episode was begun.
        """
        if not self.running:
            raise ResetNeeded("step before reset: call reset() first")
        reward, terminated = self._step(actions)
        self.t = self.t + 1
        return reward.detach(), terminated, (self.t >= self.horizon) & ~terminated

    def advance(self, actions: Tensor) -> Advance:
        """One step; where an episode ended, the next one begins at once."""
        reward, terminated, truncated = self.step(actions)
        rows = (terminated | truncated).nonzero().flatten()
        ended = None
        if len(rows):
            info = {name: value[rows].detach() for name, value in self.info().items()}
            ended = Ended(rows, self.observe(rows), info, self.episode_info(rows))
            self.reset(rows)
        return Advance(self.observe(), reward, terminated, truncated, ended)

    def render(self, row: int = 0) -> Frame | None:
        """The picture of slot `row`: returned for "rgb_array", shown for "human"."""
        picture = self._render_frame(row)
        if self.render_mode != "human":
            return picture
        _show(picture)
        return None

    def actions_from(self, actions: Any) -> Tensor:
        """The tensor of `actions`, which come from outside.

        Raises:
            ValueError: a wrong shape or type, or a value outside the action space.
        """
        given, space = np.asarray(actions), self.single_action_space
        assert space.shape is not None
        if given.shape != (self.num_envs, *space.shape):
            raise ValueError(
                f"actions have shape {given.shape} but must have {(self.num_envs, *space.shape)} for {space}"
            )
        if isinstance(space, spaces.Box):
            low, high, kinds = space.low, space.high, "fiu"
        elif isinstance(space, spaces.Discrete):
            low, high, kinds = np.array(space.start), np.array(space.start + space.n - 1), "iu"
        elif isinstance(space, spaces.MultiDiscrete):
            low, high, kinds = space.start, space.start + space.nvec - 1, "iu"
        else:
            low, high, kinds = np.array(0), np.array(1), "iub"  # MultiBinary
        if given.dtype.kind not in kinds:
            raise ValueError(
                f"actions have dtype {given.dtype} but {space} takes {'numbers' if 'f' in kinds else 'integers'}"
            )
        if not ((given >= low) & (given <= high)).all():  # NaN fails too
            bad = given[~((given >= low) & (given <= high))][0]
            raise ValueError(f"action {bad!r} is outside {space}")
        return torch.as_tensor(given, device=self.device)


def _show(frame: Frame) -> None:
    """Show a frame in a window that stays open between calls."""
    import matplotlib.pyplot as plt

    figure = plt.figure("SegArena")
    figure.clear()
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.imshow(frame)
    plt.pause(1 / BatchedEnv.metadata["render_fps"])
