"""The loss of Dice and cross-entropy, and the divergence of TRADES (docs/seat.md, Method 9)."""

import math

import pytest
import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from segarena.segmenters.dice_ce import dice_ce, dice_ce_of_images, kl_divergence, soft_dice_loss


def volume(*rows):
    """Logits [1, K, 1, 1, V] of the rows of each class."""
    return torch.tensor(rows, dtype=torch.float64).view(1, len(rows), 1, 1, -1)


def labels_of(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


def example(seed=0, number=3, classes=3, sides=(4, 3, 5)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(number, classes, *sides, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (number, *sides), generator=generator)


def test_two_voxels_give_known_values():
    logits, labels = volume([0, 0], [math.log(4), math.log(3 / 7)]), labels_of(1, 0)
    valid = torch.ones_like(labels, dtype=torch.bool)
    assert soft_dice_loss(logits, labels, valid).item() == pytest.approx(0.2380988, abs=1e-6)
    assert F.cross_entropy(logits, labels).item() == pytest.approx(0.2899092, abs=1e-6)
    assert dice_ce(logits, labels).item() == pytest.approx(0.5280080, abs=1e-6)


def test_an_absent_class_counts_nothing_or_is_left_out():
    logits, labels = torch.zeros(1, 3, 1, 2, 2, dtype=torch.float64), torch.tensor([[[[0, 1], [1, 0]]]])
    valid = torch.ones_like(labels, dtype=torch.bool)
    assert soft_dice_loss(logits, labels, valid).item() == pytest.approx(0.8000006, abs=1e-6)
    assert dice_ce(logits, labels).item() == pytest.approx(0.8000006 + 1.0986123, abs=1e-6)
    assert dice_ce(logits, labels, ignore_absent=True).item() == pytest.approx(0.6000012 + 1.0986123, abs=1e-6)
    background = torch.zeros_like(labels)
    assert dice_ce(logits, background, ignore_absent=True).item() == pytest.approx(math.log(3))
    assert dice_ce(logits, background).item() == pytest.approx(1 + math.log(3))


def test_the_dice_part_is_that_of_monai():
    logits, labels = example()
    theirs = DiceLoss(include_background=False, softmax=True, to_onehot_y=True, smooth_nr=0, smooth_dr=1e-5)
    ours = soft_dice_loss(logits, labels, torch.ones_like(labels, dtype=torch.bool))
    assert ours.mean().item() == pytest.approx(theirs(logits, labels[:, None]).item(), abs=1e-9)


@pytest.mark.parametrize("ignore_absent", [False, True])
def test_the_loss_is_the_mean_of_its_images_which_do_not_touch_each_other(ignore_absent):
    logits, labels = example()
    labels[0][labels[0] == 2] = 0
    logits.requires_grad_()
    of_images = dice_ce_of_images(logits, labels, ignore_absent=ignore_absent)
    alone = torch.stack([dice_ce(logits[i : i + 1], labels[i : i + 1], ignore_absent=ignore_absent) for i in range(3)])
    assert torch.allclose(of_images, alone, atol=1e-12)
    assert dice_ce(logits, labels, ignore_absent=ignore_absent).item() == pytest.approx(of_images.mean().item())
    (gradient,) = torch.autograd.grad(of_images[1], logits)
    assert bool(gradient[1].any())
    assert not bool(gradient[0].any() | gradient[2].any())


def test_the_gradient_is_that_of_differences():
    logits, labels = example(1, 2, 3, (2, 2, 2))
    labels[0, 0, 0, 0] = 255
    for ignore_absent in (False, True):
        assert torch.autograd.gradcheck(
            lambda z, absent=ignore_absent: dice_ce_of_images(z, labels, ignore_absent=absent), logits.requires_grad_()
        )


def test_descent_leads_to_the_label_and_both_parts_take_part():
    logits, labels = example(2)
    z = logits.clone().requires_grad_()
    for _ in range(60):
        (gradient,) = torch.autograd.grad(dice_ce(z, labels), z)
        z = (z - 30 * gradient).detach().requires_grad_()
    assert (z.argmax(dim=1) == labels).all()
    z = logits.clone().requires_grad_()
    valid = torch.ones_like(labels, dtype=torch.bool)
    (dice,) = torch.autograd.grad(soft_dice_loss(z, labels, valid).mean(), z)
    (entropy,) = torch.autograd.grad(F.cross_entropy(z, labels), z)
    (both,) = torch.autograd.grad(dice_ce(z, labels), z)
    assert torch.allclose(both, dice + entropy, atol=1e-12)
    assert dice.abs().max() > 0


def test_voxels_that_are_ignored_count_nowhere():
    logits, labels = example(3, 1)
    part = labels.clone()
    part[..., 3:] = 255
    cut = dice_ce(logits[..., :3], labels[..., :3])
    assert dice_ce(logits, part).item() == pytest.approx(cut.item(), abs=1e-12)
    assert dice_ce(logits, torch.full_like(labels, 255)).item() == 0
    assert dice_ce(logits, torch.full_like(labels, 9), ignore_index=9).item() == 0


def test_the_divergence_of_trades_has_its_known_value():
    clean, attacked = volume([2], [0]), volume([1], [0])
    assert kl_divergence(clean, attacked).mean().item() == pytest.approx(0.0671306, abs=1e-6)
    assert kl_divergence(clean, clean).abs().max() == 0
    logits, other = example(4)[0], example(5)[0]
    theirs = F.kl_div(other.log_softmax(1), logits.softmax(1), reduction="none").sum(dim=1)
    assert torch.allclose(kl_divergence(logits, other), theirs, atol=1e-12)
    assert torch.autograd.gradcheck(kl_divergence, (logits[:1].requires_grad_(), other[:1].requires_grad_()))


def test_what_does_not_fit_is_refused():
    logits, labels = example()
    with pytest.raises(ValueError, match=r"labels \[3, 4, 3, 4\]"):
        dice_ce(logits, labels[..., :4])
    with pytest.raises(ValueError, match="at least two classes"):
        dice_ce(logits[:, :1], labels)
    with pytest.raises(ValueError, match=r"labels are torch.float32 but must be integers"):
        dice_ce(logits, labels.float())


def test_the_loss_never_waits_for_the_device(police):
    logits, labels = (x.to("cuda") for x in example())
    with police.count() as counted:
        dice_ce(logits, labels)
        dice_ce_of_images(logits, labels, ignore_absent=True)
        kl_divergence(logits, logits)
    assert counted.total == 0, counted.report()
