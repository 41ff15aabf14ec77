"""Baselines of SPARS beside its reference policies: score maps, without an agent (docs/spars.md, Method 12).

A = painted map, B = score map, f = presence score. The single agent, without a competitor, is a run of its own
(configs/spars/single_agent.yaml).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ...envs.spars import SparsEnv
from ...segmenters.window_masks import Reduce
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


def score_map(env: SparsEnv, reduce: Reduce) -> Maps:
    """B = lowest, mean or highest f of all lattice windows that contain a voxel, without an agent
    (docs/spars.md, Method 12)."""
    masks = replace(env.masks, reduce=reduce)
    scores = (env.table.volume(number).flatten()[None] for number in range(len(env.cases)))
    return Maps(env, torch.cat([masks.blocks(f) for f in scores]), [{} for _ in env.cases])


def prior_map(env: SparsEnv) -> Maps:
    """The map of what is likely before anything is seen: place alone, the same for every image; nothing where nothing
    was learned."""
    unseen = torch.full((len(env.cases), env.lattice.size), torch.nan, device=env.device)
    reduce: Reduce = "mean" if env.masks.reduce == "sum" else env.masks.reduce
    return Maps(env, replace(env.masks, reduce=reduce).blocks(unseen), [{} for _ in env.cases])


BASELINES: dict[str, MapBaseline] = {
    "position_prior": MapBaseline("position prior", maps=prior_map, sees_target=False, included=always),
    "score_map_mean": MapBaseline(
        "score map (mean)", maps=partial(score_map, reduce="mean"), sees_target=False, included=always
    ),
    "score_map_min": MapBaseline(
        "score map (min)", maps=partial(score_map, reduce="min"), sees_target=False, included=always
    ),
    "score_map_max": MapBaseline(
        "score map (max)", maps=partial(score_map, reduce="max"), sees_target=False, included=always
    ),
}
"""Every baseline, in the order of the tables."""
