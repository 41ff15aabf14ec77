"""Dice of the rules of SPARS search against the number of windows that they look at (docs/spars.md, Results).

    python benchmarks/spars_calls.py

θ of each rule and number is chosen on the validation phantoms; Dice is of the test phantoms. Writes
results/spars_calls.json beside this and docs/media/spars_calls.png; goes on where it was stopped.
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from segarena.agents.spars.baselines import score_map
from segarena.agents.spars.rollouts import Maps, roll_out
from segarena.agents.spars.search_rules import SEARCH_POLICIES
from segarena.agents.spars.thresholds import Threshold
from segarena.datasets.liver.cases import LiverDataConfig, load_liver_cases
from segarena.envs.spars import SparsEnv
from segarena.evaluation.machine import describe_machine
from segarena.evaluation.statistics import bootstrap_interval
from tqdm import tqdm

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
NUMBERS = (4, 8, 16, 32, 64, 128, 256)
LEFT_OUT = {"search_clairvoyant": 64}
"""Rules that are slow, and the most windows that they look at here."""


def dice_of(maps: Maps, threshold: Threshold) -> list[float]:
    """Dice of each case."""
    return [
        float(2 * (inside & truth).sum() / (inside.sum() + truth.sum()))
        for number, case in enumerate(maps.env.cases)
        if case.label is not None
        for inside, truth in [(maps.inside(number, threshold.of_case(maps.values(number))), case.label == 2)]
    ]


def main() -> None:
    """Measure what is missing, write the file after each rule and number, draw the figure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--test", default="phantom_6000-6039", help="range of test phantoms")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    torch.set_num_threads(1)
    path = HERE / "results" / "spars_calls.json"
    kept = json.loads(path.read_text()) if path.exists() else {"rules": {}}
    cases = {
        "validation": load_liver_cases(LiverDataConfig(split="classifier_val")),
        "test": load_liver_cases(LiverDataConfig(cases=[given.test])),
    }

    def env(purpose: str, windows: int) -> SparsEnv:
        return SparsEnv(
            profile="search",
            action_set="anywhere",
            n_agents=1,
            horizon=windows,
            mask_threshold=0.65,
            num_envs=len(cases[purpose]),
            volumes=cases[purpose],
            device="cpu",
            eval_dice=False,
        )

    def measure(name: str, windows: int) -> dict[str, object]:
        maps = {}
        for purpose in cases:
            played = env(purpose, windows)
            if name == "score_map_mean":
                maps[purpose] = score_map(played, "mean")
            else:
                policy = SEARCH_POLICIES[name].make(played, given.seed)
                maps[purpose] = roll_out(played, policy, jitter_cells=0, seed=given.seed)
        threshold = Threshold.of(maps["validation"], "expected_dice")
        values = dice_of(maps["test"], threshold)
        dice = {"dice": float(np.mean(values)), "interval": bootstrap_interval(values), "cases": values}
        return {"calibration": threshold.written()["calibration"], **dice}

    wanted = [(name, n) for name in SEARCH_POLICIES for n in NUMBERS if n <= LEFT_OUT.get(name, n)]
    for name, windows in tqdm([("score_map_mean", 1), *wanted], unit="rule"):
        rows = kept["rules"].setdefault(name, {})
        if str(windows) not in rows:
            rows[str(windows)] = measure(name, windows)
            kept |= {"test": given.test, "seed": given.seed, "machine": describe_machine()}
            path.write_text(json.dumps(kept, indent=1) + "\n")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    whole = kept["rules"]["score_map_mean"]["1"]
    axes.axhline(100 * whole["dice"], color="black", label="score map (mean),\nall 1,859 windows")
    for name, rows in kept["rules"].items():
        if name != "score_map_mean":
            numbers = sorted(map(int, rows))
            mean = [100 * rows[str(n)]["dice"] for n in numbers]
            style = "--" if name == "search_clairvoyant" else "-"
            axes.plot(numbers, mean, style, marker="o", markersize=3, label=name.removeprefix("search_"))
    axes.set_xscale("log", base=2)
    axes.set_xticks(NUMBERS, [str(n) for n in NUMBERS])
    axes.set_xlabel("windows that were looked at")
    axes.set_ylabel("Dice (%), 40 phantoms")
    figure.legend(fontsize=8, loc="outside right center", title="rule")
    figure.savefig(HERE.parent / "docs" / "media" / "spars_calls.png", dpi=120)


if __name__ == "__main__":
    main()
