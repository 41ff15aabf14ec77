"""Self-play: the competitor is a frozen copy of the learner, or one of a pool of them (docs/spars.md, Method 10)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from ...common.checkpoints import check_like
from ...common.checks import AT_LEAST_1, check
from ...common.runs import Run
from ...envs.core import Obs
from ...envs.spars import SparsEnv
from ...envs.spars_rules import RULES
from ...evaluation.matrix_pictures import win_rate_picture
from ..policy import ActorCritic
from .pool import Pool, PoolName, Snapshot

InitialOpponent = Literal["self_snapshot", "constant0", "random"]

SELF_PLAY_NOTE = (
    "self-play: the competitor is a copy of the learner, so that a mean reward near 0 is what a fair game gives and no "
    "sign that nothing is learned; watch spars/dice_eval, spars/terminal_hit and spars/score_self instead"
)


@dataclass(frozen=True)
class SelfPlayConfig:
    """Opponent of self-play training (docs/spars.md, Method 10)."""

    refresh_every: int = 1
    """Rollouts, of ppo.n_steps each, between two updates of the opponent to the learner's weights."""
    initial_opponent: InitialOpponent = "self_snapshot"
    """Opponent before the first update. self_snapshot: the untrained learner; constant0: always +z (paper); random."""
    pool: PoolName = "latest"
    """Snapshots of the learner that compete. latest: the newest; else each episode meets one of pool_size, drawn
    uniform; gaussian: middle-aged ones most often; prioritised: those that the learner loses to most often."""
    pool_size: int = 20
    """Largest number of snapshots in the pool: the newest and a uniform sample of those before it."""
    snapshot_every: int = 1
    """Updates for one snapshot that enters the pool."""
    priority_power: float = 2.0
    """p of pool prioritised: a snapshot is met in proportion to (1 - win rate)^p; 0 is uniform."""

    def __post_init__(self) -> None:
        check(self, "self_play.", refresh_every=AT_LEAST_1, pool_size=AT_LEAST_1, snapshot_every=AT_LEAST_1)
        check(self, "self_play.", priority_power=(0, 100))
        if self.pool == "latest" and self.snapshot_every > 1:
            raise ValueError(
                f"self_play.snapshot_every is {self.snapshot_every} but self_play.pool is 'latest', which keeps no "
                f"other snapshot: give self_play.refresh_every, or another pool"
            )


class SelfPlay(BaseCallback):
    """Keeps the competitor of `env` a frozen copy of the learner, as `settings` say.

    Before the first snapshot the competitor is `initial_opponent`: the untrained learner, or a rule.
    """

    def __init__(self, env: SparsEnv, settings: SelfPlayConfig | None = None) -> None:
        super().__init__()
        self.env, self.settings = env, settings or SelfPlayConfig()
        chosen = self.settings
        self.pool = Pool(chosen.pool, env.num_envs, chosen.pool_size, chosen.priority_power)
        self.matrix: list[dict[str, Any]] = []
        """For each look at the validation cases the learner's step, and birth and win rate of every snapshot met."""

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest snapshot; None before the first."""
        return self.pool.snapshots[-1] if self.pool.snapshots else None

    def _on_rollout_start(self) -> None:
        step = self.model.num_timesteps
        rollouts = step // (self.model.n_steps * self.model.n_envs)  # type: ignore[attr-defined]
        due = rollouts % (self.settings.refresh_every * self.settings.snapshot_every) == 0
        first = self.settings.initial_opponent == "self_snapshot"
        if due and (rollouts or first) and not (self.snapshot and self.snapshot.born == step):  # resumed after it
            self.refresh()
        elif rollouts == 0:
            self.join(self.env)

    def _on_step(self) -> bool:
        ended = self.locals["dones"].nonzero()[0]
        if len(ended) and self.pool.snapshots:
            for env_id in ended:
                self.pool.count(env_id, int(self.locals["infos"][env_id]["win"]))
            self.pool.draw(torch.from_numpy(ended))
        return True

    def refresh(self) -> None:
        """Take a snapshot of the learner now."""
        assert isinstance(self.model.policy, ActorCritic)
        self.pool.add(self.model.policy, self.model.num_timesteps)
        self.join(self.env)

    def join(self, env: SparsEnv) -> None:
        """Let today's competitor play in `env`: the pool where the learner trains, its newest snapshot elsewhere."""
        mine = self.pool if env is self.env else self.snapshot
        env.set_opponent(mine if self.snapshot else _Rule(env, self.settings.initial_opponent))

    def examine(self, run: Run, step: int) -> None:
        """Keep the win rates of today, and log the matrix of all so far as the image spars/win_rates."""
        if self.pool.name == "latest":
            return
        met = [one for one in self.pool.snapshots if one.episodes]
        self.matrix.append({"step": step, "win_rates": {one.born: one.win_rate for one in met}})
        births = sorted({born for row in self.matrix for born in row["win_rates"]})
        if births:
            rates = torch.tensor([[row["win_rates"].get(born, torch.nan) for born in births] for row in self.matrix])
            steps = [row["step"] for row in self.matrix]
            run.log_image("spars/win_rates", win_rate_picture(rates.numpy(), steps, births), step)

    def state(self) -> dict[str, Any]:
        """The pool and the win rates so far, for a checkpoint."""
        return {**self.pool.state(), "matrix": list(self.matrix)}

    def load_state(self, state: dict[str, Any], policy: ActorCritic) -> None:
        """Continue with the opponents of a checkpoint; `policy` tells their architecture."""
        self.pool.load_state(state, policy)
        check_like(state, {"matrix": []}, "self_play")
        for row in state["matrix"]:
            check_like(row, {"step": 0, "win_rates": {}}, "self_play.matrix")
        self.matrix = list(state["matrix"])
        self.join(self.env)


class _Rule:
    """A named rule of the environment, as a policy object."""

    def __init__(self, env: SparsEnv, name: str) -> None:
        self.env, self.rule = env, RULES[name]

    def act(self, obs: Obs, deterministic: bool) -> Tensor:
        return self.rule(self.env, 1)
