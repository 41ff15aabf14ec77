"""What SPARS on a folder of liver CTs takes in disk, memory and time: measured on a few, extrapolated to all.

    python benchmarks/liver_cost.py --data Task03_Liver --config configs/spars/overnight.yaml

Seconds are those of one CPU thread, and hardly differ between a busy and an idle machine. What grows with a CT's
own voxels (reading, resampling) is extrapolated by voxels, what is done on the working grid by cases. PPO is not in it:
it looks scores up, and takes minutes (benchmarks/spars_speed.py).
"""

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from segarena.agents.configuration import experiment_from, experiment_parser
from segarena.agents.papers import PAPERS
from segarena.agents.spars.config import SparsExperiment
from segarena.classifiers.presence import DensePresenceNet
from segarena.classifiers.train_presence import balanced_cross_entropy
from segarena.datasets.cache import cache_entries
from segarena.datasets.liver.cases import HU_WINDOW, load_liver_cases
from segarena.datasets.liver.lattice import WindowLattice
from segarena.datasets.msd import find_cases, read_sample
from segarena.evaluation.report import markdown
from segarena.rewards.presence import ScoreTable

SPLITS = {"classifier_train": 24, "classifier_val": 16, "rl_pool": 64, "test": 27}
"""Cases of each split of the Decathlon's 131 (docs/spars.md, Method 11)."""
SLICES = 58_638
"""Slices of 512 x 512 in these 131 CTs, as its authors count them."""
Made = TypeVar("Made")


def timed(make: Callable[[], Made]) -> tuple[float, Made]:
    """CPU seconds, and what was made."""
    begin = time.process_time()
    made = make()
    return time.process_time() - begin, made


def cost(experiment: SparsExperiment) -> dict[str, float]:
    """The figures of one case, by name: seconds, bytes, and millions of the CTs' own voxels."""
    figures: dict[str, float] = {}
    env = experiment.env
    files = find_cases(Path(env.data))
    figures["packed_bytes"] = sum(f.image.stat().st_size + (f.label.stat().st_size if f.label else 0) for f in files)
    with TemporaryDirectory() as cache:
        config = replace(env, split="all", cases=None, cache_dir=cache)
        figures["read_s"], samples = timed(lambda: [read_sample(case, 3) for case in files])
        figures["voxels_m"] = sum(sample.image.numel() for sample in samples) / 1e6
        del samples
        figures["prepare_s"], cases = timed(lambda: load_liver_cases(config))
        figures["again_s"], _ = timed(lambda: load_liver_cases(config))
        figures["cached_bytes"] = sum(entry.bytes for entry in cache_entries(cache))
        window = env.window_size
        assert window is not None
        net = DensePresenceNet(env.hu_window or HU_WINDOW, window)
        lattice = WindowLattice(env.working_grid, window, env.step, env.phase or (0, 0, 0))
        images = [cases[number % len(cases)].image for number in range(experiment.presence.volumes_per_batch)]
        figures["learn_s"], _ = timed(lambda: learn(net, torch.stack(images), lattice))
        figures["learn_s"] /= len(images)
        figures["validate_s"], _ = timed(lambda: net.eval().score_lattice(cases[0].image, lattice))
        figures["score_s"], table = timed(
            lambda: ScoreTable(cases, lattice, net, features=env.obs_mode == "features", cache_dir=cache)
        )
        figures["score_bytes"] = sum(entry.bytes for entry in cache_entries(cache) if entry.kind == "presence_scores")
        del table
    for name in ("again_s", "cached_bytes", "score_s", "score_bytes"):
        figures[name] /= len(cases)
    figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return figures


def learn(net: DensePresenceNet, images: torch.Tensor, lattice: WindowLattice) -> None:
    """Forward and backward pass of one batch of the classifier's training, as with presence.batch dense."""
    logits = net.train().dense_logits(images[:, None].float() / 255, lattice).flatten(0, 3)
    labels = torch.arange(len(logits)) % 2 == 0
    balanced_cross_entropy(logits, labels).backward()


def rows(experiment: SparsExperiment, one: dict[str, float]) -> list[list[str]]:
    """The table: what, of one case as measured, of the whole as extrapolated."""
    presence, cases = experiment.presence, sum(SPLITS.values())
    all_voxels = SLICES * 512 * 512 / 1e6
    by_voxel = {name: one[name] / one["voxels_m"] for name in ("packed_bytes", "read_s", "prepare_s")}
    volumes = presence.batches_per_epoch * presence.volumes_per_batch
    epoch = volumes * one["learn_s"] + SPLITS["classifier_val"] * one["validate_s"]
    scored = cases - SPLITS["classifier_train"]
    hours = (by_voxel["prepare_s"] * all_voxels + presence.epochs * epoch + scored * one["score_s"]) / 3600

    def native(name: str, unit: float, digits: int) -> str:
        return f"{by_voxel[name] / unit:.{digits}f}"

    def whole(name: str, unit: float, number: float = all_voxels) -> float:
        return by_voxel[name] * number / unit

    measured = {
        "files, MB for a million voxels": (native("packed_bytes", 1e6, 2), f"{whole('packed_bytes', 1e9):.0f} GB"),
        "reading, s for a million voxels": (native("read_s", 1, 3), f"{whole('read_s', 3600):.1f} h"),
        "reading and resampling, s for a million voxels": (
            native("prepare_s", 1, 3),
            f"{whole('prepare_s', 3600):.1f} h",
        ),
        "a prepared CT from the cache, s": (f"{one['again_s']:.2f}", f"{cases * one['again_s']:.0f} s"),
        "a prepared CT on disk, MB": (
            f"{one['cached_bytes'] / 1e6:.1f}",
            f"{cases * one['cached_bytes'] / 1e9:.1f} GB",
        ),
        "classifier, s for a volume that it learns from": (f"{one['learn_s']:.1f}", f"{volumes} in an epoch"),
        "classifier, an epoch with validation": ("–", f"{epoch / 60:.0f} min"),
        "classifier, all epochs": ("–", f"{presence.epochs} epochs: {presence.epochs * epoch / 3600:.1f} h"),
        "scoring all windows of a case, s": (
            f"{one['score_s']:.1f}",
            f"{scored} cases: {scored * one['score_s'] / 60:.0f} min",
        ),
        "scores and features of a case on disk, MB": (
            f"{one['score_bytes'] / 1e6:.1f}",
            f"{scored * one['score_bytes'] / 1e9:.1f} GB",
        ),
        "the same of the cases of PPO in memory, MB": (
            f"{one['score_bytes'] / 1e6:.1f}",
            f"{SPLITS['rl_pool'] * one['score_bytes'] / 1e9:.1f} GB",
        ),
        "peak memory, a batch of the classifier in it, GB": (f"{one['peak_bytes'] / 1e9:.1f}", "–"),
        "all of this": ("–", f"{hours:.1f} h"),
    }
    return [[what, *figures] for what, figures in measured.items()]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True, help="folder of CTs")
    options.add_argument("--config", required=True, help="YAML of a SPARS run")
    given = options.parse_args()
    torch.set_num_threads(1)
    paper: Any = PAPERS["spars"]
    parsed = experiment_parser(paper).parse_args(["--config", given.config, "--env.data", given.data])
    experiment = experiment_from(paper, parsed).resolved()
    print("\n".join(markdown(["what", "measured", "131 CTs of the Decathlon"], rows(experiment, cost(experiment)))))


if __name__ == "__main__":
    main()
