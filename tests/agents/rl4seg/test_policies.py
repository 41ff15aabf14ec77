"""Small parts of RL4Seg's loop: how a fresh critic begins (ppo.critic_start), and which corrections are gold."""

import pytest
import torch
from segarena.agents.rl4seg.context import Gold
from segarena.agents.rl4seg.policies import _begin_with_features
from segarena.agents.rl4seg.stages import _preferred
from segarena.segmenters.unet import UNet


def begun(worth):
    torch.manual_seed(0)
    policy, critic = UNet(1, 3, init_channels=4).eval(), UNet(1, 1, init_channels=4).eval()
    _begin_with_features(critic, policy, worth)
    return policy, critic, torch.rand(2, 1, 32, 32)


@pytest.mark.parametrize(("worth", "said"), [(0.9, 0.9), (1.0, 0.99), (0.0, 0.01)])
def test_a_critic_with_the_policys_features_begins_with_the_mean_reward(worth, said):
    policy, critic, x = begun(worth)
    value = critic(x).sigmoid()
    torch.testing.assert_close(value, torch.full_like(value, said))
    assert torch.equal(critic.early(x), policy.early(x))


def test_such_a_critic_learns_a_map_and_no_constant():
    _, critic, x = begun(0.9)
    x[..., 16:] += 1.0
    target = torch.ones_like(x)
    target[..., 28:] = 0.2  # of the bright half, a part
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        losses.append((critic(x).sigmoid() - target).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * target.var(), "a constant leaves at least the variance"


def test_without_corrected_masks_none_is_preferred():
    nothing = Gold(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 32, 32, dtype=torch.uint8))
    assert _preferred(None, 1, UNet(1, 3, init_channels=4), nothing) is nothing
