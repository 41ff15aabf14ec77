"""Metrics of counts: known values, sizes, the worst case (docs/rp-pgd.md, Method 18 and 27)."""

from itertools import product

import numpy as np
import pytest
import torch
from segarena.common.overlap import class_counts
from segarena.evaluation.robustness_metrics import (
    Counts,
    image_dice,
    image_miou,
    metrics,
    mixed,
    sized_iou,
    worst_by_image,
    worst_by_search,
)


def counts_of(predicted, labels, classes):
    found = class_counts(torch.tensor(predicted), torch.tensor(labels), classes)
    return Counts(*(part.numpy() for part in found))


KNOWN = counts_of([[[0, 0, 1, 1], [1, 1, 0, 2]]], [[[0, 0, 1, 0], [1, 255, 0, 1]]], 4)


def test_the_known_values_of_both_conventions():
    skip, zero = metrics(KNOWN), metrics(KNOWN, "zero")
    assert (skip.miou, zero.miou) == (pytest.approx(0.416667, abs=1e-6), 0.3125)
    assert (skip.macc, zero.macc) == (pytest.approx(0.708333, abs=1e-6), pytest.approx(0.354167, abs=1e-6))
    assert skip.aacc == zero.aacc == pytest.approx(0.714286, abs=1e-6)
    with pytest.raises(ValueError, match="absent is 'none' but must be one of"):
        metrics(KNOWN, "none")


def test_metrics_of_one_image_are_over_its_own_classes():
    labels = [[[0, 0, 1, 1]], [[2, 2, 2, 2]], [[255, 255, 255, 255]]]
    counts = counts_of([[[0, 1, 1, 1]], [[2, 2, 2, 2]], [[0, 1, 2, 0]]], labels, 4)
    assert image_miou(counts) == pytest.approx([(1 / 2 + 2 / 3) / 2, 1.0, np.nan], nan_ok=True)
    assert image_dice(counts) == pytest.approx([0.8, 1.0, np.nan], nan_ok=True)
    found = metrics(counts)
    assert found.nmiou == pytest.approx((7 / 12 + 1) / 2)
    assert found.dice == pytest.approx(0.9)
    assert found.miou == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def test_nothing_valid_is_nothing_known():
    found = metrics(counts_of([[[0, 1]]], [[[255, 255]]], 2))
    assert all(np.isnan(value) for value in (found.miou, found.aacc, found.nmiou, found.dice, found.iou_large))


def test_an_object_is_sized_by_its_share_of_the_image():
    """Of 200 valid pixels 1, 10 and 189: 0.5 %, 5 % and 94.5 %; exactly 1 % is medium, exactly 10 % large."""
    labels = torch.zeros(1, 201, dtype=torch.int64)
    labels[0, 0], labels[0, 1:11], labels[0, 200] = 1, 2, 255
    predicted = labels.clone()
    predicted[0, 0], predicted[0, 1:6], predicted[0, 200] = 0, 0, 1
    found = metrics(counts_of(predicted.tolist(), labels.tolist(), 4))
    assert (found.iou_small, found.iou_medium) == (0.0, 0.5)
    assert found.iou_large == pytest.approx(189 / 195)
    edge = counts_of([[0] * 89 + [1] + [2] * 10], [[0] * 89 + [1] + [2] * 10], 3)
    assert [len(sized_iou(edge, *ends)) for ends in ((0, 0.01), (0.01, 0.1), (0.1, 2))] == [0, 1, 2]


def rivals(attacks=3, images=6, classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, (images, 12))
    found = []
    for _ in range(attacks):
        right = random.random(labels.shape) < 0.6
        predicted = np.where(right, labels, random.integers(0, classes, labels.shape))
        found.append(counts_of(predicted.tolist(), labels.tolist(), classes))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_brute_force_finds(seed):
    found = rivals(seed=seed)
    best = min(metrics(mixed(found, np.array(chosen))).miou for chosen in product(range(3), repeat=6))
    searched = metrics(mixed(found, worst_by_search(found))).miou
    assert searched <= min(metrics(one).miou for one in found)
    assert searched == pytest.approx(best, abs=0.005)


def test_the_search_ends_where_no_single_image_lowers_the_mean():
    found = rivals(attacks=4, images=9, seed=5)
    chosen = worst_by_search(found, seed=3)
    reached = metrics(mixed(found, chosen)).miou
    for image, attack in product(range(9), range(4)):
        other = chosen.copy()
        other[image] = attack
        assert metrics(mixed(found, other)).miou >= reached - 1e-9
    assert np.array_equal(chosen, worst_by_search(found, seed=3))


def test_the_search_begins_with_the_attack_of_the_lowest_mean():
    """All 0 leaves 0.25, nearly all 1 less; one image of each leaves more than either, so that no single one moves."""
    labels = [[0] * 4 + [1] * 4] * 2
    zeros, ones = counts_of([[0] * 8] * 2, labels, 2), counts_of([[1] * 7 + [0]] * 2, labels, 2)
    for first, found in (([zeros, ones], [1, 1]), ([ones, zeros], [0, 0])):
        assert worst_by_search(first).tolist() == found


def test_the_worst_accuracy_is_that_of_each_image():
    found = rivals(seed=7)
    worst = mixed(found, worst_by_image(found))
    assert np.array_equal(worst.accuracy, np.min([one.accuracy for one in found], axis=0))
    assert metrics(worst).aacc < min(metrics(one).aacc for one in found)
    with pytest.raises(ValueError, match="worst of no attacks"):
        worst_by_search([])
