"""The picture of win rates: losses red, wins blue, what was never played grey."""

import numpy as np
import pytest
from segarena.evaluation.matrix_pictures import win_rate_picture

GREY = (153, 153, 153)


def share(rates, colour):
    """Share of the pixels of the picture of a matrix that have a colour."""
    picture = win_rate_picture(rates, range(len(rates)), range(rates.shape[1]))
    assert picture.dtype == np.uint8
    return (picture == colour).all(axis=2).mean()


@pytest.mark.parametrize(("rate", "colour"), [(0.0, (103, 0, 31)), (1.0, (5, 48, 97))])
def test_losses_are_red_and_wins_blue(rate, colour):
    assert share(np.full((2, 3), rate), colour) > 0.1
    assert share(np.full((2, 3), 1 - rate), colour) < 0.02, "but for the scale"


def test_what_was_never_played_is_grey():
    assert share(np.full((2, 3), np.nan), GREY) > 0.1
    assert share(np.full((2, 3), 0.5), GREY) < 0.02


@pytest.mark.parametrize(
    ("rates", "message"),
    [(np.zeros((2, 3)), r"rates are \(2, 3\) but must be \(2, 2\)"), (np.full((2, 2), 1.5), "lie in")],
)
def test_a_matrix_that_is_none_is_refused(rates, message):
    with pytest.raises(ValueError, match=message):
        win_rate_picture(rates, [1, 2], [0, 1])
