"""The attack core: passes, gradients, and what it must leave alone (docs/rp-pgd.md, Method 3 and 4)."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from attack_toys import TinyNet, scene, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from segarena.attacks.budget import LinfBall, image_range
from segarena.attacks.core import AttackCore, StepSpec
from segarena.attacks.methods import region, region_inter, region_inter_intra
from segarena.attacks.options import RPOptions
from segarena.attacks.prototypes import class_masks, inter_class, intra_class, prototypes
from segarena.attacks.regions import BOUNDARY, FALSE, IGNORED, TRUE, Weighting
from segarena.attacks.victim import Normalized, frozen, logits_and_features
from torch import nn

OPTIONS = RPOptions()


def begun(number=2, axes=2, eps=0.05, net=None, start=None, labels=None, **settings):
    images, known = scene(number, axes)
    core = AttackCore(trained(axes) if net is None else net, **settings)
    core.reset(LinfBall.around(images, eps), known if labels is None else labels, start)
    return core


class Counted(nn.Module):
    """Counts the passes through a network."""

    def __init__(self, net):
        super().__init__()
        self.net, self.forwards, self.backwards = net, 0, 0

    def forward(self, x):
        self.forwards += 1
        if x.requires_grad:
            x = x * 1.0
            x.register_hook(lambda gradient: setattr(self, "backwards", self.backwards + 1))
        return self.net(x)


@pytest.mark.parametrize("steps", [1, 4])
def test_an_episode_takes_one_forward_pass_more_than_backward_passes(steps):
    net = Counted(trained())
    core = begun(net=net)
    for number in range(steps):
        core.step(core.weigh(Weighting(), 0.25), last=number == steps - 1)
    assert (net.forwards, net.backwards) == (steps + 1, steps)
    assert core.forwards.tolist() == [steps + 1] * 2
    assert core.backwards.tolist() == [steps] * 2
    assert not core.logits.requires_grad


def test_the_model_is_left_as_it_was():
    net = TinyNet()
    net.train()
    net.features.eval()
    net.head.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    flags = [parameter.requires_grad for parameter in net.parameters()]
    core = begun(net=net, feature_layer="features")
    core.step(core.weigh(region_inter(0, 3, OPTIONS), 0.5))
    core.step(core.weigh(region_inter(1, 3, OPTIONS), 0.5))
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.features._forward_hooks


def test_the_model_is_left_as_it_was_by_an_error():
    net = TinyNet().train()

    def broken():
        with frozen(net):
            assert not net.training
            assert not any(parameter.requires_grad for parameter in net.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_the_model_is_in_evaluation_mode():
    """Dropout and batch statistics would make two passes differ."""
    net = TinyNet().train()
    assert torch.equal(begun(net=net).logits, begun(net=net).logits)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_an_image_is_attacked_alone_as_in_a_batch(axes):
    net = TinyNet(axes).double()
    images, labels = scene(3, axes, side=9)
    labels[:, 0] = 255
    images = images.double()

    def attacked(which):
        core = AttackCore(net, feature_layer="features")
        core.reset(LinfBall.around(images[which], 0.05), labels[which])
        for t in range(3):
            core.step(core.weigh(region_inter_intra(t, 3, OPTIONS), 1 / 3, momentum=0.5))
        return core

    together = attacked(slice(0, 3))
    for image in range(3):
        alone = attacked(slice(image, image + 1))
        assert torch.allclose(alone.gradient[0], together.gradient[image], atol=1e-12)
        assert torch.allclose(alone.adversarial[0], together.adversarial[image], atol=1e-9)
        assert torch.equal(alone.regions[0], together.regions[image])


def test_prototypes_of_the_batch_make_images_depend_on_each_other():
    images, labels = scene(2)
    found = []
    for number in (1, 2):
        core = AttackCore(trained(), feature_layer="features", options=RPOptions(proto_scope="batch"))
        core.reset(LinfBall.around(images[:number], 0.05), labels[:number])
        found.append(core.differentiate(StepSpec(torch.zeros(labels[:number].shape), 1.0, inter=1.0))[0])
    assert not torch.allclose(found[0], found[1], rtol=1e-3)


def test_a_term_of_the_batch_counts_once_whether_its_weight_is_one_or_one_of_each_image():
    found = []
    for weight in (0.5, torch.tensor([0.25, 0.75])):
        core = begun(feature_layer="features", options=RPOptions(proto_scope="batch"))
        found.append(core.differentiate(StepSpec(torch.zeros(core.labels.shape), 1.0, inter=weight)))
    assert found[0].abs().amax() > 0
    torch.testing.assert_close(found[0], found[1])


def test_ignored_pixels_count_for_nothing():
    _, labels = scene(1)
    labels[:, :4] = 255
    core = begun(1, labels=labels)
    assert torch.equal(core.losses[labels == 255], torch.zeros(44))
    assert (core.regions[labels == 255] == IGNORED).all()
    changed = begun(1, labels=torch.where(labels == 255, -1, labels), ignore_index=-1)
    for one in (core, changed):
        one.step(one.weigh(region(0, 2, OPTIONS), 0.5))
    assert torch.equal(core.adversarial, changed.adversarial)


@pytest.mark.parametrize("options", [OPTIONS, RPOptions(ignore_as_false=True)])
def test_an_image_without_a_valid_pixel_stays(options):
    images, labels = scene(2)
    labels[0] = 255
    start = LinfBall.around(images, 0.05).random(torch.Generator().manual_seed(0))
    core = begun(labels=labels, start=start, feature_layer="features", options=options)
    for t in range(2):
        core.step(core.weigh(region_inter_intra(t, 2, options), 0.5, momentum=1.0))
    assert torch.equal(core.adversarial[0], images[0])
    assert not torch.equal(core.adversarial[1], images[1])
    assert core.accuracy()[0] == 1
    core.check_finite()


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 1000), axes=st.integers(2, 3), eps=st.floats(0.01, 0.5))
def test_invariants_of_any_weights(seed, axes, eps):
    generator = torch.Generator().manual_seed(seed)
    images, labels = scene(2, axes, side=8, seed=seed)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    images = images * torch.tensor([3.0, 0.2]).view(2, *[1] * axes) - 1
    low, high = image_range(images)
    core = AttackCore(trained(axes))
    core.reset(LinfBall.around(images, eps, (low, high)), labels)
    seen = [core.regions]
    for _ in range(3):
        weights = torch.randn(labels.shape, generator=generator)
        core.step(StepSpec(weights, torch.rand(2, generator=generator), momentum=torch.rand(2, generator=generator)))
        assert ((core.adversarial - images).abs() <= eps * (high - low) + 1e-6).all()
        assert ((core.adversarial >= low) & (core.adversarial <= high)).all()
        seen.append(core.regions)
    for before, after in pairwise(seen):
        assert torch.equal(after == FALSE, before == FALSE)
        assert torch.equal(after == IGNORED, labels == 255)
        assert not ((after == TRUE) & (before != TRUE)).any()
        assert not ((after != BOUNDARY) & (before == BOUNDARY)).any()


def test_zero_weights_change_nothing():
    core = begun()
    core.step(StepSpec(torch.zeros(core.labels.shape), 1.0))
    assert torch.equal(core.adversarial, core.images)
    core.step(StepSpec(torch.zeros(core.labels.shape), 1.0, momentum=0.9))
    assert torch.equal(core.adversarial, core.images)


def test_the_boundary_is_empty_at_first_and_fills():
    core = begun(eps=0.2)
    assert not (core.regions == BOUNDARY).any()
    for _ in range(2):
        core.step(core.weigh(Weighting(), 0.5))
    assert (core.regions == BOUNDARY).any()


def gradient(weighting, **settings):
    core = begun(feature_layer="features", **settings)
    core.step(core.weigh(Weighting(), 0.5))  # so that there is a boundary
    return core.differentiate(core.weigh(weighting, 1.0))


def test_detached_features_leave_half_the_region_loss_bit_for_bit():
    detached = gradient(region_inter_intra(1, 3, OPTIONS), options=RPOptions(detach_features=True))
    alone = gradient(region(1, 3, RPOptions(w_region=1.0)))
    assert torch.equal(detached, 0.5 * alone)


@pytest.mark.parametrize("term", ["inter", "intra"])
def test_each_prototype_term_reaches_the_image(term):
    nothing = Weighting(0.0, 0.0, 0.0, 0.0, 0.0)
    assert gradient(replace(nothing, **{term: 1.0})).abs().amax() > 0
    assert gradient(nothing).abs().amax() == 0
    with_term, without = gradient(replace(Weighting(), **{term: 1.0})), gradient(Weighting())
    assert not torch.allclose(with_term, without, rtol=1e-3)
    per_image = gradient(replace(nothing, **{term: torch.tensor([1.0, 0.0])}))
    assert per_image[0].abs().amax() > 0
    assert per_image[1].abs().amax() == 0


@pytest.mark.parametrize("weight", [1.0, -1.0])
@pytest.mark.parametrize("term", ["inter", "intra"])
def test_a_step_raises_what_has_a_positive_weight(term, weight):
    core = begun(4, feature_layer="features")

    def value():
        protos = core.class_prototypes()
        return (inter_class(protos) if term == "inter" else intra_class(protos)).detach()

    before = value()
    core.step(StepSpec(torch.zeros(core.labels.shape), 0.02, **{term: weight}))
    assert ((value() - before) * weight > 0).all()


def test_the_gradient_is_that_of_the_weighted_sum():
    """Losses of pixels, and both terms, each by its own weight for each image."""
    w_inter, w_intra = torch.tensor([0.7, 0.2]), torch.tensor([-0.4, 1.5])
    core = begun(feature_layer="features")
    weights = torch.rand(core.labels.shape)
    x = core.images.clone().requires_grad_()
    logits, features = logits_and_features(trained(), x, "features")
    inside = logits.argmax(dim=1) == core.labels
    protos = prototypes(features, class_masks(core.labels, inside, 3, features))
    total = (weights * F.cross_entropy(logits, core.labels, reduction="none")).sum()
    total = total + (w_inter * inter_class(protos) + w_intra * intra_class(protos)).sum()
    (expected,) = torch.autograd.grad(total, x)
    found = core.differentiate(StepSpec(weights, 1.0, inter=w_inter, intra=w_intra))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["true", "boundary_wrong", "boundary_right", "false_wrong", "false_right"])
def test_each_group_reaches_the_image(name):
    """With a start that is wrong in some pixels, and a step that two images take back, every group has some."""
    images, labels = scene(4)
    core = AttackCore(trained())
    core.reset(
        LinfBall.around(images, 0.3), labels, LinfBall.around(images, 0.12).random(torch.Generator().manual_seed(1))
    )
    away = core.weigh(Weighting(), 0.3)
    core.step(away)
    core.observe(torch.cat([images[:2], core.adversarial[2:]]))
    weighting = replace(Weighting(0.0, 0.0, 0.0, 0.0, 0.0), **{name: 1.0})
    assert core.differentiate(core.weigh(weighting, 1.0)).abs().amax() > 0


def test_momentum_sums_normalised_gradients():
    """The second gradient is of one pixel alone, so that its norms are in other proportions than those of the first."""
    core = begun()
    core.step(core.weigh(Weighting(), 0.5, momentum=0.3))
    at, first = core.adversarial.detach().clone(), core.gradient
    spec = core.weigh(Weighting(), 0.5, momentum=0.3)
    one = torch.zeros_like(spec.weights)
    one[:, 5, 5] = 1.0
    core.update(replace(spec, weights=one))
    second = core.gradient

    def moved(momentum, order=1):
        unit_first, unit_second = (g / g.flatten(1).norm(p=order, dim=1).view(-1, 1, 1, 1) for g in (first, second))
        return core.ball.project(at + 0.5 * 0.05 * (unit_second + momentum * unit_first).sign())

    assert torch.allclose(core.adversarial, moved(0.3), atol=1e-7)
    for other in (moved(0.0), moved(1.0), moved(0.3, order=2), moved(0.3, order=torch.inf)):
        assert not torch.allclose(core.adversarial, other, atol=1e-7)


def test_a_linear_victim_on_a_patch_of_its_own_range():
    """Logits (0, 2x), eps = 8/255 of the range 2.5, steps of half of it: what is at an end of the range stays there."""

    class Linear(nn.Module):
        def forward(self, x):
            return torch.cat([torch.zeros_like(x), 2 * x], dim=1)

    images = torch.tensor([[[0.5, -1.0, 0.0, 1.5]]])
    labels = torch.tensor([[1, 0, 1, 0]])
    core = AttackCore(Linear())
    core.reset(LinfBall.around(images, 8 / 255, image_range(images)), labels)
    assert core.ball.radius.item() == pytest.approx(0.0784314, abs=1e-6)
    losses, gradients = [core.losses.mean().item()], []
    moves = []
    for _ in range(3):
        core.step(core.weigh(Weighting(), 0.5))
        losses.append(core.losses.mean().item())
        gradients.append(core.gradient.abs().sum().item())
        moves.append((core.adversarial - images).flatten().tolist())
    assert losses == pytest.approx([1.045481, 1.063323, 1.082034, 1.082034], abs=1e-6)
    assert gradients == pytest.approx([0.920359, 0.942249, 0.964632], abs=1e-6)
    assert moves[0] == pytest.approx([-0.039216, 0.039216, -0.039216, 0], abs=1e-6)
    assert moves[1] == pytest.approx([-0.078431, 0.078431, -0.078431, 0], abs=1e-6)


def test_features_come_from_the_same_pass_and_keep_their_gradient():
    core = begun(feature_layer="features")
    images = core.images
    assert torch.allclose(core.features, trained().features(trained().stem(8 * (images - 0.5))), atol=1e-6)
    assert core.features.requires_grad
    assert core.forwards.tolist() == [1, 1]


def test_normalisation_is_the_models():
    net = Normalized(nn.Identity(), mean=[0.5, 0.25], std=[0.5, 0.25])
    images = torch.rand(2, 2, 3, 4, 5)
    assert torch.allclose(net(images)[:, 1], (images[:, 1] - 0.25) / 0.25)
    assert torch.allclose(net.denormalize(net(images)), images, atol=1e-6)
    with pytest.raises(ValueError, match="std above 0"):
        Normalized(nn.Identity(), mean=[0.5], std=[0.0])


def test_a_second_gradient_at_one_image_is_refused():
    core = begun()
    core.update(core.weigh(Weighting(), 0.1))
    with pytest.raises(RuntimeError, match="take a step"):
        core.update(core.weigh(Weighting(), 0.1))


def test_prototype_terms_need_features():
    core = begun()
    with pytest.raises(ValueError, match="give feature_layer"):
        core.step(core.weigh(region_inter(0, 1, OPTIONS), 1.0))


class Gives(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


@pytest.mark.parametrize(
    ("output", "match"),
    [
        (lambda x: (x, x), "gives tuple but must give logits"),
        (lambda x: x[:, :, ::2], r"logits \[2, 2, 6, 11\] but must give \[2, 'K', 11, 11\]"),
        (lambda x: x.mean(dim=(2, 3)), "but must give"),
        (lambda x: x.repeat(1, 2, 1, 1) / 0, r"image\(s\) \[0, 1\] are not finite"),
        (lambda x: x, r"labels have values \[2\] but the model has classes 0 .. 1, and ignore_index is 255"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(output, match):
    with pytest.raises(ValueError, match=match):
        begun(net=Gives(output))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda y: y.float(), "must be integers"),
        (lambda y: y[:, :-1], r"labels are \[2, 10, 11\] but images of \[2, 2, 11, 11\] need \[2, 11, 11\]"),
        (lambda y: torch.where(y == 1, 7, torch.where(y == 2, -3, y)), r"labels have values \[-3, 7\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(change, match):
    _, labels = scene(2)
    with pytest.raises(ValueError, match=match):
        begun(labels=change(labels))


def test_a_start_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="the start is"):
        begun(start=torch.zeros(1, 2, 11, 11))


@pytest.mark.parametrize(("layer", "match"), [("featurs", "did you mean 'features'"), ("unused", "must be a tensor")])
def test_a_feature_layer_that_does_not_fit_is_refused(layer, match):
    net = TinyNet()
    net.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=match):
        logits_and_features(net, torch.rand(1, 2, 9, 9), layer)


def test_nan_is_named_with_image_and_step():
    class Breaks(nn.Module):
        def forward(self, x):
            logits = torch.cat([x, -x, x * 0.5], dim=1)[:, :3]
            moved = (x - images).abs().flatten(1).amax(dim=1) > 0
            return torch.where((moved & torch.tensor([False, True])).view(2, 1, 1, 1), torch.nan, logits)

    images, labels = scene(2)
    core = AttackCore(Breaks())
    core.reset(LinfBall.around(images, 0.1), labels)
    core.step(core.weigh(Weighting(), 1.0))
    core.step(core.weigh(Weighting(), 1.0))
    with pytest.raises(ValueError, match=r"image\(s\) \[1\] are not finite after 1 step"):
        core.check_finite()


def test_a_step_stays_on_the_device(police):
    images, labels = scene(2)
    net = TinyNet().to("cuda")
    core = AttackCore(net, feature_layer="features")
    core.reset(LinfBall.around(images.to("cuda"), 0.05), labels.to("cuda"))
    core.step(core.weigh(region_inter_intra(0, 3, OPTIONS), 0.5, momentum=0.5))
    with police.count() as counted:
        core.step(core.weigh(region_inter_intra(1, 3, OPTIONS), 0.5, momentum=0.5))
    assert counted.total == 0, counted.report()


def test_prototype_terms_are_of_single_precision_where_the_network_is_of_half():
    with torch.autocast("cpu", torch.bfloat16):
        core = begun(feature_layer="features")
        features = core.features.detach()
        core.differentiate(core.weigh(replace(region_inter_intra(0, 3, OPTIONS), inter=1.0, intra=1.0), 0.3))
    assert features.dtype == torch.bfloat16
    masks = class_masks(core.targets, core.regions == TRUE, core.logits.shape[1], features.float())
    protos = prototypes(features.float(), masks)
    torch.testing.assert_close(core.terms["inter"], inter_class(protos).detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(core.terms["intra"], intra_class(protos).detach(), rtol=1e-6, atol=0)
