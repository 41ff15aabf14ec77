"""Runs, checkpoints and weights on disk: what is read back, what is refused, and what is passed over."""

import hashlib
import json
import logging
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from segarena.common.checkpoints import (
    KEPT,
    latest_checkpoint,
    load_into,
    load_weights,
    random_state,
    restore_random_state,
    save_checkpoint,
    save_weights,
)
from segarena.common.runs import Run
from torch import nn


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


def test_weights_are_read_back_bit_for_bit_with_their_metadata(tmp_path):
    stored = {
        "bf16": torch.randn(3, 4).bfloat16(),
        "strided": torch.randn(4, 6).T[::2],
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]),
    }
    save_weights(tmp_path / "net.safetensors", stored, {"unit": "HU"})
    read, metadata = load_weights(tmp_path / "net.safetensors")
    assert metadata == {"unit": "HU"}
    assert read.keys() == stored.keys()
    for name, value in stored.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name].float(), value.float())


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


@pytest.mark.parametrize("write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb, 2))])
def test_a_pickle_in_place_of_a_state_is_refused_and_not_executed(tmp_path, write):
    last = save_checkpoint(tmp_path, 10, weights(10), {})
    write(Bomb(tmp_path / "executed"), last / "state.pt")
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = hashlib.sha256((last / "state.pt").read_bytes()).hexdigest()
    (last / "manifest.json").write_text(json.dumps(manifest))  # whoever wrote the pickle made its checksum too
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
    run = Run(tmp_path / "run")
    with pytest.raises(ValueError, match="has no whole checkpoint yet; train it further with --resume"):
        run.checkpoint()


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
    save_checkpoint(tmp_path, 1, weights(), {"random": random_state()})
    expected = [draw() for _ in range(3)]
    restore_random_state(latest_checkpoint(tmp_path).state["random"])
    assert [draw() for _ in range(3)] == expected


# -- runs ----------------------------------------------------------------------------------------------------------

CONFIG = {"name": "Über", "env": {"window_size": [16, 16, 8], "classifier": None}, "rate": 3e-4}


def test_a_new_run_holds_its_configuration_and_environment(tmp_path):
    run = Run.create(tmp_path / "deep" / "run", CONFIG, {"python": "3"})
    assert Run.open(tmp_path / "deep" / "run").config == CONFIG
    assert json.loads((run.folder / "environment.json").read_text()) == {"python": "3"}
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml", "environment.json"]


def test_an_empty_folder_becomes_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    Run.create(tmp_path / "run", CONFIG, {})


def test_a_folder_with_something_in_it_does_not_become_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="which is not empty; choose another, or continue it with --resume"):
        Run.create(tmp_path, CONFIG, {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run"])
def test_a_run_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"which cannot be written .* choose another with --out"):
        Run.create(tmp_path / place, CONFIG, {})
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["", "missing", "notes.txt"])
def test_what_is_no_run_is_not_opened(tmp_path, place):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is no run: it has no config.yaml; name a folder that `train --out` made"):
        Run.open(tmp_path / place)


@pytest.mark.parametrize("text", ["", "- 1\n", "text\n", "a: [\n", "!!python/object/apply:os.mkdir [executed]\n"])
def test_a_configuration_that_is_none_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    run = Run.open(tmp_path)
    with pytest.raises(ValueError, match=r"config.yaml holds no configuration"):
        _ = run.config
    assert not Path("executed").exists()


def test_what_is_logged_is_read_back(tmp_path):
    run = Run(tmp_path / "run")
    assert run.metrics() == []
    run.log(1, {"a": 0.5})
    run.log(2, {"a": 1 / 3, "b": -2.0})
    run.log_image("picture", np.zeros((4, 5, 3), np.uint8), 2)
    run.close()
    assert run.metrics() == [{"step": 1, "a": 0.5}, {"step": 2, "a": 1 / 3, "b": -2.0}]
    run.log(3, {"a": 1.0})  # a closed run may be opened again
    run.close()
    assert len(run.metrics()) == 3


def test_what_was_logged_after_the_last_checkpoint_disappears_on_resume(tmp_path):
    run = Run(tmp_path)
    for step in range(1, 6):
        run.log(step, {"loss": 1 / step})
        if step in (1, 3):
            run.save(step, weights(step), {"step": step})
    run.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while it wrote
    again = Run(tmp_path)
    assert again.resume().state["step"] == 3
    assert [line["step"] for line in again.metrics()] == [1, 2, 3]
    again.log(4, {"loss": 0.0})
    again.close()
    assert [line["step"] for line in again.metrics()] == [1, 2, 3, 4]


def test_a_damaged_checkpoint_takes_what_was_logged_after_the_one_before_it(tmp_path):
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.log(step, {"loss": 1.0})
        run.save(step, weights(step), {})
    run.close()
    flip(tmp_path / "checkpoints" / "step_000000000003" / "state.pt")
    assert run.resume().step == 2
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_a_run_without_checkpoint_starts_from_an_empty_log(tmp_path):
    run = Run(tmp_path)
    run.log(1, {"loss": 1.0})
    run.close()
    assert run.resume() is None
    assert run.metrics() == []
    assert Run(tmp_path / "new").resume() is None


def test_a_stage_is_a_run_in_the_run(tmp_path):
    run = Run.create(tmp_path / "run", CONFIG, {})
    stage = run.stage("classifier")
    stage.save(1, weights(1), {})
    assert stage.checkpoint().step == 1
    assert run.resume() is None
    assert load_file(
        run.folder / "classifier" / "checkpoints" / "step_000000000001" / "weights.safetensors"
    ).keys() == {
        "a",
        "b",
    }
