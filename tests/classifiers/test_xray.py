"""Classifiers of X-rays: networks, statistics of masked images, ImageNet files (docs/apga.md, Method 7)."""

import re

import pytest
import torch
import torch.nn.functional as F
from segarena.classifiers.xray import SplitBatchNorm, XrayClassifier, load_imagenet, probabilities
from segarena.common.networks import load_network, save_network


@pytest.fixture(scope="module")
def densenet():
    torch.manual_seed(0)
    return XrayClassifier().eval()


@pytest.fixture
def small():
    torch.manual_seed(0)
    return XrayClassifier("small_cnn", in_channels=1).eval()


def imagenet(net, old):
    """Torchvision's layout of DenseNet-169: names of versions before 0.3, or later ones."""
    file = {}
    for name, value in net.state_dict().items():
        if name.startswith("body.") and "masked_" not in name:
            name = name.replace("body.", "features.").replace(".layers.", ".")
            if old:
                name = re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name)
            if not (old and name.endswith("num_batches_tracked")):
                file[name] = torch.rand(value.shape) if value.is_floating_point() else torch.tensor(7)
    return {**file, "classifier.weight": torch.zeros(1000, 1664), "classifier.bias": torch.zeros(1000)}


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "number"), [(3, 12_487_810), (1, 12_481_538)])
def test_the_densenet_has_the_known_number_of_parameters_and_maps(channels, number):
    with torch.device("meta"):
        net = XrayClassifier(in_channels=channels)
        assert sum(p.numel() for p in net.parameters()) == number
        assert sum(p.numel() for p in net.head.parameters()) == 2 * 1664 + 2
        assert net.feature_maps(torch.zeros(2, channels, 224, 224)).shape == (2, 1664, 7, 7)


def test_the_densenet_is_monais(densenet):
    from monai.networks.nets import DenseNet169

    theirs = DenseNet169(spatial_dims=2, in_channels=3, out_channels=2).eval()
    weights = {name.replace("body.", "features."): value for name, value in densenet.state_dict().items()}
    theirs.load_state_dict({name.replace("head.", "class_layers.out."): value for name, value in weights.items()})
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(densenet(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_logits_are_the_head_of_the_mean_of_the_maps(small):
    x = torch.rand(3, 1, 32, 32)
    maps = small.feature_maps(x)
    assert maps.shape == (3, 64, 4, 4)
    assert maps.min() < 0
    torch.testing.assert_close(small(x), F.linear(maps.relu().mean((2, 3)), small.head.weight, small.head.bias))
    small(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in small.body.parameters())


def test_the_small_one_has_the_known_number_of_parameters(small):
    assert sum(p.numel() for p in small.parameters()) == 60_530


def test_a_grey_picture_is_repeated():
    net, x = XrayClassifier("small_cnn").eval(), torch.rand(2, 1, 16, 16)
    assert torch.equal(net(x), net(x.repeat(1, 3, 1, 1)))


def test_imagenets_mean_is_taken_off_inside():
    torch.manual_seed(0)
    plain = XrayClassifier("small_cnn").eval()
    net = XrayClassifier("small_cnn", normalize="imagenet").eval()
    net.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(net(x), plain((x - mean[:, None, None]) / std[:, None, None]))


def test_probabilities_are_those_of_bytes_and_of_floats_in_any_batches(small):
    images = torch.randint(256, (5, 1, 16, 16), dtype=torch.uint8)
    found = probabilities(small, images, batch_size=2)
    torch.testing.assert_close(found, probabilities(small, images / 255))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"network": "densenet"}, "network is 'densenet' but must be one of 'densenet169', 'small_cnn'"),
        ({"in_channels": 2}, "in_channels is 2 but must be one of 1, 3"),
        ({"out_channels": 1}, "out_channels is 1"),
        ({"in_channels": 1, "normalize": "imagenet"}, "in_channels is 1; use 3"),
    ],
)
def test_settings_that_make_no_classifier_are_refused(settings, match):
    with torch.device("meta"), pytest.raises(ValueError, match=match):
        XrayClassifier(**settings)


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 1, 31, 64), (1, 32, 32)])
def test_images_of_another_shape_are_refused(shape, densenet):
    with pytest.raises(ValueError, match=r"densenet169 needs \[B, 3, H, W\], .* of at least 32 x 32 pixels"):
        densenet(torch.zeros(shape))


def test_a_classifier_is_kept_on_disk(tmp_path, small):
    save_network(tmp_path / "net.safetensors", small)
    again = load_network(tmp_path / "net.safetensors", XrayClassifier, network="small_cnn", out_channels=2)
    x = torch.rand(1, 1, 16, 16)
    assert torch.equal(again(x), small(x))
    with pytest.raises(ValueError, match="out_channels = 2 but 6 is needed"):
        load_network(tmp_path / "net.safetensors", XrayClassifier, out_channels=6)


# -- statistics of masked images ---------------------------------------------------------------------------------------


def test_masked_images_have_statistics_of_their_own(densenet, tmp_path):
    net = XrayClassifier(split_bn=True)
    net.load_state_dict(densenet.state_dict(), strict=False)
    layers = [one for one in net.modules() if isinstance(one, SplitBatchNorm)]
    assert len(layers) == 169
    x = torch.rand(4, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), densenet(x))
        assert torch.equal(net(x, masked=True), net(x)), "they begin as the plain ones"
        plain = {name: value.clone() for name, value in net.state_dict().items()}
        net.train()(x * 0.1, masked=True)
        moved = {name for name, value in net.state_dict().items() if not torch.equal(value, plain[name])}
        assert moved == {name for name in plain if "masked_" in name}
        assert torch.equal(net.eval()(x), densenet(x)), "plain images do not see what masked ones taught"
        assert not torch.equal(net(x, masked=True), net(x))
        masked = {name: value.clone() for name, value in net.state_dict().items() if "masked_" in name}
        net.train()(x)
        assert all(torch.equal(net.state_dict()[name], value) for name, value in masked.items())
    save_network(tmp_path / "net.safetensors", net)
    again = load_network(tmp_path / "net.safetensors", XrayClassifier, split_bn=True)
    assert torch.equal(again.body.norm0.masked_running_mean, net.body.norm0.masked_running_mean)


def test_a_masked_batch_is_normalised_by_itself_and_learned_from():
    layer = SplitBatchNorm(torch.nn.BatchNorm2d(2))
    layer.masked = True
    x = torch.randn(8, 2, 4, 4) * 3 + 5
    y = layer(x)
    torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.masked_running_mean, 0.1 * x.mean(dim=(0, 2, 3)))
    assert torch.equal(layer.running_mean, torch.zeros(2))
    (y * torch.rand_like(y)).sum().backward()
    assert layer.weight.grad.abs().min() > 0


# -- ImageNet ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [True, False])
def test_imagenet_weights_of_any_version_become_the_body(old, tmp_path):
    net = XrayClassifier(split_bn=True)
    file, head = imagenet(net, old), net.head.weight.clone()
    torch.save(file, tmp_path / "densenet169.pth")
    load_imagenet(net, tmp_path / "densenet169.pth")
    inner = "features.denseblock3.denselayer32."
    own = net.body.denseblock3.denselayer32.layers
    assert torch.equal(own.conv2.weight, file[f"{inner}conv{'.' * old}2.weight"])
    assert torch.equal(own.norm1.running_var, file[f"{inner}norm{'.' * old}1.running_var"])
    assert torch.equal(net.body.transition2.conv.weight, file["features.transition2.conv.weight"])
    assert torch.equal(net.body.norm5.masked_running_mean, file["features.norm5.running_mean"])
    assert torch.equal(net.head.weight, head)


def test_files_and_networks_that_do_not_fit_are_refused(densenet, tmp_path):
    path = tmp_path / "net.pth"
    file = imagenet(densenet, old=False)
    torch.save({name: value for name, value in file.items() if "norm5.weight" not in name}, path)
    with pytest.raises(ValueError, match=r"fit DenseNet-169: missing 'features.norm5.weight', unexpected none"):
        load_imagenet(densenet, path)
    for settings in ({"in_channels": 1}, {"network": "small_cnn"}):
        with torch.device("meta"):
            net = XrayClassifier(**settings)
        with pytest.raises(ValueError, match=r"use network='densenet169', in_channels=3"):
            load_imagenet(net, path)
