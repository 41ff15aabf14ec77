"""The contract of every environment: `BatchedEnv` plays N episodes at once, as tensors on one device.

It is the only place where dynamics live; adapters.py shows it to Gymnasium and to Stable-Baselines3.
"""

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property, reduce
from operator import add
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ..common.checks import signature_with_fields, with_settings
from ..common.device import resolve_device
from ..datasets.sample import Origin
from .actions import check_actions
from .random import Streams

log = logging.getLogger(__name__)

Obs = Tensor | dict[str, Tensor]
Frame = npt.NDArray[np.uint8]

_HAS_DISPLAY = sys.platform in ("win32", "darwin") or bool(
    os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
)


@dataclass(frozen=True)
class EnvConfig:
    """Arguments common to all environments."""

    horizon: int = 100
    """T: steps after which an episode is truncated."""


@dataclass(frozen=True)
class Ended:
    """The K episodes that ended in a step, read before the next ones began; tensors stay on the device."""

    env_ids: Tensor
    """Numbers of their environments, int64 [K], ascending."""
    obs: Obs
    """Their last observations, [K, ...]."""
    info: dict[str, Tensor]
    """`info()` of their last step, each [K, ...]."""
    make_episode_info: Callable[[], list[dict[str, Any]]] = field(repr=False)
    """Makes `episode_info`; synchronises with the GPU."""

    @cached_property
    def episode_info(self) -> list[dict[str, Any]]:
        """Facts of each of the K episodes as Python objects, such as a Dice; made when first asked for."""
        return self.make_episode_info()


@dataclass(frozen=True)
class Advance:
    """Result of one step of N environments that reset themselves.

    `obs` [N, ...] is the first observation of the new episode where one ended; reward float32 [N], terminated and
    truncated bool [N] are of the step. `ended` holds the last moments of the episodes that ended; None: none did.
    """

    obs: Obs
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    ended: Ended | None


class BatchedEnv(ABC):
    """N independent episodes on one device.

    A subclass names the dataclass of its arguments in `config_class` (with a field `horizon`; `EnvConfig` has nothing
    else), calls this constructor first, sets the two spaces, and writes four methods:

    * `_reset(env_ids, options)` begins episodes in some environments;
    * `_step(actions)` moves all of them, and gives named reward terms and who terminated;
    * `observe(env_ids)` gives observations;
    * `_render_frame(env_id)` draws one environment.

    If it has infos of its own it writes `_info` (tensors) and `_episode_info` (anything, at the end of an episode); if
    training in it shall be resumed exactly, `state` and `load_state`. Counting steps, truncation, automatic reset,
    weighing rewards, seeding and checking actions are done here. State lives in tensors [N, ...] on `self.device`;
    randomness comes from `self.streams.uniform(numbers_per_env, env_ids)`, never from PyTorch's or NumPy's generators.

        class GuessEnv(BatchedEnv):
            '''Say whether the number shown is above one half.'''

            def __init__(self, config: EnvConfig | None = None, **settings: Any) -> None:
                super().__init__(config, **settings)
                self.single_observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
                self.single_action_space = spaces.Discrete(2)
                self.number = torch.zeros(self.num_envs, device=self.device)

            def _reset(self, env_ids, options):
                drawn = self.streams.uniform(1, env_ids)[:, 0].float()
                self.number = self.number.index_copy(0, env_ids, drawn)  # a new tensor: observations are views of it

            def _step(self, actions):
                right = (self.number > 0.5) == (actions > 0)
                self.number = self.streams.uniform(1)[:, 0].float()
                return {"reward": right.float()}, torch.zeros_like(right)  # never terminated: truncated after `horizon`

            def observe(self, env_ids=None):
                return self.number[:, None] if env_ids is None else self.number[env_ids, None]

            def _render_frame(self, env_id):
                return np.full((8, 8, 3), int(255 * self.number[env_id]), np.uint8)

    `GuessEnv(num_envs=64, device="cuda", horizon=20)` is ready for a learner: `LearnerEnv(env)` is a VecEnv of
    Stable-Baselines3, `SingleEnv` and `BatchEnv` are Gymnasium's interfaces. After `segarena.envs.register` both
    `gym.make` and the command line find it by its id.

    An environment may keep what it likes between steps, a gradient graph or networks in training; one that needs
    gradients opens `torch.enable_grad()` in `_reset` and `_step` itself, since learners step under `no_grad`. What
    leaves it (reward, terms, `Ended.info`, NumPy observations) is detached here.

    Args:
        config: an instance of `config_class`; default: one made of its defaults.
        num_envs: N, episodes at once.
        device: "auto", "cpu", "cuda" or "cuda:N".
        render_mode: None, "rgb_array", or "human" where there is a display.
        settings: fields of `config_class` by name; they replace those of `config`.

    Raises:
        ValueError: an unknown argument or a value outside its range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["rgb_array", *(["human"] if _HAS_DISPLAY else [])],
        "render_fps": 8,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    config_class: ClassVar[type[Any]] = EnvConfig
    vector_defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings that gym.make_vec chooses unless they are given: what costs every step of many environments."""
    single_observation_space: gym.Space[Any]
    """Observation of one environment."""
    single_action_space: gym.Space[Any]
    """Action of one environment: Discrete, MultiDiscrete, MultiBinary or Box."""
    action_shape: tuple[int, int] | None = None
    """Height and width of the grid of a flat action space with fewer actions than the observed image has pixels; the
    image's height and width must be multiples of it. None: one action for each pixel, or no grid."""
    origin: Origin = "phantom"
    """Where the samples come from; a subclass that plays on recorded ones sets it. Results name it."""
    reward_weights: dict[str, float]
    """Weight of each reward term that `_step` gives, by name; a subclass whose terms are others than "reward" sets it.
    To leave a term out of the reward, set its weight to 0."""
    shows_truth = True
    """Whether its pictures show the labels."""
    reward_terms: dict[str, Tensor]
    """Weighted reward terms of the last step by name, each float [N]; their sum is the reward. Kept when an episode
    ends; {} before the first reset."""

    def __init__(
        self,
        config: Any = None,
        *,
        num_envs: int = 1,
        device: str | torch.device = "auto",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if "max_episode_steps" in settings:
            steps = settings["max_episode_steps"]
            given = any(one.name == "horizon" for one in fields(self.config_class))
            mend = f"give horizon={steps!r}" if given else "leave it out, its horizon is fixed"
            raise ValueError(f"max_episode_steps is {steps!r} but {type(self).__name__} counts its own steps: {mend}")
        self.config = self._resolved(with_settings(self.config_class() if config is None else config, settings))
        for name, value in (("num_envs", num_envs), ("horizon", self.config.horizon)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r} but must be an integer, at least 1")
        modes = self.metadata["render_modes"]
        if render_mode not in (None, *modes):
            display = "; this machine has no display" if render_mode == "human" else ""
            raise ValueError(f"render_mode is {render_mode!r} but must be None or one of {modes}{display}")
        self.num_envs, self.device = num_envs, resolve_device(device)
        self.horizon, self.render_mode = self.config.horizon, render_mode
        self.reward_weights, self.reward_terms = {"reward": 1.0}, {}
        self.streams = Streams(num_envs, self.device)
        self.t = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        """Steps that the running episode of each environment has had, int64 [N]."""
        self.running = False
        self._all = torch.arange(num_envs, device=self.device)

    def __init_subclass__(cls, **given: Any) -> None:
        """Let `inspect.signature`, `help` and completion show the fields of `config_class`."""
        super().__init_subclass__(**given)
        signature = signature_with_fields(cls.__init__, BatchedEnv.__init__, cls.config_class)
        cls.__signature__ = signature.replace(parameters=[*signature.parameters.values()][1:])  # type: ignore[attr-defined]

    # -- what a subclass writes ------------------------------------------------------------------------------------

    def _resolved(self, config: Any) -> Any:
        """`config` with the fields filled in that depend on other fields."""
        return config

    @abstractmethod
    def _reset(self, env_ids: Tensor, options: Mapping[str, Any]) -> None:
        """Begin new episodes in the environments `env_ids` int64 [K], whose t is 0 already."""

    @abstractmethod
    def _step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Reward terms by name, each float32 [N], and terminated bool [N] of one move in every environment.

        The reward is the sum of the terms, in their order, each times its weight. t counts the step afterwards.
        """

    @abstractmethod
    def observe(self, env_ids: Tensor | None = None) -> Obs:
        """Current observations [N, ...], or those of the environments `env_ids` int64 [K] only, [K, ...].

        The tensors are the caller's: no later step or reset may write to them.
        """

    @abstractmethod
    def _render_frame(self, env_id: int) -> Frame:
        """The picture that a reader of the paper would draw, uint8 [H, W, 3]."""

    def _info(self) -> dict[str, Tensor]:
        """The environment's own part of `info`, each [N, ...]."""
        return {}

    def action_masks(self) -> Tensor:
        """Actions that are not wasted as the episodes stand, bool [N, A], for MaskablePPO of sb3-contrib; here all.

        A: n of `Discrete`, the sum of nvec of `MultiDiscrete`, 2 n of `MultiBinary`; of each part of an action at least
        one is left.

        Raises:
            ValueError: actions that cannot be counted (Box).
        """
        space = self.single_action_space
        if isinstance(space, spaces.Box):
            raise ValueError(f"{space} has no action masks, since its actions cannot be counted")
        count = 2 * spaces.flatdim(space) if isinstance(space, spaces.MultiBinary) else spaces.flatdim(space)
        return torch.ones(self.num_envs, count, dtype=torch.bool, device=self.device)

    def _episode_info(self, env_ids: Tensor) -> Callable[[], list[dict[str, Any]]]:
        """A function that makes the `episode_info` of the environments `env_ids` int64 [K].

        It is called at most once, perhaps after the next episodes began, and perhaps never: read here, without waiting
        for the device, what a reset or a step overwrites, and wait in the function.
        """
        return lambda: [{} for _ in range(len(env_ids))]

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and strings from which `load_state` continues these episodes; subclasses add theirs.

        Each keeps its type, and each tensor its shape, in every state of a training; what is empty at first may grow.
        """
        return {
            "t": self.t,
            "streams": self.streams.state(),
            "running": self.running,
            "reward_terms": self.reward_terms,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self.t = state["t"].to(self.device, copy=True)
        self.streams.load_state(state["streams"])
        self.running = state["running"]
        self.reward_terms = {name: term.to(self.device, copy=True) for name, term in state["reward_terms"].items()}

    # -- what adapters, learners and reference policies call -------------------------------------------------------

    def seed(self, seeds: Sequence[int]) -> None:
        """Seed every environment; the next `reset` begins from there."""
        self.streams.seed(seeds)

    def reset(self, env_ids: Tensor | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Begin new episodes in the environments `env_ids` int64 [K], or in all."""
        env_ids = self._all if env_ids is None else env_ids
        self.t.index_fill_(0, env_ids, 0)  # t[env_ids] = 0 would wait for CUDA
        self._reset(env_ids, options or {})
        if not self.running:
            self.reward_terms = {name: torch.zeros(self.num_envs, device=self.device) for name in self.reward_weights}
        self.running = True

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward float32 [N], terminated bool [N] and truncated bool [N] of one move in every environment.

        With a horizon of 1 the one step is the whole episode: it terminates, and nothing is truncated.

        Raises:
            ResetNeeded: no episode was begun.
            ValueError: reward terms without a weight, or weights without a term; terminated is not bool.
        """
        if not self.running:
            raise ResetNeeded("step before reset: call reset() first")
        terms, terminated = self._step(actions)
        if terminated.dtype != torch.bool:
            raise ValueError(f"terminated is {terminated.dtype} but must be torch.bool: `_step` says who terminated")
        if terms.keys() != self.reward_weights.keys():
            raise ValueError(f"reward_weights names {list(self.reward_weights)} but the reward terms are {list(terms)}")
        weights = self.reward_weights
        weighted = {name: term if weights[name] == 1.0 else weights[name] * term for name, term in terms.items()}
        self.reward_terms = {name: term.detach() for name, term in weighted.items()}
        self.t = self.t + 1
        if self.horizon == 1:
            terminated = torch.ones_like(terminated)
        truncated = (self.t >= self.horizon) & ~terminated
        return reduce(add, self.reward_terms.values()), terminated, truncated

    def advance(self, actions: Tensor) -> Advance:
        """One step; where an episode ended, the next one begins at once."""
        reward, terminated, truncated = self.step(actions)
        # with a horizon of 1 all end: the device need not be asked which
        env_ids = self._all if self.horizon == 1 else (terminated | truncated).nonzero().flatten()
        ended = None
        if len(env_ids):
            info = {name: value.detach().index_select(0, env_ids) for name, value in self.info().items()}
            ended = Ended(env_ids, self.observe(env_ids), info, self._episode_info(env_ids))
            self.reset(env_ids)
        return Advance(self.observe(), reward, terminated, truncated, ended)

    def info(self) -> dict[str, Tensor]:
        """Per-environment info tensors, each [N, ...], after the last step or reset.

        `reward/<term>` for each reward term, weighted, 0 at the start of an episode; the others are the environment's.
        """
        begun = self.t == 0
        terms = {f"reward/{name}": term.masked_fill(begun, 0.0) for name, term in self.reward_terms.items()}
        return {**self._info(), **terms}

    def episode_info(self, env_ids: Tensor) -> list[dict[str, Any]]:
        """Facts of the episodes that just ended in the environments `env_ids` int64 [K]; synchronises with the GPU."""
        return self._episode_info(env_ids)()

    def render(self, env_id: int = 0) -> Frame | None:
        """The picture of environment `env_id`: returned for "rgb_array", shown for "human"."""
        picture = self._render_frame(env_id)
        if self.render_mode != "human":
            return picture
        _show(picture)
        return None

    def legend(self) -> Sequence[tuple[tuple[int, int, int], str]]:
        """Colours (red, green, blue) of its pictures, and what each means, for films."""
        return ()

    def caption(self, env_id: int) -> str:
        """What is known of environment `env_id` beside step and reward, in words, for films."""
        return ""

    def action_text(self, action: Tensor) -> str:
        """One environment's action in words, for films; "" where it is too long to read."""
        return ", ".join(f"{number:.3g}" for number in action.flatten().tolist()) if action.numel() <= 8 else ""

    def actions_from(self, actions: Any) -> Tensor:
        """The tensor of `actions`, which come from outside.

        Raises:
            ValueError: a wrong shape or type, or a value outside the action space.
        """
        given = np.asarray(actions.cpu() if isinstance(actions, Tensor) else actions)
        check_actions(given, self.single_action_space, self.num_envs)
        return torch.as_tensor(given).to(self.device, non_blocking=True)


@cache
def notice_phantom(env: str, way_out: str) -> None:
    """Log, once for each environment, that its images are made up, and how to get real ones."""
    log.warning("%s plays on phantoms; %s", env, way_out)


def _show(frame: Frame) -> None:
    """Show a frame in a window that stays open between calls."""
    import matplotlib.pyplot as plt

    figure = plt.figure("SegArena")
    figure.clear()
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.imshow(frame)
    plt.pause(1 / BatchedEnv.metadata["render_fps"])
