"""Dice of label maps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segarena.common.overlap import class_dice


def test_dice_of_known_masks() -> None:
    a = torch.tensor([[[1, 1, 0], [2, 2, 0]], [[0, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]]], dtype=torch.uint8)
    b = torch.tensor([[[1, 0, 0], [2, 2, 2]], [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [2, 0, 0]]])
    torch.testing.assert_close(class_dice(a, b, (1, 2)), torch.tensor([[2 / 3, 4 / 5], [1, 1], [0, 0]]))
    torch.testing.assert_close(class_dice(a, b, (0,)), torch.tensor([[1 / 2], [1], [4 / 5]]))
    with pytest.raises(ValueError, match="label maps are"):
        class_dice(a, b[:2], (1, 2))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_dice_is_symmetric_and_one_only_for_equal_masks(seed: int) -> None:
    a, b = torch.randint(0, 3, (2, 4, 6, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    torch.testing.assert_close(class_dice(a, b, (1, 2)), class_dice(b, a, (1, 2)))
    assert class_dice(a, a, (1, 2)).eq(1).all()
    for row in range(4):
        same = [(a[row] == k).equal(b[row] == k) for k in (1, 2)]
        assert class_dice(a, b, (1, 2))[row].eq(1).tolist() == same


def test_any_number_of_spatial_axes_is_one_image() -> None:
    a, b = torch.randint(0, 3, (2, 2, 4, 3, 2), generator=torch.Generator().manual_seed(0))
    for shape in ((2, 24), (2, 4, 6), (2, 4, 3, 2)):
        assert class_dice(a.view(shape), b.view(shape), (1, 2)).equal(class_dice(a.flatten(1), b.flatten(1), (1, 2)))
    with pytest.raises(ValueError, match=r"must both be \[B, \*spatial\]"):
        class_dice(a[0, 0, 0], b[0, 0, 0], (1,))
