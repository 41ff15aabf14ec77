"""Baselines of SPARS beside its reference policies: score maps, without an agent (docs/spars.md, Method 12).

A = painted map, B = score map, f = presence score. The single agent, without a competitor, is a run of its own
(configs/spars/single_agent.yaml).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from ...envs.spars import SparsEnv
from ..experiment import Baseline, always
from .config import SparsExperiment
from .rollouts import Maps


@dataclass(frozen=True)
class MapBaseline(Baseline[SparsExperiment, SparsEnv]):
    """One row: a map of each case. Without `supervision` of its own its labels are those of the scores f."""

    networks: None = field(default=None, init=False)
    """SPARS has no stage that would train them."""
    maps: Callable[[SparsEnv], Maps] = field(kw_only=True)
    """Its map of each case of an environment."""


def score_map(env: SparsEnv, reduce: str) -> Maps:
    """B = mean or max of f over all lattice windows that contain a voxel, without an agent
    (docs/spars.md, Method 12)."""
    ids = torch.arange(env.lattice.size, device=env.device)[None]
    scores = (env.table.volume(number).flatten()[None] for number in range(len(env.cases)))
    blocks = torch.cat([env.lattice.paint(ids, f, reduce) for f in scores])
    return Maps(env, blocks, [{} for _ in env.cases])


BASELINES: dict[str, MapBaseline] = {
    "score_map_mean": MapBaseline(
        "score map (mean)", maps=partial(score_map, reduce="mean"), sees_target=False, included=always
    ),
    "score_map_max": MapBaseline(
        "score map (max)", maps=partial(score_map, reduce="max"), sees_target=False, included=always
    ),
}
"""Every baseline, in the order of the tables."""
