"""Class activation maps of windows: by hand, in batches, at a phase; and what they make of a painted map."""

import pytest
import torch
from segarena.classifiers.presence import load_presence
from segarena.classifiers.window_cam import WindowCam
from segarena.datasets.liver.lattice import WindowLattice
from segarena.segmenters.window_masks import MaskMaker

FULL = (32, 28, 24)


def image():
    return torch.randint(0, 256, FULL, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def net():
    return load_presence().eval()


def by_hand(net, lattice, at, volume):
    """ReLU(Σ_k w_k F_k) of the window at lattice place `at`, w_k = sum over its cells of ∂z / ∂F_k by autograd."""
    cells = net.layers.cells(volume[None, None].float() / 255, lattice)
    spans = tuple(width // 4 for width in lattice.window)
    inside = cells[0][(slice(None), *(slice(a, a + n) for a, n in zip(at, spans, strict=True)))]
    leaf = inside.detach().requires_grad_()
    pooled = torch.cat((leaf.mean(dim=(1, 2, 3)), leaf.amax(dim=(1, 2, 3))))
    z = net.head(pooled[None])[0]
    (gradient,) = torch.autograd.grad(z[1] - z[0], leaf)
    weights = gradient.sum(dim=(1, 2, 3))
    return torch.relu((weights[:, None, None, None] * leaf.detach()).sum(dim=0)).flatten()


@pytest.mark.parametrize("phase", [(0, 0, 0), (2, 1, 3)])
def test_the_map_of_a_window_is_grad_cam_of_its_logit(net, phase):
    lattice = WindowLattice(FULL, (16, 16, 8), phase=phase)
    cam = WindowCam(net, lattice, [image()])
    ids = torch.arange(lattice.size)
    maps = cam(0, ids)
    assert maps.shape == (lattice.size, 4 * 4 * 2)
    places = torch.stack(torch.unravel_index(ids, lattice.shape), dim=-1)
    spoke = 0
    for number in (0, 7, lattice.size - 1):
        expected = by_hand(net, lattice, places[number].tolist(), image())
        expected = expected / expected.max().clamp(min=1e-6)
        assert torch.allclose(maps[number], expected, atol=0.02), "float16 cells"
        spoke += int(expected.any())
    assert spoke
    covered = lattice.covered(ids[5][None, None])[0].flatten().nonzero().flatten()
    assert torch.equal(cam.blocks(ids[5:6])[0].sort().values, covered)


def test_maps_are_the_same_in_pieces_and_after_other_cases(net, monkeypatch):
    lattice = WindowLattice(FULL, (16, 16, 8))
    cam = WindowCam(net, lattice, [image(), image().flip(0)])
    ids = torch.tensor([3, 0, 11])
    whole = cam(0, ids)
    monkeypatch.setattr("segarena.classifiers.window_cam.MOST_KEPT", 0)
    monkeypatch.setattr("segarena.classifiers.window_cam.MOST_NUMBERS", 1)
    assert not torch.equal(cam(1, ids), whole)
    assert torch.allclose(cam(0, ids), whole, atol=1e-6)
    assert cam(0, ids[:0]).shape == (0, 32)
    with pytest.raises(ValueError, match="step is 8 but a window's class activation map needs 4"):
        WindowCam(net, WindowLattice(FULL, (16, 16, 8), 8), [image()])


def test_the_cells_of_as_many_phantoms_as_an_environment_has_are_made_once(net, monkeypatch):
    lattice, made = WindowLattice(FULL, (16, 16, 8)), []
    cells = net.layers.cells
    monkeypatch.setattr(net.layers, "cells", lambda *given: (made.append(1), cells(*given))[1])
    cam = WindowCam(net, lattice, [image()] * 16)
    for case in (*range(16), *range(16)):
        cam(case, torch.tensor([0]))
    assert len(made) == 16
    monkeypatch.setattr("segarena.classifiers.window_cam.MOST_KEPT", 2 * cam._columns(0).nbytes)
    few = WindowCam(net, lattice, [image()] * 3)
    for case, number in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):  # what was not needed for longest makes room
        few(case, torch.tensor([0]))
        assert len(made) == 16 + number


class Halves:
    """Evidence that the first half of a window's blocks is meant."""

    def __init__(self, cam):
        self.blocks = cam.blocks

    def __call__(self, case, ids):
        assert case == 3
        return torch.cat((torch.ones(len(ids), 16), torch.zeros(len(ids), 16)), dim=1)


def test_seen_windows_say_which_of_their_blocks_they_mean(net):
    """√(C M) where a seen window lies over a block, M / 2 elsewhere; with a likely score for unseen windows."""
    lattice = WindowLattice(FULL, (16, 16, 8))
    halves = Halves(WindowCam(net, lattice, [image()]))
    seen = torch.full((1, lattice.size), torch.nan)
    seen[0, 0], seen[0, 40] = 0.8, 0.4

    class Likely:
        def fill(self, scores):
            return scores.nan_to_num(nan=0.1)

    plain = MaskMaker(lattice, "mean", "blocks", Likely()).blocks(seen, [3])[0].flatten()
    made = MaskMaker(lattice, "mean", "blocks", Likely(), halves).blocks(seen, [3])[0].flatten()
    meant, other = (halves.blocks(torch.tensor([number]))[0].split(16)[part] for number, part in ((0, 0), (0, 1)))
    both = set(halves.blocks(torch.tensor([40])).flatten().tolist())
    alone = [b for b in meant.tolist() if b not in both]
    assert alone
    assert torch.allclose(made[alone], (0.8 * plain[alone]).sqrt())
    assert not made[[b for b in other.tolist() if b not in both]].any()
    unseen = sorted(set(range(len(made))) - both - set(meant.tolist()) - set(other.tolist()))
    assert torch.allclose(made[unseen], plain[unseen] / 2)


def test_many_windows_are_divided_in_pieces_and_their_sums_do_not_depend_on_the_order(net, monkeypatch):
    """All windows of a CT have 10^8 cells: neither their numbers nor their shares lie in memory at once."""
    lattice = WindowLattice(FULL, (16, 16, 8))
    cam, asked = WindowCam(net, lattice, [image()]), []

    class Counted:
        blocks = cam.blocks

        def __call__(self, case, ids):
            asked.append(len(ids))
            return cam(case, ids)

    seen = torch.rand(1, lattice.size, generator=torch.Generator().manual_seed(1))

    def made():
        return MaskMaker(lattice, "mean", "blocks", None, Counted()).blocks(seen, [0])

    whole = made()
    monkeypatch.setattr("segarena.segmenters.window_masks.MOST_NUMBERS", 64)
    assert torch.equal(made(), whole)
    assert asked == [lattice.size, *[2] * (lattice.size // 2)]


def test_windows_of_one_line_share_the_products_with_their_cells(net, monkeypatch):
    """A line of 33 windows along z takes its 34 layers of cells once, not 2 layers for each window."""
    lattice = WindowLattice((16, 16, 136), (16, 16, 8))
    cam, taken = WindowCam(net, lattice, [torch.zeros(lattice.full, dtype=torch.uint8)]), []
    of_lines = WindowCam._of_lines
    monkeypatch.setattr(WindowCam, "_of_lines", lambda self, cells: taken.append(cells.shape) or of_lines(self, cells))
    assert cam(0, torch.arange(33)).shape == (33, 32)
    assert taken == [(1, 16, 34, 64)]
