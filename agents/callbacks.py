"""Callbacks of every learner: stop at NaN, checkpoints, the best weights, reward terms, progress."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor, nn

from ..common.checkpoints import checkpoints_in
from ..common.finite import NotFiniteError, not_finite, not_finite_tensor
from ..common.progress import Bar
from ..common.runs import Run
from ..common.stopping import stop_asked, stop_if_asked
from ..envs.core import BatchedEnv


class StopAtNaN(BaseCallback):
    """Ends the training where a number of the last update (losses, norms of gradients) or a weight is NaN or infinite.

    It looks once per update and waits for the device once, before any other callback makes or keeps something of such a
    policy; a gradient that is not finite leaves no finite weight.

    Args:
        run: where the last good checkpoint lies, for the message.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def _on_rollout_start(self) -> None:
        self.look()

    def _on_training_end(self) -> None:
        self.look()

    def look(self) -> None:
        """Look at the numbers that the update has left, and at all weights.

        Raises:
            NotFiniteError: names the step, what is not finite, and the way out.
        """
        logged = {name: float(value) for name, value in self.logger.name_to_value.items() if name not in UNDEFINED}
        wrong = not_finite(logged) or [text for text in [not_finite_tensor(self.model.policy.state_dict())] if text]
        if wrong:
            raise NotFiniteError(diverged(self.run, self.num_timesteps, wrong))

    def _on_step(self) -> bool:
        return True


UNDEFINED = ("train/explained_variance", "train/approx_kl", "train/ratio_mean")
"""Numbers that need not exist where all is well: of returns that are all equal, of ratios that overflow where they are
clipped. They are then left out of the curves."""


def diverged(run: Run, step: int, wrong: Sequence[str]) -> str:
    """The message of a training whose numbers are not finite any more."""
    kept = checkpoints_in(run.folder / "checkpoints")
    last = f"the last checkpoint, {kept[-1]}, is from before" if kept else "no checkpoint was kept"
    return (
        f"training stopped at step {step}: {', '.join(wrong)}; {last}. Start a new run with a lower learning rate, or "
        f"look for rewards and observations that are not finite"
    )


class KeepCheckpoints(BaseCallback):
    """Saves a checkpoint at the start of the first rollout after every `every` steps, when nothing is half done.

    Where a signal has asked for it, it saves one and stops the training.

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
        due = self.saved_at is None or self.model.num_timesteps // self.every > self.saved_at // self.every
        if due or stop_asked():
            self.save()
        stop_if_asked()

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


TABLE_EVERY_S = 10.0
"""Time between two tables on a terminal."""


class ShowProgress(BaseCallback):
    """Moves the bar on after each rollout, with reward and length of the last episodes and the speed beside it.

    On a terminal a table of these stands above the bar every `TABLE_EVERY_S`; a sentence ends the training.

    Args:
        bar: counts environment steps.
        total: those at the end.
        clock: seconds.
    """

    def __init__(self, bar: Bar, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.bar, self.total, self.clock = bar, total, clock

    def _on_training_start(self) -> None:
        self.first_step, self.begun_at = self.model.num_timesteps, self.clock()
        self.shown_at = self.begun_at

    def _now(self) -> dict[str, float]:
        """Mean reward and length of the last episodes (up to 100, as SB3 keeps them), and steps per second."""
        assert isinstance(self.model, OnPolicyAlgorithm)
        episodes = list(self.model.ep_info_buffer or ())
        means = {"reward": "r", "length": "l"} if episodes else {}
        found = {name: sum(episode[key] for episode in episodes) / len(episodes) for name, key in means.items()}
        passed = max(self.clock() - self.begun_at, 1e-9)
        return found | {"fps": (self.model.num_timesteps - self.first_step) / passed}

    def _on_rollout_end(self) -> None:
        now = self._now()
        self.bar.reach(self.model.num_timesteps, now)
        if self.clock() - self.shown_at >= TABLE_EVERY_S:
            self.shown_at = self.clock()
            titles = {"reward": "reward of an episode", "length": "steps of an episode", "fps": "steps per second"}
            digits = {"reward": ".3g", "length": ",.1f", "fps": ",.0f"}
            rows = {titles[name]: format(value, digits[name]) for name, value in now.items()}
            self.bar.show({"steps": f"{self.model.num_timesteps:,} of {self.total:,}", **rows})

    def _on_training_end(self) -> None:
        now, passed = self._now(), timedelta(seconds=round(self.clock() - self.begun_at))
        last = f"; last episodes: reward {now['reward']:.3g}, {now['length']:.1f} steps" if "reward" in now else ""
        steps = f"{self.model.num_timesteps - self.first_step:,} steps in {passed}"
        self.bar.say(f"trained {steps} ({now['fps']:,.0f} steps per second){last}")

    def _on_step(self) -> bool:
        return True
