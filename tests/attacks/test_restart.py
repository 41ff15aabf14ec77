"""Attacks that begin anew in some rows, and that go on from a saved state (docs/rp-pgd.md, Method 3)."""

import pytest
import torch
from attack_toys import scene, small_victim
from segarena.attacks.budget import LinfBall, image_range
from segarena.attacks.core import ROWS, AttackCore, StepSpec
from segarena.attacks.methods import region_inter_intra
from segarena.attacks.options import RPOptions
from segarena.attacks.regions import Weighting
from torch import nn

OPTIONS = RPOptions()


def core_of(model=None, **settings):
    model = small_victim(channels=2, classes=3) if model is None else model
    return AttackCore(model, feature_layer="features", twice=True, **settings)


def begun(rows, images, labels, start=None):
    core = core_of()
    core.reset(LinfBall.around(images[rows], 0.05), labels[rows], start)
    return core


def step(core, t=0):
    core.step(core.weigh(region_inter_intra(t, 3, OPTIONS), 0.4, momentum=0.5))


def restart(core, rows, images, labels, **settings):
    ball = LinfBall.around(images, 0.05)
    core.restart(torch.tensor(rows), ball, labels, ball.images, **settings)


def test_some_begin_anew_and_the_others_go_on_as_if_alone():
    """Bit for bit what each does in an attack of its own."""
    images, labels = scene(6, side=16)  # whole vectors: what is left over is rounded otherwise
    core = begun(slice(0, 4), images, labels)
    step(core)
    restart(core, [3, 1], images[4:], labels[4:])
    old, new = begun([0, 2], images, labels), begun([5, 4], images, labels)
    step(old)
    for t in range(2):
        for rows, alone in (([0, 2], old), ([1, 3], new)):
            for name in ROWS:
                assert torch.equal(getattr(core, name)[rows], getattr(alone, name)), name
            assert torch.equal(core.features[rows], alone.features)
            assert torch.equal(core.ball.lower[rows], alone.ball.lower)
        for one in (core, old, new):
            step(one, t)
        assert torch.equal(core.gradient[[0, 2]], old.gradient)
        assert torch.equal(core.gradient[[1, 3]], new.gradient)
        assert torch.equal(core.terms["inter"][[1, 3]], new.terms["inter"])
    assert core.forwards.tolist() == [4, 3, 4, 3]
    assert core.backwards.tolist() == [3, 2, 3, 2]


def test_all_that_begin_anew_begin_as_at_first():
    images, labels = scene(6, side=16)  # whole vectors: what is left over is rounded otherwise
    core = begun(slice(0, 3), images, labels)
    step(core)
    restart(core, [0, 1, 2], images[3:], labels[3:])
    other = begun(slice(3, 6), images, labels)
    for _ in range(2):
        for name in ROWS:
            assert torch.equal(getattr(core, name), getattr(other, name)), name
        step(core)
        step(other)
        assert torch.equal(core.gradient, other.gradient)


def test_rows_may_begin_anew_twice_before_a_step():
    images, labels = scene(6, side=16)  # whole vectors: what is left over is rounded otherwise
    core = begun(slice(0, 3), images, labels)
    restart(core, [0, 1], images[4:6], labels[4:6])
    restart(core, [1], images[3:4], labels[3:4])
    other = begun([4, 3, 2], images, labels)
    step(core)
    step(other)
    assert torch.equal(core.gradient, other.gradient)
    assert torch.equal(core.adversarial, other.adversarial)


def test_images_keep_their_own_radius():
    images, labels = scene(3)
    images[2] *= 0.5
    core = core_of()
    core.reset(LinfBall.around(images[:2], 0.05, image_range(images[:2])), labels[:2])
    ball = LinfBall.around(images[2:], 0.05, image_range(images[2:]))
    core.restart(torch.tensor([0]), ball, labels[2:], ball.images)
    assert torch.equal(core.ball.radius[0], ball.radius[0])
    step(core)
    assert torch.equal(core.adversarial[0], core.ball.project(core.adversarial)[0])


def test_a_saved_state_goes_on_bit_for_bit():
    images, labels = scene(3)
    core = begun(slice(0, 3), images, labels)
    step(core)
    state = core.state()
    other = core_of()
    other.resume(LinfBall.around(images, 0.05), labels, state)
    for t in range(2):
        for name in ROWS:
            assert torch.equal(getattr(core, name), getattr(other, name)), name
        step(core, t)
        step(other, t)
        assert torch.equal(core.gradient, other.gradient)


def test_an_image_is_rounded_alone_as_among_others_on_a_cpu():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, padding=1, stride=2))
    net = nn.Sequential(net, nn.ReLU(), nn.ConvTranspose2d(24, 3, 2, stride=2)).eval()
    images, _ = scene(2, side=64)
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    found = []
    for rows in (slice(0, 2), slice(0, 1)):
        core = AttackCore(net, twice=True)
        core.reset(LinfBall.around(images[rows], 0.05), labels[rows])
        core.step(core.weigh(Weighting(), 0.5))
        found.append((core.logits[0], core.gradient[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert core.forwards.tolist() == [2]


def test_a_shift_moves_without_a_gradient():
    images, labels = scene(2)
    core = core_of()
    core.reset(LinfBall.around(images, 0.05), labels)
    direction = torch.ones_like(images)
    direction[1] = -1
    core.shift(direction, torch.tensor([0.5, 1.0]))
    assert torch.allclose(core.adversarial[0], (images[0] + 0.025).clamp(max=1))
    assert torch.allclose(core.adversarial[1], (images[1] - 0.05).clamp(min=0))
    assert core.backwards.tolist() == [0, 0]
    with pytest.raises(RuntimeError, match="its graph not kept"):
        core.probe()


def test_a_probe_is_the_plain_gradient_and_leaves_the_graph():
    images, labels = scene(2)
    core, other = begun(slice(0, 2), images, labels), begun(slice(0, 2), images, labels)
    probed = core.probe()
    assert torch.equal(probed, other.differentiate(StepSpec(torch.ones(labels.shape), 1.0)))
    step(core)


def test_nothing_waits_for_the_device_where_rows_begin_anew(police):
    images, labels = (part.to("cuda") for part in scene(3))
    core = core_of()
    core.model.to("cuda")
    try:
        core.reset(LinfBall.around(images[:2], 0.05), labels[:2])
        ball, rows = LinfBall.around(images[2:], 0.05), torch.tensor([1]).to("cuda")
        step(core)
        with police.count() as counted:
            core.restart(rows, ball, labels[2:], ball.images)
            step(core)
        assert counted.total == 0, counted.report()
    finally:
        core.model.to("cpu")
