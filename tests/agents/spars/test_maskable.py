"""MaskablePPO as learner and opponent of SPARS: nobody ever moves against the border (docs/spars.md, Method 10)."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from segarena.agents.configuration import read_experiment
from segarena.agents.papers import PAPERS
from segarena.agents.policy import TrainedPolicy
from segarena.agents.ppo import MaskableLearner, PPOConfig
from segarena.agents.predictor import POLICY
from segarena.agents.spars.config import CaseChoice, EvaluationConfig, SparsExperiment
from segarena.agents.spars.methods import Cases, Methods
from segarena.agents.spars.self_play import SelfPlayConfig
from segarena.agents.spars.training import _fresh, env_of, learner, load_policies
from segarena.common.runs import Run
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.spars_config import SparsConfig
from spars_toys import line_env
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

MASKABLE = SparsExperiment(
    device="cpu",
    env=SparsConfig(
        score_source="oracle_fraction", cases=["phantom_02000"], grid_shape=(32, 32, 24), threshold=1.0, horizon=8
    ),
    validation=CaseChoice(cases=["phantom_01000"]),
    test=CaseChoice(cases=["phantom_03000"]),
    policy="flatten_mlp",
    ppo=PPOConfig("maskable", total_timesteps=512, num_envs=4, n_steps=32, batch_size=64, n_epochs=1, net_arch=[8]),
    self_play=SelfPlayConfig(pool="uniform", pool_size=3),
    evaluation=EvaluationConfig(rollouts=2),
    examine_every=128,
    checkpoint_every=128,
)


class Places(BaseCallback):
    """Whether any agent stood still in a step within an episode."""

    def __init__(self, env):
        super().__init__()
        self.env, self.stood, self.steps = env, np.zeros(2, dtype=int), 0

    def _on_rollout_start(self):
        self.before = self.env.at.clone()

    def _on_step(self):
        at, _ = self.env.painting.last_step()
        self.stood += (at == self.before).sum(dim=1).numpy()
        self.before, self.steps = self.env.at.clone(), self.steps + 1
        return True


@pytest.mark.parametrize(("algorithm", "still"), [("maskable", False), ("ppo", True)])
def test_neither_learner_nor_opponents_move_against_the_border(tmp_path, algorithm, still):
    experiment = replace(MASKABLE, ppo=replace(MASKABLE.ppo, algorithm=algorithm)).resolved()
    training = _fresh(experiment, Run(tmp_path))
    places = Places(training.env)
    training.model.learn(512, callback=CallbackList([training.self_play, places]))
    assert places.steps == 128
    assert len(training.self_play.pool.snapshots) == 3
    assert ((places.stood > 0) == still).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = PAPERS["spars"].start(MASKABLE, tmp_path_factory.mktemp("maskable") / "run", {})
    _, experiment = read_experiment(run)
    return run, experiment.resolved()


def test_trained_policy_and_opponent_are_masked_where_they_are_evaluated(trained):
    run, experiment = trained
    env = env_of(experiment, run, num_envs=16)
    policy, opponent = load_policies(experiment, run, env)
    assert policy.masked
    assert opponent.masked
    for trained_policy in (policy.policy, opponent.policy):
        with torch.no_grad():  # it would always go up
            trained_policy.action_net.weight.zero_()
            trained_policy.action_net.bias.fill_(0.0)[0] = 1e3
    env.set_opponent(opponent)
    env.seed(range(16))
    env.reset()
    before, acting = env.at.clone(), TrainedPolicy(policy.policy)
    for _ in range(20):
        env.step(acting(env))
        assert (env.at != before).all()
        before = env.at.clone()
    facts = Methods(experiment, run).maps(POLICY, Cases(experiment, run, experiment.validation.of(experiment.env)))
    assert facts.facts[0]["steps"] == env.horizon


def test_a_resumed_run_ends_like_one_that_was_not_stopped(trained, tmp_path):
    whole, experiment = trained
    shutil.copytree(whole.folder, tmp_path / "run")
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
    assert Run(tmp_path / "run").checkpoint().step < whole.checkpoint().step
    again, expected = PAPERS["spars"].resume(experiment, tmp_path / "run").checkpoint(), whole.checkpoint()
    assert again.step == expected.step == 512
    for name, value in again.weights.items():
        assert torch.equal(value, expected.weights[name]), name
    mine, others = (one.state["self_play"] for one in (again, expected))
    assert torch.equal(mine["opponents"], others["opponents"])
    assert mine["matrix"] == others["matrix"]


def test_it_is_exported_as_a_model_of_sb3_contrib(trained, tmp_path):
    run, experiment = trained
    model = learner(experiment, run)
    assert isinstance(model, MaskableLearner)
    model.save(tmp_path / "policy.zip")
    loaded = MaskablePPO.load(tmp_path / "policy.zip", device="cpu")
    assert loaded.num_timesteps == 512
    for name, value in loaded.policy.state_dict().items():
        assert torch.equal(value, model.policy.state_dict()[name]), name


def test_a_model_of_maskable_ppo_competes_with_its_masks():
    env = line_env({}, num_envs=2, threshold=1.0, horizon=6)
    model = MaskablePPO("MlpPolicy", LearnerEnv(env), n_steps=2, batch_size=4, device="cpu", seed=0)
    rival = line_env({}, num_envs=8, threshold=1.0, horizon=64, opponent=model)
    rival.seed(range(8))
    rival.reset()
    before = rival.at[1].clone()
    for _ in range(20):
        rival.step(torch.zeros(8, dtype=torch.int64))
        assert (rival.at[1] != before).all()
        before = rival.at[1].clone()
