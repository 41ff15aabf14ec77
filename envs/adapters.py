"""The three faces of a `BatchedEnv`: they add nothing but shapes.

`SingleEnv` is what gym.make gives, `BatchEnv` what gym.make_vec gives, `LearnerEnv` the VecEnv of Stable-Baselines3.
The latter two begin a new episode in the step that ended one (SAME_STEP), by the same `BatchedEnv.advance`.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from .core import Advance, BatchedEnv, Ended, Frame, Obs


def to_numpy(obs: Obs) -> Any:
    """The observation as NumPy arrays; on the CPU without a copy."""
    if isinstance(obs, dict):
        return {name: value.detach().cpu().numpy() for name, value in obs.items()}
    return obs.detach().cpu().numpy()


def infos_of(ended: Ended) -> Iterator[tuple[int, Any, dict[str, Any]]]:
    """Slot, last observation and info of each episode that ended."""
    last, info = to_numpy(ended.obs), to_numpy(ended.info)
    for k, (row, said) in enumerate(zip(ended.rows.tolist(), ended.said, strict=True)):
        yield row, row_of(last, k), {**{name: value[k] for name, value in info.items()}, **said}


def row_of(obs: Any, row: int) -> Any:
    """Observation `row` of a batch of them."""
    return {name: value[row] for name, value in obs.items()} if isinstance(obs, dict) else obs[row]


class SingleEnv(gym.Env[Any, Any]):
    """The `gym.Env` face: one episode; `env.unwrapped.batched` is the `BatchedEnv` behind it."""

    metadata = BatchedEnv.metadata

    def __init__(self, env: BatchedEnv) -> None:
        self.batched = env
        self.render_mode = env.render_mode
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; `seed` seeds all that is random from here on."""
        fresh = seed is not None or self._np_random is None
        super().reset(seed=seed)
        if fresh:
            self.batched.seed([seed if seed is not None else int(self.np_random.integers(2**63))])
        self.batched.reset(options=options)
        self._over = False
        if self.render_mode == "human":
            self.batched.render()
        return row_of(to_numpy(self.batched.observe()), 0), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One move.

        Raises:
            ResetNeeded: the episode has ended or none was begun.
            ValueError: the action is outside the action space.
        """
        if self._over:
            raise ResetNeeded("step before reset: the episode has ended or none was begun; call reset() first")
        reward, terminated, truncated = self.batched.step(self.batched.actions_from(np.asarray(action)[None]))
        ended, cut = bool(terminated), bool(truncated)
        info = self._info()
        if ended or cut:
            self._over = True
            info |= self.batched.episode_info(torch.zeros(1, dtype=torch.int64, device=self.batched.device))[0]
        if self.render_mode == "human":
            self.batched.render()
        return row_of(to_numpy(self.batched.observe()), 0), float(reward), ended, cut, info

    def render(self) -> Any:
        """The picture of this step as uint8 [H, W, 3], or None where it is shown or no render_mode was chosen."""
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode: make the environment with render_mode='rgb_array'")
            return None
        return self.batched.render()

    def _info(self) -> dict[str, Any]:
        return {name: _plain(value[0]) for name, value in to_numpy(self.batched.info()).items()}


class BatchEnv(gym.vector.VectorEnv[Any, Any, npt.NDArray[Any]]):
    """The `gymnasium.vector.VectorEnv` face; resets in the step that ended an episode."""

    metadata = BatchedEnv.metadata

    def __init__(self, env: BatchedEnv) -> None:
        self.batched, self.num_envs, self.render_mode = env, env.num_envs, env.render_mode
        self.single_observation_space, self.single_action_space = (
            env.single_observation_space,
            env.single_action_space,
        )
        self.observation_space = batch_space(env.single_observation_space, env.num_envs)
        self.action_space = batch_space(env.single_action_space, env.num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every slot; an integer seed s gives slot i the seed s + i."""
        fresh = seed is not None or self._np_random is None
        if isinstance(seed, int) or (seed is None and fresh):
            super().reset(seed=seed)
            seed = seed if seed is not None else int(self.np_random.integers(2**62))
            seed = [seed + slot for slot in range(self.num_envs)]
        if seed is not None:
            self.batched.seed(seed)
        self.batched.reset(options=options)
        return to_numpy(self.batched.observe()), self._info()

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One move in every slot; `final_obs` and `final_info` describe the episodes that ended."""
        step = self.batched.advance(self.batched.actions_from(actions))
        info = self._info()
        if step.ended:
            for row, last, said in infos_of(step.ended):
                info = self._add_info(info, {"final_obs": last, "final_info": said}, row)
        reward = step.reward.double().cpu().numpy()
        return to_numpy(step.obs), reward, step.terminated.cpu().numpy(), step.truncated.cpu().numpy(), info

    def render(self) -> tuple[Any, ...] | None:
        """The picture of every slot; None where no render_mode was chosen."""
        if self.render_mode is None:
            return None
        return tuple(self.batched.render(row) for row in range(self.num_envs))

    def _info(self) -> dict[str, Any]:
        present = np.ones(self.num_envs, dtype=np.bool_)
        said = {name: array.copy() for name, array in to_numpy(self.batched.info()).items()}  # a reset writes in place
        return {**said, **{f"_{name}": present.copy() for name in said}}


class LearnerEnv(VecEnv):
    """The Stable-Baselines3 face. `infos` are filled only for episodes that end in the step (`episode`,
    `terminal_observation`, `TimeLimit.truncated` and what the env says); a running one has an empty dict.

    Agents that keep rollouts on the device play `env.advance` themselves: the same step, as tensors.
    """

    def __init__(self, env: BatchedEnv) -> None:
        self.batched = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._returns = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)

    def reset(self) -> Any:
        """Begin an episode in every slot."""
        if self._seeds[0] is None:
            self.seed()
        if any(options != self._options[0] for options in self._options):
            raise ValueError("options differ between environments; give all of them the same")
        self.batched.seed([seed for seed in self._seeds if seed is not None])
        self.batched.reset(options=self._options[0])
        self._reset_seeds()
        self._reset_options()
        self._returns.zero_()
        return to_numpy(self.batched.observe())

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Take the actions of the next `step_wait`."""
        self._actions = self.batched.actions_from(actions)

    def step_wait(self) -> tuple[Any, npt.NDArray[np.float32], npt.NDArray[np.bool_], list[dict[str, Any]]]:
        """Observations, rewards, dones and infos of the step."""
        lengths = self.batched.t + 1
        step = self.batched.advance(self._actions)
        returns = self.count(step)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if step.ended:
            for row, last, said in infos_of(step.ended):
                infos[row] = {
                    **said,
                    "terminal_observation": last,
                    "TimeLimit.truncated": bool(step.truncated[row]),
                    "episode": {"r": float(returns[row]), "l": int(lengths[row])},
                }
        done = (step.terminated | step.truncated).cpu().numpy()
        return to_numpy(step.obs), step.reward.cpu().numpy(), done, infos

    def count(self, step: Advance) -> torch.Tensor:
        """Add a step that was played to the returns, float64 [N] with it; those of ended episodes then start anew."""
        returns = self._returns = self._returns + step.reward
        if step.ended:
            self._returns = returns.index_fill(0, step.ended.rows, 0.0)
        return returns

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs."""
        return {"env": self.batched.state(), "returns": self._returns}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue the episodes of `state`."""
        self.batched.load_state(state["env"])
        self._returns = state["returns"].to(self.batched.device, copy=True)

    def get_images(self) -> Sequence[Frame | None]:
        """The picture of every slot."""
        return [self.batched.render(row) for row in range(self.num_envs)]

    def close(self) -> None:
        """Nothing is held that needs closing."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the env, once per slot asked for."""
        return [getattr(self.batched, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the env, which all slots share."""
        setattr(self.batched, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the env, which all slots share, and repeat its result per slot asked for."""
        result = getattr(self.batched, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """True for Monitor, whose work `episode` in the infos does; no other wrapper is inside."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]


def make_single(env_class: str, **settings: Any) -> SingleEnv:
    """Entry point of `gym.make`; env_class is "module:Class" of a BatchedEnv."""
    return SingleEnv(_build(env_class, num_envs=1, **settings))


def make_batch(env_class: str, num_envs: int = 1, **settings: Any) -> BatchEnv:
    """Entry point of `gym.make_vec`."""
    return BatchEnv(_build(env_class, num_envs=num_envs, **settings))


def _build(env_class: str, **settings: Any) -> BatchedEnv:
    module, name = env_class.split(":")
    built = getattr(importlib.import_module(module), name)(**settings)
    assert isinstance(built, BatchedEnv)
    return built


def _plain(value: Any) -> Any:
    """A Python number for a NumPy one, an array as it is."""
    return value.item() if value.ndim == 0 else value
