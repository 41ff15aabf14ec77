"""A run that is killed, at any moment, and resumed ends bit for bit like one that was never killed.

Every training is a process of its own, forked from a server that has imported everything once. Before it starts, one
function in it is replaced by one that sends SIGKILL in its k-th call; where the moment may be any, k is drawn by a
seeded generator.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from segarena.common.checkpoints import KEPT, load_weights, save_weights
from segarena.common.files import file_digest
from segarena.common.runs import Run

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
if hasattr(signal, "SIGKILL"):
    PROCESSES = multiprocessing.get_context("forkserver")
    PROCESSES.set_forkserver_preload(["segarena.run_rl", "torch._dynamo"])  # the second: every optimiser imports it

CLASSIFIER_FIRST = {
    "paper": "spars",
    "device": "cpu",
    "seed": 5,
    "env": {"classifier": "train", "cases": ["phantom_02000"], "grid_shape": [32, 32, 24], "start": "random_lattice"},
    "presence": {"epochs": 3, "batches_per_epoch": 2, "volumes_per_batch": 1, "validation_windows": 16},
    "classifier_train": {"cases": ["phantom_00000", "phantom_00001"]},
    "validation": {"cases": ["phantom_01000"]},
    "test": {"cases": ["phantom_03000"]},
    "policy": "window_cnn",
    "ppo": {"total_timesteps": 384, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 2},
    "evaluation": {"rollouts": 2},
    "checkpoint_every": 100,
    "examine_every": 128,
}
"""Everything the default run has; 6 rollouts of 64 steps, which 100 does not divide."""
AGENT_ONLY = {
    "paper": "spars",
    "device": "cpu",
    "env": {
        "score_source": "oracle_fraction",
        "cases": ["phantom_02000"],
        "grid_shape": [32, 32, 24],
        "obs_mode": "own_window",
        "action_set": "king26",
        "threshold": 0.9,
        "horizon": 24,
        "lesion_rounds": 3,
    },
    "validation": {"cases": ["phantom_01000"]},
    "test": {"cases": ["phantom_03000"]},
    "policy": "flatten_mlp",
    "ppo": {"total_timesteps": 700, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 2},
    "self_play": {"refresh_every": 3, "initial_opponent": "random"},
    "checkpoint_every": 64,
}
"""An opponent that is older than the last rollout, and at first a rule; rounds in an episode; an odd end."""
POOL = AGENT_ONLY | {
    "self_play": {"pool": "prioritised", "pool_size": 3, "snapshot_every": 2, "initial_opponent": "constant0"},
    "evaluation": {"rollouts": 2},
    "examine_every": 128,
}
"""Opponents of many ages, some of them dropped; win rates that decide who is met; looks at validation cases."""
LAZY_FEATURES = {
    "paper": "spars",
    "device": "cpu",
    "env": {
        "cases": ["phantom_02000"],
        "grid_shape": [32, 32, 24],
        "obs_mode": "features",
        "score_engine": "lazy",
        "opponent": "random",
    },
    "validation": {"cases": ["phantom_01000"]},
    "test": {"cases": ["phantom_03000"]},
    "policy": "feature_mlp",
    "ppo": {"total_timesteps": 384, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1},
    "checkpoint_every": 128,
}
"""Scores and features that are computed when they are first asked for; an opponent that draws random numbers."""

PROGRAM = """
import importlib, os, signal, sys, warnings
import torch

os.environ["SEGARENA_CACHE"] = cache
importlib.import_module("segarena.common.fitting").CHECKPOINT_SECONDS = -1.0  # a checkpoint after every epoch
warnings.simplefilter("error")
torch.set_num_threads(1)
os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
os.dup2(1, 2)
if strike is not None:
    module, owner, function, number, how = strike
    place = importlib.import_module(module)
    place = getattr(place, owner) if owner else place
    original, calls = getattr(place, function), 0

    def struck(*arguments, **named):
        global calls
        calls += 1
        if calls == number and how == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = original(*arguments, **named)
        if calls == number:
            if how == "half":  # (content, file, ...): the file is only half there
                os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(place, function, struck)
from segarena.agents.command_line import main

sys.exit(main(arguments))
"""


@dataclass(frozen=True)
class Moment:
    """The `number`-th call of a function: before it, after it, or when half of the file that it writes is written."""

    module: str
    function: str
    number: int | range = 1
    how: str = "before"
    owner: str = ""

    def drawn(self, seed):
        """The same with one number of the range."""
        return self if isinstance(self.number, int) else replace(self, number=random.Random(seed).choice(self.number))


def train(arguments, said, strike=None):
    """Exit code of the training with these command-line arguments; what it says goes to the file `said`."""
    told = strike and (strike.module, strike.owner, strike.function, strike.number, strike.how)
    scope = {"arguments": ["train", *map(str, arguments)], "said": str(said), "strike": told}
    scope["cache"] = os.environ["SEGARENA_CACHE"]
    process = PROCESSES.Process(target=exec, args=(PROGRAM, scope))
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    return code


def start(config, folder, strike=None):
    """A new run in folder / "run"; its exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return train(["--config", folder / "config.yaml", "--out", folder / "run"], folder / "said.txt", strike)


def go_on(folder, strike=None):
    """The run in folder / "run" resumed; its exit code."""
    return train(["--resume", folder / "run"], folder / "said.txt", strike)


def whole(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert start(config, folder) == 0, (folder / "said.txt").read_text()
    return folder / "run"


@pytest.fixture(scope="module")
def classifier_first(tmp_path_factory):
    """The run of CLASSIFIER_FIRST that was never killed."""
    return whole(CLASSIFIER_FIRST, tmp_path_factory)


@pytest.fixture(scope="module")
def agent_only(tmp_path_factory):
    """The run of AGENT_ONLY that was never killed."""
    return whole(AGENT_ONLY, tmp_path_factory)


def same(left, right, where="state"):
    """Fails at the first place where two nested states differ in a bit."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            same(one, other, f"{where}[{number}]")
    else:
        assert left == right, where


def without_times(folder):
    """The lines of metrics.jsonl but for the clock's."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def assert_ends_like(run, expected):
    """Weights, optimiser, opponent, episodes, random state and curves of both stages are the same."""
    stages = [""] + [stage for stage in ("classifier",) if (expected / stage).exists()]
    for stage in stages:
        same(without_times(run / stage), without_times(expected / stage), f"{stage} metrics")
        if stage:
            assert not (run / stage / "checkpoints").exists(), "a finished stage needs none"
            continue
        mine, whole = Run(run / stage).checkpoint(), Run(expected / stage).checkpoint()
        assert mine.step == whole.step
        same(mine.weights, whole.weights, f"{stage} weights")
        states = [{k: v for k, v in one.state.items() if not k.endswith("_bytes")} for one in (mine, whole)]
        same(*states, f"{stage} state")
        assert len(list((run / stage / "checkpoints").iterdir())) == KEPT, "something is left of what was half done"
        assert mine.state["metrics_bytes"] == (run / stage / "metrics.jsonl").stat().st_size
    if len(stages) > 1:
        same(*(load_weights(one / "classifier" / "presence.safetensors") for one in (run, expected)), "classifier")


TRAINING = "segarena.classifiers.train_presence"
STEP = Moment("segarena.envs.spars", "step", range(20, 97), owner="SparsEnv")
UPDATE = Moment("stable_baselines3.common.policies", "evaluate_actions", range(5, 25), owner="ActorCriticPolicy")
MOMENTS = {
    "before anything was kept": Moment(TRAINING, "dense_batch", 1),
    "in the classifier's training": Moment(TRAINING, "dense_batch", range(3, 7)),
    "after the last epoch of the classifier": Moment(TRAINING, "save_network"),
    "between the classifier and the agent": Moment("segarena.agents.spars.training", "_train_agent"),
    "in the first rollout": Moment("segarena.envs.spars", "step", range(2, 17), owner="SparsEnv"),
    "in some rollout": STEP,
    "in some update": UPDATE,
    "after the last update": Moment("stable_baselines3.ppo", "learn", how="after", owner="PPO"),
    "with half a line logged": Moment("segarena.common.event_files", "_write", range(20, 40), owner="EventFiles"),
    "with half of the weights written": Moment("segarena.common.checkpoints", "save_file", range(5, 8), "half"),
    "with half of the state written": Moment("torch", "save", range(4, 7), "half"),
    "before a checkpoint got its name": Moment("segarena.common.checkpoints", "file_digest", range(7, 13)),
}


@pytest.mark.parametrize("when", MOMENTS)
def test_a_run_killed_and_resumed_ends_like_one_that_was_not(tmp_path, classifier_first, when):
    assert start(CLASSIFIER_FIRST, tmp_path, MOMENTS[when].drawn(when)) == -signal.SIGKILL
    assert go_on(tmp_path) == 0, (tmp_path / "said.txt").read_text()
    assert_ends_like(tmp_path / "run", classifier_first)


@pytest.mark.parametrize("seed", range(3))
def test_an_old_opponent_and_unfinished_rounds_survive_a_kill(tmp_path, agent_only, seed):
    moment = (STEP if seed else UPDATE).drawn(seed)
    assert start(AGENT_ONLY, tmp_path, moment) == -signal.SIGKILL
    assert go_on(tmp_path) == 0, (tmp_path / "said.txt").read_text()
    assert_ends_like(tmp_path / "run", agent_only)


def test_a_pool_of_opponents_survives_a_kill(tmp_path, tmp_path_factory):
    expected = whole(POOL, tmp_path_factory)
    assert start(POOL, tmp_path, replace(STEP, number=117)) == -signal.SIGKILL
    assert go_on(tmp_path) == 0, (tmp_path / "said.txt").read_text()
    assert_ends_like(tmp_path / "run", expected)
    kept = Run(expected).checkpoint().state["self_play"]
    assert sum(one["episodes"] > 0 for one in kept["snapshots"]) > 1 < len(kept["snapshots"]) < kept["taken"]


def test_a_run_may_be_killed_twice(tmp_path, agent_only):
    assert start(AGENT_ONLY, tmp_path, replace(STEP, number=100)) == -signal.SIGKILL
    assert go_on(tmp_path, replace(UPDATE, number=3)) == -signal.SIGKILL
    assert go_on(tmp_path) == 0, (tmp_path / "said.txt").read_text()
    assert_ends_like(tmp_path / "run", agent_only)


def test_scores_that_are_computed_on_demand_survive_a_kill(tmp_path, tmp_path_factory):
    expected = whole(LAZY_FEATURES, tmp_path_factory)
    assert start(LAZY_FEATURES, tmp_path, replace(STEP, number=53)) == -signal.SIGKILL
    assert go_on(tmp_path) == 0, (tmp_path / "said.txt").read_text()
    assert_ends_like(tmp_path / "run", expected)


def copied(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.mark.parametrize(
    ("kept", "file", "harm"),
    [
        (1, "weights.safetensors", lambda file: file.write_bytes(file.read_bytes()[:-1] + b"!")),
        (1, "state.pt", lambda file: os.truncate(file, file.stat().st_size // 2)),
        (0, "manifest.json", lambda file: file.unlink()),
    ],
)
def test_a_damaged_checkpoint_costs_time_but_no_bit(tmp_path, agent_only, kept, file, harm):
    run = copied(agent_only, tmp_path)
    damaged = sorted((run / "checkpoints").iterdir())[kept:]
    for checkpoint in damaged:
        harm(checkpoint / file)
    assert go_on(tmp_path) == 0
    assert_ends_like(run, agent_only)
    said = (tmp_path / "said.txt").read_text()
    for checkpoint in damaged:
        assert f"checkpoint {checkpoint.name} is damaged" in said


def test_a_finished_run_stays_as_it_is(tmp_path, classifier_first):
    run = copied(classifier_first, tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert go_on(tmp_path) == 0, (tmp_path / "said.txt").read_text()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def reconfigure(run, **changes):
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for place, value in changes.items():
        *outer, last = place.split("__")
        (config[outer[0]] if outer else config)[last] = value
    path.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"ppo__learning_rate": 0.1}, "ppo.learning_rate = 0.0003 but the run has 0.1"),
        ({"env__threshold": 0.5}, "env.threshold = 0.9 but the run has 0.5"),
        ({"validation__cases": ["phantom_01001"]}, "validation.cases = "),
    ],
)
def test_an_agent_is_not_continued_with_other_settings(tmp_path, agent_only, change, key):
    run = copied(agent_only, tmp_path)
    shutil.rmtree(sorted((run / "checkpoints").iterdir())[-1])
    reconfigure(run, **change)
    assert go_on(tmp_path) == 2
    said = " ".join((tmp_path / "said.txt").read_text().split())
    assert f"was made with {key}" in said
    assert "Traceback" not in said


def test_an_agent_is_continued_where_only_its_name_and_its_tables_changed(tmp_path, agent_only):
    run = copied(agent_only, tmp_path)
    shutil.rmtree(sorted((run / "checkpoints").iterdir())[-1])
    reconfigure(run, name="Other", evaluation__pictures=1, test__cases=["phantom_03001"])
    assert go_on(tmp_path) == 0, (tmp_path / "said.txt").read_text()
    assert_ends_like(run, agent_only)


def test_an_agent_is_not_continued_with_a_classifier_that_came_out_otherwise(tmp_path, classifier_first):
    run = copied(classifier_first, tmp_path)
    manifest = run / "classifier" / "manifest.json"
    made = json.loads(manifest.read_text())
    weights, described = load_weights(run / "classifier" / "presence.safetensors")
    save_weights(run / "classifier" / "presence.safetensors", {k: v + 1 for k, v in weights.items()}, described)
    made["sha256"] = {name: file_digest(run / "classifier" / name) for name in made["sha256"]}
    manifest.write_text(json.dumps(made))
    assert go_on(tmp_path) == 2
    said = " ".join((tmp_path / "said.txt").read_text().split())
    assert "was made from an earlier classifier, which was made anew since; delete" in said
    assert f"{run / 'checkpoints'} to make it anew too" in said


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM"])
def test_a_command_killed_from_outside_is_resumed_by_a_command(tmp_path, agent_only, kind):
    """In a process as a user starts it, at a moment that nobody knows."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(AGENT_ONLY))
    command = [sys.executable, "-W", "error", "-m", "segarena.run_rl", "train"]
    where = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "stderr": subprocess.PIPE}
    begin = [*command, "--config", "config.yaml", "--out", "run"]
    with subprocess.Popen(begin, stdout=subprocess.DEVNULL, **where) as process:
        while process.poll() is None and not list((tmp_path / "run" / "checkpoints").glob("step_*[1-9]*")):
            time.sleep(0.01)
        time.sleep(random.random() / 10)
        process.send_signal(getattr(signal, kind))
        said = process.communicate()[1].decode()
    if kind == "SIGKILL":
        assert process.returncode == -signal.SIGKILL, said
    else:
        assert process.returncode == 143, said
        assert re.search(
            r"SIGTERM: stopped; the checkpoint at step \d+ is kept; continue with train --resume run\n", said
        )
    assert go_on(tmp_path) == 0, (tmp_path / "said.txt").read_text()
    assert_ends_like(tmp_path / "run", agent_only)


def test_a_folder_that_is_no_run_is_not_resumed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert go_on(tmp_path) == 2
    said = (tmp_path / "said.txt").read_text()
    assert f"error: '{tmp_path / 'run'}' is no run: it has no config.yaml" in said
    assert "Traceback" not in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
