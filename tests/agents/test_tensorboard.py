"""A TensorBoard server shows of a run what the run logged."""

import io
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import yaml
from segarena.agents.command_line import main
from segarena.agents.papers import PAPERS
from segarena.common.runs import Run, chosen
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TINY = {
    "paper": "spars",
    "device": "cpu",
    "env": {"score_source": "oracle_fraction", "cases": ["phantom_02000"], "grid_shape": [32, 32, 24]},
    "validation": {"cases": ["phantom_01000"]},
    "test": {"cases": ["phantom_03000"]},
    "policy": "flatten_mlp",
    "ppo": {"total_timesteps": 256, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1},
    "evaluation": {"rollouts": 2},
    "examine_every": 64,
}
PATIENCE_S = 60


class Board:
    """A running server: `ask` gives the JSON of one of its pages."""

    def __init__(self, process, address):
        self.process, self.address = process, address

    def read(self, page, **query):
        with urlopen(f"{self.address}data/plugin/{page}?{urlencode(query)}", timeout=PATIENCE_S) as answer:
            return answer.read()

    def ask(self, page, **query):
        return json.loads(self.read(page, **query))


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A folder of two runs: one that was trained, and one that lost what it logged after its checkpoint."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "config.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["train", "--config", str(folder / "config.yaml"), "--out", str(folder / "trained")]) == 0

    lost = Run(folder / "resumed")
    for step in range(1, 6):
        lost.log(step, {"loss": 1 / step})
        if step == 3:
            lost.save(step, {"weight": torch.zeros(1)}, {})
    lost.close()
    again = Run(folder / "resumed")
    again.resume()
    for step in range(4, 8):
        again.log(step, {"loss": 10.0 + step})
    again.close()
    return folder


@pytest.fixture(scope="module")
def board(logs):
    """A server over both runs, once it shows the end of each."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", "0", "--host", "127.0.0.1"]
    with (logs / "server.txt").open("w") as said:
        process = subprocess.Popen([*command, "--reload_interval", "1"], stdout=said, stderr=said)
        try:
            yield _once_it_shows(process, logs)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _once_it_shows(process, logs):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+/", (logs / "server.txt").read_text())
        if found:
            board = Board(process, found[0])
            ends = [series(board, "trained", "train/loss"), series(board, "resumed", "loss")]
            if [line[-1][0] for line in ends if line] == [256, 7]:
                return board
        time.sleep(0.2)
    pytest.fail("TensorBoard shows nothing:\n" + (logs / "server.txt").read_text())


def series(board, run, tag):
    """Steps and values of a curve; empty while there is none."""
    if tag not in board.ask("scalars/tags").get(shown_as(run), {}):
        return []
    return [(step, value) for _, step, value in board.ask("scalars/scalars", run=shown_as(run), tag=tag)]


def shown_as(run):
    """Name of a run below the folder of both."""
    return f"{run}/tensorboard/{run}"


@pytest.mark.parametrize("run", ["trained", "resumed"])
def test_every_curve_is_what_metrics_jsonl_says(board, logs, run):
    logged = {}
    for line in Run(logs / run).metrics():
        for name, value in line.items():
            if name != "step":
                logged.setdefault(name, []).append((line["step"], value))
    shown = set(board.ask("scalars/tags")[shown_as(run)])
    assert logged.keys() <= shown
    assert {name for name in shown - logged.keys() if not name.startswith("hparams/")} == set()
    for name, points in logged.items():
        steps, values = zip(*series(board, run, name), strict=True)
        assert list(steps) == [step for step, _ in points], name
        np.testing.assert_allclose(values, [value for _, value in points], rtol=1e-6, err_msg=name)


def test_a_training_shows_its_curves(board):
    shown = set(board.ask("scalars/tags")[shown_as("trained")])
    assert {"rollout/ep_rew_mean", "train/loss", "train/entropy_loss", "spars/win_rate", "spars/dice_eval"} <= shown


def test_a_training_shows_its_pictures(board):
    (tag,) = board.ask("images/tags")[shown_as("trained")]
    assert tag == "spars/phantom_01000"
    shown = board.ask("images/images", run=shown_as("trained"), tag=tag, sample=0)
    assert [picture["step"] for picture in shown] == [64, 128, 192, 256]
    pixels = imageio.imread(io.BytesIO(board.read("images/individualImage", **_query(shown[-1]))))
    assert pixels.std() > 1


def _query(picture):
    return dict(part.split("=") for part in picture["query"].split("&"))


def test_a_training_shows_a_dozen_settings_and_what_came_of_them(board, logs):
    asked = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "colParams": [], "sliceSize": 9}
    request = Request(f"{board.address}data/plugin/hparams/session_groups", json.dumps(asked).encode())
    request.add_header("Content-Type", "application/json")
    (group,) = json.loads(urlopen(request, timeout=PATIENCE_S).read())["sessionGroups"]
    assert set(group["hparams"]) == set(PAPERS["spars"].hparams)
    assert group["hparams"]["ppo.total_timesteps"] == 256
    values = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
    last = {name: value for line in Run(logs / "trained").metrics() for name, value in line.items()}
    assert values == pytest.approx({curve.name: last[curve.name] for curve in PAPERS["spars"].curves}, rel=1e-6)


def test_a_self_play_training_says_what_a_reward_near_0_means(board):
    (tag,) = board.ask("text/tags")[shown_as("trained")]
    assert (
        "a mean reward near 0 is what a fair game gives"
        in board.ask("text/text", run=shown_as("trained"), tag=tag)[0]["text"]
    )


@pytest.mark.parametrize("paper", PAPERS)
def test_the_settings_of_the_table_of_runs_exist_and_are_few(paper):
    row = PAPERS[paper]
    assert 5 <= len(chosen(asdict(row.experiment()), row.hparams)) <= 12


def test_runs_and_stages_are_told_apart_by_their_folders(tmp_path):
    for name in ("first", "second"):
        run = Run(tmp_path / name)
        run.log(1, {"loss": 0.5})
        run.stage("iteration_1").stage("ppo").log(1, {"loss": 0.5})
    moved = (tmp_path / "second").rename(tmp_path / "third")
    Run(moved).stage("classifier").log(1, {"loss": 0.5})
    assert {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("events.*")} == {
        *("first/tensorboard/first", "first/tensorboard/first/iteration_1/ppo"),
        *("third/tensorboard/second", "third/tensorboard/second/iteration_1/ppo"),
        "third/tensorboard/second/classifier",
    }


def test_settings_of_a_run_of_stages_are_shown_once(tmp_path):
    for value in (1.0, 2.0):  # finished, and resumed
        run = Run(tmp_path)
        run.log_hparams({"seed": 0}, {"reward": value})
        run.close()
    shown = EventAccumulator(str(next(tmp_path.rglob("events.*")).parent)).Reload()
    assert [point.value for point in shown.Scalars("reward")] == [2.0]
