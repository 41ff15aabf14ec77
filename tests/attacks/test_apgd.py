"""APGD and SEA (docs/rp-pgd.md, Method 11)."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from attack_toys import EPS, TinyNet, accuracy, scene, trained
from segarena.attacks.apgd import (
    OBJECTIVES,
    ONE_RADIUS,
    SEA_LOSSES,
    SEA_LOSSES_V1,
    SEA_RADII,
    apgd,
    checkpoints,
    sea,
    stages,
    stalled,
)
from segarena.attacks.budget import LinfBall, image_range
from segarena.attacks.methods import ATTACKS
from torch import nn

COUNTS = torch.tensor([1000, 300, 300])


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        (5, [1, 2, 3, 4, 5]),
        (10, [2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (20, [4, 7, 9, *range(10, 21)]),
        (50, [11, 21, 30, 38, 45]),
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
    ],
)
def test_check_points(steps, found):
    assert checkpoints(steps) == found


def test_check_points_of_300_steps_begin_after_66_and_shrink_by_9_to_18():
    found = checkpoints(300)
    assert [b - a for a, b in pairwise([0, *found])] == [66, 57, 48, 39, 30, 21, 18, 18]


@pytest.mark.parametrize(
    ("rises", "gained", "halved", "found"),
    [
        (3, True, False, True),
        (4, True, False, False),
        (4, False, False, True),
        (4, False, True, False),
        (0, True, True, True),
    ],
)
def test_when_a_step_is_halved(rises, gained, halved, found):
    assert stalled(torch.tensor([rises]), 4, torch.tensor([gained]), torch.tensor([halved])).tolist() == [found]


def test_masked_objectives_count_right_pixels_alone():
    for name, objective in OBJECTIVES.items():
        schedule = ATTACKS["masked_ce"].schedule
        assert (objective.schedule is schedule) == name.startswith("masked")
        assert objective.balanced == (name == "masked_balanced_ce")


def test_stages_share_the_steps():
    assert stages(300, SEA_RADII) == [(2.0, 90), (1.5, 90), (1.0, 120)]
    assert stages(10, ONE_RADIUS) == [(1.0, 10)]
    assert stages(2, SEA_RADII) == [(1.0, 2)]


class Counted(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.forwards = net, 0

    def forward(self, x):
        self.forwards += 1
        return self.net(x)


def attacked(images, labels, axes=2, net=None, **settings):
    settings = {
        "eps": EPS,
        "steps": 10,
        "class_counts": COUNTS,
        "generator": torch.Generator().manual_seed(1),
    } | settings
    return apgd(trained(axes) if net is None else net, images, labels, **settings)


@pytest.mark.parametrize("loss", OBJECTIVES)
@pytest.mark.parametrize("axes", [2, 3])
def test_each_objective_breaks_the_victim_within_its_budget(loss, axes):
    images, labels = scene(3, axes, seed=99)
    low, high = image_range(images)
    found = attacked(images, labels, axes, loss=loss, bounds=(low, high), eps=0.2)
    assert ((found - images).abs() <= 0.2 * (high - low) + 1e-6).all()
    assert ((found >= low) & (found <= high)).all()
    assert not found.requires_grad
    assert accuracy(trained(axes), found, labels) < accuracy(trained(axes), images, labels) - 0.15


def test_objectives_differ():
    images, labels = scene(2, seed=99)
    found = [attacked(images, labels, loss=loss, steps=12, random_start=False) for loss in OBJECTIVES]
    for first in range(len(found)):
        assert not any(torch.equal(found[first], other) for other in found[first + 1 :])


def test_the_host_does_not_wait_for_a_step(police):
    images, labels = (x.to("cuda") for x in scene(2))
    net, waits = TinyNet().to("cuda"), []
    for steps in (10, 10, 20):
        with police.count() as counted:
            apgd(net, images, labels, eps=EPS, steps=steps, random_start=False)
        waits.append(counted.total)
    assert waits[1] == waits[2], counted.report()


def test_it_is_at_least_as_strong_as_pgd_with_as_many_gradients():
    images, labels = scene(8, seed=97)
    found = attacked(images, labels, loss="ce", radii=ONE_RADIUS, steps=20, eps=0.04, random_start=False)
    pgd = ATTACKS["pgd"](trained(), images, labels, eps=0.04, steps=20, random_start=False)
    assert accuracy(trained(), found, labels) <= accuracy(trained(), pgd, labels) + 0.01


def plain_apgd(net, x, y, eps, steps, masked):
    """APGD of one image, as its pseudo-code has it: the image of the fewest right pixels that it came by."""

    def seen(x):
        x = x.detach().requires_grad_()
        logits = net(x)
        losses, right = F.cross_entropy(logits, y, reduction="none"), logits.argmax(dim=1) == y
        (gradient,) = torch.autograd.grad((losses * right if masked else losses).sum(), x)
        return losses.mean().item(), right.float().mean().item(), gradient

    def project(z):
        return torch.min(torch.max(z, x - eps), x + eps).clamp(0, 1)

    at, before, step = x, x, 2 * eps
    loss, accuracy, gradient = seen(at)
    best = (loss, at, gradient)
    worst = (accuracy, at)
    history, checks, last_check, best_at_check, halved = [loss], checkpoints(steps), 0, loss, True
    halvings = 0
    for k in range(steps):
        z = project(at + step * gradient.sign())
        z = project(at + 0.75 * (z - at) + 0.25 * (at - before)) if k else z
        before, at = at, z
        loss, accuracy, gradient = seen(at)
        history.append(loss)
        worst = (accuracy, at) if accuracy <= worst[0] else worst
        best = (loss, at, gradient) if loss > best[0] else best
        if k + 1 in checks:
            rises = sum(b > a for a, b in pairwise(history[last_check : k + 2]))
            stuck = not halved and best_at_check >= best[0]
            halved = rises <= 0.75 * (k + 1 - last_check) or stuck
            if halved:
                step, at, gradient, halvings = step / 2, best[1], best[2], halvings + 1
            last_check, best_at_check = k + 1, best[0]
    return worst[1], halvings


@pytest.mark.parametrize("masked", [False, True])
def test_apgd_is_its_papers_pseudo_code(masked):
    images, labels = scene(3, seed=99)
    found = attacked(
        images, labels, loss="masked_ce" if masked else "ce", radii=ONE_RADIUS, steps=25, random_start=False
    )
    plain = [plain_apgd(trained(), images[n : n + 1], labels[n : n + 1], EPS, 25, masked) for n in range(len(images))]
    assert all(halvings >= 2 for _, halvings in plain)
    assert ((found - torch.cat([x for x, _ in plain])).abs() < 1e-5).float().mean() > 0.999


def test_radii_fall_from_stage_to_stage():
    images, labels = scene(2, seed=99)
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append((x.detach() - images).abs().amax().item() / EPS)
            return trained()(x)

    attacked(images, labels, net=Watched(), steps=10, random_start=False)
    for passes, radius in ((seen[:4], 2.0), (seen[4:8], 1.5), (seen[8:], 1.0)):
        assert max(passes) == pytest.approx(radius, abs=1e-4)


def test_a_stage_starts_at_the_projection_of_what_the_one_before_found():
    images, labels = scene(1, seed=99)
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(x.detach().clone())
            return trained()(x)

    attacked(images, labels, net=Watched(), steps=10, random_start=True, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(seen[0], images)
    for before, start, factor in ((seen[:4], seen[4], 1.5), (seen[4:8], seen[8], 1.0)):
        found = min(reversed(before), key=lambda x: accuracy(trained(), x, labels))  # of equal ones, the last
        torch.testing.assert_close(start, LinfBall.around(images, factor * EPS).project(found))


def test_passes_are_one_more_than_steps_in_each_stage():
    images, labels = scene(1)
    net = Counted(trained())
    attacked(images, labels, net=net, steps=10)
    assert net.forwards == 10 + 3


def test_the_result_is_the_image_with_the_fewest_right_pixels():
    """No later step of the last stage is better than what is kept: more steps never weaken a single stage."""
    images, labels = scene(4, seed=99)
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            logits = trained()(x)
            seen.append((logits.argmax(dim=1) == labels).flatten(1).float().mean(dim=1))
            return logits

    found = attacked(images, labels, net=Watched(), radii=ONE_RADIUS)
    kept = (trained()(found).argmax(dim=1) == labels).flatten(1).float().mean(dim=1)
    assert torch.allclose(kept, torch.stack(seen).amin(dim=0))


def test_an_image_is_attacked_alone_as_in_a_batch():
    images, labels = scene(3, side=9, seed=99)
    net = trained()
    together = attacked(images, labels, net=net, random_start=False)
    for image in range(3):
        one = attacked(images[image : image + 1], labels[image : image + 1], net=net, random_start=False)
        assert ((one[0] - together[image]).abs() < 1e-5).float().mean() > 0.99


def test_an_image_without_a_valid_pixel_is_returned_unchanged():
    images, labels = scene(2)
    labels[0] = 255
    assert torch.equal(attacked(images, labels)[0], images[0])
    assert torch.equal(sea(trained(), images, labels, eps=EPS, steps=4, class_counts=COUNTS)[0], images[0])


@pytest.mark.parametrize("losses", [SEA_LOSSES, SEA_LOSSES_V1])
def test_sea_is_the_worst_of_its_attacks(losses):
    images, labels = scene(4, seed=99)

    def right(found):
        return (trained()(found).argmax(dim=1) == labels).flatten(1).sum(dim=1)

    settings = {"eps": 0.04, "steps": 6, "random_start": False, "class_counts": COUNTS}
    each = torch.stack([right(apgd(trained(), images, labels, loss=loss, **settings)) for loss in losses])
    worst = right(sea(trained(), images, labels, losses=losses, **settings))
    assert torch.equal(worst, each.amin(dim=0))
    assert worst.sum() < right(images).sum()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"loss": "masked"}, "loss is 'masked' but must be one of"),
        ({"steps": 0}, "steps is 0"),
        ({"eps": 2}, "eps is 2 but must be"),
        ({"loss": "masked_balanced_ce", "class_counts": None}, "needs class_counts"),
        ({"loss": "masked_balanced_ce", "class_counts": COUNTS[:2]}, r"class_counts are \[2\] but must be \[3\]"),
        ({"radii": ((2.0, 1.0),)}, "the last factor must be 1"),
        ({"radii": ()}, "the last factor must be 1"),
    ],
)
def test_wrong_arguments_are_refused_by_name(wrong, match):
    images, labels = scene(1)
    with pytest.raises(ValueError, match=match):
        attacked(images, labels, **wrong)


def test_sea_without_losses_is_refused():
    images, labels = scene(1)
    with pytest.raises(ValueError, match="losses is empty"):
        sea(trained(), images, labels, eps=EPS, losses=())
