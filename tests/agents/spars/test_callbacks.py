"""Curves of the duel (docs/spars.md, Logged metrics)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from segarena.agents.spars.callbacks import DuelMetrics
from spars_toys import MINUS_X, PLUS_X, Always, line_env


@pytest.mark.parametrize(
    ("scores", "win_rate"), [({}, 0.0), ({20: 0.2}, 0.0), ({12: 0.2}, 0.5), ({12: 0.2, 8: 0.2}, 1.0)]
)
def test_a_tie_is_not_won(scores, win_rate):
    """Two steps: the learner at x = 12 and 8, the opponent at x = 20 and 24."""
    env = line_env(scores, opponent=Always(PLUS_X), threshold=1.0)
    recorded = {}
    metrics = DuelMetrics(env, None)
    metrics.model = SimpleNamespace(logger=SimpleNamespace(record=recorded.__setitem__))
    env.seed([0])
    env.reset()
    metrics._on_rollout_start()
    metrics.locals = {"dones": np.zeros(1, dtype=bool), "infos": [{}]}
    for _ in range(2):
        env.step(torch.tensor([MINUS_X]))
        metrics._on_step()
    metrics._on_rollout_end()
    assert recorded["spars/win_rate"] == win_rate
