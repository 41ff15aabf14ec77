"""The known name that a wrong one was meant to be."""

import pytest
from segarena.agents import catalogue
from segarena.agents.schema import keys
from segarena.common.likeness import closest, did_you_mean


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("--ppo.lr", "--ppo.learning_rate"),
        ("--timesteps", "--ppo.total_timesteps"),
        ("--gamma", "--ppo.gamma"),
        ("--env.windowsize", "--env.window_size"),
        ("--sed", "--seed"),
        ("--ppo.n_epoch", "--ppo.n_epochs"),
    ],
)
def test_the_closest_option_is_found(name, expected):
    known = [f"--{key}" for key in keys(catalogue.schema("spars")) if not key.startswith(("env.gamma", "presence"))]
    assert closest(name, known) == [expected]


def test_nothing_is_suggested_for_what_is_like_nothing():
    assert closest("--qqq", ["--seed", "--env.threshold"]) == []
    assert did_you_mean("zzz", ["spars", "rl4seg"]) == ""
