"""From a command to a run: what it says and holds, with whom it shares its folder."""

import json
import os
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch
import yaml
from commands import LEARNED, TINY, assert_refused, call, decathlon, everything, on_ct, train
from segarena.agents.configuration import read_experiment
from segarena.common.locks import locked
from segarena.common.runs import Run
from stable_baselines3 import PPO


def test_a_run_says_how_to_go_on(capsys):
    assert train("--out", "out", "--ppo.total_timesteps", "64") == 0
    out = capsys.readouterr().out
    assert "python run_rl.py evaluate --run out" in out
    assert "tensorboard --logdir out/tensorboard" in out


def test_the_configuration_of_a_run_is_complete_and_read_back_equal(run):
    def assert_complete(config, kind):
        assert list(config) == [field.name for field in fields(kind)]
        for field in fields(kind):
            value = getattr(kind, field.name)
            if is_dataclass(value):
                assert_complete(config[field.name], value)

    _, experiment = read_experiment(Run.open(run))
    assert_complete(Run.open(run).config, experiment)
    assert experiment.resolved() == experiment
    assert (experiment.name, experiment.ppo.num_envs, experiment.env.grid_shape) == ("Tiny", 4, (32, 32, 24))
    assert experiment.env.window_size == (16, 16, 8)
    assert experiment.test.cases == TINY["test"]["cases"]


def test_the_configuration_of_a_run_trains_the_same_run_again(run):
    assert call("train", "--config", run / "config.yaml", "--out", "again") == 0
    assert Run.open("again").config == Run.open(run).config
    first, second = Run.open(run).checkpoint().weights, Run.open("again").checkpoint().weights
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_run_names_its_machine_and_command(run):
    said = json.loads((run / "environment.json").read_text())
    assert said["command"] == "python run_rl.py train --config config.yaml --export_sb3 deep/policy.zip"
    assert said["packages"]["torch"] in torch.__version__


def test_stable_baselines_opens_the_exported_policy(trained, run):
    model = PPO.load(trained / "deep" / "policy.zip", device="cpu")
    weights = Run.open(run).checkpoint().weights
    assert all(torch.equal(value, weights[name]) for name, value in model.policy.state_dict().items())
    action, _ = model.predict(model.observation_space.sample(), deterministic=True)
    assert model.action_space.contains(action)
    assert [path.name for path in (trained / "deep").iterdir()] == ["policy.zip"]


def test_a_finished_run_can_still_be_exported(run):
    assert call("train", "--resume", run, "--export_sb3", "late.zip") == 0
    assert PPO.load("late.zip", device="cpu").num_timesteps == 128


def test_a_run_trains_its_classifier_first_and_is_evaluated_with_it(here, capsys):
    data = decathlon(here / "data")
    learned = [*on_ct(data), *LEARNED, "--classifier_train.cases", "[liver_1,liver_2]"]
    quick = ["--presence.epochs", "1", "--presence.batches_per_epoch", "2", "--presence.validation_windows", "16"]
    assert train(*learned, *quick, "--env.obs_mode", "features", "--policy", "feature_mlp", "--out", "ct") == 0
    assert (here / "ct" / "classifier" / "presence.safetensors").is_file()
    assert call("evaluate", "--run", "ct") == 0
    assert "3 cases (0 phantom, 0 implanted, 3 real)" in capsys.readouterr().out


def test_a_run_that_is_being_trained_in_is_not_trained_by_another_but_evaluated(here, capsys):
    assert train("--out", "run") == 0
    capsys.readouterr()
    last = Run("run").metrics()[-1]
    assert (last["step"], "spars/dice_eval" in last) == (128, True), "the look at the end, whatever examine_every is"
    before = everything(here / "run")
    with locked(here / "run"):
        said = f"'run' is being trained in by process {os.getpid()} on "
        assert_refused(call("train", "--resume", "run"), capsys, said, "wait until it ends, or stop it (kill")
        assert_refused(train("--out", "run"), capsys, "out is 'run', which is not empty")
        assert call("evaluate", "--run", "run") == 0
    assert {path for path in everything(here / "run") if not path.startswith(("evaluation", "media"))} == {*before}


def test_two_that_begin_in_one_folder_do_not_both_train(here, capsys):
    """The second one comes after the first has made the folder, and before it has written into it."""
    (here / "run").mkdir()
    with locked(here / "run"):
        assert_refused(train("--out", "run"), capsys, "'run' is being trained in by process", "choose another --out")
    assert train("--out", "run") == 0


def test_a_run_without_environment_is_described_when_it_goes_on(here):
    assert train("--out", "run") == 0
    Path("run/environment.json").unlink()
    assert call("train", "--resume", "run", "--name", "Other") == 0
    assert json.loads(Path("run/environment.json").read_text())["command"].endswith("train --resume run --name Other")
    assert Run("run").config["name"] == "Other"
    assert yaml.safe_load(Path("run/config_1.yaml").read_text())["name"] == "Tiny"
