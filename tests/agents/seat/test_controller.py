"""SEAT's controller step by step, and its rivals."""

import json
import math

import pytest
from segarena.agents.seat.controller import DEAT, SEAT, Amata, MPlus, Schedule, SEATPlus, make_schedule


def trace(schedule, magnitudes, epochs):
    """(K, T) after the epochs of `magnitudes` {epoch: M}; those between have the last M."""
    found, magnitude = {}, 9.0
    for epoch in range(1, epochs + 1):
        magnitude = magnitudes.get(epoch, magnitude)
        schedule.update(epoch, magnitude)
        found[epoch] = (schedule.iterations, getattr(schedule, "threshold", 0.0))
    return found


RISES_AND_FALLS = {4: 10, 5: 10, 6: 12, 9: 14, 12: 13, 15: 13.5, 18: 17, 21: 18, 24: 30, 27: 40}


def test_the_controller_rises_falls_and_rests():
    found = trace(SEAT(), RISES_AND_FALLS, 27)
    expected = {1: (1, 0), 2: (1, 0), 3: (2, 0), 4: (2, 11), 5: (2, 11), 6: (3, 13.2), 9: (4, 15.4), 12: (3, 14.3)}
    expected |= {15: (3, 14.3), 18: (4, 18.7), 21: (4, 18.7), 24: (5, 33), 27: (5, 33)}
    for epoch, (iterations, threshold) in expected.items():
        assert found[epoch] == (iterations, pytest.approx(threshold)), epoch


def test_it_never_falls_below_two():
    found = trace(SEAT(), {4: 10, 6: 10.5, 9: 8, 12: 8, 15: 11.2, 18: 11, 21: 1}, 21)
    expected = {6: (2, 11), 9: (2, 11), 12: (2, 11), 15: (3, 12.32), 18: (2, 12.1), 21: (2, 12.1)}
    for epoch, (iterations, threshold) in expected.items():
        assert found[epoch] == (iterations, pytest.approx(threshold)), epoch


def test_a_magnitude_that_is_not_finite_is_counted_and_the_threshold_is_taken_from_the_next_one():
    schedule = SEAT()
    found = trace(schedule, {4: math.inf, 5: 10, 6: 12}, 6)
    assert found[4] == (2, 0.0)
    assert found[5] == (2, pytest.approx(11))
    assert found[6] == (3, pytest.approx(13.2))
    assert schedule.skipped == 1
    schedule.update(9, math.nan)
    assert (schedule.iterations, schedule.skipped) == (3, 2)


def test_every_epoch_may_decide():
    schedule, found = SEAT(period=1), []
    for epoch, magnitude in enumerate([5, 5, 5, 6, 7, 8], start=1):
        schedule.update(epoch, magnitude)
        found.append((schedule.iterations, schedule.threshold))
    expected = [(2, 0), (2, 5.5), (2, 5.5), (3, 6.6), (4, 7.7), (5, 8.8)]
    assert found == [(iterations, pytest.approx(threshold)) for iterations, threshold in expected]


def test_m_plus_rises_like_seat_and_never_falls():
    found = trace(MPlus(), RISES_AND_FALLS, 15)
    assert [found[epoch][0] for epoch in (3, 6, 9, 12, 15)] == [2, 3, 4, 4, 4]
    assert found[12][1] == pytest.approx(15.4), "the threshold is that of the last change"


def test_seat_plus_falls_only_beyond_a_band_as_wide_as_that_above():
    magnitudes = {4: 10, 6: 12, 9: 11.5, 12: 10.95, 15: 10.85, 18: 10.9, 21: 12, 24: 9.8, 27: 1}
    found = trace(SEATPlus(), magnitudes, 27)
    expected = {6: (3, 13.2), 9: (3, 13.2), 12: (3, 13.2), 15: (2, 11.935), 18: (2, 11.935), 21: (3, 13.2)}
    expected |= {24: (2, 10.78), 27: (2, 10.78)}  # 12 / 1.1 is 10.909
    for epoch, (iterations, threshold) in expected.items():
        assert found[epoch] == (iterations, pytest.approx(threshold)), epoch
    assert trace(SEAT(), magnitudes, 9)[9][0] == 2, "the other one falls at once"


def test_the_others_ask_no_magnitude():
    deat = trace(DEAT(most_iterations=3, period=2), {}, 7)
    assert [deat[epoch][0] for epoch in range(1, 8)] == [1, 2, 2, 3, 3, 3, 3]
    amata = trace(Amata(most_iterations=5, epochs=9), {}, 9)
    assert [amata[epoch][0] for epoch in range(1, 9)] == [1, 2, 3, 3, 3, 4, 5, 5]
    assert {K for K, _ in trace(Schedule(4), {2: math.nan}, 5).values()} == {4}


@pytest.mark.parametrize("name", ["constant", "seat", "seat_plus", "m_plus", "deat_d", "amata"])
def test_a_schedule_that_is_read_again_goes_on_alike(name):
    def made():
        return make_schedule(name, 5, 3, 1.1, 27)

    whole, first, second = made(), made(), made()
    trace(whole, RISES_AND_FALLS, 20)
    trace(first, RISES_AND_FALLS, 10)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    magnitude = RISES_AND_FALLS[9]
    for epoch in range(11, 21):
        magnitude = RISES_AND_FALLS.get(epoch, magnitude)
        second.update(epoch, magnitude)
    assert second.state_dict() == whole.state_dict()


def test_what_makes_no_schedule_is_refused():
    with pytest.raises(ValueError, match="most_iterations is 0"):
        Schedule(0)
    with pytest.raises(ValueError, match=r"gamma 1\.0"):
        SEAT(gamma=1.0)
    with pytest.raises(ValueError, match="period is 0"):
        DEAT(period=0)
