"""What a presence classifier that knows one contrast phase makes of the others (docs/spars.md, Method 7 and 11).

Phantoms of one phase (portal) or of all four teach the default classifier, with three augmentations: none but flips,
the default, and that of configs/spars/mixed_phases.yaml. Each is judged by its AUC over all lattice windows of unseen
phantoms of each phase. Sizes are small, for two minutes of one core: 48 volumes a training.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from measuring import CPU
from segarena.agents.configuration import experiment_from, experiment_parser
from segarena.agents.papers import PAPERS
from segarena.classifiers.presence import PresenceNet
from segarena.classifiers.presence_config import PresenceTrainingConfig
from segarena.classifiers.train_presence import WindowPool, lattice_scores, train_presence
from segarena.common.files import replacing
from segarena.common.runs import Run
from segarena.datasets.liver.cases import LiverCase, LiverDataConfig, load_liver_cases
from segarena.datasets.liver.lattice import Triple
from segarena.datasets.liver.phantom import PHASES
from segarena.evaluation.machine import describe_machine
from segarena.evaluation.metrics import auroc, classification_metrics

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "spars" / "mixed_phases.yaml"
WINDOW: Triple = (16, 16, 8)
STEP = 4
FIRST = {"train": 0, "val": 1000, "test": 3000}
"""Number of the first phantom of each purpose."""
INTENSITIES = ("hu_shift", "hu_scale", "gamma", "bias_hu", "noise_hu")


def phase_of(number: int) -> str:
    """Contrast phase of phantom number `number`: `liver_phantom` draws it first."""
    return str(np.random.default_rng(number).choice(list(PHASES)))


def phantoms(purpose: str, phases: Sequence[str], each: int) -> list[LiverCase]:
    """The first `each` phantoms of every phase, of one purpose."""
    numbers = [n for phase in phases for n in islice((k for k in count(FIRST[purpose]) if phase_of(k) == phase), each)]
    return load_liver_cases(LiverDataConfig(cases=[f"phantom_{number:05d}" for number in numbers]))


def augmentations(wide: PresenceTrainingConfig) -> dict[str, dict[str, float]]:
    """Settings of the intensities: none, those of the default, and those of `wide`."""
    default = PresenceTrainingConfig()
    return {
        "none": dict.fromkeys(INTENSITIES, 0.0),
        "default": {name: getattr(default, name) for name in INTENSITIES},
        "wide": {name: getattr(wide, name) for name in INTENSITIES},
    }


def taught(cases: list[LiverCase], val: list[LiverCase], config: PresenceTrainingConfig, seed: int) -> PresenceNet:
    """A classifier that has learned from the cases for one epoch."""
    with TemporaryDirectory() as folder:
        run = Run(folder)
        try:
            return train_presence(cases, val, WINDOW, STEP, config, run, CPU, seed, metrics=classification_metrics)
        finally:
            run.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "presence_phases.json")
    parser.add_argument(
        "--quick", action="store_true", help="one batch, seed and test case a phase: shows that it runs"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.process_time()
    sizes = {"batches": 24, "train_cases": 12, "test_cases_of_each_phase": 4, "seeds": [0, 1]}
    if given.quick:
        sizes = {"batches": 1, "train_cases": 4, "test_cases_of_each_phase": 1, "seeds": [0]}
    figures = measure(**sizes)
    result = {
        "id": "presence-phases",
        "command": f"python benchmarks/presence_phases.py{' --quick' if given.quick else ''}",
        "machine": describe_machine(),
        "sizes": sizes,
        "cpu_seconds": round(time.process_time() - begin, 1),
        "figures": figures,
    }
    with replacing(given.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(
    batches: int, train_cases: int, test_cases_of_each_phase: int, seeds: Sequence[int]
) -> list[dict[str, object]]:
    """One row for each cohort and augmentation, printed as it is there: AUC of each seed by phase."""
    paper, every = PAPERS["spars"], list(PHASES)
    wide = experiment_from(paper, experiment_parser(paper).parse_args(["--config", str(CONFIG)])).presence
    config = PresenceTrainingConfig(
        epochs=1, batches_per_epoch=batches, volumes_per_batch=2, learning_rate=3e-3, validation_windows=16
    )
    cohorts = {
        "portal": phantoms("train", ["portal"], train_cases),
        "mixed": phantoms("train", every, train_cases // len(every)),
    }
    val = phantoms("val", ["portal"], 1)  # nothing is chosen on it: there is one epoch
    tests = {phase: WindowPool(phantoms("test", [phase], test_cases_of_each_phase), WINDOW, 1, CPU) for phase in every}
    rows: list[dict[str, object]] = []
    print(f"| taught by | augmentation | {' | '.join(every)} |\n|---|---|{'---|' * len(every)}")
    for cohort, cases in cohorts.items():
        for name, settings in augmentations(wide).items():
            nets = [taught(cases, val, replace(config, **settings), seed) for seed in seeds]
            aucs = {phase: [auroc(*lattice_scores(net, pool, STEP)) for net in nets] for phase, pool in tests.items()}
            rows.append({"cohort": cohort, "augmentation": name, "intensities": settings, "auc": aucs})
            cells = (f"{statistics.mean(of):.3f} ({min(of):.3f} to {max(of):.3f})" for of in aucs.values())
            print(f"| {cohort} | {name} | {' | '.join(cells)} |", flush=True)
    return rows


if __name__ == "__main__":
    main()
