"""One `learn()` of an SB3 learner inside a run: logs, progress, checkpoints and exact resume, for every paper."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
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
from ..common.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, SHARE, check
from ..common.device import memory_bytes
from ..common.finite import NotFiniteError, not_finite_tensor
from ..common.runs import Run
from ..envs.core import BatchedEnv
from ..envs.learner_env import LearnerEnv
from .callbacks import UNDEFINED, KeepCheckpoints, RewardTerms, ShowProgress, StopAtNaN, diverged

SAMPLE_BYTES = 32
"""Memory of a sample in SB3's rollout buffer beside its observation, at least."""
ScheduleName = Literal["constant", "linear"]
AlgorithmName = Literal["ppo", "maskable"]


@dataclass(frozen=True)
class PPOConfig:
    """Hyper-parameters of PPO (Schulman et al., 2017) as in Stable-Baselines3."""

    algorithm: AlgorithmName = "ppo"
    """Learner. ppo; maskable: MaskablePPO of sb3-contrib, which never takes an action that the environment masks."""
    total_timesteps: int = 320_000
    """Environment steps, summed over the environments; 0 trains no agent."""
    num_envs: int = 64
    """Episodes played at once."""
    n_steps: int = 32
    """Steps of each environment per rollout."""
    batch_size: int = 512
    """Samples per gradient step."""
    n_epochs: int = 4
    """Passes over a rollout."""
    learning_rate: float = 3e-4
    """Adam learning rate, at the start of training."""
    learning_rate_schedule: ScheduleName = "constant"
    """constant, or linear: falls to 0 at the end of training."""
    gamma: float = 0.99
    """γ: discount factor per step, 0 to 1."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation, 0 to 1."""
    clip_range: float = 0.2
    """ε: the ratio is clipped to 1 - ε .. 1 + ε; at the start of training."""
    clip_range_schedule: ScheduleName = "constant"
    """constant, or linear: falls to 0 at the end of training."""
    clip_range_vf: float | None = None
    """Largest change of a value by one update, in units of the return; null: not limited."""
    normalize_advantage: bool = True
    """Give the advantages of each batch mean 0 and deviation 1."""
    ent_coef: float = 0.01
    """c_e: weight of the entropy bonus, in nats."""
    vf_coef: float = 0.5
    """c_v: weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest 2-norm of the gradient, which is scaled down to it."""
    target_kl: float | None = None
    """Stop the passes over a rollout once the KL divergence from the policy that played, in nats, exceeds 1.5 times
    this; null: never."""
    net_arch: list[int] | None = None
    """Widths of the hidden layers of policy head and value head; null: those of the chosen policy."""
    log_std_init: float = 0.0
    """Natural logarithm of the standard deviation of continuous actions, at the start of training."""
    normalize_observations: bool = False
    """Shift and scale observations to mean 0 and variance 1, by running statistics (SB3's VecNormalize)."""
    normalize_rewards: bool = False
    """Scale rewards by the running deviation of the discounted return (SB3's VecNormalize)."""

    def __post_init__(self) -> None:
        check(self, "ppo.", total_timesteps=AT_LEAST_0, num_envs=AT_LEAST_1, n_steps=AT_LEAST_1, n_epochs=AT_LEAST_1)
        check(self, "ppo.", batch_size=(2 if self.normalize_advantage else 1, math.inf))
        check(self, "ppo.", learning_rate=SHARE, gamma=SHARE, gae_lambda=SHARE, clip_range=SHARE)
        check(self, "ppo.", ent_coef=AT_LEAST_0, vf_coef=AT_LEAST_0, max_grad_norm=AT_LEAST_0)
        check(self, "ppo.", log_std_init=(-20, 2), clip_range_vf=POSITIVE, target_kl=POSITIVE, net_arch=AT_LEAST_1)
        if self.num_envs * self.n_steps % self.batch_size:
            raise ValueError(
                f"ppo.batch_size is {self.batch_size} but must divide a rollout of num_envs x n_steps = "
                f"{self.num_envs * self.n_steps} samples"
            )

    def ppo_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of SB3's PPO, those of its policy and environment apart."""
        same = (
            *("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range_vf", "normalize_advantage"),
            *("ent_coef", "vf_coef", "max_grad_norm", "target_kl"),
        )
        scheduled = {
            "learning_rate": _schedule(self.learning_rate, self.learning_rate_schedule),
            "clip_range": _schedule(self.clip_range, self.clip_range_schedule),
        }
        return {**{name: getattr(self, name) for name in same}, **scheduled}

    def policy_kwargs(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keyword arguments of an SB3 policy: `given`, with this configuration's widths and log_std_init."""
        widths = {} if self.net_arch is None else {"net_arch": {"pi": self.net_arch, "vf": self.net_arch}}
        deviation = {"log_std_init": self.log_std_init} if self.algorithm == "ppo" else {}
        return {**(given or {}), **widths, **deviation}

    def check_memory(self, env: BatchedEnv) -> None:
        """Check that a rollout fits into this machine's memory; `env`: one environment or more, for its spaces.

        Raises:
            ValueError: it does not.
        """
        spaces_of = env.single_observation_space
        parts = spaces_of.values() if isinstance(spaces_of, spaces.Dict) else [spaces_of]
        bytes_of = sum(math.prod(part.shape or ()) * np.dtype(part.dtype).itemsize for part in parts) + SAMPLE_BYTES
        needed, there = self.num_envs * self.n_steps * bytes_of, memory_bytes()
        if there is not None and needed > there:
            raise ValueError(
                f"ppo.num_envs is {self.num_envs} and ppo.n_steps {self.n_steps}: the {self.num_envs * self.n_steps} "
                f"samples of a rollout take {needed / 2**30:.1f} GiB but this machine has {there / 2**30:.1f}; lower "
                f"one of them"
            )

    def wrap(self, env: LearnerEnv) -> VecEnv:
        """The environment, in SB3's VecNormalize if this configuration normalises something.

        Raises:
            ValueError: no observation is a vector of floats.
        """
        if not (self.normalize_observations or self.normalize_rewards):
            return env
        space, keys = env.observation_space, None
        if isinstance(space, spaces.Dict):
            keys = [name for name, part in space.items() if part.dtype == np.float32]
        if self.normalize_observations and not (keys or space.dtype == np.float32):
            raise ValueError(f"ppo.normalize_observations is True but observations are {space}, none of them float32")
        return VecNormalize(
            env,
            norm_obs=self.normalize_observations,
            norm_reward=self.normalize_rewards,
            gamma=self.gamma,
            norm_obs_keys=keys if self.normalize_observations else None,
        )


def _schedule(start: float, name: ScheduleName) -> float | Callable[[float], float]:
    """What SB3 takes as a schedule: a number, or a function of the share of training that remains."""
    return start if name == "constant" else partial(_linear, start)


def _linear(start: float, remaining: float) -> float:
    return start * max(remaining, 0.0)  # the last rollout may go beyond the end of training


class _Seeded(OnPolicyAlgorithm):
    """Leaves process-wide cuDNN flags unchanged on CUDA and never recommends the CPU.

    The device and cuDNN's algorithms are the experiment's choice, for all of its networks.
    """

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the global generators (Python, NumPy, PyTorch on all devices), the action space and the environment."""
        if seed is None:
            return
        set_random_seed(seed)  # using_cuda=True would set cuDNN's flags and nothing more
        self.action_space.seed(seed)
        if self.env is not None:
            self.env.seed(seed)

    def _maybe_recommend_cpu(self, mlp_class_name: str = "ActorCriticPolicy") -> None:
        """Recommend nothing."""


class Learner(_Seeded, PPO):
    """SB3's PPO, but for process-wide settings."""


class MaskableLearner(_Seeded, MaskablePPO):
    """MaskablePPO of sb3-contrib, but for process-wide settings; masks are `action_masks` of the environment."""


LEARNERS: dict[AlgorithmName, type[Learner] | type[MaskableLearner]] = {"ppo": Learner, "maskable": MaskableLearner}


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
    }


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
