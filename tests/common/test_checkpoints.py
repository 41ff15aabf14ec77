"""Weights, checkpoints and random states: what is read back, what is refused, and what is passed over."""

import hashlib
import json
import logging
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from segarena.common.checkpoints import (
    KEPT,
    check_like,
    latest_checkpoint,
    load_into,
    load_optimizer,
    load_weights,
    random_state,
    restore_random_state,
    restore_torch_state,
    restoring,
    save_checkpoint,
    save_weights,
    torch_state,
)
from segarena.common.finite import NotFiniteError
from torch import nn

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Bomb:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def weights(value=0.0):
    return {"a": torch.full((2, 3), value), "b": torch.arange(4)}


def steps_in(folder):
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))


# -- weights -------------------------------------------------------------------------------------------------------


def test_equal_weights_and_metadata_give_equal_bytes(tmp_path):
    described = {"class": "UNet", "in_channels": "1", "name": 'Über "x"\n', "out_channels": "3"}
    for number in range(20):
        save_weights(tmp_path / f"{number}.safetensors", weights(), described)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    stored, metadata = load_weights(tmp_path / "0.safetensors")
    assert metadata == described
    assert all(torch.equal(value, stored[name]) for name, value in weights().items())


def test_weights_are_read_back_bit_for_bit_with_their_metadata(tmp_path):
    stored = {
        "bf16": torch.randn(3, 4).bfloat16(),
        "strided": torch.randn(4, 6).T[::2],
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "zeros": torch.tensor([-0.0, 0.0]),
    }
    save_weights(tmp_path / "net.safetensors", stored, {"unit": "HU"})
    read, metadata = load_weights(tmp_path / "net.safetensors")
    assert metadata == {"unit": "HU"}
    assert read.keys() == stored.keys()
    for name, value in stored.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name].float(), value.float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_not_written_and_the_file_before_stays(tmp_path, bad):
    path = tmp_path / "net.safetensors"
    save_weights(path, weights())
    before = path.read_bytes()
    said = r"net.safetensors is not written: b.c holds 2 numbers, of 3, that are NaN"
    with pytest.raises(NotFiniteError, match=said):
        save_weights(path, {**weights(), "b.c": torch.tensor([bad, 1.0, bad])})
    assert path.read_bytes() == before
    with pytest.raises(NotFiniteError):
        save_checkpoint(tmp_path / "kept", 7, {"w": torch.tensor(bad)}, {})
    assert not list((tmp_path / "kept").iterdir()), "nothing is left of what was half done"


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        save_weights(tmp_path / "net.safetensors", weights())
        save_checkpoint(tmp_path / "kept", 7, weights(), {})
    finally:
        os.umask(before)
    files = [tmp_path / "net.safetensors", *(tmp_path / "kept" / "step_000000000007").iterdir()]
    names = ("net.safetensors", "weights.safetensors", "state.pt", "manifest.json")
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == dict.fromkeys(names, "0o640")


def test_what_only_looks_like_a_checkpoint_stays(tmp_path):
    save_checkpoint(tmp_path, 1, weights(), {})
    shutil.copytree(tmp_path / "step_000000000001", tmp_path / "step_000000000001_best")
    shutil.copytree(tmp_path / "step_000000000001", tmp_path / "step_best")
    (tmp_path / "step_notes.txt").write_text("mine")
    (tmp_path / "step_000000000009").write_text("a file")
    for step in (2, 3, 4):
        save_checkpoint(tmp_path, step, weights(), {})
    names = {path.name for path in tmp_path.iterdir()}
    mine = {"step_000000000001_best", "step_best", "step_notes.txt", "step_000000000009"}
    assert names == mine | {"step_000000000003", "step_000000000004"}
    assert latest_checkpoint(tmp_path).step == 4


def test_tensors_that_share_memory_are_all_written(tmp_path):
    base = torch.randn(8)
    save_weights(tmp_path / "net.safetensors", {"all": base, "same": base, "half": base[:4], "other": base[4:]})
    read, _ = load_weights(tmp_path / "net.safetensors")
    assert torch.equal(read["all"], read["same"])
    assert torch.equal(torch.cat((read["half"], read["other"])), base)


def test_parameters_are_written_without_their_gradients(tmp_path):
    net = nn.Linear(2, 2)
    save_weights(tmp_path / "net.safetensors", dict(net.named_parameters()))
    read, _ = load_weights(tmp_path / "net.safetensors")
    assert not any(value.requires_grad for value in read.values())
    load_into(nn.Linear(2, 2), read, "test")


def test_a_failed_write_leaves_the_old_weights(tmp_path):
    path = tmp_path / "net.safetensors"
    save_weights(path, weights(1.0))
    with pytest.raises(TypeError):
        save_weights(path, weights(2.0), {"number": 3})
    assert torch.equal(load_weights(path)[0]["a"], weights(1.0)["a"])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.safetensors' does not exist; it must be a .safetensors file"):
        load_weights(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_in_place_of_weights_is_refused_and_not_executed(tmp_path, protocol):
    (tmp_path / "net.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "executed"), protocol))
    with pytest.raises(ValueError, match=r"no whole safetensors file .* pickled checkpoints are not read"):
        load_weights(tmp_path / "net.safetensors")
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_pytorch_in_place_of_weights_is_refused_and_not_executed(tmp_path):
    torch.save({"weight": torch.zeros(1), "bomb": Bomb(tmp_path / "executed")}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="save weights with safetensors"):
        load_weights(tmp_path / "net.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_truncated_weights_are_refused(tmp_path, kept):
    path = tmp_path / "net.safetensors"
    save_weights(path, weights())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_weights(path)


def net(width):
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, width), nn.Linear(width, 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda given: given | net(5).state_dict(),
            r"parameter '2.weight' is \[5, 4\] there but \[3, 4\] in Sequential",
        ),
        (lambda given: {k: v for k, v in given.items() if k != "2.bias"}, "parameter '2.bias' is absent there"),
        (lambda given: given | {"extra": torch.zeros(2)}, r"parameter 'extra' is \[2\] there but absent in"),
    ],
)
def test_a_checkpoint_of_another_architecture_names_the_first_difference(change, said):
    module = net(3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=f"old.safetensors is a checkpoint of another architecture: {said}"):
        load_into(module, change(net(3).state_dict()), "old.safetensors")
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_weights_of_the_same_architecture_are_loaded():
    source, module = net(3), net(3)
    load_into(module, source.state_dict(), "test")
    assert all(torch.equal(one, other) for one, other in zip(source.parameters(), module.parameters(), strict=True))


# -- checkpoints ---------------------------------------------------------------------------------------------------


def test_the_last_checkpoints_stay_and_the_newest_is_read(tmp_path):
    for step in (5, 20, 100, 1000):
        save_checkpoint(tmp_path, step, weights(step), {"step": step, "nested": [{"x": torch.ones(2), "s": "text"}]})
    assert steps_in(tmp_path) == [100, 1000][-KEPT:]
    assert len(list(tmp_path.iterdir())) == KEPT
    newest = latest_checkpoint(tmp_path)
    assert newest.step == 1000
    assert torch.equal(newest.weights["a"], weights(1000)["a"])
    assert newest.state["nested"][0]["s"] == "text"
    assert torch.equal(newest.state["nested"][0]["x"], torch.ones(2))


def test_a_checkpoint_can_be_written_again(tmp_path):
    save_checkpoint(tmp_path, 5, weights(1.0), {})
    save_checkpoint(tmp_path, 5, weights(2.0), {})
    assert torch.equal(latest_checkpoint(tmp_path).weights["a"], weights(2.0)["a"])


def test_a_half_written_checkpoint_is_ignored_and_then_replaced(tmp_path):
    save_checkpoint(tmp_path, 5, weights(5), {})
    half = tmp_path / ".step_000000000010.tmp"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path).step == 5
    save_checkpoint(tmp_path, 10, weights(10), {})
    assert latest_checkpoint(tmp_path).step == 10
    assert not half.exists()


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


HARMS = {
    "one bit is flipped": flip,
    "it is missing": Path.unlink,
    "it is truncated": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "it is empty": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("file", ["weights.safetensors", "state.pt", "manifest.json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_it_and_says_so(tmp_path, caplog, file, harm):
    save_checkpoint(tmp_path, 5, weights(5), {"x": 5})
    last = save_checkpoint(tmp_path, 10, weights(10), {"x": 10})
    HARMS[harm](last / file)
    with caplog.at_level(logging.WARNING):
        found = latest_checkpoint(tmp_path)
    assert (found.step, found.state["x"]) == (5, 5)
    assert "checkpoint step_000000000010 is damaged" in caplog.text


@pytest.mark.parametrize(
    "manifest", ["[]", "{}", '"text"', "{", '{"step": 10, "sha256": []}', '{"step": 10, "sha256": {}}']
)
def test_a_manifest_that_says_something_else_is_damage(tmp_path, caplog, manifest):
    save_checkpoint(tmp_path, 5, weights(5), {})
    last = save_checkpoint(tmp_path, 10, weights(10), {})
    (last / "manifest.json").write_text(manifest)
    assert latest_checkpoint(tmp_path).step == 5
    assert "is damaged" in caplog.text


def test_a_manifest_covers_every_file(tmp_path):
    save_checkpoint(tmp_path, 5, weights(5), {})
    last = save_checkpoint(tmp_path, 10, weights(10), {})
    manifest = json.loads((last / "manifest.json").read_text())
    del manifest["sha256"]["state.pt"]
    (last / "manifest.json").write_text(json.dumps(manifest))
    assert latest_checkpoint(tmp_path).step == 5


def forge(checkpoint):
    """Make the manifest's checksum that of the state, as whoever writes another state does."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = hashlib.sha256((checkpoint / "state.pt").read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(100), b"\x80\x02("])
def test_a_malformed_state_is_refused_by_name_with_the_way_out(tmp_path, content):
    last = save_checkpoint(tmp_path, 10, weights(10), {})
    (last / "state.pt").write_bytes(content)
    forge(last)
    with pytest.raises(
        ValueError, match=r"state\.pt holds more than .* or is damaged .*; delete .*step_000000000010 to"
    ):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("state", [[1], 5, "text", torch.zeros(2), {1: 2}])
def test_a_state_that_is_no_dictionary_is_refused(tmp_path, state):
    last = save_checkpoint(tmp_path, 10, weights(10), {})
    torch.save(state, last / "state.pt")
    forge(last)
    with pytest.raises(ValueError, match=r"state\.pt holds a \w+ but the state of a training is a dictionary"):
        latest_checkpoint(tmp_path)


def test_files_and_folders_of_a_user_are_no_checkpoints(tmp_path):
    save_checkpoint(tmp_path, 5, weights(5), {})
    (tmp_path / "step_notes.txt").write_text("mine")
    (tmp_path / "step_best").mkdir()
    (tmp_path / "step_999999999999").write_text("mine")
    assert latest_checkpoint(tmp_path).step == 5


@pytest.mark.parametrize(
    "error", [KeyError("optimizer"), TypeError("why"), RuntimeError("size"), IndexError(), OverflowError()]
)
def test_what_a_state_raises_where_it_is_put_back_names_its_file(tmp_path, error):
    save_checkpoint(tmp_path, 5, weights(5), {})
    checkpoint = latest_checkpoint(tmp_path)
    with (
        pytest.raises(ValueError, match=r"step_000000000005/state\.pt does not fit .*; delete") as raised,
        restoring(checkpoint),
    ):
        raise error
    assert raised.value.__cause__ is error


def test_lack_of_memory_is_no_fault_of_the_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 5, weights(5), {})
    with pytest.raises(torch.OutOfMemoryError), restoring(latest_checkpoint(tmp_path)):
        raise torch.OutOfMemoryError


@pytest.mark.parametrize(
    ("kept", "now", "said"),
    [
        (torch.zeros(3), torch.zeros(2), r"s has shape \[3\] but must have \[2\]"),
        (torch.zeros(2, 1), torch.zeros(2), r"s has shape \[2, 1\] but must have \[2\]"),
        (torch.zeros(2, dtype=torch.float64), torch.zeros(2), "s is float64 but must be a tensor of float32"),
        ("x", torch.zeros(2), "s is 'x' but must be a tensor"),
        ({"a": 1}, {"a": 1, "b": 2}, "s is .* but must have a, b"),
        ([], {"a": 1}, "s is .* but must have a"),
        ({"a": {"b": "x"}}, {"a": {"b": 1}}, r"s\.a\.b is 'x' but must be of type int"),
        ([1, 2], [1], "s is .* but must be a list of 1"),
        ([1, "x"], [1, 2], r"s\.1 is 'x'"),
        (True, 1, "must be of type int"),
        (1, True, "must be of type bool"),
        (1.5, 1, "must be of type int"),
        (1, "a", "must be of type str"),
    ],
)
def test_a_state_of_another_structure_is_refused_at_the_part_that_differs(kept, now, said):
    with pytest.raises(ValueError, match=said):
        check_like(kept, now, "s")


@pytest.mark.parametrize(
    ("kept", "now"),
    [
        (torch.zeros(5, 3), torch.zeros(0, 3)),
        ({"a": 1, "more": 2}, {"a": 5}),
        ([1, 2], []),
        (3, 1.5),
        ("anything", None),
        ({"a": [torch.ones(2), "b"]}, {"a": (torch.zeros(2), "c")}),
    ],
)
def test_a_state_of_the_same_structure_fits(kept, now):
    check_like(kept, now, "s")


def test_an_optimizer_goes_on_and_refuses_the_state_of_another():
    def trained(width):
        net = nn.Linear(width, 1)
        optimizer = torch.optim.Adam(net.parameters())
        net(torch.ones(1, width)).sum().backward()
        optimizer.step()
        return optimizer

    state = trained(3).state_dict()
    fresh = torch.optim.Adam(nn.Linear(3, 1).parameters())
    load_optimizer(fresh, state)
    assert fresh.state_dict()["state"][0]["exp_avg"].equal(state["state"][0]["exp_avg"])
    with pytest.raises(ValueError, match=r"optimizer has exp_avg of shape \[1, 3\] for a parameter of \[1, 2\]"):
        load_optimizer(torch.optim.Adam(nn.Linear(2, 1).parameters()), state)
    for wrong in ({}, [], {"state": {}, "param_groups": []}):
        with pytest.raises(ValueError, match="optimizer"):
            load_optimizer(fresh, wrong)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_type_are_refused(kind):
    net = nn.Linear(2, 1)
    given = {name: value.to(kind) for name, value in net.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"here has parameter 'weight' as {str(kind)[6:]}, but Linear has it as float32"
    ):
        load_into(net, given, "here")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_without_printing_them(value):
    net = nn.Linear(2, 1)
    given = {"weight": torch.tensor([[1.0, value]]), "bias": torch.zeros(1)}
    with pytest.raises(ValueError, match="here has NaN or infinity in parameter 'weight'") as raised:
        load_into(net, given, "here")
    assert "tensor" not in str(raised.value)


@pytest.mark.parametrize("write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb, 2))])
def test_a_pickle_in_place_of_a_state_is_refused_and_not_executed(tmp_path, write):
    last = save_checkpoint(tmp_path, 10, weights(10), {})
    write(Bomb(tmp_path / "executed"), last / "state.pt")
    forge(last)
    with pytest.raises(ValueError, match=r"state.pt holds more than tensors, numbers and text"):
        latest_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_new_checkpoint_outlives_damaged_ones_of_later_steps(tmp_path):
    """As when all were damaged, and the run began anew."""
    for step in (10, 20):
        flip(save_checkpoint(tmp_path, step, weights(), {}) / "weights.safetensors")
    save_checkpoint(tmp_path, 5, weights(5), {})
    assert steps_in(tmp_path) == [5]
    assert latest_checkpoint(tmp_path).step == 5


def test_without_a_whole_checkpoint_there_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "nothing") is None
    for step in (5, 10):
        flip(save_checkpoint(tmp_path, step, weights(), {}) / "weights.safetensors")
    assert latest_checkpoint(tmp_path) is None


# -- random numbers ------------------------------------------------------------------------------------------------


def draw():
    """Numbers of every global generator; an odd number of NumPy's normals leaves one of a pair for later."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.standard_normal(3).tolist(),  # noqa: NPY002 (the generator that SB3 draws from)
        np.random.permutation(5).tolist(),  # noqa: NPY002
        torch.rand(3).tolist(),
        torch.randn(5).tolist(),
    ]


@pytest.mark.parametrize("before", range(3))
def test_every_global_generator_continues_where_it_was(tmp_path, before):
    for _ in range(before):
        draw()
    save_checkpoint(tmp_path, 1, weights(), {"random": random_state(CPU)})
    expected = [draw() for _ in range(3)]
    restore_random_state(latest_checkpoint(tmp_path).state["random"], CPU)
    assert [draw() for _ in range(3)] == expected


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that keeps the state of its generator, and writes down who asked for which device."""
    asked, state = [], {"now": torch.tensor([1, 2], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: (asked.append(("get", device)), state["now"])[1])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda new, device: asked.append(("set", device, new.tolist())))
    for name in ("get_rng_state_all", "set_rng_state_all", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("all GPUs are touched"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return asked


def test_a_run_on_the_cpu_leaves_cuda_alone(gpu):
    restore_random_state(random_state(CPU), CPU)
    assert gpu == []


def test_a_run_on_cuda_keeps_the_state_of_its_own_gpu_and_goes_on_with_another_one(gpu, caplog):
    state = torch_state(torch.device("cuda", 3))
    restore_torch_state(state, CUDA)  # a machine with fewer of them
    assert gpu == [("get", torch.device("cuda", 3)), ("set", CUDA, [1, 2])]
    assert not caplog.text


@pytest.mark.parametrize(("there", "here"), [(CUDA, CPU), (CPU, CUDA)])
def test_a_run_that_changes_between_cpu_and_cuda_goes_on_and_says_so(gpu, caplog, there, here):
    state = random_state(there)
    expected = draw()
    gpu.clear()
    restore_random_state(state, here)
    assert draw() == expected, "the CPU's generators are continued"
    assert gpu == []
    assert f"made on {there.type}: on {here} the run goes on with other random numbers" in caplog.text
