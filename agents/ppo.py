"""One `learn()` of an SB3 learner inside a run: logs, progress, checkpoints and exact resume, for every paper."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import KVWriter, Logger
from tqdm import tqdm

from ..common.checkpoints import Checkpoint, load_into, random_state, restore_random_state
from ..common.checks import AT_LEAST_0, AT_LEAST_1, SHARE, check
from ..common.runs import Run
from ..envs.adapters import LearnerEnv


@dataclass(frozen=True)
class PPOConfig:
    """PPO (Schulman et al., 2017) as in Stable-Baselines3."""

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
    """Of Adam."""
    gamma: float = 0.99
    """Discount γ."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation."""
    clip_range: float = 0.2
    """ε of the clipped ratio."""
    ent_coef: float = 0.01
    """Weight c_e of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight c_v of the value loss."""
    max_grad_norm: float = 0.5
    """Gradients are clipped to this norm."""

    def __post_init__(self) -> None:
        check(self, "ppo.", total_timesteps=AT_LEAST_0, num_envs=AT_LEAST_1, n_steps=AT_LEAST_1, n_epochs=AT_LEAST_1)
        check(self, "ppo.", batch_size=(2, math.inf))  # advantages are normalised over a batch
        check(self, "ppo.", learning_rate=SHARE, gamma=SHARE, gae_lambda=SHARE, clip_range=SHARE)
        check(self, "ppo.", ent_coef=AT_LEAST_0, vf_coef=AT_LEAST_0, max_grad_norm=AT_LEAST_0)
        if self.num_envs * self.n_steps % self.batch_size:
            raise ValueError(
                f"ppo.batch_size is {self.batch_size} but must divide a rollout of num_envs x n_steps = "
                f"{self.num_envs * self.n_steps} samples"
            )

    def learner(self) -> dict[str, Any]:
        """Keyword arguments of SB3's PPO."""
        elsewhere = ("total_timesteps", "num_envs")
        return {name: value for name, value in self.__dict__.items() if name not in elsewhere}


def learn(
    model: PPO,
    run: Run,
    total_timesteps: int,
    callbacks: list[BaseCallback],
    *,
    checkpoint_every: int,
    extra_state: Callable[[], Mapping[str, Any]],
    checkpoint: Checkpoint | None,
) -> None:
    """Train `model` to `total_timesteps`, from `checkpoint` on where there is one (restore it first).

    checkpoint_every: environment steps between checkpoints. extra_state: what else belongs to one (opponents).
    A run that was killed and resumed ends, on the CPU, with the same weights, bit for bit, as one that was not.
    """
    model.set_logger(Logger(folder=None, output_formats=[_RunWriter(run)]))
    if checkpoint:
        for name, value in checkpoint.state["unwritten"].items():
            model.logger.record(name, value)
        # last: networks that are built on the way draw from it
        restore_random_state(checkpoint.state["random"], model.device)
    keep = _KeepCheckpoints(run, checkpoint_every, extra_state, checkpoint.step if checkpoint else None)
    model.learn(
        total_timesteps - model.num_timesteps,
        callback=CallbackList([*callbacks, keep, _Progress(total_timesteps)]),
        reset_num_timesteps=False,
    )
    keep.save()


def state_of(model: PPO) -> dict[str, Any]:
    """All of the learner's state but its weights and its callbacks', at the start of a rollout."""
    assert isinstance(model.env, LearnerEnv)
    assert model.ep_info_buffer is not None
    return {
        "optimizer": model.policy.optimizer.state_dict(),
        "n_updates": model._n_updates,
        "env": model.env.state(),
        "episodes": list(model.ep_info_buffer),
        "unwritten": {name: float(value) for name, value in model.logger.name_to_value.items()},  # of the last update
        "random": random_state(model.device),
    }


def restore(model: PPO, checkpoint: Checkpoint) -> None:
    """Put the learner and its environment where `checkpoint` found them; `learn` does so with the rest."""
    assert isinstance(model.env, LearnerEnv)
    state = checkpoint.state
    load_into(model.policy, checkpoint.weights, f"checkpoint at step {checkpoint.step}")
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.num_timesteps, model._n_updates = checkpoint.step, state["n_updates"]
    model.env.load_state(state["env"])
    model._last_obs = model.env.observation()
    model._last_episode_starts = (model.env.batched.t == 0).cpu().numpy()
    model._setup_learn(0, None, reset_num_timesteps=False)  # makes the buffers of episodes
    assert model.ep_info_buffer is not None
    model.ep_info_buffer.extend(state["episodes"])


class _RunWriter(KVWriter):
    """SB3's scalars, into the run's TensorBoard and metrics.jsonl."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.run.log(step, {name: float(value) for name, value in sorted(key_values.items())})

    def close(self) -> None:
        self.run.close()


class _KeepCheckpoints(BaseCallback):
    """Saves at the start of the first rollout after every `every` steps, when nothing is half done."""

    def __init__(self, run: Run, every: int, extra: Callable[[], Mapping[str, Any]], resumed_at: int | None) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"checkpoint_every is {every} steps but must be at least 1")
        self.run, self.every, self.extra = run, every, extra
        self.saved_at = resumed_at

    def _on_rollout_start(self) -> None:
        due = self.saved_at is None or self.model.num_timesteps // self.every > self.saved_at // self.every
        if due:
            self.save()

    def save(self) -> None:
        """Keep a checkpoint of this moment, unless there is one."""
        assert isinstance(self.model, PPO)
        if self.saved_at != self.model.num_timesteps:
            self.saved_at = self.model.num_timesteps
            self.run.save(self.saved_at, self.model.policy.state_dict(), {**state_of(self.model), **self.extra()})

    def _on_step(self) -> bool:
        return True


class _Progress(BaseCallback):
    """A progress bar over environment steps."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total

    def _on_training_start(self) -> None:
        self.bar = tqdm(total=self.total, initial=self.model.num_timesteps, desc="PPO", unit="step", unit_scale=True)

    def _on_rollout_end(self) -> None:
        self.bar.update(self.model.num_timesteps - self.bar.n)

    def _on_training_end(self) -> None:
        self.bar.close()

    def _on_step(self) -> bool:
        return True
