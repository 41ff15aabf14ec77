"""Steepness of losses and networks in their input (docs/seat.md, Method 12)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from segarena.attacks.budget import image_range
from segarena.rewards.lipschitz import difference_quotient, magnitude, relative_magnitude, spectral_norm
from segarena.segmenters.dice_ce import dice_ce_of_images
from segarena.segmenters.rog import ROG
from segarena.segmenters.volume_networks import SegResNet
from torch import nn


class Linear(nn.Module):
    """Logits (0, 2 x)."""

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), 2 * x], dim=1)


def gradient_of(net, images, labels, factor=1.0):
    images = images.clone().requires_grad_()
    loss = F.cross_entropy(net(images), labels, reduction="none").flatten(1).mean(dim=1)
    return torch.autograd.grad(factor * loss.sum(), images)[0]


def test_a_linear_victim_has_its_known_magnitudes():
    images = torch.tensor([0.5, -1, 0, 1.5]).view(1, 1, 1, 1, 4)
    labels = torch.tensor([1, 0, 1, 0]).view(1, 1, 1, 4)
    gradient = gradient_of(Linear(), images, labels)
    assert magnitude(gradient).item() == pytest.approx(0.920359, abs=1e-6)
    assert relative_magnitude(gradient, *image_range(images)).item() == pytest.approx(2.300898, abs=1e-6)
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(dice_ce_of_images(Linear()(x), labels).sum(), x)
    assert magnitude(gradient).item() == pytest.approx(1.2566938, abs=1e-6)


def test_channels_count_by_their_own_range():
    gradient = torch.tensor([[1.0, -2.0], [3.0, 4.0]]).view(1, 2, 1, 1, 2)
    low, high = torch.tensor([0.0, -1.0]).view(1, 2, 1, 1, 1), torch.tensor([10.0, 1.0]).view(1, 2, 1, 1, 1)
    assert magnitude(gradient).tolist() == [10]
    assert relative_magnitude(gradient, low, high).tolist() == [3 * 10 + 7 * 2]


def test_the_scale_of_the_loss_changes_nothing():
    torch.manual_seed(0)
    net, images, labels = ROG(1, 3), torch.randn(2, 1, 16, 16, 16), torch.randint(3, (2, 16, 16, 16))
    plain, scaled = (gradient_of(net, images, labels, factor) for factor in (1.0, 65_536.0))
    assert torch.allclose(magnitude(scaled, scale=65_536.0), magnitude(plain), rtol=1e-4)
    assert (magnitude(scaled) / magnitude(plain)).mean().item() == pytest.approx(65_536, rel=1e-4)
    found = relative_magnitude(scaled, *image_range(images), scale=torch.tensor(65_536.0))
    assert torch.allclose(found, relative_magnitude(plain, *image_range(images)), rtol=1e-4)
    half = torch.full((1, 1, 300), 300.0, dtype=torch.float16)  # the sum is above what half precision holds
    assert magnitude(half).tolist() == [90_000]
    assert magnitude(half.fill_(torch.inf)).tolist() == [torch.inf]


@pytest.mark.parametrize("make", [ROG, SegResNet])
def test_the_scale_of_the_image_leaves_the_relative_magnitude(make):
    torch.manual_seed(1)
    net = make(1, 2).eval()
    images, labels = torch.randn(2, 1, 16, 16, 16), torch.randint(2, (2, 16, 16, 16))
    plain = gradient_of(net, images, labels)
    other = copy.deepcopy(net)
    first = next(module for module in other.modules() if isinstance(module, nn.Conv3d))
    with torch.no_grad():
        first.weight /= 8
    scaled = gradient_of(other, 8 * images, labels)
    found, expected = (relative_magnitude(g, *image_range(x)) for g, x in ((scaled, 8 * images), (plain, images)))
    assert torch.allclose(found, expected, rtol=1e-3)
    assert torch.allclose(8 * magnitude(scaled), magnitude(plain), rtol=1e-3)


def test_a_difference_quotient_is_the_change_of_the_mean_voxel():
    clean, reached = torch.zeros(3, 2, 1, 1, 2), torch.zeros(3, 2, 1, 1, 2)
    reached[0, 1, 0, 0, 0] = 100.0  # of two voxels, one goes from (1/2, 1/2) to (0, 1)
    reached[1, 1] = 100.0
    images = torch.zeros(3, 1, 1, 1, 2)
    moved = images.clone()
    moved[0, ..., 0], moved[1] = 0.5, -0.25
    found = difference_quotient(clean, reached, images, moved)
    assert found.tolist() == pytest.approx([1 / 2 / 0.5, 1 / 0.25, 0])


def test_the_spectral_norm_is_that_of_a_known_jacobian():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(3)
            self.weights = nn.Parameter(torch.randn(2, 12, 8, generator=generator))

        def forward(self, x):
            mixed = torch.einsum("bij,bj->bi", self.weights[: len(x)], x.flatten(1)).sin()
            return mixed.view(len(x), 3, 1, 2, 2)

    net, images = Mixing(), 0.1 * torch.randn(2, 2, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    jacobian = torch.autograd.functional.jacobian(net, images).reshape(2, 12, 2, 8)
    exact = torch.stack([torch.linalg.matrix_norm(jacobian[i, :, i], 2) for i in range(2)])
    found = spectral_norm(net, images, steps=60, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(found, exact, rtol=1e-4)
    rough = spectral_norm(net, images, steps=2, generator=torch.Generator().manual_seed(0))
    assert ((rough <= exact + 1e-5) & (rough > 0.5 * exact)).all()
    with pytest.raises(ValueError, match="steps is 0"):
        spectral_norm(net, images, steps=0)


@pytest.mark.parametrize("make", [ROG, SegResNet])
def test_the_spectral_norm_bounds_small_changes_and_leaves_the_network_as_it_was(make):
    torch.manual_seed(5)
    net, images = make(1, 2).train(), torch.randn(1, 1, 16, 16, 16)
    found = spectral_norm(net, images, steps=2)
    assert net.training
    assert all(weight.grad is None and weight.requires_grad for weight in net.parameters())
    assert not found.requires_grad
    net.eval()
    change = 1e-3 * torch.randn_like(images)
    with torch.no_grad():
        moved = (net(images + change) - net(images)).flatten(1).norm(dim=1) / change.flatten(1).norm(dim=1)
    assert (moved < found).all()


def test_estimates_stay_on_the_device(police):
    net, images = ROG(1, 2).to("cuda"), torch.randn(2, 1, 16, 16, 16).to("cuda")
    with torch.no_grad():
        logits = net(images)
    assert difference_quotient(logits, 2 * logits, images, 1.1 * images).shape == (2,)
    assert relative_magnitude(images, *image_range(images)).shape == (2,)
