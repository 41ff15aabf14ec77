"""The mask of the highest expected Dice: its calibration, its level, and that it is the best mask."""

import itertools
import math

import pytest
import torch
from segarena.segmenters.expected_dice import BINS, LARGEST_LOGIT, Calibration, Presence, count, logit


def test_a_calibration_finds_the_curve_that_the_labels_were_drawn_from():
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(400_000, generator=rng)
    p = torch.sigmoid(1.7 * logit(values) - 3.1)
    tumour = (torch.rand(len(values), generator=rng) < p).double()
    found = Calibration.fit(count(values, torch.ones_like(tumour), tumour))
    assert found.slope == pytest.approx(1.7, abs=0.05)
    assert found.offset == pytest.approx(-3.1, abs=0.1)


def test_a_map_that_says_nothing_or_the_reverse_has_no_slope_and_a_perfect_one_a_bounded():
    values = torch.linspace(0.01, 0.99, 1000)
    tumour = (values < 0.3).double()
    nothing = Calibration.fit(count(values, torch.ones_like(tumour), tumour))
    assert (nothing.slope, nothing.offset) == (0.0, pytest.approx(math.log(0.3 / 0.7), abs=0.02))
    perfect = Calibration.fit(count(values, torch.ones_like(tumour), 1 - tumour))
    assert 3 < perfect.slope < 1000
    assert float((values > perfect.level(values)).double().sum()) == pytest.approx(700, abs=10)


def test_voxels_are_counted_by_their_logit():
    counts = count(torch.tensor([0.0, 0.5, 0.5, 1.0]), torch.tensor([1.0, 2, 3, 4.0]), torch.tensor([0.0, 1, 0, 4.0]))
    assert counts[:, 0].tolist() == [1, 0]
    assert counts[:, BINS // 2].tolist() == [5, 1]
    assert counts[:, -1].tolist() == [4, 4]
    assert float(counts.sum()) == 15
    assert float(logit(torch.tensor(2.0))) == LARGEST_LOGIT


def expected_dice(p, mask):
    """By hand: the mean over all truths, each voxel tumour with its own p, of the ratio of means."""
    return 2 * p[mask].sum() / (mask.sum() + p.sum())


def test_no_mask_of_a_small_map_has_a_higher_expected_dice():
    values = torch.tensor([0.9, 0.2, 0.95, 0.6, 0.6, 0.05, 0.8])
    for calibration in (Calibration(1.0, 0.0), Calibration(0.7, -3.9), Calibration(2.0, 1.0), Calibration(1.5, -2.0)):
        p = torch.sigmoid(calibration.slope * logit(values) + calibration.offset)
        best = max(
            float(expected_dice(p, torch.tensor(mask)))
            for mask in itertools.product([False, True], repeat=len(values))
            if any(mask)
        )
        chosen = values > calibration.level(values)
        assert float(expected_dice(p, chosen)) == pytest.approx(best, rel=1e-6)


def test_the_level_follows_the_case_where_a_fixed_one_would_leave_nothing():
    sure, doubtful = torch.tensor([0.99, 0.98, 0.97, 0.3, 0.1]), torch.tensor([0.6, 0.55, 0.5, 0.05, 0.01])
    calibration = Calibration(1.0, -1.0)
    assert (sure > calibration.level(sure)).tolist() == [True, True, True, False, False]
    assert (doubtful > calibration.level(doubtful)).tolist() == [True, True, True, False, False]


def test_of_equal_values_all_are_in_or_none_and_the_mask_may_be_everything():
    values = torch.tensor([0.5, 0.5, 0.5])
    assert (values > Calibration(1.0, 0.0).level(values)).all()
    values = torch.tensor([0.9, 0.5, 0.5, 0.5])
    assert int((values > Calibration(1.0, -4.0).level(values)).sum()) in (1, 4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_calibration_without_both_kinds_of_voxels_is_refused(share):
    values = torch.rand(10)
    with pytest.raises(ValueError, match=r"of 10 voxels are tumour, so what a value says cannot be learned"):
        Calibration.fit(count(values, torch.ones(10).double(), torch.full((10,), share).double()))


@pytest.mark.parametrize(
    ("outside", "inside"),
    [((1e6, 10), (1e3, 990)), ((1e5, 10), (1e3, 990)), ((2e5, 500), (2e3, 500)), ((9e6, 3e3), (5e4, 4e4))],
)
def test_a_calibration_of_a_map_of_two_values_is_that_of_their_odds(outside, inside):
    """As of boxes, or of a network that is sure: voxels, and tumour voxels, at 0 and at 1."""
    sizes, tumour = torch.tensor([outside, inside], dtype=torch.float64).T
    found = Calibration.fit(count(torch.tensor([0.0, 1.0]), sizes, tumour))
    ends = [math.log(t / (n - t)) for n, t in (outside, inside)]
    middle = LARGEST_LOGIT * (1 - 1 / BINS)  # of the outermost bins
    assert found.slope == pytest.approx((ends[1] - ends[0]) / (2 * middle), rel=0.02)
    assert found.offset == pytest.approx((ends[1] + ends[0]) / 2, rel=0.02)
    values = torch.cat((torch.zeros(1000), torch.ones(10)))
    assert int((values > found.level(values)).sum()) == 10


def test_where_a_map_is_0_there_is_no_mask_whatever_the_calibration():
    for calibration in (Calibration(1.4, -5.6), Calibration(0.0, -4.0)):
        assert not (torch.zeros(10) > calibration.level(torch.zeros(10))).any()
        few = torch.tensor([0.002, 0.002, 0.0, 0.0])
        assert (few > calibration.level(few)).tolist() == [True, True, False, False]
    sure = torch.full((3,), 0.9)
    assert (sure > Calibration(1.0, 0.0).level(sure)).all()


def test_the_expected_dice_is_that_of_the_best_mask():
    values = torch.tensor([0.9, 0.2, 0.95, 0.6])
    calibration = Calibration(0.7, -1.0)
    theta, dice = calibration.best(values)
    p = torch.sigmoid(0.7 * logit(values.double()) - 1.0)
    assert theta == calibration.level(values)
    assert dice == pytest.approx(float(expected_dice(p, values > theta)), rel=1e-6)


@pytest.mark.parametrize(("offset", "kept"), [(3.0, True), (-0.5, True), (-1.0, False), (-3.0, False)])
def test_there_is_a_mask_where_it_has_the_higher_expected_dice_than_none(offset, kept):
    values, calibration, curve = (
        torch.tensor([0.9, 0.2, 0.95, 0.6, 0.0]),
        Calibration(0.7, -1.0),
        Calibration(1.0, offset),
    )
    theta, dice = calibration.best(values)
    chance = dice / (dice + (1 - dice) * math.exp(-offset))  # sigmoid of logit D + offset
    assert (chance * dice > 1 - chance) == kept
    mask = values > Presence(curve).level(calibration, values)
    assert mask.any() == kept
    assert torch.equal(mask, values > theta) or not kept


def test_presence_learns_that_a_case_with_a_good_mask_has_tumour():
    rng = torch.Generator().manual_seed(0)
    dice = torch.rand(20_000, generator=rng, dtype=torch.float64)
    tumour = torch.rand(20_000, generator=rng) < torch.sigmoid(1.5 * logit(dice) + 0.5)
    curve = Presence.fit(dice, tumour).curve
    assert curve.slope == pytest.approx(1.5, abs=0.1)
    assert curve.offset == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("tumour", [True, False])
def test_presence_needs_cases_of_both_kinds(tumour):
    with pytest.raises(ValueError, match="of 3 validation cases have tumour, so what speaks for none"):
        Presence.fit(torch.rand(3).double(), torch.full((3,), tumour))
