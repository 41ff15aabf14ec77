"""FROC against counts by hand (docs/spars.md, Method 13)."""

import math

import numpy as np
import pytest
import torch
from segarena.evaluation.froc import RATES, THRESHOLDS, detections, froc, levels_of
from segarena.evaluation.metrics import lesion_ious


def volume(*boxes):
    """A map of 12 x 8 x 4 voxels that is 0 but for boxes along x (first, last + 1, value), two voxels wide."""
    made = torch.zeros(12, 8, 4)
    for first, last, value in boxes:
        made[first:last, :2, :2] = value
    return made


FIRST = volume((0, 2, 0.9), (4, 6, 0.6), (8, 10, 0.7)), volume((0, 2, 1), (4, 6, 1)) > 0
"""A scan with two lesions, found at 0.9 and 0.6, and a false positive at 0.7."""
SECOND = volume((0, 2, 0.8), (4, 6, 0.5), (10, 12, 0.3)), volume((10, 12, 1)) > 0
"""A scan with one lesion, found at 0.3, and false positives at 0.8 and 0.5."""
LEVELS = [0.0, 0.4, 0.55, 0.65, 0.75, 0.85, 0.95]


def test_the_curve_of_two_scans_by_hand():
    scans = [detections(*scan, LEVELS) for scan in (FIRST, SECOND)]
    assert [scan.lesions for scan in scans] == [2, 1]
    assert scans[0].found.tolist() == [2, 2, 2, 1, 1, 1, 0]
    assert scans[0].false_positives.tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert scans[1].found.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert scans[1].false_positives.tolist() == [2, 2, 1, 1, 1, 0, 0]
    # per scan (found of 3, false positives): (3, 1.5), (2, 1.5), (2, 1), (1, 1), (1, 0.5), (1, 0), (0, 0)
    expected = {"0.125": 1 / 3, "0.25": 1 / 3, "0.5": 1 / 3, "1": 2 / 3, "2": 1.0, "4": 1.0, "8": 1.0}
    assert froc(scans) == pytest.approx(
        {**{f"froc_{rate}": share for rate, share in expected.items()}, "froc_mean": sum(expected.values()) / 7}
    )


def test_a_detection_must_fit_the_lesion_or_everything_in_one_piece_would_find_everything():
    everything, label = torch.full((12, 8, 4), 0.5), FIRST[1]
    strict, loose = (detections(everything, label, [0.0], min_iou=iou) for iou in (0.1, 0.0))
    assert (strict.found.tolist(), strict.false_positives.tolist()) == ([0], [1])
    assert (loose.found.tolist(), loose.false_positives.tolist()) == ([2], [0])
    barely = volume((0, 2, 1)) > 0  # 8 voxels; a detection of 80 has an IoU of exactly 0.1, which is not above it
    heat = torch.zeros(12, 8, 4)
    heat[:10, :4, :2] = 1.0
    assert detections(heat, barely, [0.5]).found.tolist() == [0]
    heat[9, 3, 1] = 0.0
    assert detections(heat, barely, [0.5]).found.tolist() == [1]


def test_scans_without_lesions_count_for_false_positives_alone():
    scan = detections(FIRST[0], torch.zeros(12, 8, 4, dtype=torch.bool), LEVELS)
    assert scan.false_positives.tolist() == [3, 3, 3, 2, 1, 1, 0]
    assert all(math.isnan(value) for value in froc([scan]).values())
    alone, both = froc([detections(*FIRST, LEVELS)]), froc([detections(*FIRST, LEVELS), scan])
    assert alone["froc_0.125"] == both["froc_0.5"] == 0.5
    assert both["froc_0.125"] == 0.0


def test_it_counts_as_the_metrics_of_masks_do():
    generator = torch.Generator().manual_seed(0)
    heat, label = torch.rand(14, 11, 9, generator=generator), torch.rand(14, 11, 9, generator=generator) > 0.93
    levels = [0.5, 0.9, 0.97, 0.995, 2.0]
    for min_iou in (0.0, 0.1, 0.5):
        counted = detections(heat, label, levels, min_iou=min_iou)
        for number, level in enumerate(levels):
            of_label, of_pred = lesion_ious(heat > level, label)
            assert counted.found[number] == np.sum(of_label > min_iou)
            assert counted.false_positives[number] == np.sum(of_pred <= min_iou)


def test_thresholds_are_few_and_ascend_from_below_all_but_the_lowest_value():
    values = np.random.default_rng(0).random(10_000).astype(np.float32)
    levels = levels_of(values)
    assert len(levels) == THRESHOLDS
    assert levels == sorted(levels)
    assert levels[0] == values.min()
    assert np.sum(values > levels[-1]) <= 2
    assert levels_of(np.zeros(5)) == [0.0]
    assert len(RATES) == 7


def test_maps_that_do_not_fit_and_thresholds_that_fall_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\) but the mask \(12, 8, 4\)"):
        detections(torch.zeros(2, 2, 2), FIRST[1], [0.0])
    with pytest.raises(ValueError, match=r"thresholds are \[0.5, 0.1\] but must ascend"):
        detections(*FIRST, [0.5, 0.1])
