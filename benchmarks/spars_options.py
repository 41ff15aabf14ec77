"""Dice with a prior that is registered to the liver, and with masks that may be empty (docs/spars.md, Results).

    python benchmarks/spars_options.py

Registered: score volumes of the phantoms that the packaged prior was learned from are brought, linearly, to the mean
bounding box of their livers, and mean and patterns back to that of each test phantom; straddle with 32 windows. Empty:
phantoms, every second of them without tumours, and the rule that half of 64 others without tumours taught. Writes
results/spars_options.json beside this and prints both tables.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segarena.agents.spars.baselines import score_map
from segarena.agents.spars.rollouts import Maps, roll_out
from segarena.agents.spars.search_rules import SEARCH_POLICIES
from segarena.agents.spars.thresholds import Threshold
from segarena.classifiers.presence import load_presence
from segarena.datasets.liver.cases import LiverDataConfig, load_liver_cases
from segarena.envs import spars_tables
from segarena.envs.spars import SparsEnv
from segarena.evaluation.machine import describe_machine
from segarena.evaluation.metrics import dice
from segarena.evaluation.statistics import bootstrap_interval
from segarena.segmenters.score_prior import ScorePrior

RESULT = Path(__file__).parent / "results" / "spars_options.json"
WINDOWS = 32
RULE = SEARCH_POLICIES["search_gp_straddle"]


def search(cases: Sequence[Any]) -> SparsEnv:
    """A search of one agent on all cases at once."""
    settings = {"profile": "search", "action_set": "anywhere", "n_agents": 1, "mask_threshold": 0.65}
    return SparsEnv(**settings, horizon=WINDOWS, num_envs=len(cases), volumes=cases, device="cpu", eval_dice=False)


# -- the prior registered to the liver -------------------------------------------------------------------------------


def liver_box(case: Any) -> torch.Tensor:
    """First and last voxel + 1 of the liver along each axis, [2, 3]."""
    inside = (case.label > 0).nonzero()
    return torch.stack((inside.amin(dim=0), inside.amax(dim=0) + 1)).double()


def moved(env: SparsEnv, volumes: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Volumes [n, L] of a lattice whose liver fills `source`, as they would be where it fills `target`."""
    lattice = env.lattice
    found = volumes.view(-1, *lattice.shape)
    for axis, (number, phase, width) in enumerate(zip(lattice.shape, lattice.phase, lattice.window, strict=True)):
        middles = torch.arange(number, dtype=torch.float64) * lattice.step + phase + width / 2
        share = (middles - target[0, axis]) / (target[1, axis] - target[0, axis])
        there = source[0, axis] + share * (source[1, axis] - source[0, axis])
        place = ((there - phase - width / 2) / lattice.step).clamp(0, number - 1)
        below = place.floor().long().clamp(max=max(number - 2, 0))
        part = (place - below).float().view(-1, *([1] * (2 - axis)))
        low, high = (found.index_select(axis + 1, (below + more).clamp(max=number - 1)) for more in (0, 1))
        found = low + part * (high - low)
    return found.flatten(1)


def registered(test: str) -> dict[str, list[float]]:
    """Dice of each test phantom, with the prior as it is and registered."""
    learned = load_liver_cases(LiverDataConfig(cases=["phantom_20000-20255"]))
    env = search(learned)
    volumes = torch.stack([env.table.volume(number).flatten() for number in range(len(learned))])
    boxes = torch.stack([liver_box(case) for case in learned])
    mean_box, digest = boxes.mean(dim=0), load_presence("packaged").digest
    plain = ScorePrior.fit(volumes, env.lattice, digest)
    aligned = torch.cat([moved(env, one[None], box, mean_box) for one, box in zip(volumes, boxes, strict=True)])
    canonical = ScorePrior.fit(aligned, env.lattice, digest)

    def brought(box: torch.Tensor) -> ScorePrior:
        prior = ScorePrior(
            env.lattice.shape, canonical.patterns, canonical.share, canonical.classifier, canonical.place
        )
        for name in ("mean", "deviation", "patterns_of"):
            values = getattr(canonical, name)
            there = moved(env, values.view(-1, env.lattice.size), mean_box, box).view_as(values)
            getattr(prior, name).copy_(there)
        return prior

    sets = [load_liver_cases(LiverDataConfig(split="classifier_val")), load_liver_cases(LiverDataConfig(cases=[test]))]
    own, found = spars_tables.load_prior, {}
    for name in ("as it is", "registered"):
        maps: list[list[Maps]] = []
        for cases in sets:
            maps.append([])
            for case in cases:
                prior = plain if name == "as it is" else brought(liver_box(case))
                spars_tables.load_prior = lambda *_, prior=prior: prior
                maps[-1].append(roll_out(one := search([case]), RULE.policy(one, 0), jitter_cells=0, seed=0))
        spars_tables.load_prior = own
        calibration = Threshold.of(joined(maps[0]), "expected_dice")
        values = [one.values(0) for one in maps[1]]
        found[name] = [
            dice(map_ > calibration.of_case(map_), case.label == 2) for map_, case in zip(values, sets[1], strict=True)
        ]
    return found


def joined(parts: Sequence[Maps]) -> Maps:
    """The maps of several environments of one case each."""
    env = search([part.env.cases[0] for part in parts])
    return Maps(env, torch.cat([part.blocks for part in parts]), [part.facts[0] for part in parts])


# -- masks that may be empty -----------------------------------------------------------------------------------------


def emptied(test: str) -> dict[str, dict[str, list[float]]]:
    """Of each test phantom whether it has tumour, its Dice (two empty masks: 1), and whether its mask is empty."""
    sets = [load_liver_cases(LiverDataConfig(cases=[cases], tumour_free=0.5)) for cases in ("phantom_1000-1063", test)]
    found = {}
    for source in ("score map", "straddle"):
        envs = [search(cases) for cases in sets]
        val, maps = (
            score_map(env, "mean")
            if source == "score map"
            else roll_out(env, RULE.policy(env, 0), jitter_cells=0, seed=0)
            for env in envs
        )
        for may_be_empty in (False, True):
            rule = Threshold.of(val, "expected_dice", may_be_empty=may_be_empty)
            rows: dict[str, list[float]] = {"tumour": [], "dice": [], "empty": []}
            for number, case in enumerate(sets[1]):
                voxels, truth = maps.values(number), case.label == 2
                mask = voxels > rule.of_case(voxels)
                either = bool(mask.any() or truth.any())
                rows["tumour"].append(float(truth.any()))
                rows["dice"].append(dice(mask, truth) if either else 1.0)
                rows["empty"].append(float(not mask.any()))
            found[f"{source}, {'may be empty' if may_be_empty else 'never empty'}"] = rows
    return found


def main() -> None:
    """Measure both, write the file, print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--test", default="phantom_7000-7039", help="range of test phantoms")
    given = options.parse_args()
    torch.set_num_threads(1)
    empty = emptied(given.test)
    print("| masks | Dice, with tumour | empty, of these | empty, without | Dice of all |\n|---|---|---|---|---|")
    for name, rows in empty.items():
        tumour, values, none = (np.array(rows[key]) for key in ("tumour", "dice", "empty"))
        there = tumour > 0
        shares = f"{int(none[there].sum())} of {there.sum()} | {int(none[~there].sum())} of {(~there).sum()}"
        print(f"| {name} | {100 * values[there].mean():.1f} | {shares} | {100 * values.mean():.1f} |", flush=True)
    prior = registered(given.test)
    less = 100 * np.subtract(prior["registered"], prior["as it is"])
    print("\nprior:", *(f"{name} {100 * np.mean(values):.1f}" for name, values in prior.items()), sep="  ")
    print("registered less: {:+.1f} [{:.1f}, {:.1f}]".format(*bootstrap_interval(less)))
    content = {"test": given.test, "machine": describe_machine(), "empty": empty, "registered": prior}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
