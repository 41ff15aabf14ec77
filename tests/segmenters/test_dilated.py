"""PSPNet and DeepLabv3 at output stride 8, and DDC-AT's heads (docs/rp-pgd.md, Method 12)."""

import logging

import pytest
import torch
import torch.nn.functional as F
from segarena.attacks.budget import LinfBall
from segarena.attacks.core import AttackCore, StepSpec
from segarena.attacks.methods import ATTACKS
from segarena.attacks.victim import Normalized
from segarena.common.networks import load_network, save_network
from segarena.datasets.folders import log_once
from segarena.segmenters.deeplab import DeepLabV3
from segarena.segmenters.dilated import ADVERSARIAL, CLEAN
from segarena.segmenters.pspnet import PSPNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

KINDS = [PSPNet, DeepLabV3]
both = pytest.mark.parametrize("kind", KINDS)


def outline(kind, *args, **settings):
    """A network without memory, which knows its shapes."""
    with torch.device("meta"):
        return kind(*args, **settings).eval()


def small(kind, channels=3, classes=3, **settings):
    """A ResNet-18 version whose batch normalisation has seen images, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = kind(channels, classes, backbone="resnet18", **settings)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        net(torch.randn(4, channels, 33, 33))
    return net.eval()


def images(number=2, side=33, channels=3):
    return torch.randn(number, channels, side, side, generator=torch.Generator().manual_seed(side))


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


# -- counts and shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "classes", "total", "without"),
    [
        (PSPNet, 21, 48_957_802, 46_592_597),
        (PSPNet, 19, 48_956_262, 46_591_571),
        (PSPNet, 150, 49_057_132, 46_658_774),
        (DeepLabV3, 21, 39_316_586, 39_048_533),
        (DeepLabV3, 19, 39_315_558, 39_048_019),
        (DeepLabV3, 150, 39_382_892, 39_081_686),
    ],
)
def test_the_networks_have_the_parameters_of_the_program(kind, classes, total, without):
    net = outline(kind, 3, classes)
    assert count(net) == total
    assert count(net) - count(net.auxiliary_head) == without


def test_each_part_has_its_parameters():
    psp, deeplab = outline(PSPNet, 3, 21), outline(DeepLabV3, 3, 21)
    stages = [9_536, 215_808, 1_219_584, 7_098_368, 14_964_736]
    assert [count(getattr(psp, f"layer{number}")) for number in range(5)] == stages
    assert [count(getattr(deeplab, f"layer{number}")) for number in range(5)] == stages
    assert [count(psp.context), count(psp.head), count(psp.auxiliary_head)] == [4_198_400, 18_886_165, 2_365_205]
    assert [count(deeplab.context), count(deeplab.head), count(deeplab.auxiliary_head)] == [
        15_206_912,
        333_589,
        268_053,
    ]


def test_small_networks_and_other_stems_have_the_parameters_that_the_page_names():
    assert count(outline(PSPNet, 3, 21, backbone="resnet18")) == 12_771_242
    assert count(outline(DeepLabV3, 3, 21, backbone="resnet18")) == 12_167_274
    deep = outline(PSPNet, 3, 21, deep_stem=True)
    assert count(deep.layer0) == 3 * 64 * 9 + 64 * 64 * 9 + 64 * 128 * 9 + 2 * (64 + 64 + 128)
    assert count(deep.layer1) == 215_808 + 64 * (64 + 256)  # the first block of 128 maps in place of 64
    assert count(outline(PSPNet, 1, 21).layer0) == 9_536 - 2 * 64 * 49


def test_the_heads_of_ddc_at_are_shaped_as_the_classifier():
    psp, deeplab = outline(PSPNet, 3, 21, ddc_at=True), outline(DeepLabV3, 3, 21, ddc_at=True)
    for net, total, head, hidden in ((psp, 48_957_802, 18_886_165, 512), (deeplab, 39_316_586, 333_589, 256)):
        mask = head - (21 - 2) * (hidden + 1)
        assert (count(net.adversarial_head), count(net.mask_head)) == (head, mask)
        assert count(net) == total + head + mask


@pytest.mark.parametrize(
    ("kind", "classes", "side", "grid", "main", "auxiliary"),
    [
        (PSPNet, 21, 473, 60, 311.1, 17.0),
        (PSPNet, 19, 449, 57, 280.8, 15.4),
        (PSPNet, 150, 465, 59, 301.3, 16.7),
        (DeepLabV3, 21, 473, 60, 283.2, 1.9),
        (DeepLabV3, 19, 449, 57, 255.5, 1.7),
        (DeepLabV3, 150, 465, 59, 274.0, 2.1),
    ],
)
def test_grids_logits_and_operations_are_those_of_the_program(kind, classes, side, grid, main, auxiliary):
    net, shapes = outline(kind, 3, classes), {}
    for name, maps in (("layer1", 256), ("layer2", 512), ("layer3", 1024), ("layer4", 2048)):
        sides = [(side + 3) // 4] * 2 if name == "layer1" else [grid] * 2
        shapes[name] = [1, maps, *sides]
    seen = {}
    for name in shapes:
        net.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: list(output.shape)})
        )
    with FlopCounterMode(display=False) as counter:
        logits = net(torch.empty(1, 3, side, side, device="meta"))
    assert seen == shapes
    assert logits.shape == (1, classes, side, side)
    assert counter.get_total_flops() / 1e9 == pytest.approx(main, abs=0.06)
    with FlopCounterMode(display=False) as counter:
        net.auxiliary_head(torch.empty(1, 1024, grid, grid, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(auxiliary, abs=0.06)


def test_every_3x3_convolution_of_the_last_two_stages_is_dilated():
    for backbone in ("resnet18", "resnet50"):
        net = outline(PSPNet, 3, 2, backbone=backbone)
        for number, stride, dilation in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
            stage = net.get_submodule(f"layer{number}")
            found = [module for module in stage.modules() if isinstance(module, nn.Conv2d)]
            square = [conv for conv in found if conv.kernel_size == (3, 3)]
            assert {(conv.dilation, conv.padding) for conv in square} == {((dilation,) * 2,) * 2}
            assert [conv.stride for conv in square] == [(stride,) * 2] + [(1, 1)] * (len(square) - 1)
            assert all(conv.bias is None for conv in found)


# -- values ------------------------------------------------------------------------------------------------------------


def plain(weights, x, kind):
    """ResNet-50 with either context and head, in eval mode, written out."""

    def norm(y, name):
        values = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(y, *values, False, 0.0, 1e-5)

    def conv(y, name, dilation=1, stride=1):
        weight = weights[f"{name}.weight"]
        return F.conv2d(y, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation)

    size = x.shape[-2:]
    y = F.max_pool2d(norm(conv(x, "layer0.0", stride=2), "layer0.1").relu(), 3, 2, 1)
    for stage, blocks, stride, dilation in ((1, 3, 1, 1), (2, 4, 2, 1), (3, 6, 1, 2), (4, 3, 1, 4)):
        for block in range(blocks):
            name, step = f"layer{stage}.{block}", stride if block == 0 else 1
            z = norm(conv(y, f"{name}.conv1"), f"{name}.bn1").relu()
            z = norm(conv(z, f"{name}.conv2", dilation, step), f"{name}.bn2").relu()
            z = norm(conv(z, f"{name}.conv3"), f"{name}.bn3")
            if block == 0:
                y = norm(conv(y, f"{name}.downsample.0", stride=step), f"{name}.downsample.1")
            y = (y + z).relu()

    def branch(z, name, dilation=1):
        return norm(conv(z, f"{name}.0", dilation), f"{name}.1").relu()

    def pooled(name, bins):
        z = norm(conv(F.adaptive_avg_pool2d(y, bins), f"{name}.1"), f"{name}.2").relu()
        return F.interpolate(z, size=y.shape[-2:], mode="bilinear", align_corners=True)

    if kind is PSPNet:
        parts = [y, *(pooled(f"context.features.{index}", bins) for index, bins in enumerate((1, 2, 3, 6)))]
    else:
        parts = [branch(y, f"context.convs.{index}", rate) for index, rate in enumerate((1, 6, 12, 18))]
        parts.append(pooled("context.convs.4", 1))
    z = branch(torch.cat(parts, dim=1), "head")
    z = F.conv2d(z, weights["head.4.weight"], weights["head.4.bias"])
    return F.interpolate(z, size=size, mode="bilinear", align_corners=True)


@both
def test_logits_are_those_of_plain_code(kind):
    torch.manual_seed(0)
    net = kind(3, 4)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 3, 5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    x = images(1, 49)
    with torch.no_grad():
        logits, expected = net.eval()(x), plain(net.state_dict(), x, kind)
    assert expected.std() > 1e-4
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@both
def test_eval_mode_is_deterministic_and_images_do_not_depend_on_each_other(kind):
    net, x = small(kind), images(3)
    with torch.no_grad():
        logits = net(x)
        assert torch.equal(net(x), logits)
        torch.testing.assert_close(net(x[1:2]), logits[1:2], rtol=1e-4, atol=1e-4)
        assert not torch.equal(net.train()(x), net(x))  # dropout draws anew


@both
def test_the_gradient_of_a_class_reaches_the_image(kind):
    net, x = small(kind), images(1).requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[0, 1, 16, 16], x)
    assert (gradient[0].abs().amax(dim=0) > 0).float().mean() > 0.99


@both
def test_other_sides_are_padded_with_zeros_and_cut_back_and_it_is_said_once(kind, caplog):
    log_once.cache_clear()
    net, x = small(kind), images(1, 41)[..., :37, :]
    padded = F.pad(x, (0, 0, 0, 4))
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        logits = net(x)
        net(x)
        assert torch.equal(logits, net(padded)[..., :37, :])
        outputs = net.training_outputs(x)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["images of 37 x 41 are padded to 41 x 41, since sides must be 8k + 1"]
    assert logits.shape == outputs.logits.shape == outputs.auxiliary.shape == (1, 3, 37, 41)


# -- heads -------------------------------------------------------------------------------------------------------------


def passes(net):
    """How often each head has been asked; counts from now on."""
    seen = {}
    for name in ("head", "auxiliary_head", "adversarial_head", "mask_head"):
        if (head := getattr(net, name)) is not None:
            seen[name] = 0
            head.register_forward_hook(lambda *_, name=name: seen.update({name: seen[name] + 1}))
    return seen


@both
def test_the_auxiliary_head_is_of_training_alone(kind):
    net, x = small(kind), images()
    seen = passes(net)
    logits = net(x)
    assert seen == {"head": 1, "auxiliary_head": 0}
    outputs = net.training_outputs(x)
    assert seen == {"head": 2, "auxiliary_head": 1}
    assert outputs.mask is None
    assert torch.equal(outputs.logits, logits)
    outputs.auxiliary.sum().backward()
    assert net.layer3[0].conv1.weight.grad.abs().sum() > 0
    assert net.layer4[0].conv1.weight.grad is None
    assert net.head[0].weight.grad is None


@both
def test_without_attacks_ddc_at_is_its_first_head(kind):
    net, x = small(kind, ddc_at=True), images()
    seen = passes(net)
    with torch.no_grad():
        logits = net(x)
        assert seen == {"head": 1, "auxiliary_head": 0, "adversarial_head": 0, "mask_head": 0}
        nn.init.zeros_(net.adversarial_head[4].weight)
        nn.init.zeros_(net.mask_head[4].weight)
        assert torch.equal(net(x), logits)


@both
def test_the_mask_chooses_between_the_heads_of_ddc_at(kind):
    net, x = small(kind, ddc_at=True), images()
    nn.init.normal_(net.mask_head[4].weight, 0, 3)
    outputs = net.training_outputs(x)
    clean = net(x)
    net.head, net.adversarial_head = net.adversarial_head, net.head
    adversarial = net(x)
    net.head, net.adversarial_head = net.adversarial_head, net.head
    attacked = outputs.mask[:, ADVERSARIAL] > outputs.mask[:, CLEAN]
    assert 0.02 < attacked.float().mean() < 0.98
    for label in range(3):
        assert torch.equal(outputs.logits[:, label][attacked], adversarial[:, label][attacked])
        assert torch.equal(outputs.logits[:, label][~attacked], clean[:, label][~attacked])
    assert not torch.equal(clean, adversarial)


@both
@pytest.mark.parametrize(
    ("said", "used", "idle"), [(CLEAN, "head", "adversarial_head"), (ADVERSARIAL, "adversarial_head", "head")]
)
def test_only_the_chosen_head_of_ddc_at_learns_from_the_merged_logits(kind, said, used, idle):
    net = small(kind, ddc_at=True)
    nn.init.zeros_(net.mask_head[4].weight)
    net.mask_head[4].bias.data[said], net.mask_head[4].bias.data[1 - said] = 1.0, 0.0
    outputs = net.training_outputs(images())
    outputs.logits.square().sum().backward()
    assert net.get_submodule(used)[0].weight.grad.abs().sum() > 0
    assert net.get_submodule(idle)[0].weight.grad.abs().sum() == 0
    assert net.mask_head[0].weight.grad is None  # a choice has no gradient; the mask has its own loss
    F.cross_entropy(net.training_outputs(images()).mask, torch.full((2, 33, 33), ADVERSARIAL)).backward()
    assert net.mask_head[4].bias.grad.abs().sum() > 0


# -- with attacks ------------------------------------------------------------------------------------------------------


@both
def test_the_attack_core_takes_layer4_as_features(kind):
    net, x = small(kind), images()
    pixels = x.sub(x.min()).div(x.max() - x.min())
    model = Normalized(net, [0.5] * 3, [0.2] * 3)
    labels = model(pixels).argmax(dim=1)
    assert all(len(image.unique()) > 1 for image in labels), "the inter-class term needs two classes"
    before = {name: value.clone() for name, value in net.state_dict().items()}
    core = AttackCore(model, feature_layer="model.layer4")
    core.reset(LinfBall.around(pixels, 0.03), labels)
    assert core.features.shape == (2, 512, 5, 5)
    core.step(StepSpec(torch.zeros(2, 33, 33), step_size=0.5, inter=1.0))  # the inter-class term alone
    moved = (core.adversarial - pixels).abs().flatten(1)
    assert (moved.amax(dim=1) - 0.015).abs().max() < 1e-6
    assert (moved > 0.014).float().mean() > 0.9
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@both
def test_rp_pgd_takes_right_pixels_away(kind):
    net = small(kind)
    pixels = images().sigmoid()
    labels = net(pixels).argmax(dim=1)
    adversarial = ATTACKS["rp_pgd"](net, pixels, labels, eps="16/255", steps=3, feature_layer="layer4")
    assert (adversarial - pixels).abs().max() <= 16 / 255 + 1e-6
    assert (net(adversarial).argmax(dim=1) == labels).float().mean() < 0.9


# -- files and refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "settings"), [(PSPNet, {"bins": (1, 2)}), (DeepLabV3, {"rates": (2, 4)})])
def test_a_network_comes_back_from_its_file(kind, settings, tmp_path):
    net = small(kind, channels=1, ddc_at=True, deep_stem=True, dropout=0.2, **settings)
    save_network(tmp_path / "net.safetensors", net)
    loaded = load_network(tmp_path / "net.safetensors", KINDS, out_channels=3)
    assert type(loaded) is kind
    assert loaded.description == net.description
    x = images(1, channels=1)
    assert torch.equal(loaded(x), net(x))


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"in_channels": 0}, "in_channels is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"backbone": "resnet5"}, "backbone is 'resnet5' but must be one of .*did you mean 'resnet50'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"bins": (1, 2, 3)}, "bins is .1, 2, 3. but their number must divide the 2048 maps of resnet50"),
        ({"bins": ()}, "bins is .. but"),
        ({"bins": (0, 1)}, "bins is .0, 1. but each must be"),
    ],
)
def test_wrong_arguments_are_refused(settings, wrong):
    with pytest.raises(ValueError, match=wrong):
        outline(PSPNet, **{"in_channels": 3, "out_channels": 2, **settings})


def test_rates_below_one_are_refused():
    with pytest.raises(ValueError, match=r"rates is .6, 0. but each must be"):
        outline(DeepLabV3, 3, 2, rates=(6, 0))


@both
def test_images_that_do_not_fit_are_refused(kind):
    net = small(kind)
    with pytest.raises(ValueError, match=r"images are \[1, 1, 33, 33\] but \w+ needs \[B, 3, H, W\]; build it with"):
        net(torch.zeros(1, 1, 33, 33))
    with pytest.raises(ValueError, match=r"images are \[3, 33, 33\]"):
        net(torch.zeros(3, 33, 33))
    with pytest.raises(ValueError, match="the batch is of one image, but in train mode"):
        net.train()(images(1))
    net.context.eval()
    assert net(images(1)).shape == (1, 3, 33, 33)
