"""A new environment is registered, trained, compared, shown and played from outside, in at most 50 lines."""

import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from segarena.agents import generic
from segarena.agents.command_line import main
from segarena.agents.configuration import read_experiment
from segarena.agents.papers import POLICIES
from segarena.agents.policy import TrainedPolicy
from segarena.common.runs import Run
from segarena.envs import ENVIRONMENTS
from segarena.evaluation.results import read_results

HERE = Path(__file__).resolve().parents[1]
CODE, CONFIG = HERE / "newcomer.py", HERE / "newcomer.yaml"


@pytest.fixture(scope="module", autouse=True)
def newcomer():
    """Its rows stand in the tables for these tests only."""
    import newcomer

    yield newcomer
    del ENVIRONMENTS["Corridor-v0"], POLICIES["Corridor-v0"], gym.registry["Corridor-v0"]
    del sys.modules["newcomer"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run that the configuration trains; never changed."""
    folder = tmp_path_factory.mktemp("newcomer") / "run"
    arguments = ["--device", "cpu", "--out", str(folder), "--export_sb3", str(folder.parent / "policy.zip")]
    assert main(["train", "--config", str(CONFIG), *arguments]) == 0
    return folder


@pytest.fixture
def copied(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_it_takes_at_most_50_lines():
    lines = [line for path in (CODE, CONFIG) for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 50


def test_the_environment_passes_the_checker_of_gymnasium():
    check_env(gym.make("Corridor-v0").unwrapped, skip_render_check=True)


def test_the_trained_policy_beats_chance_and_comes_near_the_best(copied, capsys):
    assert main(["evaluate", "--run", str(copied)]) == 0
    returns = {result.method: result.metrics["return"] for result in read_results(copied / "evaluation" / "test")}
    assert returns.keys() == {"walker", "random", "to the door"}
    assert returns["walker"] > returns["random"] + 0.5
    assert returns["walker"] > returns["to the door"] - 0.1
    assert "p (return vs random" in capsys.readouterr().out


def test_a_policy_of_normalised_observations_is_played_with_their_statistics(tmp_path):
    options = {"normalize_observations": "true", "normalize_rewards": "true", "net_arch": "[8]"}
    options |= {"total_timesteps": "1024"}
    arguments = [part for name, value in options.items() for part in (f"--ppo.{name}", value)]
    out = str(tmp_path / "run")
    assert main(["train", "--config", str(CONFIG), "--device", "cpu", "--out", out, *arguments]) == 0
    _, experiment = read_experiment(Run.open(out))
    model = generic.learner(experiment, Run(out))
    statistics = model.get_vec_normalize_env()
    env = generic.env_of(experiment, 64)
    env.seed(range(64))
    env.reset()
    seen = []
    model.policy.features_extractor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    TrainedPolicy(model.policy, normalize=statistics)(env)
    raw = env.observe().numpy()
    assert torch.equal(seen[0], torch.from_numpy(statistics.normalize_obs(raw)))
    assert abs(seen[0].numpy() - raw).max() > 0.1
    assert model.policy.action_net.in_features == 8
    assert main(["evaluate", "--run", out, "--policies"]) == 0


def test_chosen_reference_policies_are_evaluated_and_unknown_ones_refused(copied, capsys):
    assert main(["evaluate", "--run", str(copied), "--policies", "random"]) == 0
    assert {result.method for result in read_results(copied / "evaluation" / "test")} == {"walker", "random"}
    assert main(["evaluate", "--run", str(copied), "--policies", "randon"]) == 2
    assert "did you mean 'random'?" in capsys.readouterr().err
    assert main(["evaluate", "--run", str(copied), "--split", "test"]) == 2


def test_an_interrupted_run_ends_like_one_that_was_not(run, tmp_path, monkeypatch):
    saved, save = [], Run.save

    def stop_after_the_second(self, *arguments):
        save(self, *arguments)
        saved.append(arguments[0])
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", stop_after_the_second)
    out = str(tmp_path / "stopped")
    options = ["--device", "cpu", "--out", out, "--checkpoint_every", "4096"]
    assert main(["train", "--config", str(CONFIG), *options]) == 130
    assert 0 < saved[-1] < 16384
    assert main(["train", "--resume", out]) == 0
    one, other = Run.open(run).checkpoint().weights, Run.open(out).checkpoint().weights
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_is_not_continued_with_other_settings(copied, capsys):
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace("gamma: 0.99", "gamma: 0.5"))
    assert main(["train", "--resume", str(copied)]) == 2
    assert "was made with ppo.gamma = 0.99 but the run has 0.5" in capsys.readouterr().err


def test_an_episode_is_rendered(copied, capsys):
    assert main(["render", "--run", str(copied), "--seed", "5"]) == 0
    frames = imageio.imread(copied / "media" / "episode.gif", index=None)
    assert f"{len(frames) - 1} steps, return" in capsys.readouterr().out
    assert main(["render", "--run", str(copied), "--case", "x"]) == 2


def test_a_wrong_configuration_is_refused(tmp_path, capsys):
    arguments = ["train", "--config", str(CONFIG), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--env", "Coridor-v0"]) == 2
    assert "env is 'Coridor-v0' but must be one of" in capsys.readouterr().err
    assert main([*arguments, "--settings", "{horizon: 0}"]) == 2
    assert "horizon is 0 but must be an integer, at least 1" in capsys.readouterr().err
    assert main([*arguments, "--ppo.total_timesteps", "0"]) == 2
    assert main([*arguments, "--settings", "{num_envs: 3}"]) == 2
    assert "num_envs cannot stand among the arguments of Corridor-v0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_observations_that_cannot_be_normalised_are_refused_before_anything_is_written(
    newcomer, tmp_path, monkeypatch, capsys
):
    of_floats = newcomer.Corridor.__init__

    def of_bytes(self, **settings):
        of_floats(self, **settings)
        self.single_observation_space = spaces.Box(0, 255, (2,), np.uint8)

    monkeypatch.setattr(newcomer.Corridor, "__init__", of_bytes)
    arguments = ["train", "--config", str(CONFIG), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--ppo.normalize_observations", "true"]) == 2
    assert "none of them float32" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_policy_of_normalised_observations_is_not_exported_without_their_statistics(tmp_path, capsys):
    arguments = [
        "train",
        "--config",
        str(CONFIG),
        "--out",
        str(tmp_path / "run"),
        "--ppo.normalize_observations",
        "true",
    ]
    assert main([*arguments, "--export_sb3", str(tmp_path / "policy.zip")]) == 2
    assert "export_sb3 writes no statistics of observations" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "refused before the training"


def test_the_cases_of_a_result_name_where_the_samples_of_the_environment_come_from(newcomer, copied, monkeypatch):
    assert main(["evaluate", "--run", str(copied), "--policies", "random"]) == 0
    assert {tuple(result.origins) for result in read_results(copied / "evaluation" / "test")} == {("phantom",)}
    monkeypatch.setattr(newcomer.Corridor, "origin", "real")
    assert main(["evaluate", "--run", str(copied), "--policies", "random"]) == 0
    assert {tuple(result.origins) for result in read_results(copied / "evaluation" / "test")} == {("real",)}


def test_every_seed_is_evaluated_on_the_same_episodes(copied, tmp_path, capsys):
    other = Path(shutil.copytree(copied, tmp_path / "other"))
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 2**32 - 1}))
    assert main(["evaluate", "--run", str(copied), str(other)]) == 0
    rule = {
        result.seed: result for result in read_results(copied / "evaluation" / "test") if result.method == "to the door"
    }
    rule |= {
        result.seed: result for result in read_results(other / "evaluation" / "test") if result.method == "to the door"
    }
    assert rule[0].cases == rule[2**32 - 1].cases, "it draws nothing, so that only the episodes could differ"
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 1, "episodes": 7}))
    capsys.readouterr()
    assert main(["evaluate", "--run", str(copied), str(other)]) == 2
    assert "different environments, settings or numbers of episodes" in capsys.readouterr().err


def test_a_run_can_be_continued_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = {"data": "images", "horizon": 3}
    assert generic.PPOExperiment(settings=settings).resolved().settings == {
        **settings,
        "data": str(tmp_path / "images"),
    }
    assert generic.PPOExperiment(settings={"data": "phantom"}).resolved().settings == {"data": "phantom"}


def test_the_file_is_a_driver_of_its_own(tmp_path):
    command = [sys.executable, "-W", "error", str(CODE), "play", "--id", "Corridor-v0", "--episodes", "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| to the door " in done.stdout
