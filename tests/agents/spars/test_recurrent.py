"""RecurrentPPO as learner and opponent of SPARS (docs/spars.md, Method 10)."""

import shutil
from dataclasses import replace

import pytest
import torch
from sb3_contrib import RecurrentPPO
from segarena.agents.configuration import read_experiment
from segarena.agents.experiment import RenderOptions
from segarena.agents.papers import PAPERS
from segarena.agents.ppo import PPOConfig, RecurrentLearner
from segarena.agents.predictor import POLICY
from segarena.agents.spars import evaluation
from segarena.agents.spars.config import CaseChoice, EvaluationConfig, SparsExperiment
from segarena.agents.spars.methods import Cases, Methods
from segarena.agents.spars.pool import Pool, Snapshot
from segarena.agents.spars.self_play import SelfPlayConfig
from segarena.agents.spars.training import learner, load_policies
from segarena.common.runs import Run
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.spars_config import SparsConfig
from spars_toys import line_env

RECURRENT = SparsExperiment(
    device="cpu",
    env=SparsConfig(
        score_source="oracle_fraction", cases=["phantom_02000"], grid_shape=(32, 32, 24), threshold=1.0, horizon=17
    ),
    validation=CaseChoice(cases=["phantom_01000"]),
    test=CaseChoice(cases=["phantom_03000"]),
    policy="flatten_mlp",
    ppo=PPOConfig(
        "recurrent", total_timesteps=192, num_envs=4, n_steps=8, batch_size=32, n_epochs=1, net_arch=[8], lstm_size=8
    ),
    self_play=SelfPlayConfig(pool="uniform", pool_size=3),
    evaluation=EvaluationConfig(rollouts=2),
    examine_every=64,
    checkpoint_every=32,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = PAPERS["spars"].start(RECURRENT, tmp_path_factory.mktemp("recurrent") / "run", {})
    _, experiment = read_experiment(run)
    return run, experiment.resolved()


def test_a_resumed_run_ends_like_one_that_was_not_stopped(trained, tmp_path):
    whole, experiment = trained
    shutil.copytree(whole.folder, tmp_path / "run")
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
    before = Run(tmp_path / "run").checkpoint()
    assert before.step == 160  # 40 steps of each environment; the run ends in the same episode of 17
    assert before.state["self_play"]["memory"].any()
    again, expected = PAPERS["spars"].resume(experiment, tmp_path / "run").checkpoint(), whole.checkpoint()
    assert again.step == expected.step == 192
    for name, value in again.weights.items():
        assert torch.equal(value, expected.weights[name]), name
    mine, others = (one.state["self_play"] for one in (again, expected))
    assert torch.equal(mine["opponents"], others["opponents"])
    assert torch.equal(mine["memory"], others["memory"])
    for part, other in zip(again.state["memory"]["pi"], expected.state["memory"]["pi"], strict=True):
        assert torch.equal(part, other)


def test_a_memory_of_another_size_is_refused(trained, tmp_path):
    run, experiment = trained
    other = replace(experiment, ppo=replace(experiment.ppo, num_envs=2, batch_size=16))
    with pytest.raises(ValueError, match="checkpoint"):
        learner(other, run)


def test_it_segments_the_same_alone_and_among_others(trained):
    run, experiment = trained
    both = replace(experiment.env, cases=["phantom_03000", "phantom_03001"])
    methods = Methods(experiment, run)
    maps = methods.maps(POLICY, Cases(experiment, run, both))
    alone = methods.maps(POLICY, Cases(experiment, run, replace(both, cases=["phantom_03001"])))
    assert torch.equal(maps.blocks[1], alone.blocks[0])
    assert maps.facts[0]["steps"] == 17


def test_it_is_filmed_and_exported(trained, tmp_path):
    run, experiment = trained
    episode = evaluation.render(run, experiment, RenderOptions())
    assert len(episode.shots) == 18
    model = learner(experiment, run)
    assert isinstance(model, RecurrentLearner)
    model.save(tmp_path / "policy.zip")
    loaded = RecurrentPPO.load(tmp_path / "policy.zip", device="cpu")
    for name, value in loaded.policy.state_dict().items():
        assert torch.equal(value, model.policy.state_dict()[name]), name


def test_opponents_remember_each_its_own_episode(trained):
    run, experiment = trained
    env = Cases(experiment, run, experiment.test.of(experiment.env)).duel
    policy = load_policies(experiment, run, env)[0].policy
    assert policy.lstm_actor.hidden_size == 8
    other = Snapshot(policy)
    with torch.no_grad():
        for parameter in other.policy.parameters():
            parameter.mul_(-1.0)
    pool = Pool("uniform", 4, size=2)
    pool.add(policy, 0)
    pool.add(other.policy, 1)
    pool.opponents[:] = torch.tensor([0, 1, 1, 0])
    pool.draw(torch.tensor([], dtype=torch.int64))
    env.reset()
    obs = {name: torch.cat((part, part.flip(0))) for name, part in env.observe().items()}
    fresh, going = torch.tensor([True] * 4), torch.tensor([False, False, True, False])
    assert pool.recurrent
    pool.act(obs, True, starts=fresh)
    pool.act(obs, True, starts=going)
    for env_id, one in enumerate((policy, other.policy, other.policy, policy)):
        alone, row = Snapshot(one), {name: part[env_id : env_id + 1] for name, part in obs.items()}
        alone.act(row, True, starts=fresh[:1])
        if env_id != 2:  # whose episode has begun anew
            alone.act(row, True, starts=going[:1])
        torch.testing.assert_close(pool.memory.states[:, :, env_id], alone.memory.states[:, :, 0])


def test_a_model_of_recurrent_ppo_competes_with_its_memory_which_ends_with_an_episode():
    env = line_env({}, num_envs=2, threshold=1.0, horizon=6)
    settings = {"policy_kwargs": {"lstm_hidden_size": 4}, "n_steps": 2, "batch_size": 4, "device": "cpu", "seed": 0}
    model = RecurrentPPO("MlpLstmPolicy", LearnerEnv(env), **settings)
    rival = line_env({}, num_envs=2, threshold=1.0, horizon=6, opponent=model)
    rival.seed(range(2))
    rival.reset()
    competitor = rival._opponent
    rival.step(torch.zeros(2, dtype=torch.int64))
    first = torch.from_numpy(competitor.state[0]).clone()
    rival.step(torch.zeros(2, dtype=torch.int64))
    assert not torch.allclose(torch.from_numpy(competitor.state[0]), first)
    rival.seed(range(2))
    rival.reset()
    rival.step(torch.zeros(2, dtype=torch.int64))
    assert torch.equal(torch.from_numpy(competitor.state[0]), first)


def test_a_search_whose_windows_are_masked_is_refused():
    with pytest.raises(ValueError, match=r"ppo\.algorithm is 'recurrent' but policy 'candidates' masks windows"):
        replace(RECURRENT, env=SparsConfig(profile="search"), policy="candidates").resolved()
