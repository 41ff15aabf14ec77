"""Measures of a prediction, and that an attack's damage is their fall (docs/rp-pgd.md, Method 22)."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from segarena.rewards.damage import Measure, measures


def predicted(labels, classes, truth, ignored=255):
    """A state whose prediction are these labels, each with probability of nearly 1."""
    logits = 20 * torch.nn.functional.one_hot(torch.tensor(labels), classes).float().movedim(-1, 1)
    truth = torch.tensor(truth)
    return SimpleNamespace(logits=logits, targets=torch.where(truth == ignored, 0, truth), valid=truth != ignored)


def test_known_values():
    state = predicted([[[0, 0, 1, 1], [1, 1, 0, 2]]], 4, [[[0, 0, 1, 0], [1, 255, 0, 1]]])
    found = {name: value.item() for name, value in measures(state).items()}
    assert found.keys() == set(get_args(Measure))
    assert found["miou"] == pytest.approx((3 / 4 + 2 / 4 + 0) / 3)
    assert found["acc"] == pytest.approx(5 / 7)
    assert found["dice"] == pytest.approx((4 / 6 + 0) / 2)
    assert found["p_y"] == pytest.approx(5 / 7, abs=1e-4)


def test_without_a_valid_pixel_nothing_is_wrong():
    state = predicted([[[0, 1]], [[0, 1]]], 2, [[[255, 255]], [[1, 1]]])
    assert {name: value.tolist() for name, value in measures(state).items()} == {
        "miou": [1.0, 0.25],
        "acc": [1.0, 0.5],
        "dice": [1.0, pytest.approx(2 / 3)],
        "p_y": [1.0, pytest.approx(0.5, abs=1e-4)],
    }


def test_dice_leaves_the_background_out():
    assert measures(predicted([[[0, 0]]], 3, [[[0, 0]]]))["dice"].tolist() == [1.0]
    assert measures(predicted([[[0, 1]]], 3, [[[0, 2]]]))["dice"].tolist() == [0.0]


def test_measures_never_wait_for_the_device(police):
    state = predicted([[[0, 0, 1, 1], [1, 1, 0, 2]]], 4, [[[0, 0, 1, 0], [1, 255, 0, 1]]])
    state = SimpleNamespace(**{name: value.to("cuda") for name, value in vars(state).items()})
    measures(state)
    with police.count() as counted:
        measures(state)
    assert counted.total == 0, counted.report()
