"""Dice of the same windows with each way of making masks of them (docs/spars.md, Results).

    python benchmarks/spars_masks.py

The score map (all windows) and the straddle rule at 32 windows; what a way needs to know is chosen on the validation
phantoms, Dice is of the test phantoms. Writes results/spars_masks.json beside this and prints the table.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from segarena.agents.spars.config import MaskRule
from segarena.agents.spars.rollouts import Maps, roll_out
from segarena.agents.spars.search_rules import SEARCH_POLICIES
from segarena.agents.spars.thresholds import Threshold
from segarena.datasets.liver.cases import LiverDataConfig, load_liver_cases
from segarena.envs.spars import SparsEnv
from segarena.evaluation.machine import describe_machine
from segarena.evaluation.metrics import dice
from segarena.evaluation.statistics import bootstrap_interval
from segarena.segmenters.window_masks import MaskMaker

RESULT = Path(__file__).parent / "results" / "spars_masks.json"
WAYS = (
    ("mean", "blocks", "windows"),
    ("mean", "trilinear", "windows"),
    ("min", "trilinear", "windows"),
    ("mean", "trilinear", "cells"),
    ("min", "trilinear", "cells"),
)
"""Overlapping windows, voxels, what a window is painted with (docs/spars.md, Method 5)."""
SOURCES = {"score map": None, "search_gp_straddle": 32}
"""Windows that are looked at; None: all."""


def environment(cases: Sequence[object], windows: int) -> SparsEnv:
    """A search of one agent on all cases at once."""
    settings = {"profile": "search", "action_set": "anywhere", "n_agents": 1, "mask_threshold": 0.65}
    return SparsEnv(**settings, horizon=windows, num_envs=len(cases), volumes=cases, device="cpu", eval_dice=False)


def seen_of(env: SparsEnv, source: str, seed: int) -> torch.Tensor:
    """Scores of the windows that are looked at, float32 [C, L], NaN elsewhere."""
    if SOURCES[source] is None:
        return torch.stack([env.table.volume(number).flatten() for number in range(len(env.cases))])
    found = []
    keep = env.masks

    class Kept(MaskMaker):
        def blocks(self, seen: torch.Tensor, cases: Sequence[int]) -> torch.Tensor:
            found.append(seen)
            return super().blocks(seen, cases)

    env.masks = Kept(keep.lattice, keep.reduce, keep.upsample, keep.prior)
    roll_out(env, SEARCH_POLICIES[source].make(env, seed), jitter_cells=0, seed=seed)
    env.masks = keep
    return found[0]


def main() -> None:
    """Measure every way, write the file, print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--test", default="phantom_6000-6039", help="range of test phantoms")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    torch.set_num_threads(1)
    cases = {
        "validation": load_liver_cases(LiverDataConfig(split="classifier_val")),
        "test": load_liver_cases(LiverDataConfig(cases=[given.test])),
    }
    rows: list[dict[str, object]] = []
    for source, windows in SOURCES.items():
        envs = {purpose: environment(some, windows or 1) for purpose, some in cases.items()}
        seen = {purpose: seen_of(env, source, given.seed) for purpose, env in envs.items()}
        makers = {purpose: env.masks for purpose, env in envs.items()}
        first: list[float] = []
        for reduce, upsample, paint in WAYS:
            maps = {}
            for purpose, env in envs.items():
                evidence = makers[purpose].evidence if paint == "cells" else None
                env.masks = replace(makers[purpose], reduce=reduce, upsample=upsample, evidence=evidence)
                blocks = env.masks.blocks(seen[purpose], range(len(env.cases)))
                maps[purpose] = Maps(env, blocks, [{} for _ in env.cases])
            for rule in get_args(MaskRule):
                threshold = Threshold.of(maps["validation"], rule)
                values = []
                for number, case in enumerate(cases["test"]):
                    voxels = maps["test"].values(number)
                    values.append(dice(voxels > threshold.of_case(voxels), case.label == 2))
                first = first or values
                rows.append(
                    {
                        "source": source,
                        "reduce": reduce,
                        "upsample": upsample,
                        "paint": paint,
                        "mask": rule,
                        "dice": float(np.mean(values)),
                        "interval": bootstrap_interval(values),
                        "gain": float(np.mean(values) - np.mean(first)),
                        "gain_interval": bootstrap_interval(np.subtract(values, first)),
                        "cases": values,
                    }
                )
                print(source, reduce, upsample, paint, rule, f"{100 * np.mean(values):.1f}", flush=True)
    content = {"test": given.test, "seed": given.seed, "machine": describe_machine(), "rows": rows}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
