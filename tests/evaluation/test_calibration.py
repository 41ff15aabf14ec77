"""Calibration and uncertainty measures against hand-computed cases, brute force and NumPy, and on bad input."""

import math

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segarena.evaluation import metrics as m
from segarena.evaluation.calibration import (
    calibration,
    error_detection,
    image_uncertainty,
    mutual_information,
    pearson,
    risk_coverage,
    uncertainty_report,
)
from segarena.evaluation.calibration_figures import save_reliability_figure

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
CONFIDENCE = torch.tensor([0.05, 0.15, 0.55, 0.65, 0.95, 0.95, 0.85, 0.45], dtype=torch.float64)
CORRECT = torch.tensor([0, 0, 1, 0, 1, 1, 1, 1]).bool()
RANKED = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12)
"""Few different uncertainties, so that there are ties, and whether the pixel is wrong."""


def drawn(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A confidence and correctness that follows it."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, generator=generator)
    return confidence, torch.rand(n, generator=generator) < confidence


# -- calibration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("bins", "name", "expected"), [(20, "ece", 0.2625), (5, "ece", 0.2625), (5, "mce", 0.65), (4, "ace", 0.225)]
)
def test_errors_are_those_of_the_docs(device, bins, name, expected):
    """docs/rl4seg.md, Method 12."""
    found = calibration(CONFIDENCE.to(device), CORRECT.to(device), bins=bins)
    assert getattr(found, name) == pytest.approx(expected, abs=1e-12)


def test_the_table_of_the_diagram_is_that_of_the_bins():
    found = calibration(CONFIDENCE, CORRECT, bins=5)
    assert found.count.tolist() == [2, 0, 2, 1, 3]
    assert found.confidence == pytest.approx([0.1, math.nan, 0.5, 0.65, 2.75 / 3], nan_ok=True)
    assert found.accuracy == pytest.approx([0, math.nan, 1, 0, 1], nan_ok=True)
    held = found.count > 0
    gaps = np.abs(found.confidence - found.accuracy)[held]
    assert found.ece == pytest.approx((found.count[held] * gaps).sum() / 8)
    assert found.mce == pytest.approx(gaps.max())


def test_bins_are_closed_above_and_the_first_on_both_sides():
    edges = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert calibration(edges, torch.ones(5).bool(), bins=4).count.tolist() == [2, 1, 1, 1]


def test_there_is_one_expected_calibration_error():
    for bins in (1, 15, 20):
        assert calibration(*drawn(500), bins=bins).ece == m.ece(*drawn(500), bins=bins)


def test_bins_of_equal_count_are_slices_of_the_sorted_pixels():
    confidence, correct = drawn(600)
    order = confidence.argsort()
    gap = (confidence.double() - correct.double())[order].view(20, 30)
    assert calibration(confidence, correct).ace == pytest.approx(float(gap.sum(1).abs().sum() / 600), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_no_measure_depends_on_the_order_of_equal_pixels(seed):
    confidence, correct = drawn(203)
    confidence = (confidence * 5).round() / 5
    order = torch.randperm(203, generator=torch.Generator().manual_seed(seed))
    a, b = calibration(confidence, correct), calibration(confidence[order], correct[order])
    assert (a.ece, a.mce, a.ace) == pytest.approx((b.ece, b.mce, b.ace), abs=1e-12)
    assert risk_coverage(confidence, correct).aurc == pytest.approx(
        risk_coverage(confidence[order], correct[order]).aurc
    )
    assert error_detection(confidence, correct) == pytest.approx(error_detection(confidence[order], correct[order]))


def test_a_calibrated_confidence_has_small_errors_and_an_overconfident_one_has_not():
    confidence, correct = drawn(50_000)
    good, sharp = calibration(confidence, correct), calibration((confidence > 0.5).float(), correct)
    assert max(good.ece, good.mce, good.ace) < 0.04
    assert min(sharp.ece, sharp.mce, sharp.ace) > 0.2
    assert sharp.ace == pytest.approx(sharp.ece, abs=0.01)  # two values: shared bins hide nothing


def test_fewer_pixels_than_bins_are_each_their_own_bin():
    assert calibration(torch.tensor([0.25, 0.75]), torch.tensor([False, True]), bins=20).ace == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        (torch.tensor([1.5]), torch.tensor([True]), 20, "must lie in"),
        (torch.tensor([math.nan]), torch.tensor([True]), 20, "NaN"),
        (torch.tensor([0.5]), torch.tensor([1.0]), 20, "bool"),
        (torch.tensor([0.5]), torch.tensor([True, False]), 20, "one shape"),
        (torch.zeros(0), torch.zeros(0).bool(), 20, "not be empty"),
        (torch.tensor([0.5]), torch.tensor([True]), 0, "bins is 0"),
    ],
)
def test_bad_confidences_are_rejected(confidence, correct, bins, message):
    with pytest.raises(ValueError, match=message):
        calibration(confidence, correct, bins=bins)


# -- ranking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_error_detection_matches_a_count_by_hand(device):
    uncertainty, wrong = torch.tensor([0.9, 0.8, 0.8, 0.1]), torch.tensor([True, True, False, False])
    auroc, auprc = error_detection(uncertainty.to(device), wrong.to(device))
    assert auroc == pytest.approx(3.5 / 4)
    assert auprc == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@given(RANKED)
@settings(deadline=None)
def test_average_precision_is_the_sum_over_thresholds(pixels):
    u, wrong = (np.array(column) for column in zip(*pixels, strict=True))
    _, found = error_detection(torch.from_numpy(u), torch.from_numpy(wrong))
    if not wrong.any():
        assert math.isnan(found)
        return
    expected = before = 0.0
    for threshold in sorted(set(u), reverse=True):
        called = u >= threshold
        recall = wrong[called].sum() / wrong.sum()
        expected += (recall - before) * wrong[called].mean()
        before = recall
    assert found == pytest.approx(expected)


def test_useless_uncertainty_finds_errors_as_often_as_they_are():
    wrong = torch.arange(10) < 3
    assert error_detection(torch.zeros(10), wrong) == pytest.approx((0.5, 0.3))
    auroc, auprc = error_detection(torch.rand(4), torch.ones(4).bool())
    assert math.isnan(auroc)
    assert auprc == 1.0


def test_the_risk_coverage_curve_is_that_by_hand():
    """Kept in the order 0, then 1 (the two ties in either order), then 0.5."""
    coverage, risk, area = risk_coverage(torch.tensor([0.1, 0.5, 0.5, 0.9]), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert coverage == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert risk == pytest.approx([0, 0.25, 1 / 3, 0.5])
    assert area == pytest.approx((0 + 0.25 + 1 / 3 + 0.5) / 4)


@given(RANKED)
@settings(deadline=None)
def test_the_area_is_the_mean_over_all_orders_of_ties(pixels):
    u, risk = (np.array(column, dtype=float) for column in zip(*pixels, strict=True))
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(200):
        order = np.lexsort((rng.random(len(u)), u))
        areas.append(np.mean(np.cumsum(risk[order]) / np.arange(1, len(u) + 1)))
    assert risk_coverage(torch.from_numpy(u), torch.from_numpy(risk)).aurc == pytest.approx(np.mean(areas), abs=0.08)


def test_refusing_the_wrong_ones_first_is_the_best_order_and_the_last_the_worst():
    risk = torch.rand(300, generator=torch.Generator().manual_seed(0))
    best, none, worst = (risk_coverage(u, risk) for u in (risk, torch.zeros(300), -risk))
    assert best.aurc < none.aurc < worst.aurc
    assert none.aurc == pytest.approx(float(risk.mean()))
    assert best.risk[-1] == pytest.approx(float(risk.mean()))
    assert (np.diff(best.risk) > 0).all()


def test_a_long_curve_is_thinned_but_its_area_is_not():
    u, wrong = drawn(10_000)
    few, many = risk_coverage(u, wrong, points=10), risk_coverage(u, wrong, points=10_000)
    assert (len(few.coverage), len(many.coverage)) == (10, 10_000)
    assert few.aurc == many.aurc == pytest.approx(many.risk.mean())
    assert few.risk == pytest.approx(many.risk[999::1000])


@pytest.mark.parametrize(
    ("u", "risk", "points", "message"),
    [
        (torch.zeros(2), torch.zeros(3), 10, "must match"),
        (torch.zeros(0), torch.zeros(0), 10, "empty"),
        (torch.tensor([math.inf]), torch.zeros(1), 10, "infinity"),
        (torch.zeros(1), torch.tensor([math.nan]), 10, "NaN"),
        (torch.zeros(1), torch.zeros(1), 0, "points is 0"),
    ],
)
def test_bad_risks_are_rejected(u, risk, points, message):
    with pytest.raises(ValueError, match=message):
        risk_coverage(u, risk, points=points)


# -- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_mutual_information_is_that_of_numpys_histogram(device):
    rng = np.random.default_rng(0)
    error = rng.random((3, 16, 16)) < 0.3
    u = rng.gamma(2.0, size=(3, 16, 16)) + error
    found, normalised = mutual_information(torch.from_numpy(error).to(device), torch.from_numpy(u).to(device))
    for n in range(3):
        share = np.histogram2d(error[n].ravel().astype(float), u[n].ravel(), bins=10)[0] / 256
        h_e, h_u, h_both = (-(p[p > 0] * np.log(p[p > 0])).sum() for p in (share.sum(1), share.sum(0), share))
        assert float(found[n]) == pytest.approx(h_e + h_u - h_both)
        assert float(normalised[n]) == pytest.approx(2 * (h_e + h_u - h_both) / (h_e + h_u))


def test_a_map_that_is_the_errors_tells_all_and_a_constant_one_nothing():
    error = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    told, share = mutual_information(error, 0.2 + 0.1 * error)  # whatever its scale
    assert (float(told), float(share)) == pytest.approx((math.log(2), 1.0))
    for maps in ((error, torch.ones(1, 4)), (torch.zeros(1, 4), error), (torch.zeros(1, 4), torch.zeros(1, 4))):
        assert [float(value) for value in mutual_information(*maps)] == [0.0, 0.0]
    with pytest.raises(ValueError, match="one shape"):
        mutual_information(error, error[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        mutual_information(error, error * math.nan)


def test_images_are_ranked_by_mean_and_by_foreground():
    u = torch.full((2, 2, 4), 0.5)
    pred = torch.zeros(2, 2, 4, dtype=torch.uint8)
    pred[0, 0, :2] = 2
    found = image_uncertainty(u, pred)
    assert found["mean"].tolist() == [0.5, 0.5]
    assert found["per_foreground"].tolist() == [2.0, 4.0]  # an empty prediction counts as one pixel


def test_pearson_is_that_of_numpy():
    a, b = torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    assert pearson(a, -2 * a + 1) == pytest.approx(-1)
    assert math.isnan(pearson(a, torch.ones(30)))
    with pytest.raises(ValueError, match="at least 2"):
        pearson(a[:1], b[:1])


def test_the_report_rewards_a_map_that_knows_the_errors():
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(6, 16, 16, dtype=torch.uint8)
    truth[:, 4:12, 4:12] = 1
    pred = truth.clone()
    for n in range(6):
        pred[n, 4 : 4 + n, 4:12] = 2
    dice = torch.tensor([m.dice(p == 1, g == 1) for p, g in zip(pred, truth, strict=True)])
    wrong = (pred != truth).float()
    blind = torch.rand(6, 16, 16, generator=generator)
    knows, guesses = (uncertainty_report(u, pred, truth, dice).metrics for u in (wrong, blind))
    assert (knows["ece"], knows["mce"], knows["ace"]) == (0, 0, 0)
    assert (knows["error_auroc"], knows["error_auprc"]) == (1, 1)
    assert knows["correlation_mean"] < -0.9
    assert knows["correlation_foreground"] < -0.9
    assert knows["nmi"] == pytest.approx(5 / 6)  # the image without errors tells nothing
    for name in ("ece", "ace", "aurc_pixel", "aurc_image"):
        assert knows[name] < guesses[name], name
    for name in ("error_auroc", "error_auprc", "mi", "nmi"):
        assert knows[name] > guesses[name], name
    with pytest.raises(ValueError, match="any foreground"):
        uncertainty_report(wrong, pred * 0, truth * 0, dice)
    with pytest.raises(ValueError, match=r"must be \[N, H, W\]"):
        uncertainty_report(wrong, pred, truth, dice[:2])


# -- figure --------------------------------------------------------------------------------------------------------


def test_the_reliability_figure_shows_curves_and_widens_for_the_risk(tmp_path):
    methods = {"RL4Seg": calibration(*drawn(1000)), "one bin": calibration(torch.ones(5), torch.ones(5).bool())}
    save_reliability_figure(tmp_path / "one.png", methods, title="phantom")
    save_reliability_figure(
        tmp_path / "two.png", methods, title="phantom", risk={"RL4Seg": risk_coverage(*drawn(1000))}
    )
    one, two = imageio.imread(tmp_path / "one.png"), imageio.imread(tmp_path / "two.png")
    assert one.shape[0] == two.shape[0]
    assert two.shape[1] > 1.5 * one.shape[1]
    with pytest.raises(ValueError, match="no methods"):
        save_reliability_figure(tmp_path / "none.png", {}, title="nothing")
