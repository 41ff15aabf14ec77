"""Rollouts of maps: returns in every pixel, and what environments tell of a step."""

import numpy as np
import torch
from dense_toys import SIZE, Shapes
from gymnasium import spaces
from segarena.agents.dense_ppo.buffer import DenseRolloutBuffer, info_of_step
from segarena.envs.core import Advance, Ended


def test_gae_of_one_step_episodes_is_the_reward_minus_the_value():
    box, actions = spaces.Box(0, 1, (1, 2, 3), np.float32), spaces.MultiDiscrete([3] * 6)
    buffer = DenseRolloutBuffer(4, box, actions, gamma=0.7, gae_lambda=0.3, n_envs=2)
    buffer.rewards, buffer.old_values = torch.rand(4, 2, 2, 3), torch.rand(4, 2, 2, 3)
    buffer.dones = torch.ones(4, 2, dtype=torch.bool)
    buffer.compute_returns(torch.rand(2, 2, 3))
    torch.testing.assert_close(buffer.returns, buffer.rewards)


def test_gae_of_longer_episodes_equals_sb3s_in_every_pixel():
    from stable_baselines3.common.buffers import RolloutBuffer

    box, actions = spaces.Box(0, 1, (1, 2, 3), np.float32), spaces.MultiDiscrete([3] * 6)
    rng = np.random.default_rng(0)
    rewards, values = (rng.random((5, 2, 2, 3), dtype=np.float32) for _ in range(2))
    dones, last = rng.random((5, 2)) < 0.3, rng.random((2, 2, 3), dtype=np.float32)
    mine = DenseRolloutBuffer(5, box, actions, gamma=0.9, gae_lambda=0.8, n_envs=2)
    for step in range(5):
        told = (("rewards", rewards), ("old_values", values), ("dones", dones))
        mine.add(**{name: torch.from_numpy(array[step]) for name, array in told})
    mine.compute_returns(torch.from_numpy(last))
    for y, x in np.ndindex(2, 3):
        theirs = RolloutBuffer(5, box, spaces.Discrete(3), device="cpu", gamma=0.9, gae_lambda=0.8, n_envs=2)
        theirs.rewards, theirs.values = rewards[..., y, x].copy(), values[..., y, x].copy()
        theirs.episode_starts[1:] = dones[:-1]
        theirs.compute_returns_and_advantage(torch.from_numpy(last[..., y, x].copy()), dones[-1])
        np.testing.assert_allclose(mine.returns[..., y, x].numpy(), theirs.returns, rtol=1e-5)


def test_info_of_a_step_is_taken_from_the_episodes_that_ended_in_it():
    env = Shapes(3)
    env.reset()
    env.pixel_reward += 0.25  # of the environments that go on
    ended = Ended(torch.tensor([1]), env.observe(), {"pixel_reward": torch.ones(1, SIZE, SIZE)}, [{}])
    step = Advance(env.observe(), torch.zeros(3), torch.tensor([False, True, False]), torch.zeros(3).bool(), ended)
    assert info_of_step(env, step, "pixel_reward")[:, 0, 0].tolist() == [0.25, 1.0, 0.25]
    assert info_of_step(env, step, "gold") is None
