"""The open-loop schedule: it finds the best actions of each step, resumes exactly, and stands beside the policy."""

import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from segarena.agents.command_line import main
from segarena.agents.open_loop import OpenLoop, OpenLoopConfig, schedule_shape, tune_schedule
from segarena.agents.papers import POLICIES
from segarena.agents.policy import Reference, play
from segarena.common.runs import Run
from segarena.common.stopping import Stopped
from segarena.envs import ENVIRONMENTS, Entry, register
from segarena.envs.core import BatchedEnv, EnvConfig
from segarena.evaluation.results import read_results

TARGET = torch.tensor([[0.5, -0.8], [-0.2, 0.9], [0.0, 0.3]])
CONFIG = OpenLoopConfig(generations=60, episodes=4)


class TrackEnv(BatchedEnv):
    """Three steps, each paid by how near the action is to the target of its step, which is never observed."""

    def __init__(self, config=None, **settings):
        super().__init__(config or EnvConfig(horizon=3), **settings)
        self.single_observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.single_action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def _reset(self, env_ids, options):
        pass

    def _step(self, actions):
        reward = -(actions - TARGET[self.t.clamp(max=2)]).square().sum(dim=1)
        return {"reward": reward}, torch.zeros(self.num_envs, dtype=torch.bool)

    def observe(self, env_ids=None):
        return torch.zeros(self.num_envs if env_ids is None else len(env_ids), 1)

    def _render_frame(self, env_id):
        return np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def track(monkeypatch):
    """Its id, in the table of environments for one test."""
    monkeypatch.setitem(sys.modules, "track", sys.modules[__name__])
    register("Track-v0", Entry("track:TrackEnv", "none", ""))
    yield "Track-v0"
    del ENVIRONMENTS["Track-v0"], gym.registry["Track-v0"]


def test_it_finds_the_best_action_of_each_step(tmp_path):
    schedule = tune_schedule(TrackEnv(num_envs=4, device="cpu"), CONFIG, 0, Run(tmp_path))
    assert (schedule - TARGET).abs().max() < 0.05
    env = TrackEnv(num_envs=2, device="cpu")
    env.reset()
    assert play(env, OpenLoop(schedule)).returns.min() > -0.01


def test_actions_of_any_shape_have_a_schedule(tmp_path):
    class Column(TrackEnv):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.single_action_space = spaces.Box(-1.0, 1.0, (2, 1), np.float32)

        def _step(self, actions):
            return super()._step(actions[:, :, 0])

    schedule = tune_schedule(Column(num_envs=4, device="cpu"), CONFIG, 0, Run(tmp_path))
    assert schedule.shape == (3, 2, 1)
    assert (schedule[..., 0] - TARGET).abs().max() < 0.05


def test_one_that_was_stopped_ends_like_one_that_was_not(tmp_path, monkeypatch):
    config, env = replace(CONFIG, generations=8), TrackEnv(num_envs=4, device="cpu")
    whole = tune_schedule(env, config, 3, Run(tmp_path / "whole"))
    saved, save = [], Run.save

    def stop(self, *arguments):
        save(self, *arguments)
        saved.append(arguments[0])
        if arguments[0] == 5:
            raise Stopped(15, "")

    monkeypatch.setattr(Run, "save", stop)
    with pytest.raises(Stopped):
        tune_schedule(env, config, 3, Run(tmp_path / "stopped"))
    resumed = tune_schedule(env, config, 3, Run(tmp_path / "stopped"))
    assert torch.equal(whole, resumed)
    assert saved == [*range(1, 6), 6, 7, 8]


def test_what_has_no_schedule_is_refused():
    class Choice(TrackEnv):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.single_action_space = spaces.Discrete(3)

    with pytest.raises(ValueError, match=r"continuous actions with bounds.*Discrete\(3\)"):
        schedule_shape(Choice(num_envs=1, device="cpu"))
    with pytest.raises(ValueError, match="3000 steps of 2 numbers but a schedule has at most 4096"):
        schedule_shape(TrackEnv(EnvConfig(horizon=3000), num_envs=1, device="cpu"))


def test_without_cma_nothing_is_written(track, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cma", None)  # as where it is not installed
    options = ["--device", "cpu", "--ppo.total_timesteps", "96", "--out", str(tmp_path / "run")]
    train = ["train", "--paper", "ppo", "--env", track, *options, "--open_loop.generations"]
    assert main([*train, "1"]) == 2
    assert "open_loop needs cma: pip install 'segarena[attacks]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_it_stands_beside_the_policy_of_its_run(track, tmp_path):
    config = tmp_path / "track.yaml"
    config.write_text(
        "paper: ppo\nname: tracker\nenv: Track-v0\nepisodes: 4\ndeterministic: true\n"
        "open_loop: {generations: 40, episodes: 4}\n"
        "ppo: {total_timesteps: 96, num_envs: 8, n_steps: 3, batch_size: 24}\n"
    )
    out = str(tmp_path / "run")
    assert main(["train", "--config", str(config), "--device", "cpu", "--out", out]) == 0
    assert main(["evaluate", "--run", out, "--policies"]) == 0
    returns = {result.method: result.metrics["return"] for result in read_results(tmp_path / "run/evaluation/test")}
    assert returns.keys() == {"tracker", "open-loop schedule"}
    assert returns["open-loop schedule"] > -0.05 > returns["tracker"]


def test_a_policy_that_is_named_plays_with_the_arguments_that_it_needs(track, tmp_path, monkeypatch):
    needs = {"horizon": (1, 2)}
    rule = Reference("The middle.", lambda env, seed: lambda env: torch.zeros(env.num_envs, 2), needs=needs)
    monkeypatch.setitem(POLICIES, track, {"middle": rule})
    config, out = tmp_path / "track.yaml", tmp_path / "run"
    config.write_text(
        "paper: ppo\nname: tracker\nenv: Track-v0\nepisodes: 4\nsettings: {horizon: 3}\n"
        "ppo: {total_timesteps: 24, num_envs: 8, n_steps: 3, batch_size: 24}\n"
    )
    assert main(["train", "--config", str(config), "--device", "cpu", "--out", str(out)]) == 0
    assert main(["evaluate", "--run", str(out)]) == 0
    assert {result.method for result in read_results(out / "evaluation/test")} == {"tracker"}, "unasked it has no row"
    assert main(["evaluate", "--run", str(out), "--policies", "middle"]) == 0
    found = {result.method: result for result in read_results(out / "evaluation/test")}
    assert {name: one.metrics["steps"] for name, one in found.items()} == {"tracker": 3.0, "middle": 1.0}
    assert found["middle"].settings["settings"] == {"horizon": 1}, "results say in what it played"
    assert found["tracker"].settings["settings"] == {"horizon": 3}
    assert found["middle"].metrics["return"] == pytest.approx(-float(TARGET[0].square().sum()))
