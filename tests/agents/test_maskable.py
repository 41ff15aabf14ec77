"""Plain PPO with masks on any environment whose actions can be counted."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from segarena.agents import generic
from segarena.agents.papers import PAPERS
from segarena.agents.ppo import MaskableLearner, PPOConfig
from segarena.envs.core import BatchedEnv, EnvConfig

TINY = PPOConfig("maskable", total_timesteps=64, num_envs=2, n_steps=16, batch_size=16, n_epochs=1)


class Numbers(BatchedEnv):
    """Actions that are numbers."""

    config_class = EnvConfig

    def __init__(self, config=None, **settings):
        super().__init__(config, **settings)
        self.single_observation_space = spaces.Box(0, 1, (1,), np.float32)
        self.single_action_space = spaces.Box(-1, 1, (1,), np.float32)

    def _reset(self, env_ids, options):
        pass

    def _step(self, actions):
        return {"reward": torch.zeros(self.num_envs)}, torch.zeros(self.num_envs, dtype=torch.bool)

    def observe(self, env_ids=None):
        return torch.zeros(self.num_envs if env_ids is None else len(env_ids), 1)

    def _render_frame(self, env_id):
        return np.zeros((8, 8, 3), np.uint8)


def test_masks_of_actions_that_cannot_be_counted_are_refused_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(generic, "env_of", lambda experiment, num_envs, **_: Numbers(num_envs=num_envs, device="cpu"))
    with pytest.raises(ValueError, match="has no action masks, since its actions cannot be counted"):
        generic.check(generic.PPOExperiment(env="Numbers", ppo=TINY))
    generic.check(generic.PPOExperiment(env="Numbers", ppo=PPOConfig(total_timesteps=64)))


def test_any_environment_is_learned_with_its_masks(tmp_path, monkeypatch):
    settings = {"cases": ["phantom_02000"], "score_source": "oracle_fraction", "n_agents": 1, "threshold": 1.0}
    experiment = generic.PPOExperiment(env="SPARS-LiverCT-v0", settings=settings, device="cpu", ppo=TINY)
    run = PAPERS["ppo"].start(experiment, tmp_path / "run", {})
    assert run.checkpoint().step == 64
    assert isinstance(generic.learner(experiment, run), MaskableLearner)
