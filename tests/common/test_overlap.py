"""Dice and counts of label maps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segarena.common.overlap import (
    class_counts,
    class_dice,
    dice_batch,
    dice_case,
    dice_global,
    recall_and_precision,
)


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


def test_counts_of_classes_by_hand() -> None:
    predicted = torch.tensor([[[0, 0, 1, 1], [1, 1, 0, 2]]])
    labels = torch.tensor([[[0, 0, 1, 0], [1, 255, 0, 1]]])
    counts = class_counts(predicted, labels, 4)
    assert [x.tolist() for x in (counts.both, counts.union, counts.true)] == [
        [[3, 2, 0, 0]],
        [[4, 4, 1, 0]],
        [[4, 3, 0, 0]],
    ]
    assert counts.predicted.dtype == torch.int64
    with pytest.raises(ValueError, match="label maps are"):
        class_counts(predicted[0, 0], labels[0, 0], 4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_counts_equal_a_plain_loop_over_classes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted, labels = torch.randint(0, 5, (2, 3, 4, 4, 2), generator=generator, dtype=torch.uint8)
    labels = torch.where(labels == 4, 255, labels)
    counts = class_counts(predicted, labels, 5)
    for row in range(3):
        for k in range(5):
            p, y = (predicted[row] == k) & (labels[row] != 255), labels[row] == k
            expected = [(p & y).sum(), p.sum(), y.sum(), ((p | y) & (labels[row] != 255)).sum()]
            assert [x[row, k].item() for x in (*counts, counts.union)] == [int(x) for x in expected]


# -- Dice of foreground classes by cases, batches and sets (docs/seat.md, Method 9) ------------------------------------


def of(predicted, labels, classes):
    return class_counts(torch.tensor(predicted), torch.tensor(labels), classes)


def test_dice_of_a_batch_has_its_known_values():
    assert dice_batch(of([[1, 1, 1, 0]], [[1, 1, 0, 0]], 2)).item() == pytest.approx(0.7999984, abs=1e-7)
    perfect = of([[0, 1, 1, 0]], [[0, 1, 1, 0]], 3)
    assert dice_batch(perfect, strict_reference=True).item() == pytest.approx(0.4999987, abs=1e-7)
    assert dice_batch(perfect).item() == pytest.approx(1, abs=1e-5)
    nothing = of([[0, 0]], [[0, 0]], 3)
    assert dice_batch(nothing).item() == 1
    assert dice_batch(nothing, strict_reference=True).item() == 0


def test_dice_of_a_case_counts_what_is_nowhere_as_right():
    counts = of([[1, 1, 1, 0], [0, 0, 0, 0]], [[1, 1, 0, 0], [0, 0, 2, 0]], 3)
    assert torch.allclose(dice_case(counts), torch.tensor([[0.8, 1.0], [1.0, 0.0]]))
    assert torch.equal(dice_case(counts), class_dice(*maps(), [1, 2]))
    recall, precision = recall_and_precision(counts)
    expected = torch.tensor([[1.0, torch.nan], [torch.nan, 0.0]])
    assert torch.allclose(recall, expected, equal_nan=True)
    expected = torch.tensor([[2 / 3, torch.nan], [torch.nan, torch.nan]])
    assert torch.allclose(precision, expected, equal_nan=True)


def maps():
    return torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]), torch.tensor([[1, 1, 0, 0], [0, 0, 2, 0]])


def test_dice_of_a_set_adds_all_voxels_first():
    counts = of([[1, 1, 1, 0], [1, 0, 0, 0]], [[1, 1, 0, 0], [0, 1, 0, 0]], 3)
    found = dice_global(counts)
    assert found[0].item() == pytest.approx(2 * 2 / (4 + 3))
    assert found[1].isnan()
