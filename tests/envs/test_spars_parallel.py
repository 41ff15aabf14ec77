"""SPARS with two agents: PettingZoo's own tests, and that it plays the very game of gym.make."""

import numpy as np
import pytest
import torch
from segarena.envs.spars import SparsEnv

pytest.importorskip("pettingzoo", reason="PettingZoo is an extra: pip install 'segarena[pettingzoo]'")
from pettingzoo.test import parallel_api_test, parallel_seed_test
from segarena.envs.spars_parallel import SparsParallelEnv

SMALL = {"cases": ["phantom_02000", "phantom_02001"], "horizon": 15, "threshold": 0.9}


@pytest.mark.parametrize("settings", [{}, {"obs_mode": "features", "action_set": "multidiscrete3", "reward": "diff"}])
def test_it_passes_pettingzoos_tests(settings):
    parallel_api_test(SparsParallelEnv(**SMALL, **settings), num_cycles=100)
    parallel_seed_test(lambda: SparsParallelEnv(**SMALL, **settings), num_cycles=30)


class _Script:
    """A competitor that plays a list."""

    def __init__(self, actions):
        self.actions = iter(actions)

    def act(self, obs, deterministic):
        return torch.as_tensor([next(self.actions)])


def test_both_act_on_the_dynamics_of_the_single_environment():
    env = SparsParallelEnv(**SMALL)
    moves = np.random.default_rng(0).integers(0, 6, (2, 60))
    other = SparsEnv(num_envs=1, device="cpu", opponent=_Script(moves[1]), **SMALL)
    other.seed([5])
    other.reset()
    obs, _ = env.reset(seed=5)
    ends = 0
    for mine, theirs in moves.T.tolist():
        for player, agent in enumerate(env.agents):
            expected = other.observe(player=player)
            assert env.observation_space(agent).contains(obs[agent])
            for name, value in obs[agent].items():
                np.testing.assert_array_equal(value, expected[name][0].numpy())
        obs, rewards, terminated, truncated, infos = env.step({"competitor": theirs, "learner": mine})
        reward, *over = (value.item() for value in other.step(torch.tensor([mine])))
        assert rewards == {"learner": reward, "competitor": -reward}
        assert [*terminated.values(), *truncated.values()] == [over[0], over[0], over[1], over[1]]
        duel = other.duel[:, 0].tolist()
        assert [infos[agent]["score_self"] for agent in ("learner", "competitor")] == duel
        assert [infos[agent]["score_opp"] for agent in ("learner", "competitor")] == duel[::-1]
        if any(over):
            ends += 1
            assert env.agents == []
            assert env.step({}) == ({}, {}, {}, {}, {})
            facts = other.episode_info(torch.tensor([0]))[0]
            assert all(infos[agent][name] == facts[name] for agent in infos for name in facts)
            other.reset()
            obs, _ = env.reset()
    assert ends >= 3


def test_action_masks_are_each_agents_own():
    env = SparsParallelEnv(**SMALL)
    _, infos = env.reset(seed=0, options={"start": [0, 0, 0], "start_opponent": [48, 48, 40]})
    assert infos["learner"]["action_mask"].tolist() == [True, False] * 3
    assert infos["competitor"]["action_mask"].tolist() == [False, True] * 3
    assert env.action_space("learner").sample(mask=infos["learner"]["action_mask"].astype(np.int8)) in (0, 2, 4)


def test_it_draws_the_picture_of_the_environment():
    env = SparsParallelEnv(**SMALL, render_mode="rgb_array")
    env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), env.batched.render())
    assert env.render().dtype == np.uint8


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"n_agents": 1}, "n_agents is 1 but two agents play here"),
        ({"reward": "shaped"}, "reward is 'shaped' .* sum to 0 only with reward='sign' or 'diff'"),
        ({"tie_reward": 1.0}, r"tie_reward 1.0, but .* tie_reward=0"),
        ({"horizn": 3}, "unknown argument 'horizn'; did you mean 'horizon'"),
    ],
)
def test_what_two_agents_cannot_play_is_refused(bad, match):
    with pytest.raises(ValueError, match=match):
        SparsParallelEnv(**{**SMALL, **bad})


def test_both_must_act():
    env = SparsParallelEnv(**SMALL)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions lack \['competitor'\]: both agents move at the same time"):
        env.step({"learner": 0})
    with pytest.raises(ValueError, match="is outside Discrete"):
        env.step({"learner": 9, "competitor": 0})
