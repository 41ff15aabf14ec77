"""Checks of configurations."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from segarena.common.checks import AT_LEAST_1, BELOW_1, POSITIVE, check, check_choice, whole_path, with_settings

Reward = Literal["sign", "diff", "score"]


@dataclass(frozen=True)
class Toy:
    """Settings of nothing, one of each type."""

    window_size: tuple[int, int, int] | None = (16, 16, 8)
    reward: Reward = "sign"
    rewards: Reward | list[Reward] = "sign"
    n_agents: Literal[1, 2] | None = None
    steps: int = 1
    learning_rate: float = 1e-3
    noise: tuple[float, ...] = (0.1, 0.5)
    clahe: bool = True
    device: str = "auto"
    patients: dict[str, list[str]] | None = None

    def __post_init__(self) -> None:
        check(self, "toy.", window_size=AT_LEAST_1, steps=(1, 9), learning_rate=POSITIVE, noise=(0, BELOW_1))


def refused(**settings: Any) -> str:
    """Error message for a wrong setting."""
    with pytest.raises(ValueError, match=r"^toy\.") as error:
        Toy(**settings)
    return str(error.value)


def test_what_the_types_and_ranges_allow_is_taken() -> None:
    Toy(
        window_size=None,
        rewards=["sign", "diff"],
        n_agents=2,
        steps=9,
        learning_rate=1,
        noise=(),
        patients={"a": ["b"]},
    )
    Toy(steps=np.int64(3), learning_rate=np.float32(0.5), device=Path("a"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"window_size": 16}, "window_size is 16 but must be a tuple of 3 whole numbers or None"),
        ({"window_size": (16, 16)}, "window_size is (16, 16) but must be a tuple of 3 whole numbers or None"),
        ({"window_size": (16, 16, 0.5)}, "window_size is (16, 16, 0.5) but must be a tuple of 3 whole numbers or None"),
        ({"window_size": (16, 16, 0)}, "window_size is (16, 16, 0) but each must be at least 1"),
        ({"reward": "sine"}, "reward is 'sine' but must be one of 'sign', 'diff', 'score'; did you mean 'sign'?"),
        ({"reward": None}, "reward is None but must be one of 'sign', 'diff', 'score'"),
        ({"rewards": ["sign", "dif"]}, "rewards is ['sign', 'dif'] but each must be one of"),
        ({"n_agents": 3}, "n_agents is 3 but must be one of 1, 2 or None"),
        ({"n_agents": True}, "n_agents is True but must be one of 1, 2 or None"),
        ({"steps": 1.5}, "steps is 1.5 but must be a whole number"),
        ({"steps": True}, "steps is True but must be a whole number"),
        ({"steps": 10}, "steps is 10 but must lie in [1, 9]"),
        ({"learning_rate": math.nan}, "learning_rate is nan but must be a finite number"),
        ({"learning_rate": math.inf}, "learning_rate is inf but must be a finite number"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3' but must be a finite number"),
        ({"learning_rate": 0}, "learning_rate is 0 but must be positive"),
        ({"noise": (0.5, 1)}, "noise is (0.5, 1) but each must lie in [0, 1)"),
        ({"noise": [0.5]}, "noise is [0.5] but must be a tuple of finite numbers"),
        ({"clahe": 1}, "clahe is 1 but must be True or False"),
        ({"device": 0}, "device is 0 but must be a string"),
        ({"patients": {"a": "b"}}, "patients is {'a': 'b'} but must be of type dict or None"),
    ],
)
def test_anything_else_is_refused_with_name_value_and_rule(setting: dict[str, Any], said: str) -> None:
    assert refused(**setting).startswith(f"toy.{said}")


def test_a_wrong_item_of_a_list_is_compared_with_the_choices() -> None:
    assert refused(rewards=["scores"]).endswith("must be one of 'sign', 'diff', 'score'; did you mean 'score'?")


def test_a_choice_is_checked_alone() -> None:
    check_choice("mode", "batch", ("frozen", "batch"))
    with pytest.raises(
        ValueError, match=r"mode is 'frozn' but must be one of 'frozen', 'batch'; did you mean 'frozen'\?"
    ):
        check_choice("mode", "frozn", ("frozen", "batch"))


def test_settings_replace_the_fields_that_they_name() -> None:
    assert with_settings(Toy(), {"steps": 8}) == Toy(steps=8)
    assert with_settings(Toy(reward="diff"), {}) == Toy(reward="diff")


@dataclass(frozen=True)
class Holder:
    """Settings that hold others."""

    toy: Toy = field(default_factory=lambda: Toy(steps=3))
    names: dict[str, int] = field(default_factory=dict)


def test_a_mapping_sets_the_fields_of_settings_within_settings() -> None:
    made = with_settings(Holder(), {"toy": {"reward": "diff", "noise": [0.2]}, "names": {"steps": 5}})
    assert made == Holder(Toy(steps=3, reward="diff", noise=(0.2,)), {"steps": 5})
    assert with_settings(Holder(), {"toy": Toy()}) == Holder(Toy())
    with pytest.raises(ValueError, match="unknown argument 'stepz'; did you mean 'steps'"):
        with_settings(Holder(), {"toy": {"stepz": 5}})


def test_an_unknown_setting_is_refused_with_the_name_that_is_like_it() -> None:
    with pytest.raises(ValueError, match="unknown argument 'windowsize'; did you mean 'window_size'"):
        with_settings(Toy(), {"windowsize": 8})
    with pytest.raises(ValueError, match=r"unknown argument 'x'; there are \['window_size', 'reward'"):
        with_settings(Toy(), {"x": 8})


def test_the_copy_checks_itself() -> None:
    with pytest.raises(ValueError, match=r"toy\.steps is 10"):
        with_settings(Toy(), {"steps": 10})


def test_a_path_is_made_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert whole_path("env.data", "absent/folder") == str(tmp_path.resolve() / "absent" / "folder")
    (tmp_path / "file").touch()
    assert whole_path("env.data", "file/below") == str(tmp_path.resolve() / "file" / "below")


@pytest.mark.parametrize("path", ["a\0b", "n" * 5000])
def test_what_no_file_can_be_called_is_named_with_its_field(path):
    with pytest.raises(ValueError, match=r"env\.data is '.*', but no file can be called so") as raised:
        whole_path("env.data", path)
    assert len(str(raised.value)) < 400
