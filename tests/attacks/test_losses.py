"""Losses of pixels (docs/rp-pgd.md, Method 6)."""

import pytest
import torch
from segarena.attacks.losses import class_balance, confidence, correct, cross_entropy, jensen_shannon, spherical

P = torch.tensor([0.7, 0.2, 0.1]).log().view(1, 3, 1)
ZERO = torch.zeros(1, 1, dtype=torch.int64)
LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]]).T[None]  # [1, 3, 2]
TARGETS = torch.tensor([[0, 1]])


def test_known_values_of_one_pixel():
    assert confidence(P, ZERO).item() == pytest.approx(0.952579, abs=1e-6)
    assert cross_entropy(P, ZERO).item() == pytest.approx(0.356675, abs=1e-6)
    assert (confidence(P, ZERO) * cross_entropy(P, ZERO)).item() == pytest.approx(0.339761, abs=1e-6)
    assert jensen_shannon(P, ZERO).item() == pytest.approx(0.117277, abs=1e-6)


def test_known_values_of_right_and_wrong_pixels():
    right = correct(LOGITS, TARGETS)
    assert right.tolist() == [[True, False]]
    assert cross_entropy(LOGITS, TARGETS)[0].tolist() == pytest.approx([0.407606, 2.169846], abs=1e-6)
    assert (cross_entropy(LOGITS, TARGETS) * right).mean().item() == pytest.approx(0.203803, abs=1e-6)
    assert (spherical(LOGITS, TARGETS) * right)[0].tolist() == pytest.approx([-0.894427, 0], abs=1e-6)


def test_known_values_of_two_classes():
    logits, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).T[None], torch.zeros(1, 2, dtype=torch.int64)
    assert cross_entropy(logits, targets)[0].tolist() == pytest.approx([0.1269280, 1.3132616], abs=1e-6)
    assert jensen_shannon(logits, targets)[0].tolist() == pytest.approx([0.0432026, 0.3654318], abs=1e-6)
    assert confidence(logits, targets)[0].tolist() == pytest.approx([0.9909661, 0.3452578], abs=1e-6)
    assert (spherical(logits, targets) * correct(logits, targets)).mean().item() == pytest.approx(-0.5, abs=1e-6)
    weighed = confidence(logits, targets) * cross_entropy(logits, targets)
    assert weighed.mean().item() == pytest.approx(0.2895976, abs=1e-6)


def test_jensen_shannon_is_the_mean_of_two_divergences():
    logits, targets = torch.randn(2, 4, 5, 3), torch.randint(0, 4, (2, 5, 3))
    p, e = logits.softmax(dim=1), torch.nn.functional.one_hot(targets, 4).movedim(-1, 1).float()
    m = (p + e) / 2
    slow = (p * (p / m).log()).sum(dim=1) / 2 + torch.xlogy(e, e / m).sum(dim=1) / 2
    assert torch.allclose(jensen_shannon(logits, targets), slow, atol=1e-6)


def test_jensen_shannon_stays_finite_where_cross_entropy_grows():
    logits = torch.tensor([[-200.0, 200.0]]).view(1, 2, 1).requires_grad_()
    value = jensen_shannon(logits, ZERO)
    assert value.item() == pytest.approx(torch.log(torch.tensor(2.0)).item())
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", [cross_entropy, jensen_shannon, spherical])
def test_losses_fall_as_the_true_logit_rises(loss):
    logits = torch.randn(3, 4, 6).requires_grad_()
    targets = torch.randint(0, 4, (3, 6))
    (gradient,) = torch.autograd.grad(loss(logits, targets).sum(), logits)
    assert (torch.gather(gradient, 1, targets[:, None]) < 0).all()


def test_confidence_has_no_gradient():
    assert not confidence(P.clone().requires_grad_(), ZERO).requires_grad


def test_rare_classes_weigh_more():
    weights = class_balance(torch.tensor([[0, 1, 2]]), torch.tensor([100, 10, 0]))
    assert weights[0, 1] / weights[0, 0] == pytest.approx(10)
    assert weights.isfinite().all()
