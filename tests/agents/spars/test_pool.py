"""Pools of past learners: who is met, who is kept, and what an episode's opponent does (docs/spars.md, Method 10)."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from segarena.agents.spars.pool import Pool, Snapshot, chances
from segarena.agents.spars.self_play import SelfPlayConfig
from stable_baselines3.common.policies import ActorCriticPolicy

GAUSSIAN_8 = [0.0668, 0.0918, 0.1499, 0.1915, 0.1915, 0.1499, 0.0918, 0.0668]


def policy_of(action=0):
    """A policy of four actions that takes one of them, whatever it sees."""
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(4), lambda _: 0.0, net_arch=[])
    with torch.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.fill_(-1e3)[action] = 1e3
    return policy


def pool_of(name, count, num_envs=1, size=20, **settings):
    """A pool that took `count` snapshots, at steps 1, 2, ...; the n-th takes action n - 1 modulo 4."""
    pool = Pool(name, num_envs, size, **settings)
    for number in range(count):
        pool.add(policy_of(number % 4), number + 1)
    return pool


def test_the_gaussian_pool_meets_middle_aged_snapshots_most():
    """docs/spars.md, Method 10: x ~ N(n/2, n/4), clipped and floored, n = 8."""
    np.testing.assert_allclose(chances("gaussian", torch.full((8,), 0.5).double(), 2.0), GAUSSIAN_8, atol=5e-5)
    x = torch.normal(4.0, 2.0, (200_000,), generator=torch.Generator().manual_seed(0)).clamp(0, 7).floor().long()
    np.testing.assert_allclose(torch.bincount(x) / 200_000, GAUSSIAN_8, atol=0.004)
    assert chances("gaussian", torch.full((1,), 0.5).double(), 2.0).tolist() == [1.0]


@pytest.mark.parametrize("name", ["uniform", "gaussian", "prioritised"])
def test_opponents_are_drawn_by_their_chances(name):
    torch.manual_seed(0)
    pool = pool_of(name, 8, num_envs=40_000, power=1.0)
    for number, one in enumerate(pool.snapshots):
        one.win_rate = number / 8
    pool.draw(torch.arange(40_000))
    expected = chances(name, torch.arange(8).double() / 8, 1.0)
    np.testing.assert_allclose(torch.bincount(pool.opponents, minlength=8) / 40_000, expected, atol=0.01)


def test_the_prioritised_pool_meets_those_that_the_learner_loses_to():
    rates = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)
    np.testing.assert_allclose(chances("prioritised", rates, 2.0), np.array([0.01, 0.25, 1.0]) / 1.26, rtol=1e-9)
    np.testing.assert_allclose(chances("prioritised", rates, 0.0), np.full(3, 1 / 3), rtol=1e-9)
    sure = chances("prioritised", torch.full((3,), 1 - 1e-12, dtype=torch.float64), 100.0)
    np.testing.assert_allclose(sure, np.full(3, 1 / 3), rtol=1e-9, err_msg="one that beats all still meets somebody")


def test_the_latest_pool_is_the_newest_snapshot_and_draws_nothing():
    pool, newer = pool_of("latest", 1, num_envs=3), policy_of(1)
    before = torch.get_rng_state()
    pool.add(newer, 1)
    pool.draw(torch.arange(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert [one.born for one in pool.snapshots] == [1]
    assert pool.act(torch.zeros(3, 2), deterministic=True).tolist() == [1, 1, 1]


def test_a_full_pool_keeps_the_newest_and_a_uniform_sample_of_those_before():
    torch.manual_seed(1)
    kept, pools = torch.zeros(13), 600
    fresh = [policy_of() for _ in range(12)]
    for _ in range(pools):
        pool = Pool("uniform", 1, size=4)
        for step, policy in enumerate(fresh):
            pool.add(policy, step + 1)
        births = [one.born for one in pool.snapshots]
        assert births == sorted(births)
        assert births[-1] == 12
        assert len(births) == 4
        kept[births] += 1
    share = kept[1:12] / pools
    deviation = (3 / 11 * 8 / 11 / pools) ** 0.5
    assert ((share - 3 / 11).abs() < 4 * deviation).all(), share


def test_each_environment_gets_the_action_of_its_own_opponent_from_one_forward_for_each():
    torch.manual_seed(0)
    pool = pool_of("uniform", 4, num_envs=32)
    pool.draw(torch.arange(32))
    assert set(pool.opponents.tolist()) == {0, 1, 2, 3}
    calls = []
    for one in pool.snapshots:
        acted = one.act
        one.act = lambda obs, deterministic, acted=acted: (calls.append(len(obs)), acted(obs, deterministic))[1]
    assert torch.equal(pool.act(torch.zeros(32, 2), deterministic=False), pool.opponents)
    assert sorted(calls) == sorted(torch.bincount(pool.opponents).tolist())


def test_a_new_snapshot_leaves_episodes_with_their_opponents_but_for_those_of_the_dropped_one():
    torch.manual_seed(3)
    pool = pool_of("uniform", 4, num_envs=64, size=4)
    pool.draw(torch.arange(64))
    for step in range(5, 30):
        before, alive = pool.births.clone(), {one.born for one in pool.snapshots}
        pool.add(policy_of(), step)
        (dropped,) = alive - {one.born for one in pool.snapshots}
        stays = before != dropped
        assert torch.equal(pool.births[stays], before[stays])
        assert (pool.births[~stays] != dropped).all()
        assert stays.all() or (~stays).sum() < 8 or len(pool.births[~stays].unique()) > 1, "each is drawn anew"
        assert set(pool.births.tolist()) <= {one.born for one in pool.snapshots}


def test_a_win_rate_is_the_mean_over_its_episodes_and_half_a_win_before_them():
    one = Snapshot(policy_of())
    assert one.win_rate == 0.5
    for number, win in enumerate((1, 1, 0, -1)):
        one.count(win)
        assert one.win_rate == pytest.approx([1.5 / 2, 2.5 / 3, 3 / 4, 3 / 5][number])
    for _ in range(2000):
        one.count(-1)
    assert one.win_rate < 1e-6, "what was long ago is forgotten"
    one.refresh(policy_of(), 7)
    assert (one.win_rate, one.episodes, one.born) == (0.5, 0, 7)


def test_a_pool_goes_on_where_its_state_was_read():
    torch.manual_seed(0)
    pool, other = pool_of("gaussian", 6, num_envs=8, size=4), Pool("gaussian", 8, 4)
    pool.count(3, 1)
    other.load_state(pool.state(), policy_of())
    assert torch.equal(other.births, pool.births)
    assert [one.win_rate for one in other.snapshots] == [one.win_rate for one in pool.snapshots]
    assert other.taken == pool.taken == 6
    obs = torch.zeros(8, 2)
    assert torch.equal(other.act(obs, deterministic=True), pool.act(obs, deterministic=True))
    wrong = {**pool.state(), "opponents": torch.full((8,), 4)}
    with pytest.raises(ValueError, match="must have at most 4"):
        other.load_state(wrong, policy_of())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"snapshot_every": 2}, "self_play.snapshot_every is 2 but self_play.pool is 'latest'"),
        ({"pool_size": 0}, "self_play.pool_size is 0 but must be at least 1"),
        ({"priority_power": -1.0}, "self_play.priority_power is -1.0 but"),
        ({"refresh_every": 0}, "self_play.refresh_every is 0 but must be at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SelfPlayConfig(**settings)
