"""The harness finds each kind of fault: a reader that hangs, one that accepts, one that leaves a file, ..."""

import os
import signal
import sys
import time

import pytest

from fuzz.harness import Input, Limits, digests, judge, try_one
from fuzz.parts import MARK

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
QUICK = Limits(seconds=20.0, rss_mib=1e6, memory_gib=1e6)


def refuse(text):
    raise ValueError(text)


def leave_a_file_and_refuse():
    with open("left", "w") as file:
        file.write("half")
    refuse("input.txt is wrong")


def leave_a_mark():
    with open(MARK, "w"):
        refuse("input.txt is wrong")


READERS = {
    "refuses by name": (lambda: refuse("input.txt is wrong"), "refuse", []),
    "accepts what may be": (lambda: None, "any", []),
    "accepts": (lambda: None, "refuse", ["accepted"]),
    "refuses what is right": (lambda: refuse("input.txt is wrong"), "accept", ["refused"]),
    "names nothing": (lambda: refuse("why"), "any", ["unnamed"]),
    "says nothing": (lambda: sys.exit(2), "any", ["silent"]),
    "raises TypeError": (lambda: [] + 1, "any", ["status", "traceback"]),
    "raises RecursionError": (lambda: (f := lambda: f())(), "any", ["status", "traceback"]),
    "ends with another status": (lambda: sys.exit(5), "any", ["status"]),
    "is killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "any", ["crash"]),
    "leaves a file": (leave_a_file_and_refuse, "any", ["written"]),
    "runs code": (leave_a_mark, "any", ["code", "written"]),
}


def given(reader, must):
    def make(folder):
        (folder / "input.txt").write_text("text")
        return reader

    return Input("one", make, must, names=("input.txt",))


@pytest.mark.parametrize(("reader", "must", "faults"), READERS.values(), ids=READERS)
def test_a_fault_is_found(tmp_path, reader, must, faults):
    assert try_one(given(reader, must), tmp_path / "here", QUICK).faults == faults


def test_a_reader_that_hangs_is_killed(tmp_path):
    began = time.monotonic()
    outcome = try_one(given(lambda: time.sleep(600), "any"), tmp_path / "here", Limits(0.5, 1e6, 1e6))
    assert outcome.faults == ["hang"]
    assert outcome.status is None
    assert time.monotonic() - began < 300


def test_a_reader_that_takes_memory_is_found(tmp_path):
    idle = try_one(given(lambda: None, "any"), tmp_path / "idle", QUICK).rss_mib
    limits = Limits(20.0, idle + 100, 1e6)
    assert try_one(given(lambda: len(b"x" * (300 << 20)), "any"), tmp_path / "large", limits).faults == ["memory"]
    assert try_one(given(lambda: len(b"x" * (10 << 20)), "any"), tmp_path / "small", limits).faults == []


def test_address_space_is_limited(tmp_path):
    outcome = try_one(given(lambda: bytearray(1 << 34), "any"), tmp_path / "here", Limits(20.0, 1e6, 8.0))
    assert "MemoryError" in outcome.said
    assert outcome.faults == ["status", "traceback"]


def test_what_the_command_line_prints_is_kept(tmp_path):
    outcome = try_one(given(["train", "--config", "absent.yaml"], "refuse"), tmp_path / "here", QUICK)
    assert outcome.status == 2
    assert "absent.yaml" in outcome.said


def test_a_folder_may_be_written_where_that_is_said():
    one = Input("one", lambda folder: [], may_write=("run",))
    assert judge(one, 2, "error", large=False, changed=["run/metrics.jsonl"], ran=False) == []
    assert judge(one, 2, "error", large=False, changed=["run", "running/x"], ran=False) == ["written"]


def test_changes_of_a_folder_are_seen(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("1")
    (tmp_path / "link").symlink_to("a")
    before = digests(tmp_path)
    assert before.keys() == {"a", "a/file", "link"}
    (tmp_path / "a" / "file").write_text("2")
    assert [name for name, digest in digests(tmp_path).items() if digest != before[name]] == ["a/file"]
