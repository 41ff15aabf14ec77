"""Probabilities of whole photographs (docs/rp-pgd.md, Method 16), compared with plain loops over windows."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from segarena.datasets.images import IMAGENET_MEAN
from segarena.segmenters.sliding import (
    REFERENCE,
    Protocol,
    ProtocolNet,
    protocol_probabilities,
    to_classes,
    window_starts,
)
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    """Sees borders: its convolutions pad with 0, so that a window is not a part of the whole."""

    def __init__(self, classes=4, stride=1, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 5, padding=2), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, classes, 5, stride, 2)
        )
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return 5 * self.layers(x)


def images(number=1, height=30, width=44, seed=1):
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def plain(net, image, crop, base_size, scales=(1.0,), flip=False):
    """The released program's protocol, window by window, in NumPy: probabilities [K, H, W] of one image [3, H, W]."""
    net.eval()
    height, width = image.shape[1:]
    total = 0.0
    for scale in scales:
        long_side = round(scale * base_size)
        if height > width:
            new_height, new_width = long_side, round(long_side / height * width)
        else:
            new_height, new_width = round(long_side / width * height), long_side
        scaled = functional.interpolate(image[None], (new_height, new_width), mode="bilinear", align_corners=False)[0]
        pad_height, pad_width = max(crop - new_height, 0), max(crop - new_width, 0)
        top, left = int(pad_height / 2), int(pad_width / 2)
        canvas = np.empty((3, new_height + pad_height, new_width + pad_width), np.float32)
        canvas[:] = np.array(IMAGENET_MEAN)[:, None, None]
        canvas[:, top : top + new_height, left : left + new_width] = scaled.numpy()
        stride = math.ceil(crop * 2 / 3)
        rows, columns = (math.ceil((n - crop) / stride) + 1 for n in canvas.shape[1:])
        found, count = np.zeros((4, *canvas.shape[1:])), np.zeros(canvas.shape[1:])
        for row in range(rows):
            for column in range(columns):
                below, right = min(row * stride + crop, canvas.shape[1]), min(column * stride + crop, canvas.shape[2])
                y, x = slice(below - crop, below), slice(right - crop, right)
                window = torch.tensor(canvas[:, y, x])[None]
                p = net(window).softmax(dim=1)[0].numpy()
                if flip:
                    mirrored = net(torch.tensor(canvas[:, y, x][:, :, ::-1].copy())[None]).softmax(dim=1)[0].numpy()
                    p = (p + mirrored[:, :, ::-1]) / 2
                found[:, y, x] += p
                count[y, x] += 1
        found = torch.tensor((found / count)[:, top : top + new_height, left : left + new_width])
        total += functional.interpolate(found[None], (height, width), mode="bilinear", align_corners=False)[0]
    return total / len(scales)


@pytest.mark.parametrize(
    ("size", "crop", "base_size", "scales", "flip"),
    [
        ((30, 44), 17, 50, (1.0,), False),
        ((44, 30), 17, 44, (1.0,), True),
        ((30, 44), 40, 50, (1.0,), False),  # padded above and below
        ((30, 44), 65, 50, (1.0,), True),  # padded on all sides, one window
        ((30, 44), 17, 40, (0.5, 1.0, 1.25), True),
    ],
)
def test_windows_are_what_plain_loops_make_of_them(size, crop, base_size, scales, flip):
    net, batch = Net(), images(2, *size)
    with torch.no_grad():
        found = protocol_probabilities(net, batch, Protocol(crop, base_size, scales, flip, batch_size=3))
    for image, p in zip(batch, found, strict=True):
        assert torch.allclose(p.double(), plain(net, image, crop, base_size, scales, flip), atol=1e-5)
    assert torch.allclose(found.sum(dim=1), torch.ones(2, *size), atol=1e-5)


@pytest.mark.parametrize(
    ("length", "crop", "starts"),
    [
        (473, 473, [0]),  # VOC, 375 x 500 brought to 384 x 512 and padded
        (512, 473, [0, 39]),
        (512, 449, [0, 63]),  # Cityscapes, 512 x 1024
        (1024, 449, [0, 300, 575]),
        (465, 465, [0]),  # ADE20K, 512 x 683 brought to 384 x 512 and padded
        (512, 465, [0, 47]),
    ],
)
def test_known_windows(length, crop, starts):
    assert window_starts(length, crop) == starts


def test_windows_reach_every_pixel_and_stay_inside():
    for crop in range(1, 30):
        for length in range(crop, 90):
            starts = window_starts(length, crop)
            assert starts[0] == 0
            assert starts[-1] == length - crop
            assert all(0 < b - a <= -(-2 * crop // 3) for a, b in pairwise(starts))


@pytest.mark.parametrize(
    ("name", "size", "windows", "crop"),
    [("voc", (375, 500), 2, 473), ("cityscapes", (512, 1024), 6, 449), ("ade20k", (512, 683), 2, 465)],
)
def test_numbers_of_the_program(name, size, windows, crop):
    net = Net(channels=1)
    net.layers = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        protocol_probabilities(net, images(1, *size), REFERENCE[name])
    assert net.seen == [(windows, 3, crop, crop)]


@pytest.mark.parametrize(("size", "seen"), [((30, 44), (33, 49)), ((33, 49), (33, 49)), ((34, 41), (41, 41))])
def test_the_whole_image_is_one_pass_over_sides_of_8_k_plus_1(size, seen):
    net, batch = Net(), images(2, *size)
    with torch.no_grad():
        found = protocol_probabilities(net, batch, Protocol(crop=None, base_size=None))
        net.eval()
        top, left = (seen[0] - size[0]) // 2, (seen[1] - size[1]) // 2
        canvas = torch.tensor(IMAGENET_MEAN)[:, None, None].expand(2, 3, *seen).clone()
        canvas[:, :, top : top + size[0], left : left + size[1]] = batch
        expected = net(canvas).softmax(dim=1)[:, :, top : top + size[0], left : left + size[1]]
    assert net.seen[0] == (2, 3, *seen)
    assert torch.allclose(found, expected, atol=1e-6)


def test_flip_makes_predictions_of_mirrored_images_mirrored_ones():
    net, image = Net(), images(1, 33, 49)
    with torch.no_grad():
        once, both, mirrored = (
            protocol_probabilities(net, x, Protocol(None, None, flip=flip))
            for x, flip in ((image, False), (image, True), (image.flip(-1), True))
        )
    assert not torch.allclose(once, both, atol=1e-3)
    assert torch.allclose(both, mirrored.flip(-1), atol=1e-5)


def test_the_network_is_in_evaluation_mode_and_gradients_reach_the_image():
    net, image = Net().train(), images().requires_grad_()
    one, two = (protocol_probabilities(net, image, Protocol(17, 50)) for _ in range(2))
    assert torch.equal(one, two)  # no dropout
    assert net.training
    (gradient,) = torch.autograd.grad(one[:, 0].sum(), image)
    assert (gradient.abs().sum(dim=1) > 0).all()


def test_coarse_logits_are_resized_and_binary_networks_stay_binary():
    coarse, image = Net(stride=2), images(1, 33, 33)
    with torch.no_grad():
        found = protocol_probabilities(coarse, image, Protocol(33, 33))
        logits = functional.interpolate(coarse.eval()(image), (33, 33), mode="bilinear", align_corners=True)
        assert torch.allclose(found, logits.softmax(dim=1), atol=1e-6)
        binary = protocol_probabilities(Net(classes=1), image, Protocol(17, 33))
    assert binary.shape == (1, 1, 33, 33)
    assert torch.equal(to_classes(binary)[0], (binary[0, 0] > 0.5).to(torch.uint8))
    assert torch.equal(to_classes(found)[0].long(), found[0].argmax(dim=0))


def test_wrong_values_are_refused_by_name():
    with pytest.raises(ValueError, match=r"images are \[1, 1, 8, 8\] but must be .* it has 3"):
        protocol_probabilities(Net(), torch.zeros(1, 1, 8, 8), Protocol())
    with pytest.raises(ValueError, match=r"protocol.scales is \(\) but needs a factor"):
        Protocol(scales=())
    with pytest.raises(ValueError, match=r"protocol.crop is 0"):
        Protocol(crop=0)


def test_everything_runs_where_the_images_lie(police):
    net, batch = Net(), images(2)
    with torch.no_grad():
        on_host = protocol_probabilities(net, batch, Protocol(17, 50, flip=True))
        found = protocol_probabilities(net.to("cuda"), batch.to("cuda"), Protocol(17, 50, flip=True))
    assert found.device.type == "cuda"
    assert torch.allclose(found.to("cpu"), on_host, atol=1e-5)


def test_a_network_behind_its_protocol_gives_logits_of_the_protocols_probabilities():
    net, x = Net(), images(2)
    for protocol in (Protocol(crop=17, base_size=40, flip=True), Protocol(crop=None, base_size=None)):
        behind = ProtocolNet(net, protocol).eval()
        probabilities = protocol_probabilities(net, x, protocol)
        torch.testing.assert_close(behind(x).softmax(dim=1), probabilities)
        moved = x.clone().requires_grad_()
        labels = torch.randint(0, 4, (2, 30, 44), generator=torch.Generator().manual_seed(3))
        (gradient,) = torch.autograd.grad(functional.cross_entropy(behind(moved), labels), moved)
        wanted = x.clone().requires_grad_()
        right = protocol_probabilities(net, wanted, protocol).gather(1, labels[:, None])
        (expected,) = torch.autograd.grad(-right.log().mean(), wanted)
        torch.testing.assert_close(gradient, expected)
        assert (gradient != 0).flatten(1).any(dim=1).all()
    with pytest.raises(ValueError, match="gives one class but ProtocolNet needs at least two"):
        ProtocolNet(Net(classes=1), Protocol(crop=17, base_size=40))(x)
