"""UNet11 and the files that its weights come in (docs/apga.md, Method 10)."""

import pytest
import torch
from safetensors.torch import save_file
from segarena.common.networks import load_network, save_network
from segarena.segmenters.pretrained import load_ternausnet, load_vgg11
from segarena.segmenters.unet11 import UNet11

ENCODER = {"conv1": (0, 3, 64), "conv2": (3, 64, 128), "conv3s": (6, 128, 256), "conv3": (8, 256, 256)}
ENCODER |= {"conv4s": (11, 256, 512), "conv4": (13, 512, 512), "conv5s": (16, 512, 512), "conv5": (18, 512, 512)}
DECODER = {"center": (512, 512, 256), "dec5": (768, 512, 256), "dec4": (768, 512, 128)}
DECODER |= {"dec3": (384, 256, 64), "dec2": (192, 128, 32)}


def drawn(*shape):
    return torch.rand(shape) * 0.1


def vgg11():
    file = {}
    for place, inputs, outputs in ENCODER.values():
        file |= {f"features.{place}.weight": drawn(outputs, inputs, 3, 3), f"features.{place}.bias": drawn(outputs)}
    return {**file, "classifier.0.weight": drawn(8, 4), "classifier.0.bias": drawn(8)}


def ternausnet():
    """56 tensors: the encoder under two names."""
    file = {}
    for name, (place, inputs, outputs) in ENCODER.items():
        weight, bias = drawn(outputs, inputs, 3, 3), drawn(outputs)
        file |= {f"encoder.{place}.weight": weight, f"encoder.{place}.bias": bias}
        file |= {f"{name}.weight": weight, f"{name}.bias": bias}
    for name, (inputs, middle, outputs) in DECODER.items():
        file |= {f"{name}.block.0.conv.weight": drawn(middle, inputs, 3, 3), f"{name}.block.0.conv.bias": drawn(middle)}
        file |= {f"{name}.block.1.weight": drawn(middle, outputs, 3, 3), f"{name}.block.1.bias": drawn(outputs)}
    file |= {"dec1.conv.weight": drawn(32, 96, 3, 3), "dec1.conv.bias": drawn(32)}
    return {**file, "final.weight": drawn(1, 32, 1, 1), "final.bias": drawn(1)}


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(3)
    return ternausnet()


@pytest.fixture
def written(tmp_path):
    """Write what is given as `torch.save` does; its path."""

    def write(content):
        torch.save(content, tmp_path / "weights.pt")
        return tmp_path / "weights.pt"

    return write


@pytest.mark.parametrize(("channels", "number"), [(3, 22_927_393), (1, 22_926_241)])
def test_it_has_the_published_number_of_parameters(channels, number):
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet11(channels).parameters()) == number


def test_it_gives_a_logit_for_each_pixel_of_any_multiples_of_32():
    net = UNet11()
    with torch.no_grad():
        assert net(torch.rand(2, 3, 64, 96)).shape == (2, 1, 64, 96)
        grey = torch.rand(1, 1, 32, 32)
        assert torch.equal(net(grey), net(grey.repeat(1, 3, 1, 1)))


def test_other_sides_are_refused_with_the_sides_to_pad_to():
    with torch.device("meta"):
        net = UNet11()
    with pytest.raises(ValueError, match=r"images are 50 x 64 but .* multiples of 32; resize or pad them to 64 x 64"):
        net(torch.zeros(1, 3, 50, 64))
    with pytest.raises(ValueError, match=r"images have shape \[1, 2, 64, 64\] but UNet11 needs \[B, 3, H, W\]"):
        net(torch.zeros(1, 2, 64, 64))


def test_every_layer_moves_the_logits():
    net = UNet11(1)
    net(torch.rand(1, 1, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_published_checkpoint_is_read_whatever_wraps_it(published, written):
    assert len(published) == 56
    net = UNet11()
    load_ternausnet(net, written({"model": {f"module.{name}": value for name, value in published.items()}}))
    own = net.state_dict()
    assert len(own) == 40
    assert torch.equal(own["conv4s.weight"], published["encoder.11.weight"])
    assert torch.equal(own["center.0.weight"], published["center.block.0.conv.weight"])
    assert torch.equal(own["dec3.2.bias"], published["dec3.block.1.bias"])
    assert torch.equal(own["dec1.weight"], published["dec1.conv.weight"])


@pytest.mark.parametrize("kept", ["encoder.", "conv"])
def test_one_of_the_two_names_of_the_encoder_is_enough(kept, published, tmp_path):
    dropped = tuple(ENCODER) if kept == "encoder." else ("encoder",)
    file = {name: value.clone() for name, value in published.items() if name.split(".")[0] not in dropped}
    assert len(file) == 40
    save_file(file, tmp_path / "net.safetensors")
    net = UNet11()
    load_ternausnet(net, tmp_path / "net.safetensors")
    assert torch.equal(net.conv5.weight, published["conv5.weight"])


def test_a_checkpoint_that_contradicts_itself_or_is_another_is_refused(published, written):
    with torch.device("meta"):
        net = UNet11()
    file = {**published, "encoder.3.bias": published["conv2.bias"] + 1}
    with pytest.raises(ValueError, match=r"different values under 'encoder\.3\.bias' and 'conv2\.bias'"):
        load_ternausnet(net, written(file))
    less = {name: value for name, value in published.items() if not name.startswith("dec2.")}
    with pytest.raises(ValueError, match=r"does not fit UNet11: missing 'dec2\.block\.0\.conv\.weight', .* unexpected"):
        load_ternausnet(net, written(less))
    with pytest.raises(ValueError, match=r"unexpected 'extra'"):
        load_ternausnet(net, written({**published, "extra": torch.zeros(1)}))


def test_vgg11_becomes_the_encoder_and_the_decoder_stays(written):
    net, file = UNet11(), vgg11()
    decoder = net.dec3[0].weight.clone()
    load_vgg11(net, written(file))
    assert torch.equal(net.conv1.weight, file["features.0.weight"])
    assert torch.equal(net.conv5s.bias, file["features.16.bias"])
    assert torch.equal(net.dec3[0].weight, decoder)
    with pytest.raises(ValueError, match=r"missing 'features\.6\.weight'.*, unexpected 'features\.4\.weight'"):
        load_vgg11(net, written({k.replace("s.6.", "s.4."): v for k, v in file.items()}))  # with batch normalisation


def test_one_channel_sees_what_three_see_of_a_grey_picture(published, written):
    three, one, x = UNet11(), UNet11(1), torch.rand(1, 1, 32, 32)
    for net in (three, one):
        load_ternausnet(net, written(published))
    with torch.no_grad():
        torch.testing.assert_close(one(x), three(x), rtol=1e-4, atol=1e-4)


def test_it_is_kept_on_disk_with_its_channels(tmp_path):
    net = UNet11(1)
    save_network(tmp_path / "agent.safetensors", net)
    again = load_network(tmp_path / "agent.safetensors", UNet11, in_channels=1)
    assert torch.equal(again.final.weight, net.final.weight)
    with pytest.raises(ValueError, match="in_channels = 1 but 3 is needed"):
        load_network(tmp_path / "agent.safetensors", UNet11, in_channels=3)
