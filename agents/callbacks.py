"""Callbacks of every learner: checkpoints, the best weights, reward terms, progress."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn
from tqdm import tqdm

from ..common.runs import Run
from ..envs.core import BatchedEnv


class KeepCheckpoints(BaseCallback):
    """Saves a checkpoint at the start of the first rollout after every `every` steps, when nothing is half done.

    Args:
        run: where the checkpoints go.
        every: environment steps between two checkpoints.
        state: what a checkpoint holds beside the policy's weights; called when one is saved.
        resumed_at: environment step of the checkpoint from which the run goes on; None: from its start.
    """

    def __init__(
        self, run: Run, every: int, state: Callable[[], Mapping[str, Any]], resumed_at: int | None = None
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"checkpoint_every is {every} steps but must be at least 1")
        self.run, self.every, self.state = run, every, state
        self.saved_at = resumed_at

    def _on_rollout_start(self) -> None:
        if self.saved_at is None or self.model.num_timesteps // self.every > self.saved_at // self.every:
            self.save()

    def save(self) -> None:
        """Save a checkpoint now, unless this step has one."""
        if self.saved_at != self.model.num_timesteps:
            self.saved_at = self.model.num_timesteps
            self.run.save(self.saved_at, self.model.policy.state_dict(), self.state())

    def _on_step(self) -> bool:
        return True


class Best:
    """The weights with the highest score on validation data so far; part of a checkpoint by `state`."""

    def __init__(self) -> None:
        self.score, self.step = -torch.inf, 0
        self.weights: dict[str, Tensor] = {}
        """On the CPU; empty before the first score."""

    def consider(self, score: float, step: int, policy: nn.Module) -> None:
        """Keep a copy of the policy's weights if `score` is higher than every one before; NaN is not."""
        if score > self.score:
            self.score, self.step = score, step
            self.weights = {name: value.detach().cpu().clone() for name, value in policy.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs."""
        return {"score": self.score, "step": self.step, "weights": dict(self.weights)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self.score, self.step, self.weights = state["score"], state["step"], dict(state["weights"])


class RewardTerms(BaseCallback):
    """Logs reward/<name>, the mean of each reward term over the steps of a rollout, weighted as it was paid.

    Adds up on the device and waits for it once per rollout.
    """

    def __init__(self, env: BatchedEnv) -> None:
        super().__init__()
        self.env = env

    def _on_rollout_start(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def _on_step(self) -> bool:
        for name, term in self.env.reward_terms.items():  # each [N]
            total = term.sum(dtype=torch.float64)
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._steps += 1
        return True

    def _on_rollout_end(self) -> None:
        if not self._sums:
            return
        means = torch.stack(list(self._sums.values())) / (self._steps * self.env.num_envs)
        for name, mean in zip(self._sums, means.tolist(), strict=True):
            self.logger.record(f"reward/{name}", mean)


class Progress(BaseCallback):
    """A progress bar over environment steps, with the mean return of the last episodes."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total

    def _on_training_start(self) -> None:
        self.bar = tqdm(total=self.total, initial=self.model.num_timesteps, desc="PPO", unit="step", unit_scale=True)

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, PPO)
        if self.model.ep_info_buffer:
            returns = [episode["r"] for episode in self.model.ep_info_buffer]
            self.bar.set_postfix({"return": f"{sum(returns) / len(returns):.3g}"}, refresh=False)
        self.bar.update(self.model.num_timesteps - self.bar.n)

    def _on_training_end(self) -> None:
        self.bar.close()

    def _on_step(self) -> bool:
        return True
