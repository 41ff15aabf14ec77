"""Trials in processes of Ray: what is killed goes on from its checkpoint and ends with the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from segarena.agents import sweep_engine
from segarena.agents.command_line import main
from segarena.agents.sweep import read_sweep
from segarena.common.checkpoints import latest_checkpoint
from segarena.common.runs import Run
from sweeps import GRID, TINY

pytest.importorskip("ray.tune", reason="Ray Tune is not here: pip install 'segarena[sweep]'")
SLOW = {**TINY, "ppo": {**TINY["ppo"], "total_timesteps": 1280}, "checkpoint_every": 64, "examine_every": 0}
LONGEST_S = 200
"""Time after which a test gives up waiting."""


def step_of(trial):
    """The step of a trial's newest checkpoint; 0 where there is none."""
    checkpoint = latest_checkpoint(trial.folder / "checkpoints")
    return checkpoint.step if checkpoint else 0


class Sweep:
    """The command, in a process of its own."""

    def __init__(self, *arguments):
        self.said = Path("said.txt")
        program = f"import sys; from segarena.agents.command_line import main; sys.exit(main({list(arguments)!r}))"
        with self.said.open("w") as file:
            self.process = subprocess.Popen([sys.executable, "-c", program], stdout=file, stderr=file)

    def wait_for(self, what):
        """The first true value of `what`, which is asked again and again."""
        until = time.monotonic() + LONGEST_S
        while time.monotonic() < until:
            with suppress(OSError, ValueError):
                if found := what():
                    return found
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.02)
        pytest.fail(self.said.read_text())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()

    def kill_worker(self, trial, step, other_than=None):
        """SIGKILL the process that trains a trial once it has a checkpoint above a step; its number and the step."""

        def training():
            process, at = json.loads((trial.folder / ".lock").read_text())["process"], step_of(trial)
            return at > step and process != other_than and (process, at)

        process, step = self.wait_for(training)
        assert process != self.process.pid
        os.kill(process, signal.SIGKILL)
        return process, step


def test_a_killed_worker_goes_on_and_a_trial_that_dies_too_often_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump({**GRID, "base": [SLOW], "seeds": [0]}))
    trials = once, twice = read_sweep("mine.yaml", {}).trials(tmp_path / "out", "")
    with Sweep("sweep", "--config", "mine.yaml", "--out", "out", "--at_once", "2", "--retries", "1") as sweep:
        sweep.kill_worker(once, 0)  # the trial that begins first: it could be finished before the other one is killed
        first, step = sweep.kill_worker(twice, 0)
        sweep.kill_worker(twice, step - 1, other_than=first)  # as soon as it has begun
        status = sweep.process.wait(LONGEST_S)
    assert status == 1, sweep.said.read_text()
    said = sweep.said.read_text()
    assert f"failed     {twice.folder.name}: its process died 2 times" in said
    assert f"{once.folder.name}: its process died; it goes on from its checkpoint" in said
    assert (once.finished, twice.finished) == (True, False)
    assert f"Without results: {twice.folder.name}." in Path("out/index.md").read_text()
    assert not Path("out/.ray").exists()

    assert step <= step_of(twice) < 1280
    twice.run(threads=1)  # what a process of the next call does
    assert main(["sweep", "--resume", "out"]) == 0
    assert "Without results" not in Path("out/index.md").read_text()
    for trial in trials:
        whole = tmp_path / f"whole_{trial.folder.name}"
        assert main(["train", "--config", str(trial.folder / "config.yaml"), "--out", str(whole)]) == 0
        ours, theirs = (Run.open(folder).checkpoint() for folder in (trial.folder, whole))
        assert ours.step == theirs.step == 1280
        assert ours.weights.keys() == theirs.weights.keys()
        assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


class Failing:
    """A trial that raises."""

    def __init__(self, error):
        self.error = error

    def run(self, threads):
        raise self.error


def test_what_a_trial_raises_is_told_and_not_repeated():
    trials = [Failing(ValueError("threshold is 2")), Failing(OSError("disk is full")), Failing(KeyError("a bug"))]
    told = [sweep_engine._run({"number": number}, trials, 1)["failed"] for number in range(3)]
    assert told[:2] == ["threshold is 2", "disk is full"]
    assert told[2].startswith("Traceback")
    assert "KeyError: 'a bug'" in told[2]


def test_a_signal_keeps_what_there_is_and_names_the_command_that_goes_on(tmp_path, monkeypatch, heard_signals):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        yaml.safe_dump({**GRID, "base": [SLOW], "grid": {"env.threshold": [0.5]}, "seeds": [0]})
    )
    (trial,) = read_sweep("mine.yaml", {}).trials(tmp_path / "a folder", "")
    with Sweep("sweep", "--config", "mine.yaml", "--out", "a folder", "--at_once", "1") as sweep:
        sweep.wait_for(lambda: step_of(trial))
        sweep.process.send_signal(signal.SIGTERM)
        status = sweep.process.wait(LONGEST_S)
    assert status == 128 + signal.SIGTERM, sweep.said.read_text()
    said = sweep.said.read_text()
    assert "SIGTERM: stopped; 0 of 1 trials are finished" in said
    assert "sweep --resume 'a folder'" in said
    assert "Traceback" not in said
    assert step_of(trial) > 0
    assert not trial.finished
