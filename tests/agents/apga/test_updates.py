"""The updates of a masking agent against numbers worked out by hand, and against exact gradients by enumeration."""

import itertools

import pytest
import torch
from segarena.agents.apga.updates import (
    MovingMean,
    along,
    antithetic,
    arm,
    bce,
    disarm,
    draw,
    entropy,
    leave_one_out,
    legacy_loss,
    log_prob,
    normalised,
    regulariser,
    reinforce_loss,
    relaxed,
    soft_mask_loss,
    threshold,
)
from segarena.agents.dense_ppo.loss import log_ratio, surrogate

P = torch.tensor([[0.9, 0.2], [0.6, 0.4]], dtype=torch.float64)[None, None]
LOGITS = P.logit()
MASK = threshold(LOGITS)


def test_binary_cross_entropies_and_the_target_of_the_program():
    assert MASK[0, 0].tolist() == [[1, 0], [1, 0]]
    assert float(bce(LOGITS, MASK)) == pytest.approx(0.337539, abs=1e-6)
    assert float(bce(LOGITS, 0.0)) == pytest.approx(0.988211, abs=1e-6)
    assert float(bce(LOGITS, 1.0)) == pytest.approx(0.785479, abs=1e-6)
    assert float(bce(LOGITS, 1 - MASK)) == pytest.approx(1.436151, abs=1e-6), "the algorithm box, read literally"


def test_ties_select_where_the_program_keeps():
    logits = torch.tensor([-1.0, 0.0, 1.0])
    assert threshold(logits).tolist() == [0, 0, 1]
    assert threshold(logits, ties=True).tolist() == [0, 1, 1]


def test_the_program_on_three_rewards_and_its_gradients():
    mean, losses, gradients = MovingMean(), [], []
    for reward in (0.5, 1.0, -0.2):
        logits = LOGITS.clone().requires_grad_()
        r = torch.tensor(reward, dtype=torch.float64)
        loss = legacy_loss(logits, MASK, r - mean.take(r))
        (gradient,) = torch.autograd.grad(loss, logits)
        losses.append(float(loss.detach()))
        gradients.append(gradient.flatten().tolist())
    assert losses == pytest.approx([0.0, 8.465144, -15.982432], abs=1e-4)
    assert float(mean.value) == pytest.approx(0.275)
    assert gradients[0] == [0.0] * 4
    assert gradients[1] == pytest.approx([-0.6194375, 1.250750, -2.496500, 2.502125], abs=1e-5)


def test_a_constant_reward_teaches_the_program_nothing_and_a_jump_halves():
    mean = MovingMean()
    found = [0.7 - float(mean.take(torch.tensor(0.7))) for _ in range(5)]
    assert found == pytest.approx([0.0] * 5, abs=1e-7)
    after = [1.5 - float(mean.take(torch.tensor(1.5))) for _ in range(3)]
    assert after == pytest.approx([0.4, 0.2, 0.1], abs=1e-6)


def test_a_mean_that_is_taken_after_use_begins_at_nothing():
    mean = MovingMean()
    found = [float(mean.before(torch.tensor(r))) for r in (1.0, 2.0, 3.0)]
    assert found == [0.0, 1.0, 1.5]
    other = MovingMean()
    other.load_state_dict(mean.state_dict())
    assert float(other.before(torch.tensor(0.0))) == 2.25


@pytest.mark.parametrize(("loss", "expected"), [((0.1, 0.01), 1 / 11), ((0.5, 0.6), 6 / 11)])
def test_the_regularisers_balance_where_they_should(loss, expected):
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        soft_mask_loss(torch.zeros(()), logits, *loss).backward()
        optimizer.step()
    assert logits.sigmoid().flatten().tolist() == pytest.approx([expected] * 4, abs=1e-3)


def test_log_probability_and_entropy():
    assert float(log_prob(LOGITS, MASK).sum()) == pytest.approx(-1.350155, abs=1e-6)
    assert float(entropy(LOGITS).sum()) == pytest.approx(2.171509, abs=1e-6)
    assert float(regulariser(LOGITS, 0.0, 0.0, 2.0)) == pytest.approx(-2 * 0.542877, abs=1e-5)
    assert float(entropy(torch.tensor([80.0]))) == pytest.approx(0.0, abs=1e-6)


def test_the_three_ratios_of_a_mask():
    new = torch.tensor([[0.95, 0.1], [0.5, 0.5]], dtype=torch.float64)[None, None].logit()
    now, old = (log_prob(one, MASK).flatten(0, 1) for one in (new, LOGITS))
    assert (now - old).flatten().tolist() == pytest.approx([0.054067, 0.117783, -0.182322, -0.182322], abs=1e-6)
    for kind, expected in (("sum", [0.824653] * 4), ("mean", [0.952945] * 4)):
        assert log_ratio(now, old, kind).exp().flatten().tolist() == pytest.approx(expected, abs=1e-6)
    of_cells = log_ratio(now, old, "factored").exp().flatten().tolist()
    assert of_cells == pytest.approx([1.055556, 1.125, 0.833333, 0.833333], abs=1e-6)
    clipped = surrogate(now, old, torch.ones(1, 1, 1, dtype=torch.float64), 0.1, "factored").flatten().tolist()
    assert clipped == pytest.approx([1.055556, 1.1, 0.833333, 0.833333], abs=1e-6)


def test_each_reward_is_compared_with_the_others():
    found = leave_one_out(torch.tensor([1.0, 2.0, 3.0, 6.0])[:, None])[:, 0]
    assert found.tolist() == pytest.approx([-2.666667, -1.333333, 0.0, 4.0], abs=1e-5)
    assert float(found.sum()) == pytest.approx(0.0, abs=1e-6)
    assert float(normalised(found).std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="raise samples"):
        leave_one_out(torch.ones(1, 3))


# -- unbiased? ------------------------------------------------------------------------------------------------------

PHI = torch.tensor([0.3, -0.7], dtype=torch.float64).view(1, 1, 1, 2)
TRUE = [0.122787, 0.252384]


def value(z):
    """z1 + 2 z2 - 1.5 z1 z2 of masks [..., 1, 1, 2]."""
    first, second = z[..., 0, 0, 0], z[..., 0, 0, 1]
    return first + 2 * second - 1.5 * first * second


def pieces(phi):
    """Intervals of u between which a pair of masks stays the same."""
    p = float(torch.sigmoid(phi))
    ends = sorted({0.0, 1.0, p, 1 - p})
    return list(itertools.pairwise(ends))


def test_arm_and_disarm_have_the_exact_gradient_in_the_mean():
    totals = {"arm": torch.zeros(2, dtype=torch.float64), "disarm": torch.zeros(2, dtype=torch.float64)}
    for one, two in itertools.product(pieces(PHI[..., 0].squeeze()), pieces(PHI[..., 1].squeeze())):
        weight = (one[1] - one[0]) * (two[1] - two[0])
        middle = torch.tensor([sum(one) / 2, sum(two) / 2], dtype=torch.float64)  # exact: ARM is linear in u
        u = middle.view(1, 1, 1, 1, 2)
        z, other = antithetic(PHI, u)
        rewards, others = value(z), value(other)
        totals["arm"] += weight * arm(rewards, others, u).flatten()
        totals["disarm"] += weight * disarm(rewards, others, z, other, PHI).flatten()
    for name, found in totals.items():
        assert found.tolist() == pytest.approx(TRUE, abs=1e-5), name


@pytest.mark.parametrize("u", [0.02, 0.3, 0.49, 0.51, 0.97])
def test_disarm_of_one_even_chance_has_no_noise(u):
    logits, at = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1, 1, 1), u, dtype=torch.float64)
    z, other = antithetic(logits, at)
    assert float(disarm(z.flatten()[:, None], other.flatten()[:, None], z, other, logits)) == pytest.approx(0.25)


def test_reinforce_is_unbiased_with_and_without_a_baseline():
    logits = PHI.clone().requires_grad_()
    masks = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64).view(4, 1, 1, 1, 2)
    chance = log_prob(PHI, masks).sum(dim=(2, 3, 4)).exp()  # [4, 1]
    rewards = value(masks)
    for baseline in (0.0, 0.9):
        loss = reinforce_loss(logits, masks, 4 * 2 * chance * (rewards - baseline))  # of means over 4 masks, 2 cells
        (gradient,) = torch.autograd.grad(loss, logits)
        assert (-gradient).flatten().tolist() == pytest.approx(TRUE, abs=1e-5)


def test_a_gradient_becomes_a_step_uphill():
    logits = torch.zeros(2, 1, 2, 2, requires_grad=True)
    gradient = torch.arange(8.0).view(1, 2, 1, 2, 2)
    (found,) = torch.autograd.grad(along(logits, gradient), logits)
    assert torch.allclose(found, -gradient[0] / 8)


def test_relaxed_masks_have_a_gradient_and_harden():
    torch.manual_seed(0)
    logits = torch.full((1, 1, 60, 60), 0.4, requires_grad=True)
    soft = relaxed(logits, 0.05)
    assert float((soft > 0.5).float().mean()) == pytest.approx(torch.tensor(0.4).sigmoid().item(), abs=0.03)
    assert float(((soft < 0.05) | (soft > 0.95)).float().mean()) > 0.9
    (gradient,) = torch.autograd.grad(relaxed(logits, 1.0).sum(), logits)
    assert bool((gradient > 0).all())


def test_masks_are_drawn_by_their_probabilities():
    torch.manual_seed(0)
    share = draw(LOGITS, 4000).mean(dim=0)
    assert torch.allclose(share, P, atol=0.03)
