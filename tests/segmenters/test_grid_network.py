"""The light agent (docs/apga.md, Method 10)."""

import pytest
import torch
from segarena.common.networks import load_network, save_network
from segarena.segmenters.grid_network import GridNetwork, halvings


@pytest.mark.parametrize(("grid", "number"), [(7, 4_721_490), (14, 1_179_986), (28, 293_970)])
def test_it_has_the_known_number_of_parameters(grid, number):
    with torch.device("meta"):
        assert sum(p.numel() for p in GridNetwork(224, grid).parameters()) == number


@pytest.mark.parametrize(("size", "grid", "levels"), [(224, 14, 5), (64, 8, 4), (48, 48, 1), (96, 6, 5)])
def test_a_grid_is_the_image_halved_a_number_of_times(size, grid, levels):
    assert halvings(size, grid) == levels - 1
    net = GridNetwork(size, grid, width=8)
    logits, values = net.logits_and_values(torch.rand(2, 1, size, size))
    assert (logits.shape, values.shape) == ((2, 1, grid, grid), (2,))
    assert net.features(torch.rand(1, 1, size, size)).shape == (1, 8 * 2 ** (levels - 1), grid, grid)


@pytest.mark.parametrize("grid", [15, 32, 448, 0])
def test_another_grid_is_refused_and_possible_ones_are_named(grid):
    with pytest.raises(ValueError, match=f"grid is {grid} but must be"):
        GridNetwork(224, grid)
    with pytest.raises(ValueError, match=r"one of \[224, 112, 56, 28, 14, 7\]"):
        GridNetwork(224, 15)


def test_the_first_masks_select_about_a_tenth_of_the_cells():
    torch.manual_seed(0)
    net = GridNetwork(64, 8)
    torch.testing.assert_close(net.logits.bias.sigmoid(), torch.tensor([0.1]))
    with torch.no_grad():
        assert 0.05 < net(torch.rand(8, 1, 64, 64)).sigmoid().mean() < 0.2


def test_logits_and_values_are_those_of_one_pass_and_move_all_that_they_should():
    net, x = GridNetwork(32, 8, in_channels=2, width=8), torch.rand(3, 2, 32, 32)
    logits, values = net.logits_and_values(x)
    torch.testing.assert_close(logits, net(x))
    values.sum().backward()
    assert net.logits.weight.grad is None
    assert all(p.grad.abs().sum() > 0 for p in [*net.trunk.parameters(), *net.value.parameters()])
    net.zero_grad()
    net(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in [*net.trunk.parameters(), *net.logits.parameters()])


def test_images_of_another_size_are_refused():
    net = GridNetwork(32, 8)
    with pytest.raises(ValueError, match=r"images are 64 x 64 but the network was built for 32 x 32"):
        net(torch.rand(1, 1, 64, 64))


def test_a_checkpoint_of_another_grid_is_refused(tmp_path):
    net = GridNetwork(64, 8, width=8)
    save_network(tmp_path / "agent.safetensors", net)
    again = load_network(tmp_path / "agent.safetensors", GridNetwork, image_size=64, grid=8)
    assert again.description == net.description
    with pytest.raises(ValueError, match="GridNetwork with grid = 8 but 16 is needed"):
        load_network(tmp_path / "agent.safetensors", GridNetwork, grid=16)
