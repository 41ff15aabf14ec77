"""Who plays in an evaluation: the trained policy with its trained opponent, rules alone (docs/spars.md, Method 13)."""

import pytest
import torch
from segarena.agents.ppo import PPOConfig
from segarena.agents.predictor import POLICY
from segarena.agents.spars.config import EvaluationConfig, SparsExperiment
from segarena.agents.spars.methods import Cases, Methods
from segarena.agents.spars.training import _fresh
from segarena.common.runs import Run
from segarena.envs.spars_config import SparsConfig
from spars_toys import LINE, MINUS_X, PLUS_X, case_of

TUMOUR = (24, 32)
"""Under the window at x = 24: two moves of +x from the start."""


def experiment_of(**settings):
    line = {name: value for name, value in LINE.items() if name != "device"}
    settings = {"threshold": 0.9, "horizon": 3, "obs_mode": "own_window", **settings}
    return SparsExperiment(
        device="cpu",
        env=SparsConfig(**line, score_source="oracle_fraction", cases=["phantom_02000"], **settings),
        policy="flatten_mlp",
        ppo=PPOConfig(num_envs=1, n_steps=2, batch_size=2, n_epochs=1, net_arch=[4]),
        evaluation=EvaluationConfig(rollouts=8, jitter_cells=0),
    ).resolved()


def prefer(policy, action):
    """Let the policy take this action, whatever it sees."""
    with torch.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.fill_(-1e3)[action] = 1e3


def run_of(experiment, folder, learner, opponent):
    """A run whose last checkpoint holds a learner and an opponent that take one action each."""
    training, run = _fresh(experiment, Run(folder)), Run(folder)
    policy = training.model.policy
    training.self_play.init_callback(training.model)
    prefer(policy, opponent)
    training.self_play.refresh()
    prefer(policy, learner)
    run.save(2, policy.state_dict(), training.state())
    return run


def facts_of(experiment, run, name):
    cases = Cases(experiment, run, experiment.env, [case_of(LINE["grid_shape"], slice(*TUMOUR))])
    return Methods(experiment, run).maps(name, cases).facts[0]


@pytest.mark.parametrize(
    ("learner", "opponent", "hit", "by_self"),
    [(MINUS_X, PLUS_X, 1.0, 0.0), (PLUS_X, MINUS_X, 1.0, 1.0), (MINUS_X, MINUS_X, 0.0, 0.0)],
)
def test_the_policy_is_evaluated_with_its_own_trained_opponent(tmp_path, learner, opponent, hit, by_self):
    experiment = experiment_of()
    facts = facts_of(experiment, run_of(experiment, tmp_path, learner, opponent), POLICY)
    assert (facts["terminal_hit"], facts["ended_by_self"], facts["truncated"]) == (hit, by_self, 1.0 - hit)


def test_a_rule_is_evaluated_alone(tmp_path):
    """`greedy` would find the tumour for `constant0`, which cannot move here, if it were its competitor."""
    experiment = experiment_of(opponent="greedy")
    facts = facts_of(experiment, Run(tmp_path), "constant0")
    assert (facts["terminal_hit"], facts["truncated"], facts["steps"]) == (0.0, 1.0, 3.0)
    assert facts_of(experiment, Run(tmp_path), "greedy")["terminal_hit"] == 1.0
