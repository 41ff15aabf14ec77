"""Intervals cover what they promise, and p-values are those of the test."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from segarena.evaluation.statistics import bootstrap_interval, paired_wilcoxon

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def coverage(draw, trials: int = 200) -> float:
    """Share of experiments whose 95 % interval holds the true mean, 0."""
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(draw(rng), resamples=500, seed=trial) for trial in range(trials)]
    return float(np.mean([low <= 0 <= high for _, low, high in intervals]))


def test_95_percent_intervals_cover_the_true_mean_about_so_often():
    assert 0.90 <= coverage(lambda rng: rng.normal(size=30)) <= 0.985


def test_seeds_that_are_lucky_on_all_cases_widen_the_interval():
    """Nearly all spread comes from the seeds: drawing seeds per case, or averaging them first, covers below 50 %."""
    shared = coverage(lambda rng: rng.normal(size=(10, 1)) + 0.1 * rng.normal(size=(10, 30)))
    assert shared >= 0.85


def test_the_interval_narrows_with_the_root_of_the_number_of_cases():
    rng = np.random.default_rng(0)
    widths = [high - low for _, low, high in (bootstrap_interval(rng.normal(size=n)) for n in (25, 2500))]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.3)


def test_the_width_is_that_of_a_normal_mean():
    values = np.random.default_rng(0).normal(size=400)
    mean, low, high = bootstrap_interval(values)
    assert mean == values.mean()
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    narrow = bootstrap_interval(values, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * values.std() / 20, rel=0.05)


def test_constant_values_have_no_width():
    assert bootstrap_interval([0.1] * 7) == pytest.approx((0.1, 0.1, 0.1))
    mean, low, high = bootstrap_interval(np.full((3, 7), 0.1))
    assert low == mean == high


def test_one_case_has_a_mean_but_no_interval():
    mean, low, high = bootstrap_interval([[0.25], [0.75]])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)


@given(VALUES)
def test_the_interval_lies_within_the_values_and_repeats(values):
    interval = bootstrap_interval(values, resamples=100)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack
    assert interval == bootstrap_interval([values], resamples=100)


def test_wilcoxon_of_six_gains_is_two_in_sixty_four():
    b = np.arange(6.0)
    assert paired_wilcoxon(b + np.arange(1, 7), b) == pytest.approx(2 / 64)


def test_wilcoxon_drops_pairs_without_a_difference():
    assert paired_wilcoxon([1, 2, 3], [1, 2, 3]) == 1.0
    assert paired_wilcoxon([1.0], [0.0]) == 1.0
    b = np.arange(8.0)
    a = b + np.array([1, 2, 3, 4, 5, 6, 0, 0])
    assert paired_wilcoxon(a, b) == pytest.approx(2 / 64)


@given(VALUES, st.floats(0.1, 10))
def test_wilcoxon_is_symmetric(values, gain):
    shifted = [value + gain * (i % 3) for i, value in enumerate(values)]
    assert paired_wilcoxon(values, shifted) == pytest.approx(paired_wilcoxon(shifted, values))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "not empty"),
        (np.zeros((2, 2, 2)), {}, "shape"),
        ([1.0, math.nan], {}, "NaN"),
        ([1.0, 2.0], {"level": 1.0}, "level is 1.0"),
        ([1.0, 2.0], {"resamples": 0}, "resamples is 0"),
    ],
)
def test_bad_values_are_rejected(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([[1.0]], [[2.0]])])
def test_bad_pairs_are_rejected(a, b):
    with pytest.raises(ValueError, match="a "):
        paired_wilcoxon(a, b)
