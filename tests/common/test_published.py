"""Files of weights that others have trained."""

import pytest
import torch
from segarena.common.published import put_weights, read_state_dict
from torch import nn

WEIGHTS = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}


@pytest.fixture
def written(tmp_path):
    """Write what is given as `torch.save` does; its path."""

    def write(content):
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_wraps_the_weights_is_taken_off(wrapper, prefix, written):
    named = {f"{prefix}{name}": value for name, value in WEIGHTS.items()}
    for content in (named, {wrapper: named, "epoch": 3}):
        assert read_state_dict(written(content)) == WEIGHTS


def test_a_prefix_that_not_all_have_stays(written):
    assert [*read_state_dict(written({"module.a": WEIGHTS["a"], "b": WEIGHTS["b"]}))] == ["module.a", "b"]


def test_files_that_are_no_weights_are_refused(tmp_path, written):
    with pytest.raises(FileNotFoundError, match="does not exist; name a file of weights"):
        read_state_dict(tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(written(WEIGHTS).read_bytes()[:300])
    with pytest.raises(ValueError, match="or is damaged"):
        read_state_dict(tmp_path / "cut.pth")
    for content in ([torch.zeros(1)], {}, {"epoch": 3}, {"state_dict": {"a": "b"}}):
        with pytest.raises(ValueError, match="but weights by name, or state_dict or model with them, are needed"):
            read_state_dict(written(content))


@pytest.mark.parametrize("value", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta")])
def test_tensors_without_dense_values_are_refused(value, written):
    with pytest.raises(ValueError, match="has 'a' as a tensor that is sparse or without values; save it dense"):
        read_state_dict(written({"a": value}))


def test_weights_are_put_under_their_own_names_and_all_else_stays():
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    before = net[1].weight.clone()
    put_weights(net, {"w": torch.tensor([[5.0]]), "b": torch.ones(1)}, {"0.weight": "w", "0.bias": "b"}, "it", "a net")
    assert (net[0].weight.item(), net[0].bias.item()) == (5, 1)
    assert torch.equal(net[1].weight, before)
    with pytest.raises(ValueError, match="it does not fit a net: missing 'b', unexpected 'c'; build the network"):
        put_weights(net, {"w": torch.zeros(1, 1), "c": torch.ones(1)}, {"0.weight": "w", "0.bias": "b"}, "it", "a net")
