"""Actions as masks and masks as actions (docs/apga.md, Method 12)."""

import pytest
import torch
from segarena.envs.apga_actions import MaskActions


def decoded(actions, mode="patch", size=4, grid=2, now=None, **settings):
    one = MaskActions(mode, size, grid, **settings)
    actions = torch.as_tensor(actions)[None]
    return one.masks(one.cells(actions, one.none if now is None else now))[0, 0]


def test_a_patch_repeats_each_cell():
    found = decoded([1, 0, 0, 1])
    assert found.dtype == torch.bool
    assert found.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_pixels_are_read_row_by_row():
    assert decoded([0, 1, 0, 0], "pixel", size=2).int().tolist() == [[0, 1], [0, 0]]


def test_a_box_is_cut_at_the_border():
    found = decoded([1, 2, 0, 3], "box", grid=4)  # top 1, left 2, one high, four wide
    assert found.int().tolist() == [[0] * 4, [0, 0, 1, 1], [0] * 4, [0] * 4]


def test_beta_is_interpolated_and_smoothed():
    plain = decoded([1.0, 0.0, 1.0, 0.0], "beta")
    torch.testing.assert_close(plain, torch.tensor([1.0, 0.75, 0.25, 0.0]).expand(4, 4))
    smooth = decoded([1.0, 0.0, 1.0, 0.0], "beta", blur_sigma_px=1.0)
    assert (smooth[:, 0] < 1).all()
    assert (smooth[:, 3] > 0).all()
    assert decoded([2.0, -1.0, 1.0, 0.0], "beta").max() <= 1


def test_one_cell_more_in_each_step_until_the_last_action_stops():
    one = MaskActions("sequential", 4, 2)
    first = one.cells(torch.tensor([3]), one.none)
    both = one.cells(torch.tensor([0]), first)
    same = one.cells(torch.tensor([4]), both)
    assert both.flatten().int().tolist() == [1, 0, 0, 1]
    assert torch.equal(same, both)
    assert one.stops(torch.tensor([3, 4])).tolist() == [False, True]
    assert one.free(both).tolist() == [[False, True, True, False, True]]


@pytest.mark.parametrize("mode", ["patch", "pixel", "box", "beta", "sequential"])
def test_the_actions_of_a_mask_give_that_mask(mode):
    one = MaskActions(mode, 8, 8 if mode == "pixel" else 4)
    wanted = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    wanted[0, :, 2:6, 4:8] = wanted[1, :, 0:2, 0:2] = True
    cells = one.none.repeat(2, 1, 1, 1)
    if mode == "beta":
        torch.testing.assert_close(one.nearest(wanted, cells).view(2, 4, 4)[0, :, 2], torch.tensor([0.0, 1, 1, 0]))
        return
    stopped = torch.zeros(2, dtype=torch.bool)
    for _ in range(5):
        actions = one.nearest(wanted, cells)
        stopped = one.stops(actions)
        cells = one.cells(actions, cells)
    assert stopped.all()
    assert torch.equal(one.masks(cells), wanted)


def test_a_box_is_never_empty_and_a_half_full_cell_is_not_selected():
    half = torch.zeros(1, 1, 4, 4)
    half[..., :2, 1] = 1
    assert MaskActions("patch", 4, 2).nearest(half, torch.zeros(1, 1, 2, 2)).tolist() == [[0, 0, 0, 0]]
    assert MaskActions("box", 4, 2).nearest(half, torch.zeros(1, 1, 2, 2)).tolist() == [[0, 0, 0, 0]]
    half[..., 2:, 2:] = 0.3
    half[..., :2, 1] = 0
    assert MaskActions("box", 4, 2).nearest(half, torch.zeros(1, 1, 2, 2)).tolist() == [[1, 1, 0, 0]]
