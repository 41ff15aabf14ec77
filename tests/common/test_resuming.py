"""What happens around a training in the folder of a run: leftovers, changed configurations, ways to go on."""

import errno
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import torch
import yaml
from segarena.common.files import replacing
from segarena.common.resuming import SURELY_LEFT_S, reconfigure, tidy, training_in
from segarena.common.runs import Run
from segarena.common.stopping import Stopped, stop_if_asked

CONFIG = {"seed": 0, "name": "a", "net": {"lr": 0.1, "sizes": [3, 4]}, "agent": {"steps": 5, "rate": 1.0}}


def killed_while_it_wrote(path):
    """What `replacing` leaves of a process that is killed within."""
    unfinished = replacing(path)
    temporary = unfinished.__enter__()
    temporary.write_text("half")
    folder = shutil.copytree(temporary.parent, temporary.parent.with_name("kept"))
    unfinished.__exit__(None, None, None)
    path.unlink()
    return folder.rename(temporary.parent)


@pytest.fixture
def run(tmp_path):
    """A run of a finished stage, and an agent that has a checkpoint."""
    run = Run.create(tmp_path / "run", CONFIG, {})

    def make(stage):
        stage.log(1, {"loss": 0.5})
        stage.save(1, {"w": torch.zeros(1)}, {})
        (stage.folder / "net").write_text("net")
        return ["net"]

    first = run.stage("net").complete({"seed": 0, "net": CONFIG["net"]}, make)
    run.depend_on({"agent": CONFIG["agent"]}, after=[first])
    run.log(7, {"loss": 0.5})
    run.save(7, {"w": torch.zeros(1)}, {})
    run.close()
    return run


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- leftovers -----------------------------------------------------------------------------------------------------


def test_a_finished_stage_keeps_no_checkpoint_and_a_user_keeps_what_is_theirs(run):
    assert not (run.folder / "net" / "checkpoints").exists()
    mine = run.folder / "net" / "checkpoints" / "step_best"
    mine.mkdir(parents=True)
    run.stage("net").save(2, {"w": torch.zeros(1)}, {})
    tidy(run)
    assert list((run.folder / "net" / "checkpoints").iterdir()) == [mine]
    assert run.checkpoint().step == 7, "the agent's last checkpoint is its result"


def test_what_kills_left_is_removed_and_nothing_else(run):
    before = names(run.folder)
    for folder in ("", "net", "media"):
        killed_while_it_wrote(run.folder / folder / "new.json")
    (run.folder / "checkpoints" / ".step_000000000009.tmp").mkdir()
    for step in (1, 2):
        (run.folder / "checkpoints" / f"step_{step:012d}").mkdir()
    mine = [".idea", ".notes.abcdefgh", ".new.json.abcdefgh"]
    for name in mine:
        (run.folder / name).mkdir()
        (run.folder / name / "mine.txt").write_text("mine")
    of_a_reader = next((run.folder / "media").iterdir())
    tidy(run)
    assert of_a_reader.exists(), "another process may be writing it just now"
    old = time.time() - 2 * SURELY_LEFT_S
    os.utime(of_a_reader, (old, old))
    tidy(run)
    left = set(names(run.folder)) - set(before)
    assert left == {"media", "checkpoints/step_000000000002", *mine, *(f"{name}/mine.txt" for name in mine)}


def test_a_run_that_was_killed_before_it_had_a_configuration_begins_anew_and_says_so(tmp_path):
    (tmp_path / "run").mkdir()
    killed_while_it_wrote(tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / ".lock").write_text("{}")
    with pytest.raises(
        ValueError, match=r"is no run: its training was killed before .*; begin it anew with train --out"
    ):
        Run.open(tmp_path / "run")
    run = Run.create(tmp_path / "run", CONFIG, {"python": "3"})
    assert names(run.folder) == [".lock", "config.yaml", "environment.json"]


def test_a_missing_environment_is_described_and_one_that_is_there_stays(run):
    run.describe({"python": "other"})
    assert (run.folder / "environment.json").read_text() == "{}\n"
    (run.folder / "environment.json").unlink()
    run.describe({"python": "3"})
    assert '"python": "3"' in (run.folder / "environment.json").read_text()


# -- changed configurations ----------------------------------------------------------------------------------------


def changed(**changes):
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    for place, value in changes.items():
        *outer, last = place.split("__")
        (config[outer[0]] if outer else config)[last] = value
    return config


def test_a_key_on_which_nothing_depends_is_changed_and_the_configuration_before_is_kept(run):
    reconfigure(run, CONFIG)
    assert not (run.folder / "config_1.yaml").exists()
    reconfigure(run, changed(name="b"))
    reconfigure(run, changed(name="c"))
    before = [yaml.safe_load((run.folder / f"config_{n}.yaml").read_text())["name"] for n in (1, 2)]
    assert (before, run.config["name"]) == (["a", "b"], "c")


@pytest.mark.parametrize(
    ("change", "said", "removed"),
    [
        ({"net__lr": 0.2}, r"net/manifest.json was made with net.lr = 0.1 but the run has 0.2", ["net", "checkpoints"]),
        ({"net__sizes": [3]}, r"net/manifest.json was made with net.sizes = '\[3, 4\]'", ["net", "checkpoints"]),
        ({"agent__rate": 2.0}, r"the checkpoint of .*run at step 7 was made with agent.rate = 1.0", ["checkpoints"]),
        (
            {"agent": None},
            r"the checkpoint of .*run at step 7 was made with agent.rate = 1.0 .*'absent'",
            ["checkpoints"],
        ),
    ],
)
def test_a_key_on_which_something_depends_is_refused_with_a_command_that_works(run, change, said, removed):
    before = names(run.folder), run.config
    config = changed(**change)
    with pytest.raises(ValueError, match=said) as refused:
        reconfigure(run, config)
    assert (names(run.folder), run.config) == before
    subprocess.run(re.search(r"again: (rm -r .*?); or start", str(refused.value))[1], shell=True, check=True)
    whole = {"config.yaml", "environment.json", "net", "checkpoints", "metrics.jsonl", "tensorboard"}
    assert {path.name for path in run.folder.iterdir()} == whole - {*removed}
    reconfigure(run, config)
    assert run.config == config


# -- ways to go on -------------------------------------------------------------------------------------------------


def test_a_signal_says_what_is_kept_and_how_it_goes_on(run):
    def train():
        with training_in(run.folder):
            os.kill(os.getpid(), signal.SIGTERM)
            stop_if_asked()

    with pytest.raises(Stopped) as stopped:
        train()
    assert stopped.value.number == signal.SIGTERM
    said = f"SIGTERM: stopped; the checkpoint at step 7 is kept; continue with train --resume {run.folder}"
    assert str(stopped.value) == said
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(Stopped, match="finished stages are kept"):
        train()
    shutil.rmtree(run.folder / "net")
    with pytest.raises(Stopped, match="no checkpoint was kept yet, so that it begins anew"):
        train()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_the_path_and_how_it_goes_on(run, number):
    def train():
        with training_in(run.folder), replacing(run.folder / "net.safetensors"):
            raise OSError(number, os.strerror(number))

    said = (
        rf"{os.strerror(number)}: '.*net.safetensors'; the checkpoint at step 7 is kept; make room, then continue with"
    )
    with pytest.raises(OSError, match=said):
        train()


def test_a_missing_file_is_no_full_disk(run):
    with pytest.raises(FileNotFoundError), training_in(run.folder):
        (run.folder / "gone").read_text()
