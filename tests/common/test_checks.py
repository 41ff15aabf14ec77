"""Checks of configurations."""

from dataclasses import dataclass

import pytest
from segarena.common.checks import with_settings


@dataclass(frozen=True)
class Toy:
    """Settings of nothing."""

    window_size: int = 16
    reward: str = "sign"


def test_settings_replace_the_fields_that_they_name() -> None:
    assert with_settings(Toy(), {"window_size": 8}) == Toy(window_size=8)
    assert with_settings(Toy(reward="diff"), {}) == Toy(reward="diff")


def test_an_unknown_setting_is_refused_with_the_name_that_is_like_it() -> None:
    with pytest.raises(ValueError, match="unknown argument 'windowsize'; did you mean 'window_size'"):
        with_settings(Toy(), {"windowsize": 8})
    with pytest.raises(ValueError, match=r"unknown argument 'x'; there are \['window_size', 'reward'\]"):
        with_settings(Toy(), {"x": 8})
