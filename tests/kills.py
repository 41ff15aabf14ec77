"""Kills trainings at random moments, continues them, and compares what they end with, bit for bit, with what a training
ends with that nobody has killed.

    python tests/kills.py --kills 100 --seed 0 --report kills.json

Every training is a process of its own, forked from a server that has imported everything, and gets SIGKILL after a
drawn time, again and again, until it comes to its end; then the next one begins, of the paper with fewer kills. The
settings are tiny, a checkpoint follows each epoch, and every mask of RL4Seg counts as valid, which needs no trained
network.
"""

import argparse
import json
import multiprocessing
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from segarena.common.checkpoints import latest_checkpoint
from segarena.evaluation.machine import describe_machine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIGS = {
    "spars": {
        "paper": "spars",
        "device": "cpu",
        "seed": 5,
        "env": {"classifier": "train", "cases": ["phantom_02000"], "grid_shape": [32, 32, 24]},
        "presence": {"epochs": 3, "batches_per_epoch": 2, "volumes_per_batch": 1, "validation_windows": 16},
        "classifier_train": {"cases": ["phantom_00000", "phantom_00001"]},
        "validation": {"cases": ["phantom_01000"]},
        "test": {"cases": ["phantom_03000"]},
        "ppo": {"total_timesteps": 448, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 2},
        "evaluation": {"rollouts": 2},
        "checkpoint_every": 100,
        "examine_every": 128,
    },
    "rl4seg": {
        "paper": "rl4seg",
        "device": "cpu",
        "source": {"size": 32, "phantom_patients": {"train": 2, "val": 1, "test": 0, "pred": 0}},
        "target": {"vendor": "b", "size": 32, "phantom_patients": {"train": 1, "val": 1, "test": 1, "pred": 3}},
        "network": {"init_channels": 2},
        "supervised": {"epochs": 2, "batch_size": 4},
        "shape_prior": {"epochs": 2, "init_channels": 1, "latent": 8},
        "iterations": 2,
        "initial_images": 2,
        "new_images": 7,
        "reward_net": {"epochs": 2},
        "ppo": {"epochs": 2, "batch": {"c0": 4}, "learner": {"n_epochs": 2}},
        "baselines": ["tist", "udas"],
        "tist": {"epochs": 2},
        "udas": {"head_epochs": 1, "epochs": 1},
    },
    "rp_pgd": {
        "paper": "rp_pgd",
        "device": "cpu",
        "data": {"size": 33, "phantom_scenes": {"train": 16, "val": 2, "test": 0}},
        "augmentation": {"crop": 33},
        "network": {"kind": "unet", "init_channels": 2},
        "training": {"epochs": 6, "batch_size": 4, "loaders": 2},
    },
}
PROGRAM = """
import importlib, os, sys
import torch

os.environ["SEGARENA_CACHE"] = cache
torch.set_num_threads(1)
os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
os.dup2(1, 2)
importlib.import_module("segarena.common.fitting").CHECKPOINT_SECONDS = -1.0
stages = importlib.import_module("segarena.agents.rl4seg.stages")
stages.valid_masks = lambda masks, **_: torch.ones(len(masks), dtype=torch.bool)
importlib.import_module("segarena.rewards.corrector").Corrector.__call__ = lambda self, masks: masks
from segarena.agents.command_line import main

sys.exit(main(arguments))
"""


@dataclass
class Report:
    """What came of it."""

    kills: Counter = field(default_factory=Counter)
    """Trainings that were killed, by paper."""
    before: Counter = field(default_factory=Counter)
    """What lay in the run when it was killed: its newest file, without numbers."""
    identical: Counter = field(default_factory=Counter)
    """Runs that ended like one that was not killed, by paper."""
    faults: list = field(default_factory=list)
    """What was wrong with the others."""


class Trainings:
    """Trainings of one paper below a folder."""

    def __init__(self, paper, folder):
        self.folder, self.paper = folder, paper
        folder.mkdir(parents=True)
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(CONFIGS[paper]))
        self.said = folder / "said.txt"
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["segarena.run_rl", "segarena.agents.command_line", "torch._dynamo"])
        idle = self.processes.Process(target=int)
        idle.start()  # so that the server has imported everything before the clock starts
        idle.join()
        start = time.monotonic()
        self.whole = folder / "whole"
        assert self.train(self.whole) == 0, self.said.read_text()
        self.seconds = time.monotonic() - start

    def train(self, run, kill_after=None):
        """Exit code of a training in the folder `run`: its first, or the next one; killed after so many seconds."""
        begun = (run / "config.yaml").exists()
        arguments = (
            ["train", "--resume", str(run)] if begun else ["train", "--config", str(self.config), "--out", str(run)]
        )
        scope = {"arguments": arguments, "said": str(self.said), "cache": str(self.folder.parent / "cache")}
        process = self.processes.Process(target=exec, args=(PROGRAM, scope))
        process.start()
        process.join(kill_after)
        process.kill()  # nothing happens where it has ended
        process.join()
        return process.exitcode


def newest(run):
    """The newest file below a run, without numbers and drawn letters: "iteration_n/ppo/checkpoints/step_n/state.pt"."""
    files = []
    for path in run.rglob("*"):
        files += [(path.stat().st_mtime_ns, str(path.relative_to(run)))] if path.is_file() else []
    if not files:
        return "nothing"
    return re.sub(r"\.[a-z0-9_]{8}/", ".x/", re.sub(r"\d+(\.\w+$)?", "n", max(files)[1]))


def differences(run, whole):
    """What differs between two finished runs; empty: nothing but the times of day."""
    found = []
    ours, theirs = ({str(path.relative_to(one)) for path in files_of(one)} for one in (run, whole))
    found += [f"{name} is left over or lacks" for name in sorted(ours ^ theirs)]
    for name in sorted(ours & theirs):
        one, other = run / name, whole / name
        if name.endswith(".safetensors") and not equal(load_file(one), load_file(other)):
            found.append(f"{name} differs")
        if name.endswith("metrics.jsonl") and lines(one) != lines(other):
            found.append(f"{name} differs")
    for folder in sorted(path.parent for path in whole.rglob("metrics.jsonl")):
        name = folder.relative_to(whole)
        states = [latest_checkpoint(one / name / "checkpoints") for one in (run, whole)]
        if None not in states and not equal(*({k: v for k, v in s.state.items() if "_bytes" not in k} for s in states)):
            found.append(f"the last checkpoint of {name} differs")
    boards = [boards_of(one) for one in (run, whole)]
    found += [
        f"TensorBoard's folder {name} is left over or lacks" for name in sorted(boards[0].keys() ^ boards[1].keys())
    ]
    for name in sorted(boards[0].keys() & boards[1].keys()):
        if points(boards[0][name]) != points(boards[1][name]):
            found.append(f"TensorBoard's points of {name} differ")
    return found


def files_of(run):
    """Every file but TensorBoard's, whose names hold the time."""
    return [path for path in run.rglob("*") if path.is_file() and "tensorboard" not in path.parts]


def boards_of(run):
    """Every folder of TensorBoard's files, by its place in a run of any name."""
    folders = {path.parent for path in run.rglob("events.*")}
    return {"/".join("RUN" if part == run.name else part for part in f.relative_to(run).parts): f for f in folders}


def equal(one, other):
    """Whether two nested states are equal in every bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def lines(path):
    """The lines of a metrics.jsonl but for the clock's."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def points(folder):
    """Every point that TensorBoard shows of a folder, pictures too: tag -> steps and values."""
    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = [tag for tag in shown.Tags()["scalars"] if not tag.startswith(("time/", "hparams/"))]
    curves = {tag: [(point.step, point.value) for point in shown.Scalars(tag)] for tag in tags}
    pictures = {tag: [(p.step, p.encoded_image_string) for p in shown.Images(tag)] for tag in shown.Tags()["images"]}
    return curves | pictures


def kill_many(kills, seed, folder, papers=tuple(CONFIGS), tell=print):
    """Kill so many trainings of the papers in turn, below `folder`; what came of it."""
    draw, report = random.Random(seed), Report()
    trainings = [Trainings(paper, folder / paper) for paper in papers]
    number = 0
    while sum(report.kills.values()) < kills:
        of = min(trainings, key=lambda one: report.kills[one.paper])
        run, number, times = of.folder / f"run{number}", number + 1, 0
        while True:
            left = kills - sum(report.kills.values())
            code = of.train(run, draw.uniform(0.05, 0.9) * of.seconds if left > 0 else None)
            if code != -signal.SIGKILL:
                break
            times += 1
            report.kills[of.paper] += 1
            report.before[newest(run) if run.exists() else "nothing"] += 1
        wrong = [f"exit code {code}: {of.said.read_text()[-500:]}"] if code else differences(run, of.whole)
        if wrong:
            report.faults.append({"run": run.name, "paper": of.paper, "kills": times, "wrong": wrong})
        else:
            report.identical[of.paper] += 1
            shutil.rmtree(run)
        tell(f"{run.name} of {of.paper}: {times} kills, {wrong or 'identical'}; {sum(report.kills.values())} in all")
    return report


def main():
    """Exit status 0: every run ended bit for bit like one that was not killed."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--report", type=Path, help="JSON file for the counts")
    given = options.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = kill_many(given.kills, given.seed, Path(folder), tell=lambda text: print(text, flush=True))
    counts = {
        "kills": dict(report.kills),
        "runs_identical": dict(report.identical),
        "runs_with_faults": report.faults,
        "newest_file_when_killed": dict(report.before.most_common()),
    }
    print(json.dumps(counts, indent=1))
    if given.report:
        command = f"python tests/kills.py --kills {given.kills} --seed {given.seed}"
        about = {"command": command, "seconds": round(time.monotonic() - start), "machine": describe_machine()}
        given.report.write_text(json.dumps({**counts, **about}, indent=1) + "\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
