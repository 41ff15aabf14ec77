"""Class activation maps: their weights by hand, and that they point at what the classifier looks at."""

import pytest
import torch
from segarena.classifiers import cam
from segarena.classifiers.bags import pool_logits
from segarena.classifiers.presence import DensePresenceNet
from segarena.classifiers.presence_config import PresenceTrainingConfig
from segarena.classifiers.stem import CELL, cell_lattice, pool_cells
from segarena.datasets.liver.lattice import WindowLattice

WINDOW = (8, 8, 8)
LESION = (slice(20, 28), slice(8, 16), slice(12, 20))
"""Voxels; all of the 2x2x2 cells from (5, 2, 3) on."""


def linear(weights):
    """y = Σ over features and cells of weights · F."""
    return lambda cells: (weights * cells).sum(dim=(1, 2, 3, 4))


def test_grad_cam_of_a_linear_target_is_the_formula_by_hand():
    cells = torch.rand(2, 3, 4, 2, 5, generator=torch.Generator().manual_seed(0))
    v = torch.tensor([0.5, -2.0, 1.0])
    of_mean = linear(v.view(3, 1, 1, 1) / 40)  # y = Σ_k v_k · mean of F_k: g_k(c) = v_k / 40 in every cell
    by_hand = (torch.einsum("k,bkxyz->bxyz", v, cells) / 40).clamp(min=0)
    torch.testing.assert_close(cam.grad_cam(cells, of_mean), by_hand)
    against = cam.grad_cam(cells, lambda at: -of_mean(at))
    assert bool(((against > 0) == (by_hand == 0)).all()), "what speaks for tumour speaks against its opposite"


def test_grad_cam_plus_plus_is_the_formula_by_hand():
    cells = torch.tensor([3.0, 1.0]).view(1, 1, 2, 1, 1)
    target = linear(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1))
    # α = 4 / (2·4 + 8·4) = 0.1 and 1 / (2·1 - 1·4) = -0.5; w = 0.1 · 2 + (-0.5) · ReLU(-1) = 0.2
    assert cam.grad_cam_plus_plus(cells, target).flatten().tolist() == pytest.approx([0.6, 0.2])
    assert cam.grad_cam(cells, target).flatten().tolist() == pytest.approx([1.5, 0.5])  # w = (2 - 1) / 2


def test_the_weights_of_grad_cam_plus_plus_are_those_of_the_derivatives_of_the_exponential():
    generator = torch.Generator().manual_seed(1)
    cells = torch.rand(1, 2, 2, 2, 1, generator=generator, dtype=torch.float64)
    slope = torch.randn(2, 2, 2, 1, generator=generator, dtype=torch.float64)
    leaf = cells.clone().requires_grad_()
    y = linear(slope)(leaf).exp()
    derivatives = []
    for k, place in enumerate(torch.ones(8).nonzero()[:, 0].tolist()):
        found, total = [], y.sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(total, leaf, create_graph=True)
            total = g.flatten()[place]
            found.append(total)
        derivatives.append(torch.stack(found))
        assert k == place
    first, second, third = torch.stack(derivatives, dim=1).detach().view(3, 1, 2, 2, 2, 1)
    alpha = second / (2 * second + cells.sum(dim=(2, 3, 4), keepdim=True) * third)
    weights = (alpha * first.clamp(min=0)).sum(dim=(2, 3, 4), keepdim=True)
    by_definition = (weights * cells).sum(dim=1).clamp(min=0)
    ours = cam.grad_cam_plus_plus(cells, linear(slope))
    torch.testing.assert_close(ours / ours.max(), by_definition / by_definition.max())


def test_a_feature_without_gradient_has_no_weight():
    cells = torch.rand(1, 2, 2, 2, 2)
    only_first = lambda at: at[:, 0].sum(dim=(1, 2, 3))  # noqa: E731
    changed = torch.cat((cells[:, :1], 7 * cells[:, 1:]), dim=1)
    for kind in (cam.grad_cam, cam.grad_cam_plus_plus):
        assert torch.equal(kind(cells, only_first), kind(changed, only_first))


def known_net(sign=1.0):
    """Feature 0 is the grey value in the middle of a cell, feature 1 one minus it; the logit rises with feature 0 where
    sign is 1, and falls where it is -1."""
    net = DensePresenceNet((-17.0, 201.0), WINDOW).eval()
    for number, layer in enumerate(net.layers):
        layer.conv.weight.data.zero_()
        layer.conv.bias.data.zero_()
        layer.norm.eps = 0.0
        layer.conv.weight.data[0, 0, 1, 1, 1] = 1.0
        if number:
            layer.conv.weight.data[1, 1, 1, 1, 1] = 1.0
        else:
            layer.conv.weight.data[1, 0, 1, 1, 1] = -1.0
            layer.conv.bias.data[1] = 1.0
    for layer in (net.head[0], net.head[2]):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    net.head[0].weight.data[0, 0] = 1.0  # the mean of feature 0 over the window
    net.head[2].weight.data[1, 0] = 20.0 * sign
    return net.requires_grad_(False)


def lesion_volume():
    volume = torch.full((40, 24, 32), 40, dtype=torch.uint8)
    volume[LESION] = 220
    return volume


@pytest.mark.parametrize("kind", ["grad", "grad_plus_plus", "score"])
def test_the_map_peaks_at_the_lesion_that_the_classifier_looks_at(kind):
    lattice = WindowLattice((40, 24, 32), WINDOW, 4)
    inside = torch.zeros(cell_lattice(lattice).shape, dtype=torch.bool)
    inside[5:7, 2:4, 3:5] = True
    found, opposite = (cam.class_activation(known_net(sign), lesion_volume(), lattice, kind) for sign in (1.0, -1.0))
    assert found.shape == inside.shape
    assert 0 <= float(found.min()) < float(found.max()) == 1.0
    assert float(found[inside].min()) > 2 * float(found[~inside].max()), "every cell of the lesion, and no other"
    if kind != "score":  # which compares features, whatever they all say
        assert not opposite.any(), "nothing speaks for what the lesion speaks against"


def test_nothing_speaks_for_tumour_where_all_is_alike():
    lattice, net = WindowLattice((16, 16, 16), WINDOW, 4), known_net()
    net.head[2].weight.data.zero_()
    for kind in ("grad", "grad_plus_plus"):
        assert not cam.class_activation(net, torch.full((16, 16, 16), 90, dtype=torch.uint8), lattice, kind).any()
    cells = torch.full((1, 3, 4, 4, 4), 2.0)
    everywhere = cell_lattice(lattice)
    assert not cam.score_cam(cells, torch.rand(1, 1, 16, 16, 16), everywhere, lambda x: x.sum(dim=(1, 2, 3, 4))).any()


def test_score_cam_weighs_by_the_logit_of_what_a_feature_shows():
    """Two cells along x; feature 0 shows the first, feature 1 the second, feature 2 is the same everywhere."""
    lattice = WindowLattice((8, 4, 4), (4, 4, 4), 4)
    cells = torch.tensor([[1.0, 0.0], [0.0, 3.0], [5.0, 5.0]]).view(1, 3, 2, 1, 1)
    volume = torch.zeros(1, 1, 8, 4, 4)
    volume[:, :, :4], volume[:, :, 4:] = 0.2, 0.9
    mean = lambda x: x.mean(dim=(1, 2, 3, 4))  # noqa: E731
    ramp = torch.tensor([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0])  # trilinear between the middles of two cells
    grey = torch.tensor([0.2] * 4 + [0.9] * 4)
    y = torch.stack([(grey * ramp).mean(), (grey * (1 - ramp)).mean()])
    weights = y.softmax(dim=0)
    expected = torch.stack([weights[0] * 1.0, weights[1] * 3.0])
    torch.testing.assert_close(cam.score_cam(cells, volume, lattice, mean).flatten(), expected)
    turned = (-y).softmax(dim=0) * torch.tensor([1.0, 3.0])
    torch.testing.assert_close(cam.score_cam(cells, volume, lattice, lambda x: -mean(x)).flatten(), turned)


@pytest.mark.parametrize(("step", "phase"), [(4, (0, 0, 0)), (4, (3, 1, 2)), (8, (5, 0, 7))])
def test_the_logit_of_a_volume_pools_the_windows_of_its_lattice(step, phase):
    torch.manual_seed(0)
    net = DensePresenceNet((-17.0, 201.0), (16, 16, 8)).eval().requires_grad_(False)
    lattice = WindowLattice((46, 41, 32), (16, 16, 8), step, phase)
    everywhere, volume = cell_lattice(lattice), torch.rand(2, 1, 46, 41, 32)
    z = net.dense_logits(volume, lattice)
    expected = pool_logits((z[..., 1] - z[..., 0]).flatten(1), PresenceTrainingConfig())
    found = cam.volume_logit(net, net.layers.cells(volume, everywhere), lattice)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_window_of_one_cell_pools_nothing():
    lattice = WindowLattice((12, 16, 8), (CELL, CELL, CELL), CELL)
    cells = torch.rand(1, 5, *lattice.shape)
    pooled = pool_cells(cells, lattice)
    assert torch.equal(pooled[..., :5], cells.movedim(1, -1))
    assert torch.equal(pooled[..., 5:], cells.movedim(1, -1))
