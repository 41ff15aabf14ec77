"""Learning curves: the mean and its interval are right, and what is drawn is written."""

import csv

import imageio.v3 as imageio
import numpy as np
import pytest
from scipy import stats
from segarena.evaluation.curve_figures import Curve, band, save_curve_figure, write_curves

REWARD = Curve("rollout/ep_rew_mean", "reward $ of an episode")


def test_a_band_is_the_mean_and_its_t_interval():
    seeds = [{0: 1.0, 10: 2.0}, {0: 2.0, 10: 2.0}, {0: 6.0, 10: 2.0}]
    found = band(seeds)
    np.testing.assert_array_equal(found.steps, [0, 10])
    np.testing.assert_allclose(found.mean, [3.0, 2.0])
    low, high = stats.t.interval(0.95, 2, loc=3.0, scale=stats.sem([1.0, 2.0, 6.0]))
    np.testing.assert_allclose([found.low[0], found.high[0]], [low, high])
    assert found.low[1] == found.high[1] == 2.0
    assert found.seeds == 3


def test_one_seed_has_no_interval():
    found = band([{0: 1.0, 10: 2.0}])
    np.testing.assert_array_equal(found.mean, [1.0, 2.0])
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()


def test_seeds_with_other_steps_are_compared_where_all_have_been():
    found = band([{0: 0.0, 10: 10.0, 20: 20.0}, {5: 1.0, 15: 1.0, 40: 9.0}])
    np.testing.assert_array_equal(found.steps, [5, 10, 15, 20])
    np.testing.assert_allclose(found.mean, [(5 + 1) / 2, (10 + 1) / 2, (15 + 1) / 2, (20 + 1 + 8 * 5 / 25) / 2])


def test_seeds_without_a_common_step_are_refused():
    with pytest.raises(ValueError, match="no common step: one begins at 30, another ends at 10"):
        band([{0: 0.0, 10: 1.0}, {30: 0.0}])
    with pytest.raises(ValueError, match="at least one value"):
        band([{0: 0.0}, {}])


def test_a_figure_shows_every_method_and_the_table_its_numbers(tmp_path):
    bands = {
        REWARD: {"one|$x$": band([{0: 1.0, 9: 2.0}, {0: 0.5, 9: 1.5}]), "other": band([{0: 1.0, 9: 0.5}])},
        Curve("spars/dice_eval", "Dice", "%"): {"other": band([{9: 0.25}])},
    }
    save_curve_figure(tmp_path / "curves.png", bands)
    write_curves(tmp_path / "curves.csv", bands)
    drawn = imageio.imread(tmp_path / "curves.png")[..., :3].astype(int)
    for rgb in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two colours
        assert (np.abs(drawn - rgb).sum(axis=-1) < 30).sum() > 100
    with (tmp_path / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["metric"], row["name"], row["step"], row["mean"], row["seeds"]) for row in rows] == [
        ("rollout/ep_rew_mean", "one|$x$", "0", "0.75", "2"),
        ("rollout/ep_rew_mean", "one|$x$", "9", "1.75", "2"),
        ("rollout/ep_rew_mean", "other", "0", "1.0", "1"),
        ("rollout/ep_rew_mean", "other", "9", "0.5", "1"),
        ("spars/dice_eval", "other", "9", "0.25", "1"),
    ]
    assert float(rows[0]["low"]) < 0.75 < float(rows[0]["high"])
    assert (rows[2]["low"], rows[2]["high"]) == ("", "")
    with pytest.raises(ValueError, match="no curves to draw"):
        save_curve_figure(tmp_path / "none.png", {})
