"""Weights in the layouts of torchvision, semseg and the released programs (docs/rp-pgd.md, Method 13)."""

import os
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file
from segarena.segmenters.deeplab import DeepLabV3
from segarena.segmenters.pretrained import load_imagenet, load_released
from segarena.segmenters.pspnet import PSPNet

COUNTER = "num_batches_tracked"


def drawn(shapes):
    generator = torch.Generator().manual_seed(len(shapes))
    return {
        name: torch.tensor(7) if name.endswith(COUNTER) else torch.rand(shape, generator=generator) + 0.1
        for name, shape in shapes.items()
    }


def norm(name, maps):
    return {f"{name}.{part}": (maps,) for part in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.{COUNTER}": ()
    }


def stages(inputs):
    """Names and shapes of stages 1 to 4 of a ResNet-18, in every layout."""
    shapes = {}
    for number, (before, maps) in enumerate(pairwise((inputs, 64, 128, 256, 512)), start=1):
        for block in range(2):
            name, first = f"layer{number}.{block}", before if block == 0 else maps
            shapes[f"{name}.conv1.weight"] = (maps, first, 3, 3)
            shapes |= norm(f"{name}.bn1", maps)
            shapes[f"{name}.conv2.weight"] = (maps, maps, 3, 3)
            shapes |= norm(f"{name}.bn2", maps)
            if first != maps:
                shapes[f"{name}.downsample.0.weight"] = (maps, first, 1, 1)
                shapes |= norm(f"{name}.downsample.1", maps)
    return shapes


def torchvision():
    stem = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    return drawn({**stem, **stages(64), "fc.weight": (1000, 512), "fc.bias": (1000,)})


def semseg():
    stem = {"conv1.weight": (64, 3, 3, 3), **norm("bn1", 64), "conv2.weight": (64, 64, 3, 3), **norm("bn2", 64)}
    stem |= {"conv3.weight": (128, 64, 3, 3), **norm("bn3", 128)}
    shapes = {**stem, **stages(128), "fc.weight": (1000, 512), "fc.bias": (1000,)}
    return drawn({name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)})  # an old file


def head(name, maps, hidden, outputs, kernel):
    return {
        f"{name}.0.weight": (hidden, maps, kernel, kernel),
        **norm(f"{name}.1", hidden),
        f"{name}.4.weight": (outputs, hidden, 1, 1),
        f"{name}.4.bias": (outputs,),
    }


def released_psp(classes=3, wrap="module."):
    """RP-PGD's: a stem of 7x7."""
    shapes = {"layer0.0.weight": (64, 3, 7, 7), **norm("layer0.1", 64), **stages(64)}
    for index in range(4):
        shapes[f"ppm.features.{index}.1.weight"] = (128, 512, 1, 1)
        shapes |= norm(f"ppm.features.{index}.2", 128)
    shapes |= {**head("cls", 1024, 128, classes, 3), **head("aux", 256, 64, classes, 3)}
    return {f"{wrap}{name}": value for name, value in drawn(shapes).items()}


def released_ddc_at(classes=3):
    """DDC-AT's DeepLabv3: a deep stem, four heads."""
    shapes = {"layer0.0.weight": (64, 3, 3, 3), **norm("layer0.1", 64), "layer0.3.weight": (64, 64, 3, 3)}
    shapes |= {**norm("layer0.4", 64), "layer0.6.weight": (128, 64, 3, 3), **norm("layer0.7", 128), **stages(128)}
    for index, kernel in enumerate((1, 3, 3, 3)):
        shapes[f"aspp.convs.{index}.0.weight"] = (64, 512, kernel, kernel)
        shapes |= norm(f"aspp.convs.{index}.1", 64)
    shapes |= {"aspp.convs.4.1.weight": (64, 512, 1, 1), **norm("aspp.convs.4.2", 64)}
    shapes |= {**head("cls1", 320, 64, classes, 1), **head("cls2", 320, 64, classes, 1)}
    shapes |= {**head("mask1", 320, 64, 2, 1), **head("aux_cls1", 256, 64, classes, 1)}
    return {f"module.{name}": value for name, value in drawn(shapes).items()}


def make(kind=PSPNet, **settings):
    return kind(3, 3, backbone="resnet18", **settings)


@pytest.fixture
def written(tmp_path):
    """Write what is given as `torch.save` does; its path."""

    def write(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def equal(own, theirs):
    return own.shape == theirs.shape and torch.equal(own, theirs)


# -- ImageNet ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvisions_weights_become_the_stages(suffix, tmp_path):
    net, file = make(), torchvision()
    heads = {name: value.clone() for name, value in net.state_dict().items() if not name.startswith("layer")}
    path = tmp_path / f"resnet18.{suffix}"
    save_file(file, path) if suffix == "safetensors" else torch.save(file, path)
    load_imagenet(net, path)
    assert equal(net.layer0[0].weight, file["conv1.weight"])
    assert equal(net.layer0[1].running_var, file["bn1.running_var"])
    assert equal(net.layer1[1].conv2.weight, file["layer1.1.conv2.weight"])
    assert equal(net.layer3[0].downsample[0].weight, file["layer3.0.downsample.0.weight"])
    assert equal(net.layer4[1].bn2.bias, file["layer4.1.bn2.bias"])
    assert net.layer4[1].bn2.num_batches_tracked == 7
    assert all(equal(net.state_dict()[name], value) for name, value in heads.items())
    own = {name for name in net.state_dict() if name.startswith("layer")}
    assert len(own) == len(file) - 2  # all but the classifier


def test_semsegs_weights_become_the_stages_with_a_deep_stem(written):
    net, file = make(DeepLabV3, deep_stem=True), semseg()
    load_imagenet(net, written(file))
    for number, place in ((1, 0), (2, 3), (3, 6)):
        assert equal(net.layer0[place].weight, file[f"conv{number}.weight"])
        assert equal(net.layer0[place + 1].running_mean, file[f"bn{number}.running_mean"])
    assert equal(net.layer1[0].conv1.weight, file["layer1.0.conv1.weight"])
    assert equal(net.layer1[0].downsample[0].weight, file["layer1.0.downsample.0.weight"])
    assert net.layer0[1].num_batches_tracked == 0  # which old files lack


def test_the_stem_must_be_the_networks(written):
    with pytest.raises(
        ValueError, match=r"a stem of three 3x3 convolutions but the network one of one 7x7 convolution"
    ):
        load_imagenet(make(), written(semseg()))
    with pytest.raises(ValueError, match=r"one of three 3x3 convolutions; build PSPNet with deep_stem=False"):
        load_imagenet(make(deep_stem=True), written(torchvision()))


def test_missing_and_unexpected_weights_are_named_as_the_file_has_them(written):
    file = torchvision()
    del file["bn1.weight"], file["layer2.1.conv1.weight"]
    file["layer2.7.conv1.weight"] = torch.zeros(1)
    wrong = (
        r"weights\.pth' does not fit PSPNet on resnet18: missing 'bn1\.weight', 'layer2\.1\.conv1\.weight', unexpected "
        r"'layer2\.7\.conv1\.weight'; build"
    )
    with pytest.raises(ValueError, match=wrong):
        load_imagenet(make(), written(file))
    with torch.device("meta"):
        deeper = PSPNet(3, 3)
    with pytest.raises(ValueError, match=r"missing 'layer1\.0\.conv3\.weight', .* and \d+ more, unexpected none"):
        load_imagenet(deeper, written(torchvision()))


def test_a_refused_file_changes_nothing(written):
    net, file = make(), torchvision()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    file["layer4.1.bn2.bias"][3] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in parameter 'layer4\.1\.bn2\.bias'"):
        load_imagenet(net, written(file))
    file["layer4.1.bn2.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"parameter 'layer4\.1\.bn2\.bias' is \[7\] there but \[512\] in PSPNet"):
        load_imagenet(net, written(file))
    file["layer4.1.bn2.bias"] = torch.zeros(512, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"float16"):
        load_imagenet(net, written(file))
    assert all(equal(value, before[name]) for name, value in net.state_dict().items())


def test_images_of_one_channel_need_other_weights(written):
    with pytest.raises(ValueError, match=r"'layer0\.0\.weight' is \[64, 3, 7, 7\] there but \[64, 1, 7, 7\]"):
        load_imagenet(PSPNet(1, 3, backbone="resnet18"), written(torchvision()))


# -- released checkpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["module.", ""])
def test_a_checkpoint_of_rp_pgd_becomes_the_network(wrap, written):
    net, file = make(), released_psp(wrap=wrap)
    load_released(
        net, written({"epoch": 50, "state_dict": file, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}})
    )
    assert equal(net.layer0[0].weight, file[f"{wrap}layer0.0.weight"])
    assert equal(net.context.features[3][1].weight, file[f"{wrap}ppm.features.3.1.weight"])
    assert equal(net.head[0].weight, file[f"{wrap}cls.0.weight"])
    assert equal(net.head[4].bias, file[f"{wrap}cls.4.bias"])
    assert equal(net.auxiliary_head[1].running_mean, file[f"{wrap}aux.1.running_mean"])
    assert len(net.state_dict()) == len(file)


def test_a_checkpoint_of_ddc_at_becomes_the_network_with_its_heads(written):
    net, file = make(DeepLabV3, deep_stem=True, ddc_at=True), released_ddc_at()
    load_released(net, written({"state_dict": file}))
    heads = {"cls1": net.head, "cls2": net.adversarial_head, "mask1": net.mask_head, "aux_cls1": net.auxiliary_head}
    for name, own in heads.items():
        assert equal(own[0].weight, file[f"module.{name}.0.weight"])
        assert equal(own[4].bias, file[f"module.{name}.4.bias"])
    assert equal(net.context.convs[2][0].weight, file["module.aspp.convs.2.0.weight"])
    assert equal(net.context.convs[4][1].weight, file["module.aspp.convs.4.1.weight"])
    assert equal(net.layer0[6].weight, file["module.layer0.6.weight"])
    assert len(net.state_dict()) == len(file)


def test_what_a_checkpoint_was_trained_as_is_named(written):
    with pytest.raises(ValueError, match=r"is of 21 classes but the network has 3; build PSPNet with out_channels=21"):
        load_released(make(), written(released_psp(21)))
    with pytest.raises(ValueError, match=r"lacks DDC-AT's heads but the network has them; .* ddc_at=False"):
        load_released(make(ddc_at=True), written(released_psp()))
    with pytest.raises(ValueError, match=r"has DDC-AT's heads but the network lacks them; .* ddc_at=True"):
        load_released(make(DeepLabV3, deep_stem=True), written(released_ddc_at()))
    with pytest.raises(ValueError, match=r"build DeepLabV3 with deep_stem=True"):
        load_released(make(DeepLabV3, ddc_at=True), written(released_ddc_at()))
    with pytest.raises(
        ValueError, match=r"missing 'aspp\.convs\.0\.0\.weight', .* unexpected 'ppm\.features\.0\.1\.weight'"
    ):
        load_released(make(DeepLabV3), written(released_psp()))
    file = {name: value for name, value in released_psp().items() if ".aux." not in name}
    with pytest.raises(ValueError, match=r"missing 'aux\.0\.weight', .*, unexpected none"):
        load_released(make(), written(file))


# -- files -------------------------------------------------------------------------------------------------------------


class Bomb:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("load", [load_imagenet, load_released])
def test_a_file_with_code_is_refused_and_does_not_run(load, tmp_path, written):
    path = written({"state_dict": released_psp(), "args": Bomb(tmp_path / "run")})
    with pytest.raises(ValueError, match=r"holds more than tensors, numbers and text, .* since it could run code"):
        load(make(), path)
    assert not (tmp_path / "run").exists()
