"""Behaviour cloning: a policy begins as a reference policy acts, once, and PPO goes on from there."""

from dataclasses import replace

import pytest
import torch
from schedule_toys import SMALL
from segarena.agents import cloning
from segarena.agents.cloning import CloneConfig, clone, cloned_policy
from segarena.agents.generic import PPOExperiment, check, env_of, learner, train
from segarena.agents.papers import POLICIES
from segarena.agents.policy import TrainedPolicy
from segarena.agents.ppo import Learner, PPOConfig
from segarena.agents.seat.schedules import actions_towards
from segarena.common.runs import Run
from segarena.envs.learner_env import LearnerEnv

CLONE = CloneConfig(policy="deat_d", steps=24, epochs=200, batch_size=16, learning_rate=0.01)
SETTINGS = {name: value for name, value in SMALL.items() if name != "phantom_cases"}
EXPERIMENT = PPOExperiment(
    env="SEAT-MSD-v0",
    settings={**SETTINGS, "split": "train[:2]", "validation_split": "val[:2]"},
    device="cpu",
    clone=CLONE,
    ppo=PPOConfig(total_timesteps=24, num_envs=2, n_steps=6, batch_size=12, learning_rate=1e-6),
)


def deat_d_is_played(policy):
    """Whether K rises after every third step, and nowhere else."""
    env = env_of(EXPERIMENT, 2)
    env.seed([70, 71])
    env.reset()
    right = []
    for segment in range(6):
        wanted = torch.full((2,), min(1 + segment // 3, 3))
        right.append(torch.equal(policy(env), actions_towards(env, wanted)))
        env.step(policy(env))
    return all(right)


def test_a_cloned_policy_acts_as_the_reference_policy_and_an_untaught_one_does_not():
    env = env_of(EXPERIMENT, 2)
    env.seed([0, 1])
    model = Learner("MlpPolicy", LearnerEnv(env_of(EXPERIMENT, 2)), seed=0, device="cpu", n_steps=6, batch_size=12)
    value = model.policy.value_net.weight.clone()
    assert not deat_d_is_played(TrainedPolicy(model.policy, deterministic=True))
    agreement = clone(model, env, cloned_policy("SEAT-MSD-v0", env, CLONE, 0), CLONE)
    assert agreement == 1.0
    assert deat_d_is_played(TrainedPolicy(model.policy, deterministic=True))
    assert torch.equal(model.policy.value_net.weight, value), "values are left to PPO"


def test_a_run_clones_before_its_training_and_not_when_it_goes_on(tmp_path, monkeypatch):
    times = []
    plain = cloning.clone
    monkeypatch.setattr("segarena.agents.generic.clone", lambda *given: times.append(1) or plain(*given))
    check(EXPERIMENT)
    train(replace(EXPERIMENT, checkpoint_every=12), Run(tmp_path))
    assert times == [1]
    assert '"clone/agreement": 1.0' in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    model = learner(EXPERIMENT, Run(tmp_path))
    assert deat_d_is_played(TrainedPolicy(model.policy, deterministic=True)), "a small step of PPO later"
    train(replace(EXPERIMENT, checkpoint_every=12), Run(tmp_path))
    assert times == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clone": CloneConfig(policy="sea")}, "policy is 'sea' but must be one of"),
        ({"ppo": replace(EXPERIMENT.ppo, normalize_observations=True)}, "whose observations are not normalised"),
        ({"env": "RPPGD-VOC-v0", "settings": {}, "clone": CloneConfig(policy="segpgd")}, "cloning needs Discrete"),
    ],
)
def test_what_cannot_be_cloned_is_refused_before_anything_is_written(changes, message):
    with pytest.raises(ValueError, match=message):
        check(replace(EXPERIMENT, **changes))


def test_every_schedule_can_be_watched():
    env = env_of(EXPERIMENT, 2)
    for name in POLICIES["SEAT-MSD-v0"]:
        assert callable(cloned_policy("SEAT-MSD-v0", env, replace(CLONE, policy=name), 0))
