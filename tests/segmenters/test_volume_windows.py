"""Logits of whole volumes by windows (docs/seat.md, Method 15)."""

import doctest

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from segarena.segmenters import volume_windows
from segarena.segmenters.volume_windows import VolumeWindows, mirrored, window_centres, window_weights
from torch import nn


@pytest.mark.parametrize(
    ("size", "length", "centres"),
    [
        (32, 32, [16]), (32, 35, [16, 19]), (32, 48, [16, 32]), (32, 64, [16, 48]), (32, 80, [16, 40, 64]),
        (32, 100, [16, 33, 50, 67, 84]), (256, 300, [128, 172]), (256, 512, [128, 384]),
    ],
)  # fmt: skip
def test_centres_are_the_known_ones(size, length, centres):
    assert window_centres(length, size) == centres


def test_windows_cover_every_voxel_and_stay_inside():
    for size in (1, 2, 7, 8):
        for length in range(size, 40):
            firsts = [centre - size // 2 for centre in window_centres(length, size)]
            assert firsts[0] == 0
            assert firsts[-1] == length - size
            assert {first + n for first in firsts for n in range(size)} == {*range(length)}


def test_weights_are_a_gaussian_that_half_precision_loses():
    weights = window_weights((32, 48, 32))
    assert weights.dtype == torch.float32
    known = {(16, 24, 16): 1, (12, 24, 16): 0.6065307, (0, 24, 16): 3.354626e-4, (0, 0, 0): 3.775e-11}
    for index, value in known.items():
        assert weights[index].item() == pytest.approx(value, rel=1e-4)
    assert (weights.half() == 0).sum() == 901
    assert weights.numel() == 49_152
    spike = np.zeros((32, 48, 32))
    spike[16, 24, 16] = 1
    theirs = gaussian_filter(spike, (4, 6, 4), 0, mode="constant")
    assert torch.allclose(weights, torch.from_numpy(theirs / theirs.max()).float(), atol=1e-7)
    assert (window_weights((200, 3, 20)) > 0).all()


def test_mirrored_ends_are_not_repeated():
    assert mirrored(5, 8) == [1, 0, 1, 2, 3, 4, 3, 2]
    assert mirrored(1, 3) == [0, 0, 0]
    assert mirrored(2, 7) == [0, 1, 0, 1, 0, 1, 0]
    assert mirrored(4, 4) == [0, 1, 2, 3]
    assert doctest.testmod(volume_windows).attempted >= 4


class Voxelwise(nn.Module):
    """Logits of each voxel by itself: windows change nothing. Counts windows, and refuses other sizes."""

    def __init__(self, size):
        super().__init__()
        self.size, self.seen = size, 0

    def forward(self, x):
        assert x.shape[2:] == self.size
        self.seen += len(x)
        return torch.cat([x, -2 * x, x.square()], dim=1)


@pytest.mark.parametrize("windows", ["monai", "rog"])
@pytest.mark.parametrize("sides", [(8, 12, 8), (11, 20, 9), (5, 30, 3)])
def test_a_network_of_voxels_gives_the_same_by_windows(windows, sides):
    net = Voxelwise((8, 12, 8))
    volumes = torch.randn(2, 1, *sides, generator=torch.Generator().manual_seed(0))
    found = VolumeWindows(net, (8, 12, 8), windows, batch_size=3)(volumes)
    assert found.shape == (2, 3, *sides)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.cat([volumes, -2 * volumes, volumes.square()], dim=1), atol=1e-5)
    if windows == "rog":
        expected = 2
        for length, size in zip(sides, (8, 12, 8), strict=True):
            expected *= len(window_centres(max(length, size), size))
        assert net.seen == expected


def test_logits_are_the_weighted_mean_of_the_windows():
    """Each window gives its own number: where two overlap, the weights of both decide."""

    class Numbered(nn.Module):
        def __init__(self):
            super().__init__()
            self.count = 0

        def forward(self, x):
            start = self.count
            self.count += len(x)
            return torch.arange(start, self.count).view(-1, 1, 1, 1, 1).expand(-1, 2, *x.shape[2:]).float()

    found = VolumeWindows(Numbered(), (16, 1, 1), "rog")(torch.zeros(1, 1, 19, 1, 1))[0, 0, :, 0, 0]
    weights = window_weights((16,))
    first, second = torch.zeros(19), torch.zeros(19)
    first[:16], second[3:] = weights, weights
    assert torch.allclose(found, second / (first + second), atol=1e-6)
    assert found[:3].tolist() == [0, 0, 0]
    assert found[-3:].tolist() == [1, 1, 1]


@pytest.mark.parametrize("windows", ["monai", "rog"])
def test_gradients_reach_every_voxel_where_they_are_on(windows):
    torch.manual_seed(0)
    net = VolumeWindows(nn.Conv3d(1, 2, 3, padding=1), (8, 8, 8), windows, batch_size=2)
    volumes = torch.randn(2, 1, 11, 8, 5, requires_grad=True)
    with torch.no_grad():
        assert not net(volumes).requires_grad
    (gradient,) = torch.autograd.grad(net(volumes)[1, 1].sum(), volumes)
    assert (gradient[1] != 0).all()
    assert (gradient[0] == 0).all()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="windows is 'mona' but must be one of"):
        VolumeWindows(nn.Identity(), (8, 8, 8), "mona")
    with pytest.raises(ValueError, match="window_size is"):
        VolumeWindows(nn.Identity(), (8, 8))
    with pytest.raises(ValueError, match=r"volumes are \[1, 8, 8, 8\]"):
        VolumeWindows(nn.Identity(), (8, 8, 8))(torch.zeros(1, 8, 8, 8))


@pytest.mark.parametrize("windows", ["monai", "rog"])
def test_windows_stay_on_the_device(windows, police):
    net = VolumeWindows(nn.Conv3d(1, 2, 3, padding=1).to("cuda"), (8, 8, 8), windows)
    assert net(torch.randn(1, 1, 11, 8, 5).to("cuda")).shape == (1, 2, 11, 8, 5)
