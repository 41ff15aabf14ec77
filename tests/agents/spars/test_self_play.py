"""Training by self-play: what is counted, drawn, logged, and how often (docs/spars.md, Method 10)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import segarena
import torch
import yaml
from segarena.agents.configuration import experiment_from, experiment_parser
from segarena.agents.papers import PAPERS
from segarena.agents.ppo import Learner, PPOConfig
from segarena.agents.spars.config import CaseChoice, EvaluationConfig, SparsExperiment
from segarena.agents.spars.policies import policy_arguments
from segarena.agents.spars.self_play import SelfPlay, SelfPlayConfig
from segarena.agents.spars.training import _fresh
from segarena.common.runs import Run
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import SparsConfig
from spars_toys import MINUS_X, PLUS_X, line_env
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIGS = Path(segarena.__file__).parent / "configs" / "spars"


def experiment_of(*names):
    """The experiment of packaged configurations, one after the other."""
    given = {}
    for name in names:
        for key, value in yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()).items():
            given[key] = {**given.get(key, {}), **value} if isinstance(value, dict) else value
    paper = PAPERS["spars"]
    return experiment_from(paper, experiment_parser(paper).parse_object(given)).resolved()


def model_on(env, **changes):
    arguments = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, "device": "cpu", **changes}
    return Learner(env=LearnerEnv(env), **policy_arguments("flatten_mlp", env.single_observation_space), **arguments)


def prefer(policy, action):
    with torch.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.fill_(-1e3)[action] = 1e3


class Look(BaseCallback):
    """Calls a function after each step, once the callbacks before it are through."""

    def __init__(self, see):
        super().__init__()
        self.see = see

    def _on_step(self):
        self.see(self.locals["dones"])
        return True


# -- the paper's bookkeeping -----------------------------------------------------------------------------------------


def test_the_papers_training_has_40_000_gradient_steps_and_an_opponent_for_each_of_10_000_rollouts(tmp_path):
    paper = experiment_of("paper")
    ppo, opponent = paper.ppo, paper.self_play
    rollout = ppo.n_steps * ppo.num_envs
    gradient_steps = ppo.n_epochs * rollout // ppo.batch_size
    assert (rollout, gradient_steps) == (32, 4)
    rollouts = ppo.total_timesteps // rollout
    assert rollouts // opponent.refresh_every == 10_000
    assert rollouts * gradient_steps == 40_000

    short = replace(
        paper,
        env=SparsConfig(profile="paper", score_source="oracle_fraction", cases=["phantom_02000"], horizon=32),
        device="cpu",
        ppo=replace(ppo, total_timesteps=5 * rollout),
    ).resolved()
    training, steps, births = _fresh(short, Run(tmp_path)), [], []
    training.model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(training.model.num_timesteps))
    look = Look(lambda dones: births.append(training.self_play.snapshot and training.self_play.snapshot.born))
    training.model.learn(short.ppo.total_timesteps, callback=CallbackList([training.self_play, look]))
    assert steps == [32 * k for k in range(1, 6) for _ in range(4)]
    assert births == [born for born in (None, 32, 64, 96, 128) for _ in range(32)], "constant0, then each copy for one"


@pytest.mark.parametrize("pool", ["uniform", "gaussian", "prioritised"])
def test_the_configuration_of_each_pool_is_joined_to_another(pool):
    alone, joined = experiment_of("features"), experiment_of("features", f"pool_{pool}")
    assert joined.self_play == replace(alone.self_play, pool=pool, snapshot_every=4)
    assert replace(joined, self_play=alone.self_play, name=alone.name) == alone


# -- opponents -------------------------------------------------------------------------------------------------------


def test_an_opponent_stays_for_an_episode_and_is_drawn_anew_where_one_begins():
    env = SparsEnv(
        cases=["phantom_02000"], score_source="oracle_fraction", device="cpu", obs_mode="own_window", num_envs=8
    )
    env.horizon = 12
    model, play = model_on(env), SelfPlay(env, SelfPlayConfig(pool="uniform"))
    seen = []
    model.learn(1024, callback=CallbackList([play, Look(lambda dones: seen.append((dones.copy(), play.pool.births)))]))
    assert len(play.pool.snapshots) == 8
    ended, births = torch.tensor([one[0].tolist() for one in seen]), torch.stack([one[1] for one in seen])
    changed = births[1:] != births[:-1]
    assert changed.any()
    assert not (changed & ~ended[1:]).any(), "an opponent changed within an episode"
    later = births[-40:]
    assert len(later.unique()) > 4, "old snapshots are met too"
    assert (births <= 128 * (torch.arange(len(seen)) // 16)[:, None]).all(), "nobody meets a snapshot before its birth"


def test_a_snapshot_enters_every_few_updates_and_the_pool_keeps_its_size():
    env = line_env({}, num_envs=2, threshold=1.0, horizon=8)
    model, sizes = model_on(env), []
    play = SelfPlay(env, SelfPlayConfig(pool="uniform", refresh_every=2, snapshot_every=2, pool_size=3))
    look = Look(lambda dones: sizes.append(len(play.pool.snapshots)))
    model.learn(32 * 17, callback=CallbackList([play, look]))
    assert sizes[::16] == [1] * 4 + [2] * 4 + [3] * 9
    births = [one.born for one in play.pool.snapshots]
    assert births[-1] == 32 * 16
    assert all(born % (32 * 4) == 0 for born in births)


@pytest.mark.parametrize(("learner", "opponent", "rate"), [(MINUS_X, PLUS_X, 1), (PLUS_X, MINUS_X, 0), (0, 0, 0.5)])
def test_the_win_rate_tells_who_ends_episodes(learner, opponent, rate):
    env = line_env({8: 0.9}, num_envs=4, threshold=0.5, horizon=8, opponent=None)
    model = model_on(env, learning_rate=0.0)
    play = SelfPlay(env, SelfPlayConfig(pool="prioritised", refresh_every=100))
    prefer(model.policy, opponent)
    play.init_callback(model)
    play.refresh()
    prefer(model.policy, learner)
    model.learn(1024, callback=play)
    (met,) = play.pool.snapshots
    assert met.episodes == (512 if rate != 0.5 else 128)
    assert met.win_rate == pytest.approx(rate, abs=0.01)


# -- logs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a pool, with three looks at its validation cases."""
    experiment = SparsExperiment(
        device="cpu",
        env=SparsConfig(score_source="oracle_fraction", cases=["phantom_02000"], grid_shape=(32, 32, 24), horizon=8),
        validation=CaseChoice(cases=["phantom_01000"]),
        test=CaseChoice(cases=["phantom_03000"]),
        policy="flatten_mlp",
        ppo=PPOConfig(total_timesteps=384, num_envs=4, n_steps=16, batch_size=32, n_epochs=1, net_arch=[8]),
        self_play=SelfPlayConfig(pool="uniform", pool_size=4),
        evaluation=EvaluationConfig(rollouts=2),
        examine_every=128,
    )
    return PAPERS["spars"].start(experiment, tmp_path_factory.mktemp("pool") / "run", {})


def test_a_run_logs_the_mean_age_of_its_opponents_and_the_size_of_its_pool(trained):
    lines = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    curves = {
        name: [line[f"spars/{name}"] for line in lines if f"spars/{name}" in line]
        for name in ("pool_size", "opponent_age")
    }
    assert curves["pool_size"] == [1, 2, 3, 4, 4, 4]
    assert curves["opponent_age"][0] == 64
    assert all(64 <= age <= 64 * (k + 1) for k, age in enumerate(curves["opponent_age"]))
    assert max(curves["opponent_age"]) > 64, "older opponents are met"
    assert any(age % 64 for age in curves["opponent_age"]), "a mean over environments with opponents of their own"


def test_a_run_shows_the_win_rates_of_the_learner_at_each_look_against_the_pool(trained):
    events = EventAccumulator(str(next(trained.folder.rglob("events.*")).parent)).Reload()
    assert [shown.step for shown in events.Images("spars/win_rates")] == [128, 256, 384]
    matrix = trained.checkpoint().state["self_play"]["matrix"]
    assert [row["step"] for row in matrix] == [128, 256, 384]
    for row in matrix:
        assert row["win_rates"]
        assert all(born < row["step"] and 0 < rate < 1 for born, rate in row["win_rates"].items())


def test_the_opponent_of_an_evaluation_is_the_newest_snapshot(trained):
    from segarena.agents.configuration import read_experiment
    from segarena.agents.spars.training import env_of, load_policies

    _, experiment = read_experiment(trained)
    _, opponent = load_policies(experiment.resolved(), trained, env_of(experiment.resolved(), trained))
    kept = trained.checkpoint().state["self_play"]["snapshots"]
    assert [one["born"] for one in kept] == sorted(one["born"] for one in kept)
    for name, value in opponent.policy.state_dict().items():
        assert torch.equal(value, kept[-1]["weights"][name])
