"""How a fresh critic begins (ppo.critic_start)."""

import pytest
import torch
from segarena.agents.rl4seg_ppo import _begin_with_features
from segarena.segmenters.unet import UNet


@pytest.mark.parametrize(("worth", "said"), [(0.9, 0.9), (1.0, 0.99), (0.0, 0.01)])
def test_a_critic_with_the_policys_features_begins_with_the_mean_reward_and_can_learn(worth, said):
    policy, critic = UNet(1, 3, init_channels=4).eval(), UNet(1, 1, init_channels=4).eval()
    _begin_with_features(critic, policy, worth)
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    value = critic(x).sigmoid()
    torch.testing.assert_close(value, torch.full_like(value, said))
    assert torch.equal(critic.early(x), policy.early(x))
    target = (x > 0.5).float()
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for _ in range(30):
        loss = (critic(x).sigmoid() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert critic(x).std() > 0, "not a constant: its features are alive"
