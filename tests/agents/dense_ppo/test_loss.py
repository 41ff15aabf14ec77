"""The terms of PPO per pixel: on known numbers, and that each of them acts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_toys import PLAIN, Dots, Shapes, learner, trained
from gymnasium import spaces
from segarena.agents.dense_ppo.buffer import Samples
from segarena.agents.dense_ppo.distribution import PixelCategorical
from segarena.agents.dense_ppo.loss import (
    diagnostics,
    log_ratio,
    penalised_reward,
    policy_gradient,
    rescale_per_image,
    surrogate,
)

UP = {"pi": (0.5, 0.3, 0.2), "old": (0.4, 0.4, 0.2), "ref": (0.6, 0.2, 0.2), "r": 0.9, "v": 0.6}

DOWN = {"pi": (0.2, 0.7, 0.1), "old": (0.4, 0.5, 0.1), "ref": (0.3, 0.6, 0.1), "r": 0.1, "v": 0.55}

GIVEN = {"pi": (0.8, 0.1, 0.1), "old": (0.75, 0.15, 0.1), "ref": (0.1, 0.1, 0.8), "r": 0.123, "v": 0.7}


def judged(*pixels, beta=0.05, gold=False, a=0):
    """ρ, A, surrogate and entropy of an image of 1 x P pixels that all take action a; and its maps."""

    def of(name):
        return PixelCategorical(torch.tensor([p[name] for p in pixels]).log().T[None, :, None])  # [1, C, 1, P]

    action = torch.full((1, 1, len(pixels)), a, dtype=torch.uint8)
    pi, l_old, l_ref = of("pi"), of("old").log_prob(action), of("ref").log_prob(action)
    r, v = (torch.tensor([p[name] for p in pixels])[None, None] for name in ("r", "v"))
    rho = penalised_reward(r, pi.log_prob(action), l_ref, torch.tensor([gold]), beta)
    gain = surrogate(pi.log_prob(action), l_old, rho - v, 0.2)
    return {"rho": rho, "A": rho - v, "gain": gain, "H": pi.entropy(), "l": pi.log_prob(action), "l_ref": l_ref}


def close(tensor, value):
    assert float(tensor) == pytest.approx(value, abs=2e-6)


def test_a_pixel_with_positive_advantage():
    out = judged(UP)
    close(out["l"] - out["l_ref"], -0.182322)
    close(out["rho"], 0.909116)
    close(out["A"], 0.309116)
    close(out["gain"], 0.370939)
    close(out["H"], 1.029653)
    close(-out["gain"].mean() - 0.15 * out["H"].mean(), -0.525387)


def test_a_pixel_with_negative_advantage():
    out = judged(DOWN)
    close(out["l"] - out["l_ref"], -0.405465)
    close(out["rho"], 0.120273)
    close(out["A"], -0.429727)
    close(out["gain"], -0.343781)
    close(out["H"], 0.801819)


@pytest.mark.parametrize(("beta", "r"), [(0.05, 0.123), (10.0, 0.9)])
def test_a_gold_pixel_depends_on_neither_beta_nor_reward(beta, r):
    out = judged({**GIVEN, "r": r}, beta=beta, gold=True)
    close(out["A"], 0.3)
    close(out["gain"], 0.32)


def test_an_image_is_the_mean_of_its_pixels():
    out = judged(UP, DOWN)
    close(out["gain"].mean(), 0.013579)
    close(out["H"].mean(), 0.915736)


def test_the_learner_descends_exactly_these_terms():
    """One image of 1 x 2 pixels with the numbers of the first two, through the learner's own loss."""
    env = Shapes(1, size=1)
    env.single_observation_space = spaces.Box(0, 1, (1, 1, 2), np.float32)
    env.single_action_space = spaces.MultiDiscrete([3, 3])
    config = replace(PLAIN, num_envs=1, kl_coef=0.05, ent_coef=0.15)
    model = learner(config, env, Dots, norm_mode="group")
    logits, old, ref = (torch.tensor([p[k] for p in (UP, DOWN)]).log().T[None, :, None] for k in ("pi", "old", "ref"))
    action = torch.zeros(1, 1, 2, dtype=torch.uint8)
    returns, values = (torch.tensor([p[k] for p in (UP, DOWN)])[None, None] for k in ("r", "v"))
    l_old, l_ref = (PixelCategorical(x).log_prob(action) for x in (old, ref))
    batch = Samples(torch.zeros(1, 1, 1, 2), action, l_old, values, returns, l_ref, None)
    loss, scalars = model._loss(batch, (logits, values))
    close(scalars["policy_loss"], -0.013579)
    close(scalars["entropy"], 0.915736)
    close(scalars["value_loss"], (0.09 + 0.45**2) / 2)
    close(loss, -0.013579 - 0.15 * 0.915736 + (0.09 + 0.45**2) / 2)


def test_the_policy_gradient_standardises_the_reward_over_all_pixels():
    log_prob, rho = -torch.rand(2, 3, 3), torch.rand(2, 3, 3)
    expected = np.mean((rho.numpy() - rho.numpy().mean()) / rho.numpy().std(ddof=1) * log_prob.numpy())
    assert float(policy_gradient(log_prob, rho).mean()) == pytest.approx(float(expected), rel=1e-5)


def test_a_rescaled_map_fills_the_unit_interval_and_a_constant_one_stays():
    maps = torch.stack((torch.tensor([[0.2, 0.4], [0.3, 0.2]]), torch.full((2, 2), 0.7)))
    torch.testing.assert_close(rescale_per_image(maps), torch.tensor([[[0.0, 1], [0.5, 0]], [[0.7, 0.7], [0.7, 0.7]]]))


def gradients_of(config, env=None, **policy_kwargs):
    """Gradients of actor and critic after one update from a fixed start."""
    model = learner(config, env, norm_mode="frozen", **policy_kwargs)
    if model.policy.reference is not None:
        model.policy.reference[-1].bias.data += torch.tensor([1.0, 0.0, -1.0])
    trained(model, 1)
    return [
        torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (model.policy.actor, model.policy.critic)
    ]


BASE = replace(PLAIN, n_epochs=3, max_grad_norm=1e9)


@pytest.mark.parametrize(
    "change",
    [{"ent_coef": 0.5}, {"kl_coef": 0.5}, {"clip_range": 0.01}, {"stretch_reward": True}, {"max_grad_norm": 1e-3}],
)
def test_every_term_reaches_the_actor(change):
    configs = (BASE, replace(BASE, **change))
    without, with_term = (gradients_of(config, Shapes(pay=(0.3, 0.7)))[0] for config in configs)
    assert not torch.equal(without, with_term)


def test_the_critic_learns_rho_only_where_told_and_reaches_the_actor_through_the_advantage_only():
    base = replace(BASE, kl_coef=0.5)
    raw, penalised = gradients_of(base), gradients_of(replace(base, value_target="penalised"))
    assert not torch.equal(raw[1], penalised[1])
    quick = gradients_of(replace(base, critic_lr=0.1))
    assert not torch.equal(raw[0], quick[0])  # V of today: a critic that moves changes the next inner step
    once = replace(base, n_epochs=1)
    tight, loose = gradients_of(replace(once, max_grad_norm=1e-3)), gradients_of(once)
    assert float(tight[0].norm()) == pytest.approx(1e-3, rel=1e-2)
    assert torch.equal(tight[1], loose[1])  # only the actor is clipped


def test_a_target_kl_stops_the_inner_steps():
    assert learner_updates(target_kl=1e-9) < learner_updates(target_kl=None)


def learner_updates(**change):
    model = learner(replace(BASE, **change), norm_mode="frozen")
    start = model.policy.actor[-1].weight.detach().clone()
    trained(model, 1)
    return float((model.policy.actor[-1].weight.detach() - start).norm())


# -- the ratio of a map --------------------------------------------------------------------------------------------


def bernoulli(*p):
    """Log-probabilities of the actions 1, 0, 1, 0 with these probabilities of 1, [1, 2, 2]."""
    p = torch.tensor(p).view(1, 2, 2)
    return torch.where(torch.tensor([[[True, False], [True, False]]]), p, 1 - p).log()


OLD, NEW = bernoulli(0.9, 0.2, 0.6, 0.4), bernoulli(0.95, 0.1, 0.5, 0.5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("factored", [1.055556, 1.125, 0.833333, 0.833333]),
        ("mean", [0.952945] * 4),
        ("sum", [0.824653] * 4),
    ],
)
def test_the_ratio_is_that_of_each_pixel_or_the_mean_or_product_over_the_map(kind, expected):
    ratio = log_ratio(NEW, OLD, kind).exp()
    torch.testing.assert_close(ratio.flatten(), torch.tensor(expected), atol=1e-5, rtol=0)
    up, down = (surrogate(NEW, OLD, torch.full((1, 2, 2), a), 0.1, kind) for a in (1.0, -1.0))
    torch.testing.assert_close(up, torch.min(ratio, ratio.clamp(0.9, 1.1)))
    torch.testing.assert_close(down, -torch.max(ratio, ratio.clamp(0.9, 1.1)))
    logged = diagnostics(NEW, OLD, torch.zeros(1, 2, 2), 0.1, kind)
    assert logged["ratio_mean"].item() == pytest.approx(sum(expected) / 4, abs=1e-5)
    change = log_ratio(NEW, OLD, "sum" if kind == "sum" else "factored")
    assert logged["approx_kl"].item() == pytest.approx((change.exp() - 1 - change).mean().item())


def test_each_ratio_has_a_gradient_of_its_own():
    slopes = {}
    for kind in ("factored", "mean", "sum"):
        new = NEW.clone().requires_grad_()
        surrogate(new, OLD, torch.ones(1, 2, 2), 0.5, kind).mean().backward()
        slopes[kind] = new.grad.flatten()
    torch.testing.assert_close(slopes["factored"], torch.tensor([1.055556, 1.125, 0.833333, 0.833333]) / 4)
    torch.testing.assert_close(slopes["mean"], torch.full((4,), 0.952945 / 4))
    torch.testing.assert_close(slopes["sum"], torch.full((4,), 0.824653))


def test_each_image_has_a_ratio_of_its_own():
    new, old = torch.cat([NEW, OLD]), torch.cat([OLD, OLD])
    for kind, expected in (("mean", 0.952945), ("sum", 0.824653)):
        found = log_ratio(new, old, kind).exp()
        torch.testing.assert_close(found[0], torch.full((2, 2), expected))
        torch.testing.assert_close(found[1], torch.ones(2, 2))
