"""MC dropout, ensemble and test-time augmentation: what they average, and what they leave alone."""

import pytest
import torch
from segarena.segmenters import uncertainty
from segarena.segmenters.unet import UNet
from torch import nn


@pytest.fixture
def images():
    return torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_entropy_is_zero_for_certainty_and_one_for_ignorance():
    certain, ignorant = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 1 / 3)
    certain[:, 1] = 1
    assert uncertainty.entropy_map(certain).abs().max() < 1e-6
    torch.testing.assert_close(uncertainty.entropy_map(ignorant), torch.ones(1, 2, 2))


def test_an_ensemble_is_the_mean_of_its_members(images):
    nets = [UNet(1, 3, init_channels=4).eval() for _ in range(3)]
    with torch.no_grad():
        each = [net(images.float() / 255).softmax(dim=1) for net in nets]
    torch.testing.assert_close(uncertainty.ensemble(nets, images), torch.stack(each).mean(dim=0))


def test_mc_dropout_draws_masks_from_its_seed_and_leaves_the_network_in_eval_mode(images):
    net = UNet(1, 3, init_channels=4, dropout=0.25)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(5)
    one, again, other = (uncertainty.mc_dropout(net, images, 4, seed) for seed in (1, 1, 2))
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3)), "the global generator was used"
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_mc_dropout_refuses_a_network_without_dropout(images):
    with pytest.raises(ValueError, match="dropout > 0"):
        uncertainty.mc_dropout(UNet(1, 3, init_channels=4), images, 2, 0)


class Thirds(nn.Module):
    """Says with certainty: dark is class 0, middle 1, bright 2."""

    def forward(self, x):
        level = (x[:, 0] * 3).floor().clamp(max=2).long()
        return 50.0 * nn.functional.one_hot(level, 3).permute(0, 3, 1, 2).float()


def test_augmented_views_are_turned_back_onto_the_image():
    image = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    image[..., 20:44, 16:36], image[..., 26:38, 22:30] = 128, 250
    mean = uncertainty.test_time_augmentation(Thirds(), image, 25, 0)
    torch.testing.assert_close(mean.sum(dim=1), torch.ones(1, 64, 64))
    plain = Thirds()(image.float() / 255).argmax(dim=1)
    assert (mean.argmax(dim=1) == plain).float().mean() > 0.97
    u = uncertainty.entropy_map(mean)[0]
    assert u[30:34, 25:27].max() < 0.3 < u[18:46, 14:38].max(), "certain inside, unsure at edges"


def test_a_uniform_network_stays_uniform_inside_under_augmentation(images):
    class Uniform(nn.Module):
        def forward(self, x):
            return x.new_zeros(len(x), 3, *x.shape[-2:])

    u = uncertainty.entropy_map(uncertainty.test_time_augmentation(Uniform(), images, 8, 0))
    assert u[:, 14:18, 14:18].min() > 0.999
