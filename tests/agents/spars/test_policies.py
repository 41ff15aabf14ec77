"""What the policy networks make of grey values (docs/spars.md, Method 9)."""

import torch
from segarena.agents.spars.policies import Flat, WindowCnn
from segarena.envs.spars import SparsEnv

ENV = {"cases": ["phantom_02000"], "score_source": "oracle_fraction", "device": "cpu", "obs_mode": "two_window"}


def test_grey_values_enter_the_flat_policy_between_0_and_1():
    space = SparsEnv(**ENV).single_observation_space
    windows, state = torch.zeros(1, 2, 16, 16, 8, dtype=torch.uint8), torch.rand(1, 9)
    windows[0, 0, 0, 0, :3] = torch.tensor([0, 51, 255])
    row = Flat(space)({"windows": windows, "state": state})
    assert row.shape == (1, 2 * 16 * 16 * 8 + 9)
    torch.testing.assert_close(row[0, :3], torch.tensor([0.0, 0.2, 1.0]))
    assert torch.equal(row[:, -9:], state)


def test_grey_values_enter_the_window_network_between_0_and_1():
    network = WindowCnn(SparsEnv(**ENV).single_observation_space)
    white = torch.full((1, 2, 16, 16, 8), 255, dtype=torch.uint8)
    codes = network({"windows": white, "state": torch.zeros(1, 9)})[:, :128]
    torch.testing.assert_close(codes, network.trunk(torch.ones(1, 1, 16, 16, 8)))
    assert codes.any()
