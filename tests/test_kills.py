"""A drawn kill of each paper; `python tests/kills.py` makes many."""

import signal

import pytest

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


@pytest.mark.parametrize("paper", ["spars", "rl4seg", "rp_pgd"])
def test_runs_that_are_killed_at_drawn_moments_end_like_one_that_was_not(tmp_path, paper):
    from kills import kill_many

    report = kill_many(1, 1, tmp_path, [paper])
    assert report.faults == []
    assert report.kills[paper] == 1
    assert report.identical[paper] == 1
