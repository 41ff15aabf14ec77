"""What is told of a run while it trains, on a terminal and in a log file."""

import io

import pytest
from segarena.common.progress import LINES_EVERY_S, Progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def test_a_log_file_gets_whole_lines_at_intervals(clock):
    out = io.StringIO()
    progress = Progress({"one": 100.0, "two": 300.0}, out=out, clock=clock)
    with progress.stage("one"), progress.bar(10, title="net", unit="epoch") as bar:
        for epoch in range(1, 11):
            clock.now += LINES_EVERY_S / 3
            bar.reach(epoch, {"loss": 1 / epoch})
    assert "\r" not in out.getvalue()
    assert out.getvalue().splitlines() == [
        "stage 1 of 2: one: begins; 0:00:00 elapsed",
        "stage 1 of 2: one net: 3 of 10 epochs; loss=0.333; run: 0:01:00 elapsed, about 0:12:20 left",
        "stage 1 of 2: one net: 6 of 10 epochs; loss=0.167; run: 0:02:00 elapsed, about 0:11:20 left",
        "stage 1 of 2: one net: 9 of 10 epochs; loss=0.111; run: 0:03:00 elapsed, about 0:10:20 left",
        "stage 1 of 2: one net: 10 of 10 epochs; loss=0.1; run: 0:03:20 elapsed, about 0:10:00 left",
    ]


def test_more_than_was_asked_for_is_all_there_is(clock):
    out = io.StringIO()
    with Progress(out=out, clock=clock).bar(12, title="PPO") as bar:
        bar.reach(16)
    assert out.getvalue().splitlines() == ["PPO: 16 of 16 steps; run: 0:00:00 elapsed, about 0:00:00 left"]


def test_the_time_that_is_left_counts_all_stages_by_their_work(clock):
    progress = Progress({"one": 1.0, "two": 2.0, "three": 5.0}, out=io.StringIO(), clock=clock)
    assert progress.times() == "0:00:00 elapsed"
    with progress.stage("one"):
        clock.now = 10
    assert progress.times() == "0:00:10 elapsed, about 0:01:10 left"
    with progress.stage("two"), progress.bar(4) as bar:
        clock.now = 20
        bar.reach(2)
        assert progress.times() == "0:00:20 elapsed, about 0:01:00 left"


def test_what_an_earlier_process_has_done_neither_counts_as_done_here_nor_as_left(clock):
    progress = Progress({"one": 8.0, "two": 4.0, "three": 4.0}, out=io.StringIO(), clock=clock)
    progress.skip("one")
    with progress.stage("two"), progress.bar(4, initial=2) as bar:
        assert progress.times() == "0:00:00 elapsed"
        clock.now = 10
        bar.reach(3)
        assert progress.times() == "0:00:10 elapsed, about 0:00:50 left"


def test_a_stage_within_another_is_a_part_of_it(clock):
    out = io.StringIO()
    progress = Progress({"tist": 1.0}, out=out, clock=clock)
    with progress.stage("tist"):
        for part in ("lv", "myo"):
            with progress.stage(f"tist/{part}"), progress.bar(2) as bar:
                clock.now += 10
                bar.reach(2)
    assert [line.split(":")[0] for line in out.getvalue().splitlines()] == ["stage 1 of 1"] * 3


def test_a_terminal_gets_a_bar_that_says_stage_and_time_of_the_whole(clock):
    out = Terminal()
    progress = Progress({"one": 1.0, "two": 1.0}, out=out, clock=clock)
    with progress.stage("one"):
        clock.now = 10
    with progress.stage("two"), progress.bar(4, title="PPO") as bar:
        bar.reach(2, {"return": 0.5})
        bar._shown.refresh()
    last = out.getvalue().split("\r")[-1]
    assert "stage 2 of 2: two PPO:  50%|" in last
    assert "return=0.5; run: 0:00:10 elapsed" in last


def test_a_bar_is_closed_where_the_training_ends_with_an_error(clock):
    out = Terminal()

    def fail():
        with Progress(out=out, clock=clock).bar(4) as bar:
            bar.reach(2)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert out.getvalue().endswith("\n"), "what is said of the error begins on a line of its own"


def test_a_silent_bar_and_a_run_of_one_stage_say_nothing_of_stages(clock):
    out = io.StringIO()
    with Progress(out=out, clock=clock).bar(4, title="net", silent=True) as bar:
        bar.reach(4)
    assert not out.getvalue()
    with Progress(out=out, clock=clock).bar(4, title="net") as bar:
        bar.reach(4)
    assert out.getvalue() == "net: 4 of 4 steps; run: 0:00:00 elapsed, about 0:00:00 left\n"
