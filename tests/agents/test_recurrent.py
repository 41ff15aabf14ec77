"""RecurrentPPO: what only a memory can solve is learned, and remembered where the policy is played."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from segarena.agents import generic
from segarena.agents.papers import PAPERS
from segarena.agents.policy import TrainedPolicy, play
from segarena.agents.ppo import LEARNERS, PPOConfig, RecurrentLearner, policy_alias
from segarena.agents.recurrent import Memory
from segarena.common.runs import Run
from segarena.envs.core import BatchedEnv, EnvConfig
from segarena.envs.learner_env import LearnerEnv


class Recall(BatchedEnv):
    """Shows one of two cues in the first of three steps, and pays 1 where the last action names it."""

    config_class = EnvConfig

    def __init__(self, config=None, **settings):
        super().__init__(config, **settings)
        self.single_observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.cue = torch.zeros(self.num_envs, dtype=torch.int64)

    def _reset(self, env_ids, options):
        self.cue[env_ids] = (self.streams.tick()[env_ids] * 2).long()

    def _step(self, actions):
        last = self.t == 2
        return {"reward": (last & (actions == self.cue)).float()}, last

    def observe(self, env_ids=None):
        t, cue = (self.t, self.cue) if env_ids is None else (self.t[env_ids], self.cue[env_ids])
        return torch.stack((torch.where(t == 0, 2.0 * cue - 1, 0.0), (t == 2).float()), dim=1)

    def _render_frame(self, env_id):
        return np.zeros((8, 8, 3), np.uint8)


def trained(algorithm, steps):
    config = PPOConfig(algorithm, num_envs=32, n_steps=12, batch_size=96, learning_rate=0.01, lstm_size=16)
    env = Recall(num_envs=32, device="cpu")
    model = LEARNERS[algorithm](
        policy_alias(env.single_observation_space, algorithm),
        LearnerEnv(env),
        policy_kwargs=config.policy_kwargs(),
        seed=0,
        device="cpu",
        **config.ppo_kwargs(),
    ).learn(steps)
    fresh = Recall(num_envs=200, device="cpu")
    fresh.seed(range(200))
    return model, fresh


@pytest.mark.parametrize(("algorithm", "least", "most"), [("recurrent", 0.95, 1.0), ("ppo", 0.3, 0.7)])
def test_only_a_memory_learns_what_was_shown_before(algorithm, least, most):
    model, env = trained(algorithm, 8 * 384)
    policy = TrainedPolicy(model.policy, deterministic=True)
    for _ in range(2):  # the second episodes begin with what the first have left
        env.reset()
        assert least <= float(play(env, policy).returns.mean()) <= most


def test_the_memory_is_that_of_sb3_contrib_and_of_each_environment_alone():
    model, _ = trained("recurrent", 384)
    torch.manual_seed(0)
    obs, starts = torch.randn(5, 3, 2), torch.tensor([[1, 1, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
    whole, parts, state = Memory(model.policy, 3), Memory(model.policy, 3), None
    for seen, begins in zip(obs, starts, strict=True):
        told = whole.distribution(model.policy, seen, begins).distribution.logits
        for rows in (torch.tensor([2]), torch.tensor([0, 1])):
            own = parts.distribution(model.policy, seen[rows], begins[rows], rows).distribution.logits
            torch.testing.assert_close(own, told[rows])
        actions, state = model.predict(seen.numpy(), state, begins.numpy(), deterministic=True)
        assert actions.tolist() == told.argmax(dim=1).tolist()
    torch.testing.assert_close(whole.states, torch.from_numpy(np.stack(state)))
    first = Memory(model.policy, 3)
    first.distribution(model.policy, obs[4], torch.ones(3).bool())
    assert torch.allclose(whole.states[:, :, 0], first.states[:, :, 0])  # its episode began there
    assert not torch.allclose(whole.states[:, :, 1], first.states[:, :, 1])


SETTINGS = {"cases": ["phantom_02000"], "score_source": "oracle_fraction", "n_agents": 1, "threshold": 1.0}
TINY = PPOConfig("recurrent", total_timesteps=192, num_envs=2, n_steps=16, batch_size=16, n_epochs=1, lstm_size=8)
EXPERIMENT = generic.PPOExperiment(
    env="SPARS-LiverCT-v0", settings={**SETTINGS, "horizon": 10}, device="cpu", ppo=TINY, checkpoint_every=64
)


def test_any_environment_is_learned_and_a_resumed_run_ends_like_one_that_was_not_stopped(tmp_path, monkeypatch):
    whole = PAPERS["ppo"].start(EXPERIMENT, tmp_path / "whole", {}).checkpoint()
    assert whole.step == 192
    assert whole.state["memory"]["vf"][1].any()
    assert isinstance(generic.learner(EXPERIMENT, Run(tmp_path / "whole")), RecurrentLearner)
    update, updates = RecurrentLearner.train, []

    def killed(self):
        updates.append(1)
        if len(updates) == 4:
            raise KeyboardInterrupt
        update(self)

    monkeypatch.setattr(RecurrentLearner, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        PAPERS["ppo"].start(EXPERIMENT, tmp_path / "run", {})
    assert Run(tmp_path / "run").checkpoint().step == 64  # in the middle of an episode of 10 steps
    monkeypatch.undo()
    again = PAPERS["ppo"].resume(EXPERIMENT, tmp_path / "run").checkpoint()
    assert again.step == 192
    for name, value in again.weights.items():
        assert torch.equal(value, whole.weights[name]), name
    for one, other in zip(again.state["memory"]["pi"], whole.state["memory"]["pi"], strict=True):
        assert torch.equal(one, other)


def test_cloning_is_refused():
    clone = generic.CloneConfig(policy="random")
    with pytest.raises(ValueError, match=r"clone\.policy is 'random' but ppo\.algorithm is 'recurrent'"):
        generic.check(generic.PPOExperiment(env="SPARS-LiverCT-v0", settings=SETTINGS, ppo=TINY, clone=clone))
