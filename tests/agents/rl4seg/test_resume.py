"""RL4Seg's runs that are finished, interrupted and resumed."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from rl4seg_runs import (
    QUICK,
    assert_refused,
    assert_same,
    call,
    count_all,
    everything,
    merged,
    reconfigure,
    stages_of,
    train,
    trained,
)
from segarena.agents.configuration import read_experiment
from segarena.agents.dense_ppo.ppo import DensePPO
from segarena.agents.papers import PAPERS
from segarena.agents.rl4seg import stages
from segarena.agents.rl4seg.context import Context
from segarena.common import checkpoints, fitting
from segarena.common.runs import Run


def test_a_finished_run_is_not_trained_again(copied, tiny, monkeypatch):
    shutil.copytree(tiny / "tensorboard", copied / "tensorboard")
    before = everything(copied)
    for owner, name in ((torch.Tensor, "backward"), (Run, "log"), (Run, "finish"), (DensePPO, "learn")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("a finished stage is made again"))
    assert call("train", "--resume", copied) == 0
    assert everything(copied) == before


def test_a_stage_whose_manifest_is_lost_is_made_the_same_again(copied, tiny):
    lost = ["shape_prior", "iteration_1/reward_data", "iteration_2/reward_net", "iteration_2/ppo", "baselines/tist"]
    for name in lost:
        (copied / name / "manifest.json").unlink()
    for name in ("supervised", "baselines/entropy"):
        shutil.rmtree(copied / name)
    lost += ["supervised"]
    others = {path: seen for path, seen in everything(copied).items() if not any(name in str(path) for name in lost)}
    assert call("train", "--resume", copied) == 0
    assert_same(copied, tiny)
    assert {path: seen for path, seen in everything(copied).items() if path in others} == others


@pytest.mark.parametrize(
    ("command", "key", "value", "said"),
    [
        (["evaluate", "--run"], "target.phantom_patients.pred", 9, "target.phantom_patients.pred = 5 but the run has "),
        (["render", "--run"], "gold.fraction", 0.5, "made with gold.fraction = 1.0 but the run has 0.5"),
    ],
)
def test_a_changed_configuration_is_not_evaluated(copied, capsys, command, key, value, said):
    reconfigure(copied, {key: value})
    before = everything(copied)
    assert_refused(call(*command, copied), capsys, said, "put it back, or start a new run with another --out")
    assert everything(copied) == before


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_changed_key_is_refused_with_the_command_that_makes_again_what_depends_on_it(copied, tiny, capsys, by_hand):
    """Whether --resume gives it or config.yaml was edited."""
    if by_hand:
        reconfigure(copied, {"ppo.epochs": 1})
    before = everything(copied)
    given = [] if by_hand else ["--ppo.epochs", "1"]
    status = call("train", "--resume", copied, *given)
    out, message = capsys.readouterr()
    assert status == 2, out + message
    assert "iteration_1/ppo/manifest.json was made with ppo.epochs = 2 but the run has 1; put it back; or" in message
    assert everything(copied) == before
    assert message.endswith("; or start a new run with another --out\n")
    command = re.search(r": (rm -r .*?); or start", message)[1]
    subprocess.run(command, shell=True, check=True)
    gone = set(stages_of(tiny)) - set(stages_of(copied))
    loop = {f"iteration_{i}/{part}" for i in (1, 2) for part in ("reward_data", "reward_net", "ppo")}
    methods = ("gold_self_training", "corrected_self_training", "policy_gradient", "oracle_rl")
    assert gone == loop - {"iteration_1/reward_data", "iteration_1/reward_net"} | {f"baselines/{n}" for n in methods}
    assert call("train", "--resume", copied, *given) == 0
    assert stages_of(copied) == stages_of(tiny)
    assert [line["step"] for line in Run(copied / "iteration_1/ppo").metrics()][-1] == 16


def test_a_key_on_which_only_later_stages_depend_is_changed_by_the_command(copied, capsys):
    """A baseline is left out; a new one is trained; the stages that are there stay as they are."""
    shutil.rmtree(copied / "baselines" / "udas")
    shutil.rmtree(copied / "iteration_2")
    for name in ("policy_gradient", "oracle_rl"):
        shutil.rmtree(copied / "baselines" / name)
    before, text = everything(copied), (copied / "config.yaml").read_text()
    command = ("train", "--resume", copied, "--baselines", "[tist,udas]", "--udas.epochs", "2", "--name", "Other")
    assert call(*command) == 0
    assert (copied / "config_1.yaml").read_text() == text
    changed = Run(copied).config
    assert (changed["baselines"], changed["udas"]["epochs"], changed["name"]) == (["tist", "udas"], 2, "Other")
    assert (copied / "baselines/udas/manifest.json").exists()
    assert not (copied / "baselines/oracle_rl").exists()
    after = everything(copied)
    assert {path for path in before if after.get(path) != before[path]} == {copied / "config.yaml"}
    assert call("train", "--resume", copied) == 0
    assert not (copied / "config_2.yaml").exists(), "nothing has changed since"


@pytest.mark.parametrize(
    ("command", "harm"),
    [
        (["train", "--resume"], os.unlink),
        (["evaluate", "--run"], lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!")),
    ],
)
def test_a_stage_whose_file_was_changed_or_lost_is_refused_with_advice(copied, capsys, command, harm):
    harm(copied / "iteration_1" / "reward_net" / "reward_net.safetensors")
    before = everything(copied)
    said = "iteration_1/reward_net/reward_net.safetensors is missing or differs from its manifest; delete"
    assert_refused(call(*command, copied), capsys, said, "to make it anew")
    assert everything(copied) == before


@pytest.mark.parametrize(
    ("command", "lost"), [("evaluate", "baselines/tist"), ("evaluate", "iteration_2/ppo"), ("render", "supervised")]
)
def test_a_run_that_is_not_finished_is_neither_evaluated_nor_rendered(copied, capsys, lost, command):
    shutil.rmtree(copied / lost)
    before = everything(copied)
    assert_refused(call(command, "--run", copied), capsys, f"is not finished: it lacks {lost}; train it further with")
    assert everything(copied) == before


# -- interrupted and resumed ---------------------------------------------------------------------------------------


RESUMED = merged(QUICK, {"baselines": ["tist", "udas", "policy_gradient"]})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of RESUMED that was never interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        count_all(patch)
        patch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
        return trained(tmp_path_factory.mktemp("whole"), RESUMED)


def assert_ends_like(run, expected):
    """Everything that the stages made and logged is the same, and nothing is left of what was half done."""
    assert_same(run, expected)
    kept = [
        {str(path.relative_to(one)) for path in one.rglob("*") if "tensorboard" not in path.parts}
        for one in (run, expected)
    ]
    assert kept[0] == kept[1]


def go_on(run):
    """Resume the run until nothing interrupts it any more; how often that took."""
    experiment = read_experiment(Run.open(run))[1]
    for number in range(1, 99):
        with contextlib.suppress(KeyboardInterrupt):
            PAPERS["rl4seg"].resume(experiment, run)
            return number
    pytest.fail("it is interrupted again and again")


def interrupting(patch, owner, name, decide):
    """`decide` sees every call of a function, before and after it, and may raise."""
    original = getattr(owner, name)

    def watched(*arguments, **named):
        decide("before", arguments)
        done = original(*arguments, **named)
        decide("after", arguments)
        return done

    patch.setattr(owner, name, watched)


def test_a_run_that_is_interrupted_in_and_after_every_stage_ends_like_one_that_was_not(
    tmp_path, monkeypatch, all_valid, whole
):
    """In a gradient step; and after the last one, before or after the stage is marked as finished."""
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    struck, steps, inside = set(), Counter(), []

    def strike(*moment):
        if moment not in struck:
            struck.add(moment)
            inside.clear()
            raise KeyboardInterrupt

    def enter_or_leave(when, arguments):
        inside.append(arguments[1]) if when == "before" else inside.pop()

    def step(when, arguments):
        steps[inside[-1], when] += 1
        if steps[inside[-1], when] == 2:
            strike(inside[-1], "training")

    def finish(when, arguments):
        name = str(arguments[0].folder.relative_to(tmp_path / "run"))
        if when == ("before", "after")[stages.index(name) % 2]:
            strike(name, when)

    stages = stages_of(whole)
    interrupting(monkeypatch, Context, "stage", enter_or_leave)
    interrupting(monkeypatch, torch.Tensor, "backward", step)
    interrupting(monkeypatch, Run, "finish", finish)
    assert train(tmp_path, RESUMED) == 130
    go_on(tmp_path / "run")
    assert {name for name, when in struck if when != "training"} == set(stages)
    without = ("adabn", "reward_data", "tist/lv", "tist/myo", "udas/head")  # the last three are within another one
    assert {name for name, when in struck if when == "training"} == {
        name for name in stages if not name.endswith(without)
    }
    assert_ends_like(tmp_path / "run", whole)


EVENTS = [
    (torch.Tensor, "backward"),
    (torch, "save"),
    (checkpoints, "save_file"),
    (Run, "log"),
    (Run, "save"),
    (Run, "finish"),
    (DensePPO, "train"),
    (DensePPO, "collect_rollouts"),
]


def test_a_run_that_is_interrupted_at_drawn_moments_ends_like_one_that_was_not(tmp_path, monkeypatch, all_valid, whole):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    draw = random.Random(5)
    left = [draw.randrange(1, 80)]

    def count(when, arguments):
        left[0] -= 1
        if left[0] == 0:
            left[0] = draw.randrange(1, 120)
            raise KeyboardInterrupt

    for owner, name in EVENTS:
        interrupting(monkeypatch, owner, name, count)
    assert train(tmp_path, RESUMED) == 130
    assert go_on(tmp_path / "run") > 5
    assert_ends_like(tmp_path / "run", whole)


STOPPED = {"iterations": 1, "supervised.epochs": 4, "ppo.epochs": 3, "tist.epochs": 4, "udas.epochs": 3}
STOPPED |= {"udas.head_epochs": 3, "udas.tolerance": 0.0}


@pytest.mark.parametrize(
    ("stage", "changes", "key"),
    [
        ("supervised", {"supervised.loss": "ce_double_softmax"}, "supervised.loss = 'ce'"),
        ("iteration_1/ppo", {"ppo.learner.clip_range": 0.5}, "ppo.learner.clip_range = 0.2"),
        ("baselines/tist/lv", {"target.vendor": "a"}, "target.vendor = 'b'"),
        ("baselines/tist/myo", {"target.vendor": "a"}, "target.vendor = 'b'"),
        ("baselines/tist/multi", {"target.vendor": "a"}, "target.vendor = 'b'"),
        ("baselines/udas/head", {"udas.head_learning_rate": 0.5}, "udas.head_learning_rate = 0.001"),
        ("baselines/udas/early", {"udas.learning_rate": 0.5}, "udas.learning_rate = 0.0001"),
    ],
)
def test_an_unfinished_stage_is_not_continued_with_other_settings(
    tmp_path, monkeypatch, capsys, all_valid, stage, changes, key
):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    run, config = tmp_path / "run", merged(QUICK, STOPPED)
    if stage.startswith("baselines"):
        method = stage.split("/")[1]
        nets = {"tist.nets": "multi"} if stage.endswith("multi") else {}
        config = merged(config, {**nets, "iterations": 0, "initial_images": 7, "baselines": [method]})

    def stop(when, arguments):
        if (when, arguments[0].folder) == ("after", run / stage) and arguments[1] > 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        interrupting(patch, Run, "save", stop)
        assert train(tmp_path, config) == 130
    unchanged = shutil.copytree(run, tmp_path / "unchanged")
    assert not (run / stage / "manifest.json").exists()
    assert list((run / stage / "checkpoints").iterdir())
    reconfigure(run, changes)
    before = everything(run)
    asked_first = {"baselines/tist/myo": "tist/lv", "baselines/udas/early": "udas/head"}  # finished before
    where = (
        f"{asked_first[stage]}/manifest.json" if stage in asked_first else f"the checkpoint of {run / stage} at step"
    )
    assert_refused(call("train", "--resume", run), capsys, where, f"was made with {key} but the run has", "put it back")
    assert everything(run) == before
    assert call("train", "--resume", unchanged) == 0


def test_what_was_made_from_a_stage_that_came_out_otherwise_is_not_used(copied, monkeypatch, capsys):
    shutil.rmtree(copied / "supervised")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train_segmenter", lambda *_, **__: None)
        said = "adabn/manifest.json was made from an earlier supervised, which was made anew since; delete"
        assert_refused(call("train", "--resume", copied), capsys, said)
    assert_refused(call("evaluate", "--run", copied), capsys, said, "adabn to make it anew too")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_command_that_is_killed_from_outside_is_resumed_by_a_command(tmp_path):
    """ "Supervised RL", which needs no valid mask, in a process as a user starts it."""
    changes = {"reward": "pixel_accuracy", "iterations": 1, "ppo.epochs": 3}
    expected = trained(tmp_path / "whole", merged(QUICK, changes))
    config, run = tmp_path / "whole" / "config.yaml", tmp_path / "run"
    command = [sys.executable, "-W", "error", "-m", "segarena.run_rl", "train", "--config", config, "--out", run]
    where = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, **where) as process:
        while process.poll() is None and not list(run.glob("iteration_1/ppo/checkpoints/step_*")):
            time.sleep(0.005)
        process.kill()
        said = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, said
    assert call("train", "--resume", run) == 0
    assert_same(run, expected)
