"""What is told on the way: the table on a terminal, the lines of a log file, the sentence at the end."""

import io
import re

import pytest
from segarena.agents.callbacks import TABLE_EVERY_S, ShowProgress
from segarena.common import progress
from segarena.common.progress import Progress
from stable_baselines3 import PPO


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def trained(out, clock, monkeypatch, *, seconds, rollouts=4):
    """What was told of a training of four rollouts of 1,000 steps, from step 1,000 on."""
    monkeypatch.setattr(progress, "LINES_EVERY_S", 15.0)
    model = PPO.__new__(PPO)
    model.num_timesteps, model.ep_info_buffer = 1000, []
    with Progress(out=out, clock=clock).bar(5000, initial=1000, title="PPO") as bar:
        callback = ShowProgress(bar, 5000, clock)
        callback.model = model
        callback.on_training_start({}, {})
        for number in range(rollouts):
            clock.now += seconds
            model.num_timesteps += 1000
            model.ep_info_buffer = [{"r": 2.0 * number, "l": 10}, {"r": 0.0, "l": 20}]
            callback.on_rollout_end()
        callback.on_training_end()
    return out.getvalue()


def test_a_terminal_shows_a_table_now_and_then(monkeypatch):
    told = trained(Terminal(), Clock(), monkeypatch, seconds=TABLE_EVERY_S / 2)
    tables = re.findall(r"\| (\S.*?) +\| +(\S.*?) \|", told)
    assert len(tables) == 2 * 5, "four rollouts in the time of two tables"
    shown = dict(tables[:5])
    assert shown["steps"] == "3,000 of 5,000"
    assert (shown["reward of an episode"], shown["steps of an episode"]) == ("1", "15.0")
    assert shown["steps per second"] == f"{2000 / TABLE_EVERY_S:.0f}"
    assert re.fullmatch(r"0:00:10 elapsed, about 0:00:\d\d left", shown["whole run"])
    widths = {len(line) for line in told.splitlines() if re.match(r"[|-]", line)}
    assert len(widths) == 1, "both tables are straight"


def test_a_log_file_has_lines_and_no_table(monkeypatch):
    told = trained(io.StringIO(), Clock(), monkeypatch, seconds=10)
    assert "|" not in told
    assert "\r" not in told
    first, *_ = told.splitlines()
    assert re.match(r"PPO: 3000 of 5000 steps; reward=1, length=15, fps=100; run: 0:00:20 elapsed, about", first)


@pytest.mark.parametrize("out", [Terminal, io.StringIO])
def test_a_training_ends_with_a_sentence(monkeypatch, out):
    told = trained(out(), Clock(), monkeypatch, seconds=10)
    assert "trained 4,000 steps in 0:00:40 (100 steps per second); last episodes: reward 3, 15.0 steps" in told


def test_without_an_ended_episode_there_is_no_reward_to_tell(monkeypatch):
    told = trained(io.StringIO(), Clock(), monkeypatch, seconds=10, rollouts=0)
    assert "reward" not in told
