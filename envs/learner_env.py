"""The adapter of a `BatchedEnv` to Stable-Baselines3."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from .adapters import of_env, to_numpy
from .core import Advance, BatchedEnv, Frame


class LearnerEnv(VecEnv):
    """The Stable-Baselines3 adapter: N environments as a `VecEnv`.

    `infos` are filled only where an episode ended in the step: `episode`, `terminal_observation`,
    `TimeLimit.truncated`, `info()` and `episode_info` of its end; elsewhere they are empty. Learners that keep rollouts
    on the device call `advance` instead: the same step, as tensors.

    `get_attr`, `set_attr` and `env_method` reach the `BatchedEnv`, which all environments share; of a method that gives
    a tensor [N, ...], such as `action_masks`, each environment gets its row.
    """

    def __init__(self, env: BatchedEnv) -> None:
        self.batched = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._returns = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)

    def reset(self) -> Any:
        """Begin an episode in every environment."""
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
        step, ends = self.advance(self._actions)
        seen: dict[str, Any] = {"obs": step.obs, "reward": step.reward, "done": step.terminated | step.truncated}
        if step.ended:
            seen |= {"last": step.ended.obs}
        seen, infos = self.told(step, ends, seen)
        for row, env_id in enumerate(seen["done"].nonzero()[0]):
            infos[env_id]["terminal_observation"] = of_env(seen["last"], row)
        return seen["obs"], seen["reward"], seen["done"], infos

    def advance(self, actions: Tensor) -> tuple[Advance, dict[str, Tensor]]:
        """One step as tensors on the device, and of the K episodes that it ended, each [K]: `r`, the return, float64;
        `l`, the length, int64; `cut`, whether it was truncated, bool. {}: none ended."""
        lengths = self.batched.t + 1
        step = self.batched.advance(actions)
        returns = self._returns = self._returns + step.reward
        if step.ended is None:
            return step, {}
        env_ids = step.ended.env_ids
        self._returns = returns.index_fill(0, env_ids, 0.0)
        ended = {"r": returns, "l": lengths, "cut": step.truncated}
        return step, {name: value.index_select(0, env_ids) for name, value in ended.items()}

    def told(
        self, step: Advance, ends: Mapping[str, Tensor], seen: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What `seen` holds as NumPy arrays, and `infos` without `terminal_observation`, by one wait for the device.

        Waits for nothing where `seen` is {} and no episode ended.
        """
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if step.ended is None:
            return to_numpy(seen), infos
        ended = {"env_ids": step.ended.env_ids, "info": step.ended.info, "episodes": dict(ends)}
        arrays = to_numpy({**seen, "ended": ended})
        ended = arrays.pop("ended")
        episodes = {name: array.tolist() for name, array in ended["episodes"].items()}
        for k, (env_id, facts) in enumerate(zip(ended["env_ids"].tolist(), step.ended.episode_info, strict=True)):
            infos[env_id] = {
                **of_env(ended["info"], k),
                **facts,
                "TimeLimit.truncated": episodes["cut"][k],
                "episode": {"r": episodes["r"][k], "l": episodes["l"][k]},
            }
        return arrays, infos

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for `load_state`."""
        return {"env": self.batched.state(), "returns": self._returns}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue the episodes of `state`."""
        self.batched.load_state(state["env"])
        self._returns = state["returns"].to(self.batched.device, copy=True)

    def get_images(self) -> Sequence[Frame | None]:
        """The picture of every environment."""
        return [self.batched.render(env_id) for env_id in range(self.num_envs)]

    def close(self) -> None:
        """Nothing is held that needs closing."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the `BatchedEnv`, once for each environment asked for."""
        return [getattr(self.batched, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the `BatchedEnv`, which all environments share."""
        setattr(self.batched, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the `BatchedEnv` once: the row of a tensor [N, ...] as NumPy, or the same result, for each
        environment asked for."""
        result = getattr(self.batched, method_name)(*method_args, **method_kwargs)
        each = isinstance(result, Tensor) and result.shape[:1] == (self.num_envs,)
        rows = to_numpy(result) if each else None
        return [result if rows is None else rows[env_id] for env_id in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """True for Monitor, whose work `episode` in the infos does; no other wrapper is inside."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
