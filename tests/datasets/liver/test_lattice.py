"""The window lattice: where a window may stand, and that blocks know what voxels know."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segarena.datasets.liver.lattice import WindowLattice, centred_start

CT = (256, 256, 180)
PAPER_START = (128, 128, 90)
untimed = settings(deadline=None)


def ball(full, diameter):
    """A digital ball around the middle of a cube of `full` voxels."""
    axis = (torch.arange(full) - (full - 1) / 2) ** 2
    return axis[:, None, None] + axis[None, :, None] + axis[None, None, :] <= (diameter / 2) ** 2


def window_slices(lattice, corner):
    return tuple(slice(int(p), int(p) + w) for p, w in zip(corner, lattice.window, strict=True))


def plain_painting(lattice, ids, values, reduce):
    """Result of `paint`, computed window by window and voxel by voxel."""
    total, visits, peak = (np.zeros((len(ids), *lattice.full)) for _ in range(3))
    lowest = np.full(total.shape, np.inf)
    for episode in range(len(ids)):
        for number, value in zip(ids[episode], values[episode], strict=True):
            if number >= 0:
                at = (episode, *window_slices(lattice, lattice.corners(number)))
                total[at] += float(value)
                visits[at] += 1
                peak[at] = np.maximum(peak[at], float(value))
                lowest[at] = np.minimum(lowest[at], float(value))
    lowest[visits == 0] = 0
    return {"sum": total, "mean": total / np.maximum(visits, 1), "max": peak, "min": lowest}[reduce]


@st.composite
def lattices(draw):
    step = draw(st.integers(1, 4))
    phase = tuple(draw(st.integers(0, step - 1)) for _ in range(3))
    window = tuple(step * draw(st.integers(1, 3)) for _ in range(3))
    full = tuple(w + p + draw(st.integers(0, 9)) for w, p in zip(window, phase, strict=True))
    return WindowLattice(full, window, step, phase)


@st.composite
def paintings(draw):
    lattice = draw(lattices())
    seed = draw(st.integers(0, 2**32 - 1))
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, lattice.size, (2, draw(st.integers(1, 12))), generator=rng)
    values = torch.rand(ids.shape, generator=rng)
    truth = torch.rand(lattice.full, generator=rng) < 0.3
    return lattice, ids, values, truth


@pytest.mark.parametrize(
    ("window", "shape"),
    [
        ((8, 8, 8), (63, 63, 43)),
        ((16, 16, 8), (61, 61, 43)),
        ((32, 32, 16), (57, 57, 41)),
        ((48, 48, 24), (53, 53, 39)),
        ((64, 64, 32), (49, 49, 37)),
    ],
)
def test_the_papers_windows_have_the_positions_of_its_lattice(window, shape):
    lattice = WindowLattice(CT, window, phase=tuple(p % 4 for p in PAPER_START))
    assert lattice.shape == shape
    assert lattice.size == np.prod(shape)


def test_the_standard_window_reaches_both_borders():
    paper = WindowLattice(CT, (48, 48, 24), phase=(0, 0, 2)).corners()
    assert paper.amin(dim=0).tolist() == [0, 0, 2]
    assert paper.amax(dim=0).tolist() == [208, 208, 154]
    assert WindowLattice(CT, (48, 48, 24)).shape == (53, 53, 40)
    assert centred_start(CT, (48, 48, 24), 4) == (104, 104, 76)


@untimed
@given(lattices())
def test_numbers_and_corners_are_two_names_of_a_position(lattice):
    ids = torch.arange(lattice.size)
    assert torch.equal(lattice.ids(lattice.corners(ids)), ids)
    assert torch.equal(lattice.corners(), lattice.corners(ids))


@untimed
@given(lattices(), st.integers(0, 2**32 - 1))
def test_a_move_is_a_clipped_displacement(lattice, seed):
    rng = torch.Generator().manual_seed(seed)
    cells = torch.randint(-2, 3, (5, 3), generator=rng)
    corners = lattice.corners()
    wanted = corners[:, None] + cells * lattice.step
    low, high = corners.amin(dim=0), corners.amax(dim=0)
    assert torch.equal(lattice.corners(lattice.move_table(cells)), wanted.clamp(min=low, max=high))


@pytest.mark.parametrize("corner", [(1, 0, 0), (-4, 0, 0), (212, 0, 0), (0, 0, 160)])
def test_a_corner_off_the_lattice_is_refused(corner):
    with pytest.raises(ValueError, match=r"not on the lattice from \[0, 0, 0\] to \[208, 208, 156\]"):
        WindowLattice(CT, (48, 48, 24)).ids(torch.tensor(corner))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": (48, 48, 22)}, "multiple of step 4"),
        ({"window": (0, 48, 24)}, "positive multiple"),
        ({"window": (260, 48, 24)}, "does not fit the volume .* along x"),
        ({"window": (48, 48, 180), "phase": (0, 0, 1)}, "does not fit the volume .* along z"),
        ({"window": (48, 48, 24), "phase": (0, 4, 0)}, r"must lie in \[0, 4\)"),
        ({"window": (48, 48, 24), "step": 0}, "at least 1"),
    ],
)
def test_an_impossible_lattice_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WindowLattice(CT, **arguments)


@untimed
@given(lattices(), st.integers(0, 2**32 - 1))
def test_window_sums_are_the_sums_inside_the_windows(lattice, seed):
    volume = torch.randint(0, 5, lattice.full, generator=torch.Generator().manual_seed(seed))
    plain = [volume[window_slices(lattice, corner)].sum() for corner in lattice.corners()]
    assert torch.equal(lattice.window_sums(volume), torch.stack(plain))


def test_one_tumour_voxel_makes_a_window_positive_up_to_its_half_open_border():
    lattice = WindowLattice((16, 16, 16), (8, 8, 8))
    at = lattice.ids(torch.tensor([4, 4, 4]))
    for voxel, inside in [((4, 4, 4), 1), ((11, 11, 11), 1), ((12, 11, 11), 0), ((11, 11, 12), 0), ((3, 4, 4), 0)]:
        volume = torch.zeros(16, 16, 16, dtype=torch.uint8)
        volume[voxel] = 1
        assert lattice.window_sums(volume)[at] == inside, voxel


@pytest.mark.parametrize(
    ("diameter", "window", "dice"),
    [
        (16, (48, 48, 24), 0.0757),
        (24, (48, 48, 24), 0.2306),
        (32, (48, 48, 24), 0.4344),
        (48, (48, 48, 24), 0.7039),
        (64, (48, 48, 24), 0.5661),
        (24, (24, 24, 24), 0.6854),
        (48, (48, 48, 48), 0.6869),
    ],
)
def test_dice_of_a_ball_and_the_window_around_it(diameter, window, dice):
    tumour = ball(96, diameter)
    lattice = WindowLattice((96, 96, 96), window)
    corner = torch.tensor([(96 - w) // 2 for w in window])
    shared = lattice.window_sums(tumour)[lattice.ids(corner)]
    assert 2 * shared / (np.prod(window) + tumour.sum()) == pytest.approx(dice, abs=5e-5)


@pytest.mark.parametrize(
    ("diameter", "dice"),
    [(4, 0.118), (6, 0.420), (8, 0.707), (12, 0.708), (16, 0.845), (24, 0.879), (32, 0.919), (48, 0.944)],
)
def test_best_dice_that_blocks_can_reach_on_a_ball(diameter, dice):
    """docs/spars.md, Method 5."""
    lattice = WindowLattice((64, 64, 64), (8, 8, 8))
    assert lattice.best_block_dice(lattice.block_sums(ball(64, diameter))) == pytest.approx(dice, abs=5e-4)


@pytest.mark.parametrize("seed", range(5))
def test_no_union_of_blocks_is_better_than_the_best_one(seed):
    """Every one of the 256 unions of eight blocks, of which the border cuts some."""
    lattice = WindowLattice((8, 7, 6), (4, 4, 4), phase=(0, 0, 0))
    truth = torch.rand(lattice.full, generator=torch.Generator().manual_seed(seed)) < 0.4
    truth[:4, :4] &= seed > 2
    hits = lattice.block_sums(truth)
    unions = torch.tensor(list(product((False, True), repeat=8))).view(-1, *lattice.block_shape)
    common, painted, tumour = lattice.block_overlap(unions, hits.expand(len(unions), -1, -1, -1))
    assert lattice.best_block_dice(hits) == pytest.approx((2 * common / (painted + tumour)).max().item(), abs=1e-6)


def test_a_small_block_full_of_tumour_comes_before_a_large_one_with_more_of_it():
    lattice = WindowLattice((5, 4, 4), (4, 4, 4))
    assert lattice.best_block_dice(torch.tensor([17, 16]).view(2, 1, 1)) == pytest.approx(2 * 16 / (16 + 33))


def test_nothing_to_find_is_found_by_no_block():
    lattice = WindowLattice((8, 8, 8), (4, 4, 4))
    assert lattice.best_block_dice(torch.zeros(lattice.block_shape, dtype=torch.int64)) == 1.0


@untimed
@given(paintings(), st.sampled_from(["sum", "mean", "max", "min"]))
def test_painting_blocks_equals_painting_voxels(painting, reduce):
    lattice, ids, values, _ = painting
    voxels = lattice.expand(lattice.paint(ids, values, reduce))
    np.testing.assert_allclose(voxels, plain_painting(lattice, ids, values, reduce), rtol=0, atol=1e-9)


@untimed
@given(paintings(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_dice_from_block_counts_is_the_voxel_dice_as_an_integer_ratio(painting, threshold):
    lattice, ids, values, truth = painting
    blocks = lattice.paint(ids, values) > threshold
    voxels = lattice.expand(blocks)
    hits, sizes = lattice.block_sums(truth), lattice.block_sizes
    assert sizes.sum() == np.prod(lattice.full)
    for mask, painted in zip(blocks, voxels, strict=True):
        from_blocks = (2 * int(hits[mask].sum()), int(sizes[mask].sum() + hits.sum()))
        from_voxels = (2 * int((painted & truth).sum()), int(painted.sum() + truth.sum()))
        assert from_blocks == from_voxels


@untimed
@given(paintings())
def test_the_overlap_of_blocks_is_the_overlap_of_voxels(painting):
    lattice, ids, values, truth = painting
    blocks = lattice.paint(ids, values) > 0.3
    common, painted, tumour = lattice.block_overlap(blocks, lattice.block_sums(truth).expand_as(blocks))
    voxels = lattice.expand(blocks)
    assert common.tolist() == (voxels & truth).sum(dim=(1, 2, 3)).tolist()
    assert painted.tolist() == voxels.sum(dim=(1, 2, 3)).tolist()
    assert tumour.tolist() == [int(truth.sum())] * len(blocks)


def test_a_block_that_the_border_cuts_counts_the_voxels_that_it_has():
    """The phase of the paper's start, (0, 0, 2), leaves two voxels of the first block along z, and two of the last."""
    lattice = WindowLattice((8, 8, 16), (8, 8, 8), phase=(0, 0, 2))
    assert lattice.block_shape == (2, 2, 5)
    inside = torch.zeros(lattice.block_shape, dtype=torch.bool)
    inside[..., 0] = True
    truth = torch.ones(lattice.full, dtype=torch.bool)
    overlap = lattice.block_overlap(inside, lattice.block_sums(truth))
    assert [int(count) for count in overlap] == [8 * 8 * 2, 8 * 8 * 2, 8 * 8 * 16]


def test_the_toy_episode_leaves_the_map_of_the_docs():
    lattice = WindowLattice((32, 32, 24), (8, 8, 8))
    path = torch.tensor([[20, 16, 12], [24, 16, 12], [24, 20, 12], [24, 20, 16]])
    painted = lattice.expand(lattice.paint(lattice.ids(path)[None], torch.tensor([[0.088, 0.092, 0.100, 0.112]])))[0]
    assert float(painted[25, 21, 17]) == pytest.approx(0.392)
    assert painted.max() == painted[25, 21, 17]
    assert float(painted.sum()) == pytest.approx(200.704)
    assert [int((painted > level).sum()) for level in (0, 0.25, 0.3)] == [1280, 192, 128]
    truth = torch.zeros(32, 32, 24, dtype=torch.bool)
    truth[22:30, 18:26, 14:22] = True
    for level, dice in [(0.05, "864/1792"), (0.15, "480/1024"), (0.25, "256/704"), (0.3, "192/640")]:
        mask = painted > level
        assert Fraction(2 * int((mask & truth).sum()), int(mask.sum() + truth.sum())) == Fraction(dice)


def test_the_order_of_painting_leaves_no_trace():
    lattice = WindowLattice((32, 32, 24), (8, 8, 8))
    rng = torch.Generator().manual_seed(0)
    ids, values = torch.randint(0, lattice.size, (1, 50), generator=rng), torch.rand((1, 50), generator=rng)
    order = torch.randperm(50, generator=rng)
    assert torch.equal(lattice.paint(ids, values), lattice.paint(ids[:, order], values[:, order]))


def test_an_unknown_way_to_paint_is_refused():
    with pytest.raises(ValueError, match="'median' but must be 'sum', 'mean', 'max' or 'min'"):
        WindowLattice((8, 8, 8), (4, 4, 4)).paint(torch.zeros((1, 1), dtype=torch.int64), torch.ones(1, 1), "median")


@pytest.mark.parametrize("phase", [(0, 0, 0), (1, 0, 3)])
def test_between_blocks_voxels_are_interpolated_along_each_axis(phase):
    """A map that grows linearly with place stays what it is, but for the halves of the outermost blocks."""
    lattice = WindowLattice((24, 20, 16), (8, 8, 4), phase=phase)
    voxel = torch.stack(torch.meshgrid(*(torch.arange(n) for n in lattice.full), indexing="ij")).double()
    starts = [
        [(p - 4) % 4 - 4 + 4 * i if p else 4 * i for i in range(n)]
        for p, n in zip(phase, lattice.block_shape, strict=True)
    ]
    middles = [torch.tensor(start).double() + 1.5 for start in starts]  # of whole blocks, the first of which may be cut
    linear = middles[0][:, None, None] + 2 * middles[1][None, :, None] - 3 * middles[2][None, None, :]
    made = lattice.interpolate(linear)
    assert made.shape == lattice.full
    inside = torch.stack([(axis >= m[0]) & (axis <= m[-1]) for axis, m in zip(voxel, middles, strict=True)]).all(dim=0)
    wanted = voxel[0] + 2 * voxel[1] - 3 * voxel[2]
    assert inside.float().mean() > 0.4
    assert torch.allclose(made[inside], wanted[inside])
    assert float(lattice.interpolate(torch.full(lattice.block_shape, 0.7)).sub(0.7).abs().max()) < 1e-6
