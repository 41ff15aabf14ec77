"""SB3's PPO, MaskablePPO and RecurrentPPO, and their settings; rollouts of the first two stay on the device."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from stable_baselines3 import PPO
from stable_baselines3.common import buffers
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import obs_as_tensor, set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from ..common.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, SHARE, check
from ..common.device import memory_bytes
from ..envs.adapters import to_numpy
from ..envs.core import Advance, BatchedEnv, Ended
from ..envs.learner_env import LearnerEnv
from .policy import within_space
from .rollout_buffer import FlatRolloutBuffer

SB3_BUFFERS = (buffers.RolloutBuffer, buffers.DictRolloutBuffer, MaskableRolloutBuffer, MaskableDictRolloutBuffer)
SAMPLE_BYTES = 32
"""Memory of a sample in SB3's rollout buffer beside its observation, at least."""
ScheduleName = Literal["constant", "linear"]
AlgorithmName = Literal["ppo", "maskable", "recurrent"]


@dataclass(frozen=True)
class PPOConfig:
    """Hyper-parameters of PPO (Schulman et al., 2017) as in Stable-Baselines3."""

    algorithm: AlgorithmName = "ppo"
    """Learner. ppo; maskable: MaskablePPO of sb3-contrib, which never takes an action that the environment masks;
    recurrent: RecurrentPPO of sb3-contrib, whose policy and values remember the episode by LSTMs."""
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
    lstm_size: int = 256
    """Hidden units of each LSTM; read only by algorithm recurrent."""
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
        check(self, "ppo.", lstm_size=AT_LEAST_1)
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
        """Keyword arguments of an SB3 policy: `given`, and what this configuration says of widths and log_std_init."""
        widths = {} if self.net_arch is None else {"net_arch": {"pi": self.net_arch, "vf": self.net_arch}}
        deviation = {} if self.algorithm == "maskable" else {"log_std_init": self.log_std_init}
        memory = {"lstm_hidden_size": self.lstm_size} if self.algorithm == "recurrent" else {}
        adam = {"optimizer_kwargs": {"eps": 1e-5, "fused": True}}  # SB3's, but in one pass over the weights
        return {**(given or {}), **widths, **deviation, **memory, **adam}

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


def policy_alias(space: spaces.Space[Any], algorithm: AlgorithmName) -> str:
    """SB3's name of the usual policy for the observations of `space`."""
    inputs = "MultiInput" if isinstance(space, spaces.Dict) else "Mlp"
    return f"{inputs}{'Lstm' if algorithm == 'recurrent' else ''}Policy"


def _schedule(start: float, name: ScheduleName) -> float | Callable[[float], float]:
    """What SB3 takes as a schedule: a number, or a function of the share of training that remains."""
    return start if name == "constant" else partial(_linear, start)


def _linear(start: float, remaining: float) -> float:
    return start * max(remaining, 0.0)  # the last rollout may go beyond the end of training


class _OnDevice(OnPolicyAlgorithm):
    """Keeps rollouts on the device where it plays a bare `LearnerEnv`, and leaves process-wide settings as they are.

    Observations, actions, rewards and what follows from them are tensors then, from the environment to the minibatches;
    in wrappers, with environments of others and in a learner whose buffer is its own (RecurrentPPO), the rollouts are
    SB3's own. After each step callbacks find in their
    `locals`, as SB3 has them, `dones`, a NumPy array bool [N], and `infos`, without `terminal_observation`; `rewards`,
    `actions`, `values` and `log_probs` are tensors on the device, and `step` is the `Advance`.

    The device and cuDNN's algorithms are the experiment's choice, for all of its networks: seeding changes neither, and
    nothing recommends the CPU.
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

    def _setup_model(self) -> None:
        super()._setup_model()
        self._choose_buffer()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As SB3's; the rollout buffer follows, since an environment may leave the device."""
        super().set_env(env, force_reset)
        self._choose_buffer()

    def _choose_buffer(self) -> None:
        """Make the buffer that the environment can fill, unless the caller has chosen its class."""
        own = self.rollout_buffer_class
        if own not in SB3_BUFFERS:
            return
        kind: Any = FlatRolloutBuffer if _stays_on_device(self) else own
        if not isinstance(self.rollout_buffer, kind):
            told = {"device": self.device, "gamma": self.gamma, "gae_lambda": self.gae_lambda, "n_envs": self.n_envs}
            told |= self.rollout_buffer_kwargs
            self.rollout_buffer = kind(self.n_steps, self.observation_space, self.action_space, **told)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: Any,
        n_rollout_steps: int,
        use_masking: bool = True,
    ) -> bool:
        """Play T steps in every environment; False where a callback stopped it. use_masking: of MaskablePPO."""
        masking = (use_masking,) if isinstance(self, MaskablePPO) else ()
        if not isinstance(rollout_buffer, FlatRolloutBuffer):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps, *masking)
        assert isinstance(env, LearnerEnv)
        assert self._last_obs is not None
        policy, buffer, every = self.policy, rollout_buffer, self.sde_sample_freq
        policy.set_training_mode(False)
        buffer.reset()
        if self.use_sde:
            policy.reset_noise(env.num_envs)
        callback.on_rollout_start()
        played = within_space(policy)
        new_obs: Any = obs_as_tensor(self._last_obs, self.device)
        for n_steps in range(n_rollout_steps):
            if self.use_sde and every > 0 and n_steps % every == 0:
                policy.reset_noise(env.num_envs)
            obs_tensor = new_obs  # [N, ...]
            masks = {"action_masks": env.batched.action_masks()} if any(masking) else {}  # bool [N, A]
            with torch.no_grad():
                actions, values, log_probs = policy(obs_tensor, **masks)  # [N, ...], [N, 1], [N]
                step, ends = env.advance(played(actions))
            new_obs, rewards = step.obs, step.reward
            dones, infos = np.zeros(env.num_envs, np.bool_), env.told(step, ends, {})[1]
            ended = [env_id for env_id, info in enumerate(infos) if info]
            dones[ended] = True
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                self._last_obs, self._last_episode_starts = to_numpy(new_obs), dones
                return False
            self._update_info_buffer([infos[env_id] for env_id in ended], dones[ended])
            if step.ended and any(infos[env_id]["TimeLimit.truncated"] for env_id in ended):
                rewards = rewards + self._beyond(step, step.ended)
            buffer.add(
                observations=obs_tensor,
                actions=actions.flatten(1) if actions.ndim > 1 else actions[:, None],
                rewards=rewards,
                dones=step.terminated | step.truncated,
                old_values=values.flatten(),
                old_log_prob=log_probs,
                **masks,
            )
        with torch.no_grad():
            buffer.compute_advantages(policy.predict_values(new_obs).flatten())
        self._last_obs, self._last_episode_starts = to_numpy(new_obs), dones
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _beyond(self, step: Advance, ended: Ended) -> Tensor:
        """γ V(last observation) of the episodes that were truncated in the step, else 0: float32 [N]."""
        cut = step.truncated.index_select(0, ended.env_ids)
        with torch.no_grad():
            values = self.policy.predict_values(ended.obs).flatten()  # [K]
        beyond = torch.zeros_like(step.reward)
        return beyond.index_copy(0, ended.env_ids, torch.where(cut, self.gamma * values, 0.0))


def _stays_on_device(model: OnPolicyAlgorithm) -> bool:
    """Whether nothing stands between policy and environment, and both lie on one device."""
    env = model.env
    if type(env) is not LearnerEnv:  # a subclass may change what a step is
        return False
    first = getattr(model.action_space, "start", 0)  # of actions, whom SB3 counts from 0: LearnerEnv says so by name
    return env.batched.t.device == model.policy.device and not np.any(first)


class Learner(_OnDevice, PPO):
    """SB3's PPO, its rollouts on the device."""


class MaskableLearner(_OnDevice, MaskablePPO):
    """MaskablePPO of sb3-contrib, its rollouts on the device; masks are `action_masks` of the environment."""


class RecurrentLearner(_OnDevice, RecurrentPPO):
    """RecurrentPPO of sb3-contrib, with its own rollouts, which go by way of the host."""


AnyLearner = Learner | MaskableLearner | RecurrentLearner
LEARNERS: dict[AlgorithmName, type[Learner] | type[MaskableLearner] | type[RecurrentLearner]] = {
    "ppo": Learner,
    "maskable": MaskableLearner,
    "recurrent": RecurrentLearner,
}
