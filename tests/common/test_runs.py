"""A run on disk: what is logged and kept, and the manifest that says that a stage is finished."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from segarena.common.finite import NotFiniteError
from segarena.common.manifests import Manifest
from segarena.common.runs import Run, chosen, flat


def weights(value=0.0):
    return {"a": torch.full((2, 3), value), "b": torch.arange(4)}


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


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
    with pytest.raises(ValueError, match=r"config.yaml(, line \d, column 1:| holds no configuration)"):
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


def test_a_resumed_run_that_is_refused_later_has_changed_nothing(tmp_path):
    run = Run(tmp_path)
    run.log(1, {"a": 0.5})
    run.save(1, weights(), {})
    run.log(2, {"a": 0.25})
    run.close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = Run(tmp_path)
    again.resume()
    again.close()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_without_checkpoint_starts_from_an_empty_log(tmp_path):
    run = Run(tmp_path)
    run.log(1, {"loss": 1.0})
    run.close()
    assert run.resume() is None
    assert run.metrics() == []
    assert Run(tmp_path / "new").resume() is None


@pytest.mark.parametrize("left", [0, 5, 40, None])
def test_a_log_that_lost_lines_goes_on_with_a_warning_and_whole_lines(tmp_path, caplog, left):
    """Cut short between two lines or within one, or deleted: never filled up."""
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.log(step, {"loss": 1.0})
    run.save(3, weights(), {})
    run.close()
    size = (tmp_path / "metrics.jsonl").stat().st_size
    os.unlink(tmp_path / "metrics.jsonl") if left is None else os.truncate(tmp_path / "metrics.jsonl", left)
    again = Run(tmp_path)
    assert again.resume().step == 3
    whole = 0 if left in (None, 0, 5) else 25
    assert (
        f"metrics.jsonl has lost lines since the checkpoint at step 3 was kept: {whole} of {size} bytes" in caplog.text
    )
    again.log(4, {"loss": 1.0})
    again.close()
    assert [line["step"] for line in again.metrics()] == ([1, 4] if whole else [4])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_not_logged_and_named_with_its_step(tmp_path, bad):
    run = Run(tmp_path / "run")
    run.log(1, {"a": 1.0})
    before = (run.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(NotFiniteError, match=f"run, step 2: b is {bad}"):
        run.log(2, {"a": 1.0, "b": bad})
    assert (run.folder / "metrics.jsonl").read_bytes() == before
    run.close()


def test_an_error_of_the_disk_names_metrics_jsonl(tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics.jsonl'"):
        Run(tmp_path).log(1, {"a": 1.0})


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


# -- manifests -----------------------------------------------------------------------------------------------------

SETTINGS = {"seed": 3, "net": {"channels": 8, "sizes": (32, 32), "norm": None}, "rates": [0.1, 0.2]}


@pytest.fixture
def stage(tmp_path):
    """A finished stage of two files."""
    stage = Run(tmp_path / "run").stage("deep/stage")
    (stage.folder / "lv").mkdir(parents=True)
    (stage.folder / "a.safetensors").write_bytes(b"weights")
    (stage.folder / "lv" / "b.safetensors").write_bytes(b"more")
    stage.depend_on(SETTINGS)
    stage.finish(["a.safetensors", "lv/b.safetensors"])
    return stage


def finished(folder, settings):
    """Whether the stage in this folder is finished, in a run that has these settings."""
    stage = Run(folder)
    stage.depend_on(settings)
    return stage.finished()


def test_a_stage_is_finished_once_its_manifest_is_there(stage):
    assert finished(stage.folder, SETTINGS)
    assert finished(stage.folder, json.loads(json.dumps(SETTINGS))), "lists are tuples that were read from JSON"
    (stage.folder / "manifest.json").unlink()
    assert not finished(stage.folder, SETTINGS)
    assert not finished(stage.folder / "nothing", SETTINGS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 4}, r"seed = 3 but the run has 4"),
        ({"net": {**SETTINGS["net"], "channels": 16}}, r"net\.channels = 8 but the run has 16"),
        ({"net": {**SETTINGS["net"], "norm": "batch"}}, r"net\.norm = 'None' but the run has 'batch'"),
        ({"rates": [0.1]}, r"rates = '\[0.1, 0.2\]' but the run has '\[0.1\]'"),
        ({"new": True}, r"new = 'absent' but the run has True"),
    ],
)
def test_a_stage_of_another_configuration_names_the_key_that_differs(stage, change, said):
    with pytest.raises(ValueError, match=rf"manifest.json was made with {said}; put it back, or start a new run"):
        finished(stage.folder, {**SETTINGS, **change})


def test_a_key_that_the_configuration_lost_is_named(stage):
    with pytest.raises(ValueError, match="made with seed = 3 but the run has 'absent'"):
        finished(stage.folder, {name: value for name, value in SETTINGS.items() if name != "seed"})


@pytest.mark.parametrize("name", ["a.safetensors", "lv/b.safetensors"])
@pytest.mark.parametrize("harm", [os.unlink, lambda file: os.truncate(file, 3), lambda file: file.write_bytes(b"else")])
def test_a_file_that_is_missing_or_changed_is_named_with_the_way_out(stage, name, harm):
    harm(stage.folder / name)
    with pytest.raises(ValueError, match=rf"{name} is missing or differs from its manifest; delete .*deep/stage to"):
        finished(stage.folder, SETTINGS)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '"x"', "{}", '{"config": 3, "sha256": {}}', '{"config": {}, "sha256": 3}', "\xff"]
)
def test_a_manifest_that_is_none_is_refused_with_the_way_out(stage, text):
    (stage.folder / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"manifest.json is no manifest .*; delete .* to make the stage anew"):
        finished(stage.folder, SETTINGS)


def test_a_stage_without_its_files_is_not_marked(tmp_path):
    with pytest.raises(FileNotFoundError):
        Run(tmp_path).finish(["gone.safetensors"])
    assert not (tmp_path / "manifest.json").exists()


def test_a_manifest_is_written_whole_or_not_at_all(stage, monkeypatch):
    before = (stage.folder / "manifest.json").read_bytes()

    def full(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        stage.finish(["a.safetensors"])
    assert (stage.folder / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in stage.folder.iterdir()) == ["a.safetensors", "lv", "manifest.json"]


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path):
    run = Run(tmp_path)
    run.depend_on(SETTINGS)
    for step in (1, 2):
        run.log(step, {"loss": 1.0})
        run.save(step, weights(step), {})
    run.log(3, {"loss": 1.0})
    run.close()
    other = Run(tmp_path)
    other.depend_on({**SETTINGS, "rates": [0.1]})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"the checkpoint of .* at step 2 was made with rates = '\[0.1, 0.2\]' but"):
        other.resume()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    again = Run(tmp_path)
    again.depend_on(SETTINGS)
    assert again.resume().step == 2


# -- stages that build on each other -------------------------------------------------------------------------------

WHOLE = {"seed": 3, "source": {"epochs": 5, "lr": 0.1}, "target": {"epochs": 2}, "name": None}


def test_the_chosen_part_of_a_configuration_is_flat():
    assert flat(WHOLE) == {"seed": 3, "source.epochs": 5, "source.lr": 0.1, "target.epochs": 2, "name": "None"}
    assert chosen(WHOLE, ("seed", "source.lr", "target")) == {"seed": 3, "source.lr": 0.1, "target.epochs": 2}
    for key in ("sour", "source.l", "seeds"):
        with pytest.raises(KeyError, match=key):
            chosen(WHOLE, (key,))


def chain(folder, made, **changes):
    """Two stages, the second on the first; `made` hears which are made."""
    whole = {**WHOLE, **changes}

    def make(stage):
        made.append(stage.folder.name)
        (stage.folder / "net").write_text(stage.folder.name)
        return ["net"]

    for name in ("one", "two"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    first = Run(folder / "one").complete(chosen(whole, ("seed", "source")), make)
    return Run(folder / "two").complete(chosen(whole, ("target",)), make, after=[first])


def test_a_finished_stage_is_not_made_again(tmp_path):
    made = []
    assert chain(tmp_path, made) == chain(tmp_path, made) == tmp_path / "two"
    assert made == ["one", "two"]
    first, second = (Manifest.read(tmp_path / name).configuration for name in ("one", "two"))
    assert first == {"seed": 3, "source.epochs": 5, "source.lr": 0.1}
    assert second == {**first, "target.epochs": 2}


def test_a_key_that_no_stage_depends_on_may_change(tmp_path):
    made = []
    chain(tmp_path, made)
    chain(tmp_path, made, name="other")
    assert made == ["one", "two"]


@pytest.mark.parametrize(
    ("changes", "stage", "said"),
    [
        ({"target": {"epochs": 3}}, "two", "target.epochs = 2 but the run has 3"),
        ({"source": {"epochs": 5, "lr": 0.2}}, "one", "source.lr = 0.1 but the run has 0.2"),
    ],
)
def test_a_changed_key_is_refused_by_the_first_stage_that_depends_on_it(tmp_path, changes, stage, said):
    chain(tmp_path, [])
    with pytest.raises(ValueError, match=rf"{stage}/manifest.json was made with {said}"):
        chain(tmp_path, [], **changes)


def test_a_stage_that_was_made_again_with_another_setting_makes_those_after_it_stale(tmp_path):
    chain(tmp_path, [])
    (tmp_path / "one" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"two/manifest.json was made with seed = 3 but the run has 4"):
        chain(tmp_path, [], seed=4)


def test_a_stage_cannot_build_on_one_that_is_not_finished(tmp_path):
    with pytest.raises(ValueError, match="'one' is not finished, but another one builds on it; make it first"):
        Run(tmp_path).complete({}, lambda stage: [], after=[Path("one")])


def build(folder, *texts, seed=3):
    """Three stages, each on the one before it, whose files hold these texts where they are made now."""

    def make(stage):
        stage.folder.mkdir(parents=True)
        (stage.folder / "net").write_text(texts[len(before)])
        return ["net"]

    before = []
    for name in ("one", "deep/two", "deep/three"):
        before.append(Run(folder / name).complete({"seed": seed}, lambda stage: make(stage), after=before[-1:]))


@pytest.fixture
def built(tmp_path):
    build(tmp_path, "a", "b", "c")
    return tmp_path


def test_a_stage_that_was_made_again_with_the_same_files_leaves_those_after_it_as_they_are(built):
    shutil.rmtree(built / "one")
    build(built, "a", "other", "other")
    assert (built / "deep" / "three" / "net").read_text() == "c"


def test_a_stage_that_was_made_again_with_other_files_is_named_by_all_that_build_on_it(built):
    shutil.rmtree(built / "one")
    said = "deep/two/manifest.json was made from an earlier one, which was made anew since; delete .*deep/two to"
    for _ in range(2):
        with pytest.raises(ValueError, match=said):
            build(built, "other", "", "")
    shutil.rmtree(built / "deep" / "two")
    with pytest.raises(ValueError, match=r"three/manifest.json was made from an earlier two, .* delete .*three to"):
        build(built, "", "b", "")  # the third may have read files of the first
    shutil.rmtree(built / "deep" / "three")
    build(built, "", "", "new")
    build(built, "", "", "")
    assert [(built / name / "net").read_text() for name in ("one", "deep/two", "deep/three")] == ["other", "b", "new"]


def test_a_checkpoint_that_was_made_from_an_earlier_stage_is_not_continued(built):
    def continued():
        stage = Run(built / "four")
        stage.depend_on({"seed": 3}, after=[built / "deep" / "three"])
        return stage, stage.resume()

    continued()[0].save(1, weights(), {})
    assert continued()[1].step == 1
    shutil.rmtree(built / "deep" / "three")
    build(built, "", "", "other")
    with pytest.raises(ValueError, match=r"was made from an earlier deep/three, .* delete .*four/checkpoints to"):
        continued()


def test_a_changed_key_is_named_rather_than_the_stage_that_it_made_other(built):
    shutil.rmtree(built / "one")
    with pytest.raises(ValueError, match=r"deep/two/manifest.json was made with seed = 3 but the run has 4"):
        build(built, "other", "", "", seed=4)
