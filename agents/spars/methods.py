"""The methods of a SPARS run, and the one way from a case to the map and mask of each (docs/spars.md, Method 12-13).

`evaluate` and `predict` both come here. A = painted map, B = score map, θ = mask threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from ...common.runs import Run
from ...datasets.liver.cases import LiverCase, load_liver_cases
from ...envs.spars import SparsEnv
from ...envs.spars_config import ANYWHERE, CONTINUOUS, SparsConfig
from ..experiment import baselines_of
from ..policy import TrainedPolicy
from ..predictor import POLICY
from .baselines import BASELINES
from .config import SparsExperiment
from .context import Context
from .pool import Snapshot
from .rollouts import Maps, roll_out, roll_out_apart
from .rules import POLICIES
from .training import env_of, load_policies


@dataclass(eq=False)
class Cases:
    """Some cases, and the environments of a run on them, which are made when a method first needs one."""

    experiment: SparsExperiment
    run: Run
    config: SparsConfig
    volumes: Sequence[LiverCase] | None = None
    """The cases where they are read already; None: those that `config` names."""

    @cached_property
    def cases(self) -> Sequence[LiverCase]:
        """The cases."""
        return load_liver_cases(self.config) if self.volumes is None else self.volumes

    @cached_property
    def duel(self) -> SparsEnv:
        """K environments for the trained policy and whoever competes."""
        return self._env(self.experiment.evaluation.rollouts)

    @cached_property
    def alone(self) -> SparsEnv:
        """K environments per case in which nobody competes, so that nobody else ends an episode."""
        if self.config.profile in ("search", "patch"):  # as many windows as two agents look at, chosen anywhere
            assert self.config.horizon is not None
            horizon = self.config.horizon * self.config.n_agents
            places = {"search": ANYWHERE}.get(self.config.profile, self.config.action_set)
            return self._alone(action_set=places, horizon=horizon)
        return self._alone(obs_mode="own_window", action_set=self.config.action_set if self.config.moves else "axis6")

    @cached_property
    def placed(self) -> SparsEnv:
        """The same for rules that place the window anywhere instead of moving it."""
        return self._alone(obs_mode="own_window", action_set=CONTINUOUS)

    def _alone(self, **changes: Any) -> SparsEnv:
        return self._env(self.experiment.evaluation.rollouts * len(self.cases), n_agents=1, reward=None, **changes)

    def _env(self, num_envs: int, **changes: Any) -> SparsEnv:
        config = replace(self.config, eval_dice=False, **changes)
        return env_of(self.experiment, self.run, config, num_envs=num_envs, volumes=self.cases)


class Methods:
    """The methods of a run by name: `policy` is the trained one, others are reference policies and baselines."""

    def __init__(self, experiment: SparsExperiment, run: Run) -> None:
        self.experiment, self.run = experiment, run
        self._trained: tuple[Snapshot, Snapshot | None] | None = None
        self._networks: dict[str, list[nn.Module]] = {}

    @cached_property
    def titles(self) -> dict[str, str]:
        """Title of every method in tables of results, by the name that `predict --method` takes."""
        rows = baselines_of(BASELINES, self.experiment.baselines, self.experiment)
        baselines = {name: row.title for name, row in rows.items()}
        own = {POLICY: self.experiment.name} if self.experiment.ppo.total_timesteps else {}
        return {**own, **{name: name for name in POLICIES}, **baselines}

    def maps(self, name: str, cases: Cases) -> Maps:
        """The map of each case.

        Raises:
            ValueError: a reference policy that cannot play in the run's environment, a run without checkpoint, a
                method that needs labels where there are none.
        """
        protocol, seed = self.experiment.evaluation, self.experiment.seed
        if name in BASELINES:
            return BASELINES[name].maps(cases.alone, self._networks_of(name))
        if name in POLICIES:  # counted random numbers and no network: all cases at once give what each alone gives
            needs, profile = POLICIES[name].needs, self.experiment.env.profile
            places = CONTINUOUS in needs.get("action_set", ()) and profile in needs["profile"]
            env = cases.placed if places else cases.alone
            return roll_out(env, POLICIES[name].policy(env, seed), jitter_cells=protocol.jitter_cells, seed=seed)
        env = cases.duel
        self._trained = self._trained or load_policies(self.experiment, self.run, env)
        learner, opponent = self._trained
        env.set_opponent(opponent)
        trained = TrainedPolicy(learner.policy, protocol.deterministic)
        return roll_out_apart(env, trained, jitter_cells=protocol.jitter_cells, seed=seed)

    def _networks_of(self, name: str) -> list[nn.Module]:
        """The networks of a baseline, loaded once."""
        networks = BASELINES[name].networks
        if networks and name not in self._networks:
            self._networks[name] = networks(Context(self.experiment, self.run, trains=False))
        return self._networks.get(name, [])
