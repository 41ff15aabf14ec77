"""TensorBoard's files of a run that is interrupted, resumed, and whose clock is wrong."""

import time

import numpy as np
import pytest
import torch
from segarena.common.runs import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def shown(run):
    """What TensorBoard shows of a run."""
    (folder,) = {path.parent for path in (run.folder / "tensorboard").rglob("events.*")}
    return EventAccumulator(str(folder)).Reload()


def steps(run, tag="loss"):
    return [point.step for point in shown(run).Scalars(tag)]


def interrupted(folder, kept=3, end=5):
    """A run of `end` points, a picture at each, and a checkpoint after the `kept`-th."""
    run = Run(folder)
    for step in range(1, end + 1):
        run.log(step, {"loss": 1 / step, "other": 0.0})
        run.log_image("picture", np.full((2, 2, 3), step, np.uint8), step)
        if step == kept:
            run.save(step, {"w": torch.zeros(1)}, {})
    run.close()
    return run


@pytest.mark.parametrize("back_s", [0, 3600, 86400, 1.7e9])
def test_a_clock_that_was_set_back_hides_no_point(tmp_path, monkeypatch, back_s):
    interrupted(tmp_path)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: max(now - back_s, 0.0))
    run = Run(tmp_path)
    run.resume()
    for step in range(4, 8):
        run.log(step, {"loss": 10.0 + step})
    run.close()
    assert steps(run) == [1, 2, 3, 4, 5, 6, 7]
    assert steps(run, "other") == [1, 2, 3]


def test_a_point_at_the_step_of_the_checkpoint_that_was_logged_after_it_is_not_there_twice(tmp_path):
    """As a look that was logged after the last checkpoint, by a process that was killed then."""
    run = interrupted(tmp_path, kept=3, end=3)
    run.log(3, {"eval": 1.0})
    run.log_image("look", np.zeros((2, 2, 3), np.uint8), 3)
    run.close()
    again = Run(tmp_path)
    assert again.resume().step == 3
    again.log(3, {"eval": 1.0})
    again.log_image("look", np.zeros((2, 2, 3), np.uint8), 3)
    again.close()
    assert steps(again, "eval") == [3]
    assert [picture.step for picture in shown(again).Images("look")] == [3]
    assert [line["step"] for line in again.metrics()] == [1, 2, 3, 3]


def test_several_interruptions_leave_one_line_of_points(tmp_path):
    interrupted(tmp_path)
    for end in (6, 9):
        run = Run(tmp_path)
        first = run.resume().step + 1
        for step in range(first, end + 1):
            run.log(step, {"loss": 0.0})
            if step == end - 2:
                run.save(step, {"w": torch.zeros(1)}, {})
        run.close()
    assert steps(run) == list(range(1, 10))
    assert len(list((tmp_path / "tensorboard").rglob("events.*"))) == 3, "each process has a file of its own"


def test_a_run_without_checkpoint_begins_with_no_points(tmp_path):
    interrupted(tmp_path, kept=9)
    run = Run(tmp_path)
    assert run.resume() is None
    run.log(1, {"loss": 0.0})
    run.close()
    assert steps(run) == [1]


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    run = interrupted(tmp_path)
    (tmp_path / "tensorboard").rename(tmp_path / "elsewhere")
    (tmp_path / "tensorboard").write_text("no folder")
    with pytest.raises(OSError, match=r"Not a directory: '.*tensorboard"):
        run.log(6, {"loss": 0.0})
