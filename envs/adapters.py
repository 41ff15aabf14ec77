"""The adapters of a `BatchedEnv` to Gymnasium: they change shapes and types, and nothing else.

`SingleEnv` is what gym.make gives, `BatchEnv` what gym.make_vec gives; `LearnerEnv`, the VecEnv of Stable-Baselines3,
has a file of its own (learner_env.py), since gym.make needs no Stable-Baselines3. The latter two begin a new episode in
the step that ended one (SAME_STEP), by the same `BatchedEnv.advance`.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector.utils import batch_space

from ..common.plugins import load
from .core import BatchedEnv, Ended


def to_numpy(tensors: Any) -> Any:
    """NumPy arrays of a tensor, or of the tensors of a dict (of dicts); no copy on the CPU, one wait on CUDA."""
    waited_for: list[torch.device] = []

    def arrays(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: arrays(value) for name, value in x.items()}
        if x.requires_grad:
            x = x.detach()
        if x.is_cuda:
            waited_for.append(x.device)
            x = x.to("cpu", non_blocking=True)  # into pinned memory: the copies run one after the other
        return x.numpy()

    host = arrays(tensors)
    if waited_for:
        torch.cuda.synchronize(waited_for[0])
    return host


def of_env(batch: Any, env_id: int) -> Any:
    """Item `env_id` of each array of a dict (of dicts), or of one array."""
    return {name: of_env(value, env_id) for name, value in batch.items()} if isinstance(batch, dict) else batch[env_id]


def facts_of(ended: Ended) -> dict[str, Any]:
    """The tensors of the episodes that ended, as `to_numpy` takes them: `env_ids`, `obs` and `info`."""
    return {"env_ids": ended.env_ids, "obs": ended.obs, "info": ended.info}


class SingleEnv(gym.Env[Any, Any]):
    """The `gym.Env` adapter: one environment. `batched` is the `BatchedEnv` behind it, whose documentation `help` of
    this object shows."""

    metadata = BatchedEnv.metadata

    def __init__(self, env: BatchedEnv) -> None:
        self.batched, self.__doc__ = env, env.__doc__
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
        seen = of_env(to_numpy({"obs": self.batched.observe(), "info": self.batched.info()}), 0)
        return seen["obs"], _plain(seen["info"])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One move.

        Raises:
            ResetNeeded: the episode has ended or none was begun.
            ValueError: the action is outside the action space.
        """
        if self._over:
            raise ResetNeeded("step before reset: the episode has ended or none was begun; call reset() first")
        reward, terminated, truncated = self.batched.step(self.batched.actions_from(np.asarray(action)[None]))
        seen = {"obs": self.batched.observe(), "info": self.batched.info(), "reward": reward}
        seen = of_env(to_numpy({**seen, "terminated": terminated, "truncated": truncated}), 0)
        info = _plain(seen["info"])
        if self.render_mode == "human":
            self.batched.render()
        self._over = bool(seen["terminated"] | seen["truncated"])
        if self._over:
            info |= self.batched.episode_info(torch.zeros(1, dtype=torch.int64, device=self.batched.device))[0]
        return seen["obs"], float(seen["reward"]), bool(seen["terminated"]), bool(seen["truncated"]), info

    def render(self) -> Any:
        """The picture of this step as uint8 [H, W, 3], or None where it is shown or no render_mode was chosen."""
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode: make the environment with render_mode='rgb_array'")
            return None
        return self.batched.render()

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Actions that are not wasted now, bool [A], for MaskablePPO of sb3-contrib; see `BatchedEnv.action_masks`."""
        masks: npt.NDArray[np.bool_] = to_numpy(self.batched.action_masks())[0]
        return masks


class BatchEnv(gym.vector.VectorEnv[Any, Any, npt.NDArray[Any]]):
    """The `gymnasium.vector.VectorEnv` adapter: N environments; each resets in the step that ended its episode.

    Gymnasium calls this SAME_STEP: `obs` already belongs to the next episode, `final_obs` and `final_info` to the one
    that ended. Its wrappers NormalizeObservation and a few more refuse that mode; they take the slower
    `gym.make_vec(id, num_envs=8, vectorization_mode="sync")`, a loop over single environments.
    """

    metadata = BatchedEnv.metadata

    def __init__(self, env: BatchedEnv) -> None:
        self.batched, self.__doc__ = env, env.__doc__
        self.num_envs, self.render_mode = env.num_envs, env.render_mode
        self.single_observation_space, self.single_action_space = (
            env.single_observation_space,
            env.single_action_space,
        )
        self.observation_space = batch_space(env.single_observation_space, env.num_envs)
        self.action_space = batch_space(env.single_action_space, env.num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment; an integer seed s gives environment i the seed s + i."""
        fresh = seed is not None or self._np_random is None
        if isinstance(seed, int) or (seed is None and fresh):
            super().reset(seed=seed)
            seed = seed if seed is not None else int(self.np_random.integers(2**62))
            seed = [seed + env_id for env_id in range(self.num_envs)]
        if seed is not None:
            self.batched.seed(seed)
        self.batched.reset(options=options)
        seen = to_numpy({"obs": self.batched.observe(), "info": self.batched.info()})
        return seen["obs"], self._present(seen["info"])

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One move in every environment; `final_obs` and `final_info` describe the episodes that ended."""
        step = self.batched.advance(self.batched.actions_from(actions))
        seen: dict[str, Any] = {"obs": step.obs, "info": self.batched.info(), "reward": step.reward.double()}
        seen |= {"terminated": step.terminated, "truncated": step.truncated}
        seen = to_numpy(seen | ({"ended": facts_of(step.ended)} if step.ended else {}))
        info = self._present(seen["info"])
        if step.ended:
            info |= self._final(seen["ended"], step.ended.episode_info)
        return seen["obs"], seen["reward"], seen["terminated"], seen["truncated"], info

    def render(self) -> tuple[Any, ...] | None:
        """The picture of every environment; None where no render_mode was chosen."""
        if self.render_mode is None:
            return None
        return tuple(self.batched.render(env_id) for env_id in range(self.num_envs))

    def _present(self, info: dict[str, Any]) -> dict[str, Any]:
        """`info` as Gymnasium's vector environments give it, with a mask beside each array."""
        copies = {name: array.copy() for name, array in info.items()}  # a reset writes in place
        return _masked(copies, np.ones(self.num_envs, dtype=np.bool_))

    def _final(self, last: dict[str, Any], episode_info: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What Gymnasium's `_add_info` makes of the ends of K episodes, but all at once, not one by one.

        last: env_ids int64 [K], obs and info [K, ...] of them; episode_info: facts of each.
        """
        env_ids = last["env_ids"]
        over = np.zeros(self.num_envs, dtype=np.bool_)
        over[env_ids] = True
        obs, arrays = np.full(self.num_envs, None, dtype=object), {}
        for name, rows in last["info"].items():
            arrays[name] = np.zeros((self.num_envs, *rows.shape[1:]), rows.dtype)
            arrays[name][env_ids] = rows
        final_info = _masked(arrays, over)
        for k, (env_id, facts) in enumerate(zip(env_ids.tolist(), episode_info, strict=True)):
            obs[env_id] = of_env(last["obs"], k)
            final_info = self._add_info(final_info, facts, env_id)
        return _masked({"final_obs": obs, "final_info": final_info}, over)


def make_single(env_class: str, *, device: str | torch.device = "cpu", **settings: Any) -> SingleEnv:
    """Entry point of `gym.make`; env_class is "module:Class" of a `BatchedEnv`.

    One environment is faster on the CPU than on a GPU, which waits for every step.

    Raises:
        ValueError: num_envs is given, or an argument that the environment refuses.
    """
    if "num_envs" in settings:
        n = settings["num_envs"]
        raise ValueError(f"num_envs is {n!r} but gym.make makes one environment; use gym.make_vec(id, num_envs={n!r})")
    return SingleEnv(class_of(env_class)(num_envs=1, device=device, **settings))


def make_batch(env_class: str, num_envs: int = 1, **settings: Any) -> BatchEnv:
    """Entry point of `gym.make_vec`; env_class is "module:Class" of a `BatchedEnv`.

    What costs every step of many environments is off unless it is asked for: `vector_defaults` of the class.
    """
    batched = class_of(env_class)
    defaults = {} if settings.get("config") is not None else batched.vector_defaults
    return BatchEnv(batched(num_envs=num_envs, **{**defaults, **settings}))


def class_of(env_class: str, what: str = "env_class") -> type[BatchedEnv]:
    """The `BatchedEnv` that "module:Class" names.

    Raises:
        ValueError: it cannot be imported, or is no `BatchedEnv`; says so of `what`.
    """
    found = load(env_class, what)
    if not (isinstance(found, type) and issubclass(found, BatchedEnv)):
        raise ValueError(f"{what} is {env_class!r} but must be 'module:Class' of a BatchedEnv")
    return found


def _masked(infos: dict[str, Any], mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """`infos`, and as `_name` beside each the environments that have it; one array for all of them."""
    return {**infos, **{f"_{name}": mask for name in infos}}


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    """`info` with Python numbers for NumPy ones; arrays stay."""
    return {name: value.item() if value.ndim == 0 else value for name, value in info.items()}
