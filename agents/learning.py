"""One `learn()` of an SB3 learner inside a run: logs, progress, checkpoints and exact resume, for every paper."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)
from torch import Tensor

from ..common.checkpoints import (
    Checkpoint,
    check_like,
    load_into,
    load_optimizer,
    random_state,
    restore_random_state,
    restoring,
)
from ..common.finite import NotFiniteError, not_finite_tensor
from ..common.runs import Run
from ..envs.learner_env import LearnerEnv
from .callbacks import UNDEFINED, KeepCheckpoints, RewardTerms, ShowProgress, StopAtNaN, diverged


def learn(
    model: OnPolicyAlgorithm,
    run: Run,
    total_timesteps: int,
    callbacks: list[BaseCallback],
    *,
    checkpoint_every: int,
    extra_state: Callable[[], Mapping[str, Any]],
    checkpoint: Checkpoint | None,
) -> None:
    """Train `model` to `total_timesteps`, from `checkpoint` on where there is one (restore it first).

    A run that was killed and resumed ends, on the CPU, with the same weights, bit for bit, as one that was not.

    Args:
        model: over a `LearnerEnv`, bare or in wrappers of SB3.
        run: gets scalars and checkpoints.
        total_timesteps: environment steps at the end.
        callbacks: called before those of every learner (reward terms, checkpoints, progress).
        checkpoint_every: environment steps between checkpoints.
        extra_state: what else belongs to a checkpoint (opponents).
        checkpoint: the one that was restored.

    Raises:
        NotFiniteError: a loss, a reward, an observation or a weight is NaN or infinite; earlier checkpoints stay.
        Stopped: a signal asked for it; a checkpoint of the last rollout's end is kept.
    """
    model.set_logger(Logger(folder=None, output_formats=[_RunWriter(run)]))
    if checkpoint:
        with restoring(checkpoint):
            for name, value in checkpoint.state["unwritten"].items():
                model.logger.record(name, float(value))
            # last: networks that are built on the way draw from it
            restore_random_state(checkpoint.state["random"], model.device)
    resumed_at = checkpoint.step if checkpoint else None
    keep = KeepCheckpoints(run, checkpoint_every, lambda: {**state_of(model), **extra_state()}, resumed_at)
    terms = RewardTerms(learner_env(model).batched)
    with run.progress.bar(total_timesteps, initial=model.num_timesteps, title="PPO") as bar:
        try:
            model.learn(
                total_timesteps - model.num_timesteps,
                callback=CallbackList([StopAtNaN(run), *callbacks, terms, keep, ShowProgress(bar, total_timesteps)]),
                reset_num_timesteps=False,
            )
        except ValueError as error:  # PyTorch's distributions refuse such numbers too, with all of them in the message
            if "invalid values" not in str(error):
                raise
            wrong = not_finite_tensor(model.policy.state_dict()) or "an observation is NaN or infinite"
            raise NotFiniteError(diverged(run, model.num_timesteps, [wrong])) from None
        keep.save()


# -- state -------------------------------------------------------------------------------------------------------------


def state_of(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """The learner's state at the start of a rollout, without its weights and the state of its callbacks."""
    assert model.ep_info_buffer is not None
    return {
        **_fixed_state(model),
        "optimizer": model.policy.optimizer.state_dict(),
        "observation": _tensors(model._last_obs),
        "episodes": [{"r": float(episode["r"]), "l": int(episode["l"])} for episode in model.ep_info_buffer],
        "unwritten": {name: float(value) for name, value in model.logger.name_to_value.items()},  # of the last update
        "random": random_state(model.device),
    }


def _fixed_state(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """The part of a learner's state whose structure is the same in every checkpoint of its training."""
    return {
        "n_updates": model._n_updates,
        "env": learner_env(model).state(),
        "wrappers": [_wrapper_state(wrapper) for wrapper in _wrappers(model)],
        **({"memory": _memory(model)} if isinstance(model, RecurrentPPO) else {}),
    }


def _memory(model: RecurrentPPO) -> dict[str, list[Tensor]]:
    """Hidden and cell states of the running episodes, of the LSTM that acts and of the one that values."""
    states = model._last_lstm_states
    assert states is not None
    return {"pi": [part.clone() for part in states.pi], "vf": [part.clone() for part in states.vf]}


def restore(model: OnPolicyAlgorithm, checkpoint: Checkpoint) -> None:
    """Put the learner, its environment and wrappers where `checkpoint` found them; `learn` does so with the rest.

    Raises:
        ValueError: the checkpoint is malformed, or of another training; names its file.
    """
    state, env = checkpoint.state, learner_env(model)
    load_into(model.policy, checkpoint.weights, f"checkpoint {str(checkpoint.folder)!r}")
    with restoring(checkpoint):
        for part, now in _fixed_state(model).items():
            check_like(state[part], now, part)
        load_optimizer(model.policy.optimizer, state["optimizer"])
        model.num_timesteps, model._n_updates = checkpoint.step, state["n_updates"]
        env.load_state(state["env"])
        for wrapper, kept in zip(_wrappers(model), state["wrappers"], strict=True):
            _load_wrapper_state(wrapper, kept)
        check_like(state["observation"], _tensors(_blank(model.observation_space, env.num_envs)), "observation")
        model._last_obs = _arrays(state["observation"])
        model._last_episode_starts = (env.batched.t == 0).cpu().numpy()
        if isinstance(model, RecurrentPPO):
            kept = {name: [part.to(model.device) for part in parts] for name, parts in state["memory"].items()}
            states: Any = RNNStates(tuple(kept["pi"]), tuple(kept["vf"]))
            model._last_lstm_states = states
        model._setup_learn(0, None, reset_num_timesteps=False)  # makes the buffers of episodes
        assert model.ep_info_buffer is not None
        model.ep_info_buffer.extend({"r": float(one["r"]), "l": int(one["l"])} for one in state["episodes"])


def learner_env(model: OnPolicyAlgorithm) -> LearnerEnv:
    """The environment of the learner, without wrappers.

    Raises:
        ValueError: it is no `LearnerEnv`.
    """
    env = model.env
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if not isinstance(env, LearnerEnv):
        raise ValueError(f"the learner plays {env!r} but must play a LearnerEnv, bare or in SB3's wrappers")
    return env


def _wrappers(model: OnPolicyAlgorithm) -> Iterator[VecEnvWrapper]:
    """SB3's wrappers around the environment, from the outermost on."""
    env = model.env
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def _changing(wrapper: VecEnvWrapper) -> Iterator[tuple[str, Any, str]]:
    """Name, owner and attribute of every number or array that the wrapper changes while it plays.

    Raises:
        ValueError: it is not known what the wrapper keeps.
    """
    if isinstance(wrapper, VecNormalize):
        statistics = {"rewards": wrapper.ret_rms}
        if wrapper.norm_obs:
            of = wrapper.obs_rms
            statistics |= {f"observations.{k}": v for k, v in (of if isinstance(of, dict) else {"": of}).items()}
        for name, one in statistics.items():
            yield from ((f"{name}.{attribute}", one, attribute) for attribute in ("mean", "var", "count"))
        yield "returns", wrapper, "returns"
    elif isinstance(wrapper, VecFrameStack):
        stacks = getattr(wrapper.stacked_obs, "sub_stacked_observations", {"": wrapper.stacked_obs})
        yield from ((name, stack, "stacked_obs") for name, stack in stacks.items())
    elif not isinstance(wrapper, VecTransposeImage | VecCheckNan | VecExtractDictObs):
        raise ValueError(
            f"the environment is in a {type(wrapper).__name__}, whose state cannot be saved; use VecNormalize, "
            f"VecFrameStack, VecTransposeImage, VecCheckNan, VecExtractDictObs, or none"
        )


def _wrapper_state(wrapper: VecEnvWrapper) -> dict[str, Tensor]:
    return {name: _tensors(getattr(owner, attribute)) for name, owner, attribute in _changing(wrapper)}


def _load_wrapper_state(wrapper: VecEnvWrapper, state: Mapping[str, Tensor]) -> None:
    for name, owner, attribute in _changing(wrapper):
        setattr(owner, attribute, _arrays(state[name]))


def _blank(space: spaces.Space[Any], num_envs: int) -> Any:
    """Observations of zeros of `num_envs` environments."""
    if isinstance(space, spaces.Dict):
        return {name: _blank(part, num_envs) for name, part in space.items()}
    return np.zeros((num_envs, *(space.shape or ())), space.dtype)


def _tensors(value: Any) -> Any:
    """Tensors for NumPy arrays and numbers, in a dict of them too."""
    if isinstance(value, dict):
        return {name: _tensors(part) for name, part in value.items()}
    return torch.from_numpy(np.array(value))  # a copy


def _arrays(value: Any) -> Any:
    """The inverse of `_tensors`."""
    if isinstance(value, dict):
        return {name: _arrays(part) for name, part in value.items()}
    return value.numpy().copy()[()]  # an array, or a number where there are no axes


class _RunWriter(KVWriter):
    """SB3's scalars, into the run's TensorBoard and metrics.jsonl."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        scalars = {name: float(value) for name, value in sorted(key_values.items())}
        exist = {name: value for name, value in scalars.items() if math.isfinite(value) or name not in UNDEFINED}
        self.run.log(step, exist)

    def close(self) -> None:
        self.run.close()
