"""The hyper-parameters for RL Zoo: keys that it accepts, values of our own training, an environment that exists."""

import inspect
from pathlib import Path

import gymnasium as gym
import pytest
import segarena
import yaml
from segarena.agents.ppo import PPOConfig
from stable_baselines3 import PPO

FILE = Path(segarena.__file__).parent / "configs" / "rl_zoo" / "ppo.yml"
OF_ZOO = {"env_kwargs", "n_envs", "n_timesteps", "normalize"}
"""Keys that RL Zoo takes itself, before PPO."""
SETTINGS = yaml.safe_load(FILE.read_text(encoding="utf-8"))


def test_it_names_registered_environments_with_arguments_that_they_take():
    for env_id, settings in SETTINGS.items():
        env = gym.make(env_id, cases=["phantom_02000"], **settings["env_kwargs"])
        assert settings["policy"] == "MlpPolicy"
        assert len(env.observation_space.shape) == 1


def test_every_key_is_rl_zoos_or_an_argument_of_ppo():
    for settings in SETTINGS.values():
        left = settings.keys() - OF_ZOO
        assert left <= inspect.signature(PPO).parameters.keys()
        assert settings["n_envs"] * settings["n_steps"] % settings["batch_size"] == 0


def test_values_are_those_of_our_own_training():
    ours = PPOConfig()
    same = ("batch_size", "n_epochs", "gamma", "gae_lambda", "learning_rate", "clip_range", "ent_coef", "vf_coef")
    for settings in SETTINGS.values():
        assert {name: settings[name] for name in same} == {name: getattr(ours, name) for name in same}
        assert settings["n_envs"] * settings["n_steps"] == ours.num_envs * ours.n_steps


def test_rl_zoo_reads_it(tmp_path):
    manager = pytest.importorskip("rl_zoo3.exp_manager", reason="RL Zoo is not installed: pip install rl_zoo3")
    import argparse

    (env_id,) = SETTINGS
    args = argparse.Namespace(conf_file=str(FILE))
    zoo = manager.ExperimentManager(args, "ppo", env_id, str(tmp_path), config=str(FILE), seed=0)
    read, _ = zoo.read_hyperparameters()
    rest = zoo._preprocess_hyperparams(read)[0]
    inspect.signature(PPO).bind(env=None, **rest)
    assert (zoo.n_envs, zoo.n_timesteps) == (16, 200_000)
    assert zoo.env_kwargs == {"obs_mode": "features"}
    assert zoo.normalize
