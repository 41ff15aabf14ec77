"""Metrics against hand-computed cases, against brute force, and on bad input."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from segarena.evaluation import metrics as m
from torch import Tensor

OVERLAPS = (m.dice, m.iou, m.precision, m.recall)
SMALL = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=5)
PAIRS = SMALL.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))


def box(shape: tuple[int, ...], *ranges: tuple[int, int]) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(slice(low, high) for low, high in ranges)] = True
    return mask


def surface_points(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Positions in mm of the voxels of the mask that have a face neighbour outside it, the image border included."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(mask.ndim):
        for shift in (-1, 1):
            inner &= np.roll(padded, shift, axis)
    return np.argwhere(padded & ~inner) * np.array(spacing)


# -- overlap -------------------------------------------------------------------------------------------------------


def test_overlaps_match_counts_by_hand():
    pred, label = box((4, 4), (0, 2), (0, 4)), box((4, 4), (1, 4), (0, 2))  # 8 voxels, 6 voxels, 2 common
    assert [f(pred, label) for f in OVERLAPS] == pytest.approx([4 / 14, 2 / 12, 2 / 8, 2 / 6])


def test_dice_of_a_ball_and_a_window_is_that_of_the_docs():
    """docs/spars.md, Method 5: ball of diameter d in 96³ against the centred window 48 x 48 x 24, then its tight
    cube."""
    squares = (torch.arange(96) - 47.5) ** 2
    radius = (squares[:, None, None] + squares[:, None] + squares).sqrt()
    window = box((96, 96, 96), (24, 72), (24, 72), (36, 60))
    for d, expected in ((16, 0.0757), (24, 0.2306), (32, 0.4344), (48, 0.7039), (64, 0.5661)):
        assert m.dice(window, radius <= d / 2) == pytest.approx(expected, abs=5e-5)
    assert m.dice(box((96, 96, 96), *[(36, 60)] * 3), radius <= 12) == pytest.approx(0.6854, abs=5e-5)


def test_block_count_dice_of_the_toy_episode():
    """docs/spars.md, Method 5: |P| 1280, |G| 512, 432 common."""
    pred, label = torch.zeros(4000, dtype=torch.bool), torch.zeros(4000, dtype=torch.bool)
    pred[:1280], label[1280 - 432 : 1280 - 432 + 512] = True, True
    assert m.dice(pred, label) == pytest.approx(0.482143, abs=1e-6)


@pytest.mark.parametrize(("pred_full", "label_full"), [(False, False), (True, False), (False, True)])
def test_empty_masks_follow_the_table(pred_full, label_full):
    pred, label = (box((3, 4, 12), *([(0, 2)] * 3 if full else [(0, 0)] * 3)) for full in (pred_full, label_full))
    got = m.segmentation_metrics(pred, label, (1.0, 1.0, 1.0))
    both_empty = not (pred_full or label_full)
    assert {got[name] for name in (m.NEEDS_TARGET & got.keys()) - {"hd95_mm"}} == {1.0 if both_empty else 0.0}
    assert got["hd95_mm"] == (0.0 if both_empty else 13.0)  # diagonal of 3 x 4 x 12 mm
    assert got["false_positive_ml"] == (0.008 if pred_full else 0.0)
    assert (got["pred_voxels"], got["label_voxels"]) == (8.0 * pred_full, 8.0 * label_full)


def test_segmentation_metrics_of_a_perfect_mask_and_in_two_dimensions():
    mask = box((6, 7, 8), (1, 4), (2, 5), (3, 7))
    perfect = m.segmentation_metrics(mask, mask, (0.8, 0.8, 5.0))
    assert {perfect[name] for name in (m.NEEDS_TARGET & perfect.keys()) - {"hd95_mm"}} == {1.0}
    assert (perfect["hd95_mm"], perfect["false_positive_ml"]) == (0.0, 0.0)
    flat = m.segmentation_metrics(mask[2], mask[2], (0.8, 5.0))
    assert flat.keys() == perfect.keys() - {"false_positive_ml"}
    assert flat.keys() >= {"dice", "hd95_mm", "lesion_recall"}


def test_false_positive_volume_uses_the_spacing():
    assert m.false_positive_ml(
        box((8, 8, 8), (0, 4), (0, 4), (0, 4)), box((8, 8, 8), (0, 2), (0, 4), (0, 4)), (1, 2, 5)
    ) == pytest.approx(32 * 10 / 1000)


@given(PAIRS)
def test_dice_and_iou_are_symmetric_and_bound_to_each_other(pair):
    pred, label = map(torch.from_numpy, pair)
    d, j = m.dice(pred, label), m.iou(pred, label)
    assert d == m.dice(label, pred)
    assert d == pytest.approx(2 * j / (1 + j))
    assert m.precision(pred, label) == m.recall(label, pred)


@given(PAIRS, st.randoms(use_true_random=False))
def test_overlaps_do_not_care_where_voxels_lie(pair, random):
    flat = [array.ravel() for array in pair]
    order = list(range(flat[0].size))
    random.shuffle(order)
    for f in OVERLAPS:
        assert f(*map(torch.from_numpy, pair)) == f(*(torch.from_numpy(array[order]) for array in flat))


# -- surfaces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "mm"), [(0, 0.5), (1, 1.0), (2, 6.0)])
def test_hd95_of_a_shifted_voxel_is_its_distance_in_mm(axis, mm):
    pred, label = box((9, 9, 9), (4, 5), (4, 5), (4, 5)), torch.zeros(9, 9, 9, dtype=torch.bool)
    label[tuple(4 + 2 * (a == axis) for a in range(3))] = True
    assert m.hd95_mm(pred, label, (0.25, 0.5, 3.0)) == pytest.approx(mm)


def test_hausdorff_distance_of_the_echo_oracle():
    """docs/rl4seg.md, Method 12: the LV loses its top row; spacing (0.5, 0.3) mm gives 0.5 mm."""
    truth, pred = box((8, 8), (3, 7), (2, 6)), box((8, 8), (4, 7), (2, 6))
    assert m.hd95_mm(pred, truth, (0.5, 0.3), percentile=100) == pytest.approx(0.5)
    assert m.dice(pred, truth) == pytest.approx(0.857143, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.permutations([0.5, 1.0, 2.5]))
def test_hd95_equals_brute_force(pair, spacings):
    spacing = tuple(spacings[: pair[0].ndim])
    if not (pair[0].any() and pair[1].any()):
        return
    distances = cdist(*(surface_points(mask, spacing) for mask in pair))
    expected = max(np.percentile(distances.min(axis=axis), 95) for axis in (0, 1))
    pred, label = map(torch.from_numpy, pair)
    assert m.hd95_mm(pred, label, spacing) == pytest.approx(expected, abs=1e-5)
    assert m.hd95_mm(label, pred, spacing) == pytest.approx(expected, abs=1e-5)


def test_nsd_of_two_slabs_counts_the_faces_within_tolerance():
    """Two 4 x 4 x 1 slabs of 1 x 1 x 3 mm voxels that stand 2 slices apart: 6 mm between their surfaces."""
    pred, label = box((8, 8, 8), (2, 6), (2, 6), (2, 3)), box((8, 8, 8), (2, 6), (2, 6), (4, 5))
    assert m.nsd(pred, label, (1, 1, 3), tolerance_mm=6.0) == 1.0
    assert m.nsd(pred, label, (1, 1, 3), tolerance_mm=2.9) == 0.0
    halfway = m.nsd(pred, label, (1, 1, 3), tolerance_mm=3.0)  # only the faces that look at each other
    assert halfway == pytest.approx(0.5)


def test_nsd_weights_with_area_not_with_number_of_voxels():
    """In a 2-D picture of 1 x 4 mm pixels a bar's long side counts by its length in mm."""
    pred, label = box((40, 40), (10, 12), (10, 30)), box((40, 40), (10, 20), (10, 30))
    assert m.nsd(pred, label, (1, 4), tolerance_mm=1.0) == m.nsd(label, pred, (1, 4), tolerance_mm=1.0)
    # the perimeters are 2 (2 + 80) and 2 (10 + 80) mm; of each, one side of 80 mm is far from the other bar, and 7 mm
    # at either end of the larger bar are: (84 + 180 - 80 - 14) / 344; corners cut at half a pixel make it approximate
    assert m.nsd(pred, label, (1, 4), tolerance_mm=1.0) == pytest.approx(170 / 344, abs=0.03)


# -- lesions -------------------------------------------------------------------------------------------------------


def test_lesion_scores_count_components_not_voxels():
    label = box((12, 12), (0, 2), (0, 2)) | box((12, 12), (5, 9), (5, 9)) | box((12, 12), (11, 12), (0, 1))
    pred = box((12, 12), (1, 4), (1, 4)) | box((12, 12), (5, 9), (5, 8)) | box((12, 12), (0, 2), (10, 12))
    of_label, of_pred = m.lesion_ious(pred, label)
    assert sorted(of_label) == pytest.approx([0, 1 / 12, 0.75])
    assert sorted(of_pred) == pytest.approx([0, 1 / 12, 0.75])
    assert m.lesion_recall(pred, label) == pytest.approx(2 / 3)
    assert m.lesion_recall(pred, label, min_iou=0.1) == pytest.approx(1 / 3)
    assert m.lesion_precision(pred, label) == pytest.approx(2 / 3)


def test_one_blob_over_two_lesions_finds_both_but_is_one_prediction():
    label = box((10, 4), (0, 3), (0, 4)) | box((10, 4), (6, 7), (0, 1))
    pred = box((10, 4), (0, 10), (0, 4))
    assert m.lesion_recall(pred, label) == 1.0
    assert m.lesion_recall(pred, label, min_iou=0.1) == 0.5  # IoU 12/40 and 1/40
    assert m.lesion_precision(pred, label) == 1.0


@pytest.mark.parametrize("rank", [2, 3])
def test_voxels_that_touch_by_a_corner_are_one_lesion(rank):
    diagonal = torch.zeros((4,) * rank, dtype=torch.bool)
    diagonal[(0,) * rank] = diagonal[(1,) * rank] = True
    assert len(m.lesion_ious(diagonal, diagonal)[0]) == 1


@given(PAIRS)
def test_lesion_scores_swap_with_their_masks(pair):
    pred, label = map(torch.from_numpy, pair)
    assert m.lesion_recall(pred, label) == m.lesion_precision(label, pred)
    assert m.lesion_recall(pred, label, min_iou=0.1) <= m.lesion_recall(pred, label)


# -- classification ------------------------------------------------------------------------------------------------


def test_classification_metrics_match_the_oracle():
    """docs/spars.md, Method 13: TP 3, FP 1, FN 2, TN 4."""
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1, 0.2, 0.3, 0.4, 0.1, 0.2])
    labels = torch.tensor([1, 1, 1, 0, 1, 1, 0, 0, 0, 0], dtype=torch.bool)
    got = m.classification_metrics(scores, labels)
    assert got["precision"] == 0.75
    assert got["sensitivity"] == 0.6
    assert got["specificity"] == 0.8
    assert got["accuracy"] == 0.7
    assert got["f1"] == pytest.approx(2 * 0.75 * 0.6 / 1.35)


def test_an_all_negative_classifier_has_precision_0():
    got = m.classification_metrics(torch.zeros(4), torch.tensor([True, False, True, False]))
    assert (got["precision"], got["sensitivity"], got["specificity"], got["auroc"]) == (0.0, 0.0, 1.0, 0.5)
    nothing = m.classification_metrics(torch.zeros(2), torch.zeros(2, dtype=torch.bool))
    assert (nothing["precision"], nothing["f1"], nothing["accuracy"]) == (0.0, 0.0, 1.0)


def test_the_classification_threshold_is_strict():
    labels = torch.tensor([True, False])
    assert m.classification_metrics(torch.tensor([0.5, 0.2]), labels)["sensitivity"] == 0.0
    assert m.classification_metrics(torch.tensor([0.5, 0.2]), labels, threshold=0.4)["sensitivity"] == 1.0


def test_auroc_counts_ties_half():
    scores, labels = torch.tensor([3.0, 1.0, 1.0, 0.0]), torch.tensor([True, True, False, False])
    assert m.auroc(scores, labels) == pytest.approx(3.5 / 4)
    assert math.isnan(m.auroc(scores, torch.ones(4, dtype=torch.bool)))


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=20))
def test_auroc_equals_the_share_of_ordered_pairs(cases):
    pairs = [(a, b) for (a, positive), (b, other) in permutations(cases, 2) if positive and not other]
    if not pairs:
        return
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    scores, labels = torch.tensor([float(a) for a, _ in cases]), torch.tensor([b for _, b in cases])
    assert m.auroc(scores, labels) == pytest.approx(expected)


def test_ece_matches_a_sum_by_hand():
    scores = torch.tensor([0.05, 0.06, 0.95, 0.99])
    labels = torch.tensor([False, True, True, True])
    # first bin: mean score 0.055 against 0.5; last bin: 0.97 against 1
    assert m.ece(scores, labels) == pytest.approx(0.5 * 0.445 + 0.5 * 0.03, abs=1e-6)


def test_ece_bins_are_closed_above_and_the_first_on_both_sides():
    labels = torch.tensor([True, False])
    # (0, 0.5] holds 0 and 0.5 together: |0.25 - 0.5|; were 0.5 in the upper bin, it would be (1 + 0.5) / 2
    assert m.ece(torch.tensor([0.0, 0.5]), labels, bins=2) == pytest.approx(0.25)
    assert m.ece(torch.tensor([1.0, 0.0]), labels, bins=2) == 0.0


def test_a_calibrated_classifier_has_a_small_ece_and_an_overconfident_one_has_not():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20_000, generator=generator)
    labels = torch.rand(20_000, generator=generator) < scores
    assert m.ece(scores, labels) < 0.02
    assert m.ece((scores > 0.5).float(), labels) > 0.2


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", OVERLAPS)
@pytest.mark.parametrize(
    ("pred", "message"),
    [
        (torch.zeros(3, 3), "pred is torch.float32 but must be a bool tensor"),
        (torch.full((3, 3), math.nan), "bool"),
        (np.zeros((3, 3), bool), "pred is bool but must be a bool tensor"),
        (torch.zeros(3, 4, dtype=torch.bool), "one shape"),
    ],
)
def test_overlaps_reject_what_is_no_mask(f, pred, message):
    with pytest.raises(ValueError, match=message):
        f(pred, torch.zeros(3, 3, dtype=torch.bool))


def test_masks_without_voxels_are_rejected():
    with pytest.raises(ValueError, match="empty"):
        m.dice(torch.zeros(0, 3, dtype=torch.bool), torch.zeros(0, 3, dtype=torch.bool))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, -1.0), (1.0, 1.0, math.nan)])
def test_bad_spacings_are_rejected(spacing):
    mask = box((4, 4, 4), (1, 3), (1, 3), (1, 3))
    for f in (m.hd95_mm, m.segmentation_metrics, m.false_positive_ml):
        with pytest.raises(ValueError, match="spacing_mm"):
            f(mask, mask, spacing)


def test_ranks_and_tolerances_without_meaning_are_rejected():
    mask = box((4, 4), (1, 3), (1, 3))
    with pytest.raises(ValueError, match="2 axes but must have 3"):
        m.false_positive_ml(mask, mask, (1, 1))
    with pytest.raises(ValueError, match="1 axes"):
        m.hd95_mm(mask[0], mask[0], (1,))
    with pytest.raises(ValueError, match="tolerance_mm is -1"):
        m.nsd(mask, mask, (1, 1), tolerance_mm=-1)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.tensor([0.5, math.nan]), torch.tensor([True, False]), "NaN"),
        (torch.tensor([0.5, 1.5]), torch.tensor([True, False]), "must lie in"),
        (torch.tensor([0.5]), torch.tensor([True, False]), "one shape"),
        (torch.tensor([0.5]), torch.tensor([1]), "labels is torch.int64"),
        (torch.zeros(0), torch.zeros(0, dtype=torch.bool), "empty"),
    ],
)
def test_bad_scores_are_rejected(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        m.classification_metrics(scores, labels)
