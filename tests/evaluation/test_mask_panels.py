"""Pictures of masks: four panels a row, the mask in its colour, the lesion's border where it is known."""

import torch
from segarena.evaluation.mask_panels import LESION, SELECTED, SIDE_PX, mask_panel, outline


def test_a_row_has_the_image_its_mask_and_what_is_left():
    x = torch.zeros(2, 1, 8, 8)
    mask = torch.zeros_like(x)
    mask[0, 0, :4] = 1.0
    region = torch.zeros(2, 8, 8, dtype=torch.bool)
    region[0, 5:8, 2:6] = True
    picture = mask_panel(x, mask, x + 0.2, x + 1.0, region)
    assert picture.shape[0] > 2 * SIDE_PX
    assert picture.shape[1] > 4 * SIDE_PX
    assert picture[:SIDE_PX, -1].min() == 255, "the fourth panel"
    colours = {tuple(one) for one in picture.reshape(-1, 3).tolist()}
    assert tuple(LESION) in colours
    assert tuple(round(0.45 * part) for part in SELECTED) in colours
    assert tuple(LESION) not in {tuple(one) for one in mask_panel(x, mask, x, x).reshape(-1, 3).tolist()}


def test_an_outline_is_the_rim_of_a_region():
    region = torch.zeros(5, 5, dtype=torch.bool)
    region[1:4, 1:4] = True
    rim = outline(region.numpy())
    assert rim.sum() == 8
    assert not rim[2, 2]
