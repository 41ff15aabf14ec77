"""A network's file: what is written comes back, and everything else is refused with what it is."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from segarena.common.checkpoints import load_weights, save_weights
from segarena.common.networks import Network, load_network, save_network
from torch import nn


class Toy(Network):
    """A line per window."""

    def __init__(self, window: tuple[int, int], *, channels: int = 2) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels is {channels} but must be at least 1")
        self.window, self.channels = window, channels
        self.line = nn.Linear(window[0] * window[1], channels)


class Other(Network):
    """Another network of the same layer."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


def test_a_network_comes_back_with_weights_arguments_and_what_is_known_of_it(path: Path) -> None:
    net = Toy((2, 3), channels=4).train()
    save_network(path, net, {"training": {"seed": 3}})
    loaded = load_network(path, Toy, channels=4, window=(2, 3))
    assert loaded.description == net.description == {"window": (2, 3), "channels": 4}
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert not loaded.training
    assert json.loads(load_weights(path)[1]["training"]) == {"seed": 3}


def test_a_network_of_another_kind_or_with_other_arguments_is_refused(path: Path) -> None:
    save_network(path, Other())
    with pytest.raises(ValueError, match=r"net\.safetensors' holds a Other but a Toy is needed"):
        load_network(path, Toy)
    save_network(path, Toy((2, 3), channels=4))
    with pytest.raises(ValueError, match="holds a Toy with channels = 4 but 3 is needed"):
        load_network(path, Toy, channels=3)


def test_a_file_that_does_not_say_what_it_holds_is_refused(path: Path) -> None:
    weights = Toy((2, 3)).state_dict()
    for metadata in (
        {},
        {"kind": '"Toy"'},
        {"kind": "Toy", "description": "{}"},
        {"kind": '"Toy"', "description": "[]"},
        {"kind": '"Toy"', "description": "[" * 50_000},
    ):
        save_weights(path, weights, metadata)
        with pytest.raises(ValueError, match=r"does not say which network it holds .* but a Toy is needed"):
            load_network(path, Toy)


@pytest.mark.parametrize("description", [{}, {"window": [2, 3], "depth": 1}, {"window": [2, 3], "channels": 0}])
def test_a_description_that_cannot_be_built_is_refused(path: Path, description: dict[str, object]) -> None:
    save_weights(path, Toy((2, 3)).state_dict(), {"kind": '"Toy"', "description": json.dumps(description)})
    with pytest.raises(ValueError, match=r"net\.safetensors' describes a Toy that cannot be built"):
        load_network(path, Toy)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ({"window": ["a", "b"]}, "window is .* but must be a tuple of 2 whole numbers"),
        ({"window": [2, 3, 4]}, "window is .* but must be a tuple of 2 whole numbers"),
        ({"window": [2.5, 3]}, "window is .* but must be a tuple of 2 whole numbers"),
        ({"window": 5}, "window is 5 but must be a tuple of 2 whole numbers"),
        ({"window": [2, 3], "channels": "2"}, "channels is '2' but must be a whole number"),
        ({"window": [2, 3], "channels": None}, "channels is None but must be a whole number"),
    ],
)
def test_arguments_of_another_type_are_named(path: Path, description: dict[str, object], said: str) -> None:
    save_weights(path, Toy((2, 3)).state_dict(), {"kind": '"Toy"', "description": json.dumps(description)})
    with pytest.raises(ValueError, match=f"that cannot be built .{said}"):
        load_network(path, Toy)


def test_a_description_of_a_network_that_no_machine_can_hold_is_refused_without_building_it(path: Path) -> None:
    description = json.dumps({"window": [2**20, 2**20], "channels": 2**10})
    save_weights(path, Toy((2, 3)).state_dict(), {"kind": '"Toy"', "description": description})
    with pytest.raises(ValueError, match=r"parameter 'line\.weight' is \[2, 6\] there but \[1024, 1099511627776\]"):
        load_network(path, Toy)


def test_weights_of_another_architecture_are_refused(path: Path) -> None:
    description = json.dumps({"window": [3, 3], "channels": 2})
    save_weights(path, Toy((2, 3)).state_dict(), {"kind": '"Toy"', "description": description})
    with pytest.raises(ValueError, match=r"another architecture: parameter 'line\.weight' is \[2, 6\]"):
        load_network(path, Toy)


def test_a_missing_a_damaged_and_a_pickled_file_are_refused(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_network(path, Toy)
    save_network(path, Toy((2, 3)))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_network(path, Toy)
    path.write_bytes(pickle.dumps(Toy((2, 3)).state_dict()))
    with pytest.raises(ValueError, match="pickled checkpoints are not read"):
        load_network(path, Toy)
