"""Baselines of SPARS beside its reference policies: score maps, without an agent (docs/spars.md, Method 12).

A = painted map, B = score map, f = presence score. The single agent, without a competitor, is a run of its own
(configs/spars/single_agent.yaml).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ...envs.spars import SparsEnv
from .rollouts import Maps


@dataclass(frozen=True)
class Baseline:
    """One row: everything about a baseline of SPARS. It learns nothing; its labels are those of the scores f."""

    title: str
    """Name in tables of results."""
    maps: Callable[[SparsEnv], Maps]
    """Its map of each case of an environment."""


def score_map(env: SparsEnv, reduce: str) -> Maps:
    """B = mean or max of f over all lattice windows that contain a voxel, without an agent
    (docs/spars.md, Method 12)."""
    ids = torch.arange(env.lattice.size, device=env.device)[None]
    scores = (env.table.volume(number).flatten()[None] for number in range(len(env.cases)))
    blocks = torch.cat([env.lattice.paint(ids, f, reduce) for f in scores])
    return Maps(env, blocks, [{} for _ in env.cases])


BASELINES: dict[str, Baseline] = {
    "score_map_mean": Baseline("score map (mean)", partial(score_map, reduce="mean")),
    "score_map_max": Baseline("score map (max)", partial(score_map, reduce="max")),
}
"""Every baseline, in the order of the tables."""
