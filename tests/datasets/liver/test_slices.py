"""Axial slices of liver CTs as a pool of images (docs/rp-pgd.md, Method 14)."""

import pytest
import torch
from segarena.datasets.liver.cases import LiverDataConfig, load_liver_cases
from segarena.datasets.liver.slices import load_slices

CONFIG = LiverDataConfig(cases=["phantom_2000", "phantom_2001"])


@pytest.mark.parametrize(("which", "lowest"), [("liver", 1), ("tumour", 2), ("all", 0)])
def test_slices_are_those_that_show_it(which, lowest):
    cases, pool = load_liver_cases(CONFIG), load_slices(CONFIG, which)
    expected = [
        f"{case.id}_z{z:03d}"
        for case in cases
        for z in range(case.image.shape[2])
        if which == "all" or bool((case.label[:, :, z] >= lowest).any())
    ]
    assert pool.ids == expected
    assert set(pool.groups) == {case.id for case in cases}
    assert pool.classes == ("background", "liver", "tumour")
    assert pool.spacing_mm[0].tolist() == [4.0, 4.0]


def test_the_front_is_above_and_the_patients_right_on_the_left():
    case, pool = load_liver_cases(CONFIG)[0], load_slices(CONFIG, "all")
    x, y, z = case.image.shape
    for (i, j, k), (row, column) in {(5, 9, 20): (y - 10, x - 6), (60, 2, 3): (y - 3, x - 61)}.items():
        assert pool.images[k, 0, row, column] == case.image[i, j, k]
        assert pool.labels[k, row, column] == case.label[i, j, k]
    assert torch.equal(pool.labels[:z] == 2, case.label.flip(0, 1).permute(2, 1, 0) == 2)


def test_cases_without_a_wanted_slice_are_refused():
    healthy = LiverDataConfig(cases=["phantom_2000"], tumour_free=1.0)
    with pytest.raises(ValueError, match="no slice of the chosen cases shows tumour"):
        load_slices(healthy, "tumour")
    assert len(load_slices(healthy, "liver")) > 10
    with pytest.raises(ValueError, match="slices is 'lever' but must be one of"):
        load_slices(CONFIG, "lever")
