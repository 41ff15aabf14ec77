"""A fair game: the same policy on both sides wins as often as it loses (docs/spars.md, Method 3 and 4)."""

import pytest
import torch
from segarena.envs.spars import SparsEnv

EPISODES = 1024
SETTINGS = {"cases": ["phantom_02000"], "score_source": "oracle_fraction", "device": "cpu", "grid_shape": (32, 32, 24)}


class Seeker:
    """Walks from where its observation says it stands to the highest score; every fourth move is any."""

    def __init__(self, env):
        best = env.table.volume(0).flatten().argmax()
        self.goal, self.range = env._where[best], torch.tensor(env.lattice.shape) - 1  # in [-1, 1]; cells

    def act(self, obs, deterministic):
        gap = (self.goal - obs["state"][:, :3]) * self.range
        axis = gap.abs().argmax(dim=1)
        towards = 2 * (2 - axis) + (gap.gather(1, axis[:, None])[:, 0] < 0).long()  # +z -z +y -y +x -x
        return torch.where(torch.rand(len(gap)) < 0.25, torch.randint(6, (len(gap),)), towards)


def sums(env):
    """Each reward term, summed over each of EPISODES episodes of the same policy against itself: name -> [EPISODES]."""
    policy = Seeker(env)
    env.set_opponent(policy)
    torch.manual_seed(0)
    env.seed(range(EPISODES))
    env.reset()
    running = torch.ones(EPISODES, dtype=torch.bool)
    total = {name: torch.zeros(EPISODES, dtype=torch.float64) for name in env.reward_weights}
    while running.any():
        _, terminated, truncated = env.step(policy.act(env.observe(), deterministic=False))
        for name, term in env.reward_terms.items():
            total[name] += term * running
        running &= ~(terminated | truncated)
    return total


def off_zero(values):
    """Mean of the values in units of its standard error."""
    return float(values.mean() / (values.std() / EPISODES**0.5))


@pytest.fixture
def env():
    return SparsEnv(**SETTINGS, num_envs=EPISODES, threshold=0.5, horizon=24, eval_dice=False)


def test_the_same_policy_on_both_sides_earns_nothing_on_average(env):
    total = sums(env)
    assert (env.config.tie_reward, env.config.terminal_bonus, env.config.reward) == (0.0, 10.0, "sign")
    for name, values in {**total, "all": sum(total.values())}.items():
        assert values.std() > 1, f"{name}: episodes are won and lost"
        assert abs(off_zero(values)) < 3.5, name


@pytest.mark.parametrize("term", ["duel", "bonus"])
def test_a_competitor_that_saw_the_learners_observation_would_lose(env, monkeypatch, term):
    """The test above is able to fail: without the mirror the second agent walks as if it stood where the first does."""
    observe = env.observe
    monkeypatch.setattr(env, "observe", lambda env_ids=None, player=0: observe(env_ids))
    assert off_zero(sums(env)[term]) > 5


def test_a_tie_that_is_rewarded_favours_both():
    """The paper's tie makes no zero-sum game: two copies side by side both earn."""
    generous = SparsEnv(**SETTINGS, num_envs=EPISODES, threshold=0.5, horizon=24, eval_dice=False, tie_reward=1.0)
    assert off_zero(sums(generous)["duel"]) > 5
