"""Frozen copies of the learner, and which of them an episode of self-play meets (docs/spars.md, Method 10).

θ = the learner's policy, θ̄ = a copy; n = snapshots in the pool, sorted from the oldest to the newest; N = environments;
w = the learner's win rate against a snapshot.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import Tensor

from ...common.checkpoints import check_like, load_into
from ...envs.core import Obs
from ..policy import ActorCritic
from ..recurrent import Memory, constructor_arguments

PoolName = Literal["latest", "uniform", "gaussian", "prioritised"]
MEMORY = 100
"""Episodes over which a win rate is averaged, about: it follows the learner as it changes."""


class Snapshot:
    """θ̄: a frozen copy of a policy θ, on the same device."""

    def __init__(self, policy: ActorCritic, born: int = 0) -> None:
        self.policy = type(policy)(**constructor_arguments(policy)).to(policy.device)
        self.masked = isinstance(policy, MaskableActorCriticPolicy)
        self.recurrent = isinstance(policy, RecurrentActorCriticPolicy)
        self.memory: Memory | None = None
        """Of the episodes that it plays alone, without a pool."""
        self.policy.set_training_mode(False)
        self.policy.requires_grad_(False)
        self.refresh(policy, born)

    def refresh(self, policy: ActorCritic, born: int = 0) -> None:
        """θ̄ ← copy(θ), which has met nobody yet; born: environment step."""
        self.policy.load_state_dict(policy.state_dict())
        self.born, self.episodes, self.win_rate = born, 0, 0.5

    def count(self, win: int) -> None:
        """Let an episode against it go into w; win: the learner's, -1, 0 (a tie: half a win) or 1."""
        self.episodes += 1
        self.win_rate += ((1 + win) / 2 - self.win_rate) / (1 + min(self.episodes, MEMORY))  # begins with half a win

    def act(self, obs: Obs, deterministic: bool, **masks: Any) -> Tensor:
        """Actions int64 [N] for observations [N, ...]; drawn from PyTorch's global generator unless deterministic.

        Where it is `masked`, action_masks bool [N, A] are given too; where it is `recurrent`, starts bool [N].
        """
        if self.recurrent:
            return self.remember(obs, deterministic, **masks)
        with torch.no_grad():
            return self.policy.get_distribution(obs, **masks).get_actions(deterministic=deterministic)

    def remember(
        self, obs: Obs, deterministic: bool, starts: Tensor, memory: Memory | None = None, rows: Any = slice(None)
    ) -> Tensor:
        """As `act`, of a recurrent one. memory: of a pool; rows: the environments in it, int64 [N]; else its own."""
        assert isinstance(self.policy, RecurrentActorCriticPolicy)
        if memory is None:
            memory = self.memory = Memory.fitting(self.memory, self.policy, len(starts))
        return memory.distribution(self.policy, obs, starts, rows).get_actions(deterministic=deterministic)

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs."""
        weights = dict(self.policy.state_dict())
        return {"born": self.born, "episodes": self.episodes, "win_rate": self.win_rate, "weights": weights}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        check_like(state, {"born": 0, "episodes": 0, "win_rate": 0.0, "weights": {}}, "snapshot")
        load_into(self.policy, state["weights"], "the opponent")
        self.born, self.episodes, self.win_rate = state["born"], state["episodes"], state["win_rate"]


def chances(pool: PoolName, win_rates: Tensor, power: float) -> Tensor:
    """Probability of each of n snapshots to be met, float64 [n], from the oldest to the newest.

    latest: the newest. uniform: 1 / n. gaussian: ⌊x⌋ with x ~ N(n/2, n/4) clipped to [0, n - 1]. prioritised: in
    proportion to (1 - w)^power, after AlphaStar's prioritised fictitious self-play.

    Args:
        pool: who is met.
        win_rates: w, float64 [n], below 1.
        power: of prioritised; 0 is uniform.
    """
    n = len(win_rates)
    if pool == "latest":
        return torch.eye(n, dtype=torch.float64)[-1]
    if pool == "gaussian":
        edges = torch.special.ndtr((torch.arange(1, n, dtype=torch.float64) - n / 2) / (n / 4))
        return torch.cat((torch.zeros(1), edges, torch.ones(1))).diff()
    power = power if pool == "prioritised" else 0.0
    return torch.softmax(power * torch.log1p(-win_rates), dim=0)


class Pool:
    """Up to `size` snapshots, and the opponent of the episode in each of N environments; a competitor of `SparsEnv`.

    The newest snapshot stays; the others are a uniform sample of all before it (a reservoir: Vitter, 1985, Algorithm
    R). Draws from PyTorch's global generator on the CPU, and only where there is a choice.
    """

    def __init__(self, name: PoolName, num_envs: int, size: int = 20, power: float = 2.0) -> None:
        self.name, self.size, self.power = name, 1 if name == "latest" else size, power
        self.snapshots: list[Snapshot] = []
        self.taken = 0
        """Snapshots that were taken so far, dropped ones too."""
        self.opponents = torch.zeros(num_envs, dtype=torch.int64)
        """Number of the snapshot that each environment's episode is played against, on the CPU."""
        self._rows: list[tuple[Snapshot, Tensor]] = []
        """Each snapshot in use, and the environments int64 [K] where it plays, on its device."""
        self.memory: Memory | None = None
        """What the opponents remember of the running episodes, once a recurrent one is there: it belongs to the
        episode, and goes on with whoever plays it."""

    def add(self, policy: ActorCritic, step: int) -> None:
        """Take a snapshot; where the pool is full, another is dropped, and its episodes go on against who is drawn."""
        if len(self.snapshots) < self.size:
            self.snapshots.append(Snapshot(policy, step))
            self._remember(policy)
            without = torch.tensor([] if self.taken else range(len(self.opponents)), dtype=torch.int64)
        else:
            place = int(torch.randint(self.taken, ())) if self.size > 1 else 0
            place = min(place, self.size - 1)  # the newest so far is now one of the old: it gets a place, or goes
            dropped = self.snapshots.pop(place)
            dropped.refresh(policy, step)
            self.snapshots.append(dropped)
            without = (self.opponents == place).nonzero().flatten()
            self.opponents -= (self.opponents > place).long()
        self.taken += 1
        self.draw(without)

    def draw(self, env_ids: Tensor) -> None:
        """Draw the opponents of the environments `env_ids` int64 [K], on the CPU, anew."""
        if len(self.snapshots) == 1:
            self.opponents[env_ids] = 0
        elif len(env_ids):
            rates = torch.tensor([one.win_rate for one in self.snapshots], dtype=torch.float64)
            drawn = torch.multinomial(chances(self.name, rates, self.power), len(env_ids), replacement=True)
            self.opponents[env_ids] = drawn
        self._rows = [
            (one, (self.opponents == number).nonzero().flatten().to(one.policy.device, non_blocking=True))
            for number, one in enumerate(self.snapshots)
            if (self.opponents == number).any()
        ]

    def _remember(self, policy: ActorCritic) -> None:
        """Make room for what opponents of this architecture remember."""
        if self.memory is None and isinstance(policy, RecurrentActorCriticPolicy):
            self.memory = Memory(policy, len(self.opponents))

    @property
    def masked(self) -> bool:
        """Whether its snapshots take action masks."""
        return self.snapshots[0].masked

    @property
    def recurrent(self) -> bool:
        """Whether its snapshots remember."""
        return self.memory is not None

    def act(self, obs: Obs, deterministic: bool, **masks: Tensor) -> Tensor:
        """Actions int64 [N, ...] for observations [N, ...]: one forward for each snapshot in use."""
        if self.memory is not None:
            starts = masks["starts"]
            parts = [
                one.remember(_rows_of(obs, rows), deterministic, starts[rows], self.memory, rows)
                for one, rows in self._rows
            ]
        elif len(self._rows) == 1:
            return self._rows[0][0].act(obs, deterministic, **masks)
        else:
            parts = [
                one.act(_rows_of(obs, rows), deterministic, **{name: mask[rows] for name, mask in masks.items()})
                for one, rows in self._rows
            ]
        actions = torch.cat(parts)
        return torch.empty_like(actions).index_copy_(0, torch.cat([rows for _, rows in self._rows]), actions)

    def count(self, env_id: int, win: int) -> None:
        """Let the episode that ended in an environment go into the win rate; win: the learner's, -1, 0 or 1."""
        self.snapshots[int(self.opponents[env_id])].count(win)

    @property
    def births(self) -> Tensor:
        """Environment step at which the opponent of each environment was taken, int64 [N]; 0 while there is none."""
        return torch.tensor([one.born for one in self.snapshots] or [0])[self.opponents]

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs."""
        snapshots = [one.state() for one in self.snapshots]
        memory = {} if self.memory is None else {"memory": self.memory.states.clone()}
        return {"taken": self.taken, "opponents": self.opponents.clone(), "snapshots": snapshots, **memory}

    def load_state(self, state: Mapping[str, Any], policy: ActorCritic) -> None:
        """Continue where `state` was read; `policy` tells the architecture.

        Raises:
            ValueError: it is malformed, or of another pool.
        """
        check_like(state, {"taken": 0, "opponents": self.opponents, "snapshots": []}, "pool")
        snapshots, met = state["snapshots"], state["opponents"].tolist()
        if len(snapshots) > self.size or not all(0 <= number < max(len(snapshots), 1) for number in met):
            raise ValueError(
                f"pool has {len(snapshots)} snapshots and opponents {met} but must have at most {self.size}"
            )
        self.taken, self.opponents = state["taken"], state["opponents"].clone()
        self.snapshots = [Snapshot(policy) for _ in snapshots]
        for one, kept in zip(self.snapshots, snapshots, strict=True):
            one.load_state(kept)
        if snapshots:
            self._remember(policy)
        if self.memory is not None:
            check_like(state, {"memory": self.memory.states}, "pool")
            self.memory.states.copy_(state["memory"])
        self.draw(torch.tensor([], dtype=torch.int64))


def _rows_of(obs: Obs, rows: Tensor) -> Obs:
    return {name: part[rows] for name, part in obs.items()} if isinstance(obs, dict) else obs[rows]
