"""The benchmarks run and say what they measured; no test here looks at a clock."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
ON_CPU = {
    *("raw_steps", "observed_steps", "single_steps", "ppo_ratio", "score_volume", "memory_of_training", "dice"),
    "preparation",
}


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads its memory from /proc")
def test_the_speed_of_spars_is_measured_and_written(tmp_path):
    out = tmp_path / "speed.json"
    command = [sys.executable, str(BENCHMARKS / "spars_speed.py"), "--quick", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert set(result["figures"]) == ON_CPU
    assert result["command"] == "python benchmarks/spars_speed.py --device cpu --quick --threads 1"
    assert result["machine"]["threads"] == 1
    figures = [figure for rows in result["figures"].values() for figure in rows]
    assert done.stdout.count("\n") == len(figures) + 2
    for figure in figures:
        assert figure["min"] <= figure["median"] <= figure["max"]
        assert len(figure["values"]) >= 1
        assert (figure["met"] is None) == (figure["target"] is None)
    assert str(tmp_path) not in out.read_text()
    dice = result["figures"]["dice"][0]
    assert dice["values"] == [0]
    assert dice["details"]["block_dice"] == dice["details"]["voxel_dice"]
    assert max(dice["details"]["block_dice"]) > 0
