"""GradCAM in closed form (docs/apga.md, Method 8)."""

import pytest
import torch
import torch.nn.functional as F
from segarena.classifiers.gradcam import class_activation, gradcam, scale_maps
from segarena.classifiers.xray import XrayClassifier

MAPS = torch.tensor([[[[1.0, -1.0], [2.0, 0.5]], [[-1.0, 3.0], [1.0, -2.0]]]])
WEIGHTS = torch.tensor([[0.5, -1.0]])


def by_autograd(maps, weights):
    """GradCAM with gradients before the ReLU and features after it, as hooks on the program's last layer find them."""
    leaf = maps.clone().requires_grad_()
    logit = (F.relu(leaf).mean(dim=(2, 3)) * weights).sum()
    (gradient,) = torch.autograd.grad(logit, leaf)
    return F.relu((gradient.mean(dim=(2, 3), keepdim=True) * F.relu(maps)).sum(dim=1))


def test_two_maps_give_the_known_numbers():
    cam = class_activation(MAPS, WEIGHTS)
    torch.testing.assert_close(cam, torch.tensor([[[0.09375, 0.0], [0.0625, 0.046875]]]))
    scaled = scale_maps(cam, (2, 2))
    torch.testing.assert_close(scaled, torch.tensor([[[1.0, 0.0], [2 / 3, 0.5]]]))
    assert (scaled > 0.5).int().tolist() == [[[1, 0], [1, 0]]]


def test_gradients_after_the_relu_would_give_another_map():
    after = F.relu((WEIGHTS[..., None, None] / 4 * F.relu(MAPS)).sum(dim=1))
    torch.testing.assert_close(after, torch.tensor([[[0.125, 0.0], [0.0, 0.0625]]]))
    assert not torch.allclose(after, class_activation(MAPS, WEIGHTS))


def test_the_closed_form_is_that_of_a_backward_pass():
    torch.manual_seed(0)
    maps, weights = torch.randn(3, 6, 4, 5), torch.randn(3, 6)
    found = class_activation(maps, weights)
    assert found.amax() > 0
    for one in range(3):
        torch.testing.assert_close(found[one : one + 1], by_autograd(maps[one : one + 1], weights[one : one + 1]))


def test_a_map_of_a_network_is_that_of_a_backward_pass_through_it():
    torch.manual_seed(1)
    net, x = XrayClassifier("small_cnn", 1, 3).eval(), torch.rand(4, 1, 32, 32)
    for classes in (None, torch.tensor([2, 0, 1, 1])):
        found = gradcam(net, x, classes)
        maps = net.feature_maps(x).detach().requires_grad_()
        logits = net.head(F.relu(maps).mean(dim=(2, 3)))
        target = logits.argmax(dim=1) if classes is None else classes
        (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), maps)
        cam = F.relu((gradient.mean(dim=(2, 3), keepdim=True) * F.relu(maps.detach())).sum(dim=1))
        large = F.interpolate(cam[:, None], size=(32, 32), mode="bilinear", align_corners=False)[:, 0]
        low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
        torch.testing.assert_close(found, ((large - low) / (high - low)).nan_to_num(0.0))
        assert found.amin() == 0
        assert found.amax(dim=(1, 2)).sum() >= 3, "at most one image has nothing that speaks for its class"


@pytest.mark.parametrize("value", [0.0, 0.1, 7.3])
def test_a_constant_map_says_nothing(value):
    assert torch.equal(scale_maps(torch.full((2, 7, 7), value), (224, 224)), torch.zeros(2, 224, 224))
    mixed = torch.full((2, 7, 7), value)
    mixed[1, 3, 3] += 1
    assert scale_maps(mixed, (56, 56)).amax(dim=(1, 2)).tolist() == [0, 1]


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"in training mode, .* call eval\(\) first"):
        gradcam(XrayClassifier("small_cnn", 1), torch.rand(1, 1, 32, 32))
