"""Malformed inputs are refused by name, in time, within memory, and leave nothing behind: those that once did not, and
a sample of each group. `python tests/fuzz/run.py` hands over all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.groups import GROUPS, ONCE_FAILED, inputs

SAMPLE = 1
"""Inputs of each group beside those that once failed."""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What came of the sampled inputs; made by a process of its own, of a known size in memory."""
    folder = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, str(Path(__file__).parent / "run.py"), "--sample", str(SAMPLE)]
    subprocess.run([*command, "--report", str(folder / "report.json")], capture_output=True, text=True, check=False)
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("group", GROUPS)
def test_no_input_does_harm(group, report):
    chosen, once_failed = report["outcomes"][group], ONCE_FAILED.intersection(report["made"][group])
    assert len(chosen) >= SAMPLE + len(once_failed)
    assert {one["name"] for one in chosen} >= once_failed
    faulty = [f"{one['name']}: {', '.join(one['faults'])}: {one['said'][-200:]}" for one in chosen if one["faults"]]
    assert not faulty, "\n".join(faulty)


def test_the_inputs_that_once_failed_are_still_made(report):
    assert {name for names in report["made"].values() for name in names} >= ONCE_FAILED


def test_the_same_seed_makes_the_same_inputs_and_another_one_others(tmp_path):
    def made(name, seed):
        found = {}
        for one in inputs("dataset", seed):
            if "random" in one.name:
                folder = tmp_path / name / one.name
                folder.mkdir(parents=True)
                one.make(folder)
                found[one.name] = (folder / "data" / "dataset.json").read_bytes()
        return found

    first = made("first", 0)
    assert len(first) == 12
    assert made("again", 0) == first
    assert made("other", 1) != first
