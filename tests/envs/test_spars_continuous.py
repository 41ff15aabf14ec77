"""Continuous placement: the window's corner anywhere, rounded to the lattice (docs/spars.md, Method 2)."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from segarena.envs.adapters import BatchEnv
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import SparsConfig
from segarena.envs.spars_parallel import SparsParallelEnv
from segarena.testing import check_env_contract
from spars_toys import case_of

FULL, WINDOW = (40, 32, 24), (8, 8, 8)


class Places:
    """A competitor that answers with given actions, as a Gaussian policy may: without bounds."""

    def __init__(self, *actions):
        self.actions = list(actions)

    def act(self, obs, deterministic):
        return torch.tensor(self.actions.pop(0)).expand(len(obs["state"]), 3)


def slope(case, corners):
    """0 at the first position, 0.9 at the last."""
    return (corners.double().sum(dim=1) / 80.0).float()


def placing(num_envs=1, **settings):
    chosen = {"grid_shape": FULL, "window_size": WINDOW, "score_source": slope, "start": "centre", "device": "cpu"}
    chosen |= {"n_agents": 1, "threshold": 1.0, "volumes": [case_of(FULL)], "num_envs": num_envs, **settings}
    env = SparsEnv(action_set="continuous", **chosen)
    env.seed(range(num_envs))
    env.reset()
    return env


def corner_of(env, *action):
    env.step(torch.tensor([action], dtype=torch.float32))
    return env.info()["p_self"][0].tolist()


def test_zero_is_the_first_position_and_one_the_last():
    env = placing()
    assert env.single_action_space == spaces.Box(0.0, 1.0, (3,), np.float32)
    assert corner_of(env, 0.0, 0.0, 0.0) == [0, 0, 0]
    assert int(env.at[0]) == 0
    assert corner_of(env, 1.0, 1.0, 1.0) == [32, 24, 16]
    assert int(env.at[0]) == env.lattice.size - 1
    assert [corner_of(env, *row) for row in np.eye(3)] == [[32, 0, 0], [0, 24, 0], [0, 0, 16]], "each its own axis"
    shifted = placing(phase=(2, 1, 0), grid_shape=(43, 34, 24), volumes=[case_of((43, 34, 24))])
    assert corner_of(shifted, 0.0, 0.0, 0.0) == [2, 1, 0]
    assert corner_of(shifted, 1.0, 1.0, 1.0) == [34, 25, 16]


@pytest.mark.parametrize("share", [0.0, 0.04, 0.06, 0.33, 0.5, 0.72, 0.83, 0.9, 1.0])
def test_the_corner_is_the_share_of_the_volume_clipped_and_rounded(share):
    expected = [4 * round(min(share * full, full - 8) / 4) for full in FULL]
    assert corner_of(placing(), share, share, share) == expected


def test_what_is_outside_is_refused_from_outside_and_clipped_from_a_policy():
    env = BatchEnv(placing(num_envs=1))
    for outside in (-0.01, 1.01, np.nan):
        with pytest.raises(ValueError, match="is outside Box"):
            env.step(np.array([[0.5, 0.5, outside]], dtype=np.float32))
    inner = placing()
    assert corner_of(inner, -3.0, 0.5, 7.0) == [0, 16, 16]
    assert corner_of(inner, 0.0, float("nan"), 0.0) == [0, 0, 0]


def test_a_place_is_looked_at_painted_and_ends_the_episode_above_tau():
    env = placing(threshold=0.8, reward="score", terminal_bonus=0.0, horizon=3, upsample="blocks", fill="none")
    reward, terminated, truncated = env.step(torch.tensor([[0.1, 0.0, 0.0]]))
    assert (float(reward), bool(terminated), bool(truncated)) == (pytest.approx(4 / 80), False, False)
    reward, terminated, truncated = env.step(torch.tensor([[1.0, 1.0, 1.0]]))
    assert (float(reward), bool(terminated), bool(truncated)) == (pytest.approx(72 / 80), True, False)
    painted = env.painting.voxel_map()
    assert float(painted[36, 28, 20]) == pytest.approx(72 / 80)
    assert float(painted[4, 0, 0]) == pytest.approx(4 / 80)
    assert env.action_text(torch.tensor([1.0, 1.0, 1.0])) == f"window {env.lattice.size - 1}"
    env.reset()
    ends = [tuple(map(bool, env.step(torch.tensor([[0.0, 0.0, 0.0]]))[1:])) for _ in range(3)]
    assert ends == [(False, False)] * 2 + [(False, True)]


def test_two_agents_place_their_windows_at_once():
    env = placing(n_agents=2, obs_mode="two_window")
    env.set_opponent(Places([1.7, 1.0, 1.0], [-2.0, 0.0, 0.0]))
    rewards = [float(env.step(torch.tensor([[0.5, 0.5, 0.5]]))[0]) for _ in range(2)]
    assert rewards == [-1.0, 1.0]
    assert env.info()["p_opp"].tolist() == [[0, 0, 0]]
    env = placing(num_envs=400, n_agents=2, opponent="random")
    env.step(torch.zeros(400, 3))
    assert len(env.at[1].unique()) > 150, "any of 315 places"


@pytest.mark.parametrize(
    "settings", [{"n_agents": 1, "reward": "shaped"}, {"obs_mode": "features", "opponent": "random"}]
)
def test_it_keeps_the_contract_of_every_environment(settings):
    chosen = {"cases": ["phantom_02000"], "horizon": 20, "threshold": 0.9, **settings}
    check_env_contract("SPARS-LiverCT-v0", device="cpu", action_set="continuous", **chosen)


def test_what_needs_moves_is_refused():
    for opponent in ("constant0", "greedy"):
        with pytest.raises(ValueError, match=f"opponent is '{opponent}' but action_set 'continuous' has no moves"):
            SparsConfig(action_set="continuous", opponent=opponent).resolved()
    with pytest.raises(ValueError, match="action_set is 'continuous' but profile 'search' needs leap78 or anywhere"):
        SparsConfig(action_set="continuous", profile="search").resolved()
    with pytest.raises(ValueError, match="has no action masks, since its actions cannot be counted"):
        gym.make("SPARS-LiverCT-v0", cases=["phantom_02000"], action_set="continuous").unwrapped.action_masks()
    with pytest.raises(ValueError, match="action_set is 'continuous', which has no action masks"):
        SparsParallelEnv(cases=["phantom_02000"], action_set="continuous")
