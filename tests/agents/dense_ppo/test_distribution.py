"""The distribution of maps, and exploration."""

import math

import pytest
import torch
from segarena.agents.dense_ppo.distribution import PixelCategorical, explore, smooth_field
from stable_baselines3.common.distributions import MultiCategoricalDistribution


def test_the_log_probabilities_of_all_pixels_add_up_to_that_of_sb3():
    logits, actions = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    theirs = MultiCategoricalDistribution([3] * 20).proba_distribution(logits.permute(0, 2, 3, 1).reshape(2, -1))
    mine = PixelCategorical(logits)
    torch.testing.assert_close(mine.log_prob(actions).sum(dim=(1, 2)), theirs.log_prob(actions.flatten(1)))
    torch.testing.assert_close(mine.log_prob(actions), mine.log_prob(actions.flatten(1).long()))
    torch.testing.assert_close(mine.entropy().sum(dim=(1, 2)), theirs.entropy())
    assert torch.equal(mine.mode().flatten(1).long(), theirs.mode())


def test_samples_are_as_frequent_as_they_are_probable():
    p = torch.tensor([0.2, 0.5, 0.3])
    drawn = PixelCategorical(p.log().view(1, 3, 1, 1).expand(1, 3, 200, 200)).sample()
    assert drawn.dtype == torch.uint8
    frequency = torch.bincount(drawn.flatten().long()) / drawn.numel()
    torch.testing.assert_close(frequency, p, rtol=0, atol=0.015)


def test_kl_is_that_of_torch():
    one, other = torch.randn(2, 1, 3, 4, 4)
    expected = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=x.permute(0, 2, 3, 1)) for x in (one, other))
    )
    torch.testing.assert_close(PixelCategorical(one).kl(PixelCategorical(other)), expected)


def agreement(actions):
    """Share of horizontally adjacent pixels with the same action."""
    return float((actions[..., 1:] == actions[..., :-1]).float().mean())


def test_correlated_exploration_changes_regions_and_iid_changes_grains():
    flat = PixelCategorical(torch.zeros(4, 3, 48, 48))
    settings = {"sigma_px": 4.0, "eps_greedy": 0.0}
    grains, regions, none = (explore(flat, kind, scale=1.0, **settings) for kind in ("iid", "correlated", "argmax"))
    assert agreement(grains) == pytest.approx(1 / 3, abs=0.02)
    assert agreement(regions) > 0.42
    assert not none.any()
    sure = PixelCategorical(torch.tensor([9.0, 0, 0]).view(1, 3, 1, 1).expand(4, 3, 48, 48))
    assert float((explore(sure, "correlated", scale=0.2, **settings) > 0).float().mean()) < 1e-3


def test_the_smooth_field_has_unit_variance_up_to_the_border_and_is_smooth():
    field = smooth_field(torch.zeros(64, 3, 24, 24), sigma_px=2.0)
    torch.testing.assert_close(field.square().mean(dim=(0, 1)), torch.ones(24, 24), rtol=0, atol=0.45)
    assert float(field.square().mean()) == pytest.approx(1.0, abs=0.1)
    assert float((field[..., 1:] * field[..., :-1]).mean()) == pytest.approx(math.exp(-1 / 16), abs=0.1)


@pytest.mark.parametrize("eps", [0.0, 0.5, 1.0])
def test_eps_greedy_takes_the_mode_more_often(eps):
    p = torch.tensor([0.5, 0.3, 0.2])
    distribution = PixelCategorical(p.log().view(1, 3, 1, 1).expand(1, 3, 150, 150))
    drawn = explore(distribution, "iid", scale=1.0, sigma_px=1.0, eps_greedy=eps)
    assert float((drawn == 0).float().mean()) == pytest.approx(eps + (1 - eps) * 0.5, abs=0.02)
