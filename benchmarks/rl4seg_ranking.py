"""Which reward networks of RL4Seg prefer the truth to the policy's own mask? (docs/rl4seg.md, Method 12)

    python benchmarks/rl4seg_ranking.py                                   # on phantoms, from nothing
    python benchmarks/rl4seg_ranking.py --run runs/rl4seg --seeds 0       # on the data and networks of a run
    python benchmarks/rl4seg_ranking.py --variants loop mixed_regions+ranking_loss --seeds 0 1 2

A variant is a file of configs/rl4seg, or several joined by +, put after loop.yaml, or after the run's configuration;
"loop" is neither. All variants of a seed have one source network, shape prior and policy, AdaBN's. Each makes its
reward data of the same target images, without labels, and trains its reward networks from scratch. Both rankings are
taken on patients that were in no training, and their intervals are over these patients. A variant that is done, in the
folder of --work or in the file of --out, is not made again.

hard_negatives needs masks of earlier images: here, after one policy, it adds nothing to reward_data.argmax.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from segarena.agents.configuration import experiment_from, experiment_parser
from segarena.agents.papers import PAPERS
from segarena.agents.rl4seg import training
from segarena.agents.rl4seg.config import RL4SegExperiment
from segarena.agents.rl4seg.context import Context
from segarena.agents.rl4seg.stages import start_net
from segarena.common.files import replacing
from segarena.common.manifests import NAME
from segarena.common.runs import Run
from segarena.datasets.echo.images import load_echo
from segarena.evaluation.calibration import error_detection
from segarena.evaluation.machine import describe_machine
from segarena.evaluation.statistics import bootstrap_interval
from segarena.rewards.ranking import truth_preferred
from segarena.segmenters.inference import segment

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "rl4seg"
VARIANTS = (
    *("loop", "mixed_regions", "source_triplets", "source_triplets+mixed_regions", "ranking_loss", "local_reward"),
    *("reward_ensemble", "source_triplets+mixed_regions+ranking_loss", "source_triplets+mixed_regions+local_reward"),
)
ONE_POLICY = {"iterations": 1, "initial_images": 0, "baselines": [], "ppo": {"epochs": 0}}
"""The loop up to its first reward network: PPO makes no pass."""
PHANTOMS = {
    "source": {"phantom_patients": {"train": 40, "val": 8, "test": 0, "pred": 0}},
    "target": {"phantom_patients": {"train": 10, "val": 2, "test": 40, "pred": 30}},
    "new_images": 160,
    "supervised": {"epochs": 30},
    "shape_prior": {"epochs": 40},
    "reward_net": {"epochs": 10},
}
QUICK = {
    "source": {"size": 32, "phantom_patients": {"train": 6, "val": 2, "test": 0, "pred": 0}},
    "target": {"size": 32, "phantom_patients": {"train": 5, "val": 1, "test": 3, "pred": 0}},
    "new_images": 16,
    "network": {"init_channels": 8},
    "supervised": {"epochs": 30, "batch_size": 8, "learning_rate": 0.005},
    "shape_prior": {"epochs": 10, "init_channels": 4, "batch_size": 8, "learning_rate": 0.005},
    "reward_data": {"sim_threshold": 0.1},
    "reward_net": {"epochs": 1},
}
SHARED = ("supervised", "shape_prior")
"""Stages that all variants of a seed have in common."""


def experiment_of(variant: str, seed: int, given: argparse.Namespace) -> RL4SegExperiment:
    """The experiment of a variant and a seed."""
    files = [given.run / "config.yaml" if given.run else CONFIGS / "loop.yaml"]
    files += [CONFIGS / f"{name}.yaml" for name in variant.split("+") if name != "loop"]
    last: dict[str, Any] = {"seed": seed, **ONE_POLICY}
    if given.run is None:
        last |= QUICK if given.quick else PHANTOMS
    path = given.work / f"{variant}_{seed}.yaml"
    path.write_text(yaml.safe_dump({"paper": "rl4seg", **last}), encoding="utf-8")
    paper = PAPERS["rl4seg"]
    options = [part for file in (*files, path) for part in ("--config", str(file))]
    experiment: RL4SegExperiment = experiment_from(paper, experiment_parser(paper).parse_args(options))
    return experiment.resolved()


def trained(variant: str, experiment: RL4SegExperiment, given: argparse.Namespace) -> Context:
    """Its data and networks, trained; what is shared comes from the run, or from the first variant of the seed."""
    folder, common = given.work / f"{variant}_{experiment.seed}", given.work / f"shared_{experiment.seed}"
    for name in SHARED:
        at = given.run or common
        if (at / name / NAME).is_file() and not (folder / name / NAME).is_file():
            shutil.copytree(at / name, folder / name, dirs_exist_ok=True)
    run = Run(folder)
    try:
        training.train(experiment, run)
    finally:
        run.close()
    for name in SHARED:
        if not (common / name / NAME).is_file():
            shutil.copytree(folder / name, common / name, dirs_exist_ok=True)
    return Context(experiment, run, trains=False)


def row_of(variant: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Both rankings of one variant with 95 % intervals over patients, and error AUROC beside them."""
    begin = time.process_time()
    experiment = experiment_of(variant, seed, given)
    context = trained(variant, experiment, given)
    test = load_echo(experiment.target, given.split, option="--target.").to(context.device)
    known, judge = test.known_labels, context.reward_net(1)
    if known is None or len(known.rows) < len(test):
        raise SystemExit(f"{len(test.unlabelled)} of {len(test)} images of split {given.split!r} have no labels")
    own = segment(context.load(start_net(context)), test.images)
    with torch.no_grad():
        parts = torch.split(torch.arange(len(test), device=context.device), 64)
        doubt = torch.cat([1 - judge(test.at(part), own[part]) for part in parts])
    found, wrong, heart = truth_preferred(judge, test, own), own != known.labels, (own | known.labels) != 0
    aurocs = [error_detection(u[at], bad[at])[0] for u, bad, at in zip(doubt, wrong, heart, strict=True)]
    shares = {"truth_preferred": found.image, "truth_preferred_regions": found.regions}
    differs = ~found.image.isnan().cpu()
    patients = [name for name, judged in zip(test.groups, differs.tolist(), strict=True) if judged]
    lines = Run(context.run.stage("iteration_1/reward_data").folder).metrics()
    return {
        "variant": variant,
        "seed": seed,
        **{name: tuple(bootstrap_interval(share.cpu()[differs], clusters=patients)) for name, share in shares.items()},
        "error_auroc": sum(aurocs) / len(aurocs),
        "images": len(patients),
        "patients": len(set(patients)),
        "triplets": lines[-1]["reward_data/n_triplets"],
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, help="a finished run: its configuration, source network and shape prior")
    parser.add_argument("--split", default="test", help="unseen target patients with labels")
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="with --run the run's own")
    parser.add_argument("--work", type=Path, default=Path("runs/rl4seg_ranking"), help="folder of the networks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rl4seg_ranking.json")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it runs")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    names = ("variant", "seed", "truth_preferred", "truth_preferred_regions", "error_auroc")
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    rows = json.loads(given.out.read_text(encoding="utf-8"))["rows"] if given.out.is_file() else []
    for seed in given.seeds:
        for variant in given.variants:
            done = [row for row in rows if (row["variant"], row["seed"]) == (variant, seed)]
            row = done[0] if done else row_of(variant, seed, given)
            if not done:
                rows.append(row)
                write(rows, given)
            cells = ("{:.3f} [{:.3f}, {:.3f}]".format(*row[name]) for name in names[2:4])
            print(f"| {variant} | {seed} | {' | '.join(cells)} | {row['error_auroc']:.3f} |", flush=True)


def write(rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """All rows so far."""
    settings = {"on": "run" if given.run else "phantoms", "split": given.split, "quick": given.quick}
    result = {"id": "rl4seg-ranking", "settings": settings, "machine": describe_machine(), "rows": rows}
    with replacing(given.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
