"""SPARS-LiverCT-v0 on the paper's toy volume (known values: docs/spars.md, Method 3)."""

from dataclasses import replace

import pytest
import torch
from segarena.envs.spars import SparsEnv
from spars_toys import PAINT, linear_score, play, toy


@pytest.fixture
def toy_env(monkeypatch):
    truth = torch.zeros(32, 32, 24, dtype=torch.uint8)
    truth[22:30, 18:26, 14:22] = 2
    toy(monkeypatch, (32, 32, 24), truth)
    return SparsEnv(
        grid_shape=(32, 32, 24),
        window_size=(8, 8, 8),
        start="corner_paper",
        score_source=linear_score,
        **PAINT,
        opponent="constant0",
        threshold=0.11,
        tie_reward=1.0,
        terminal_bonus=10.0,
        horizon=32,
        device="cpu",
    )


def test_the_toy_is_played_as_in_the_paper(toy_env):
    toy_env.seed([0])
    toy_env.reset()
    assert toy_env.info()["p_self"].tolist() == [[16, 16, 12]]
    expected = [
        ((20, 16, 12), 0.088, (16, 16, 16), 0.096, -1.0, False),
        ((24, 16, 12), 0.092, (16, 16, 16), 0.096, -1.0, False),
        ((24, 20, 12), 0.100, (16, 16, 16), 0.096, 1.0, False),
        ((24, 20, 16), 0.112, (16, 16, 16), 0.096, 11.0, True),
    ]
    for action, (p1, s1, p2, s2, reward, over) in zip((4, 4, 2, 0), expected, strict=True):
        got, terminated, truncated = toy_env.step(torch.tensor([action]))
        info = toy_env.info()
        assert info["p_self"].tolist() == [list(p1)]
        assert info["p_opp"].tolist() == [list(p2)]
        assert info["score_self"].item() == pytest.approx(s1)
        assert info["score_opp"].item() == pytest.approx(s2)
        assert (got.item(), terminated.item(), truncated.item()) == (reward, over, False)
    assert toy_env.episode_info(torch.tensor([0]))[0]["reason"] == "tau_self"


def test_the_toy_map_is_painted_as_in_the_paper(toy_env):
    toy_env.seed([0])
    toy_env.reset()
    play(toy_env, (4, 4, 2, 0))
    painted = toy_env.painting.voxel_map()
    assert painted[25, 21, 17].item() == pytest.approx(0.392) == painted.max().item()
    assert painted.double().sum().item() == pytest.approx(200.704, abs=1e-3)
    assert [(painted > level).sum().item() for level in (0, 0.25, 0.3)] == [1280, 192, 128]


@pytest.mark.parametrize(
    ("theta", "size", "common", "dice"),
    [(0.05, 1280, 432, 0.482143), (0.15, 512, 240, 0.46875), (0.25, 192, 128, 0.363636), (0.3, 128, 96, 0.3)],
)
def test_the_toy_mask_overlaps_as_in_the_paper(toy_env, theta, size, common, dice):
    toy_env.config = replace(toy_env.config, mask_threshold=theta)
    toy_env.seed([0])
    toy_env.reset()
    play(toy_env, (4, 4, 2, 0))
    mask, truth = toy_env.painting.mask(), toy_env.cases[0].label == 2
    assert (mask.sum().item(), (mask & truth).sum().item()) == (size, common)
    assert toy_env.painting.dice() == pytest.approx(dice, abs=1e-6)
    assert toy_env.episode_info(torch.tensor([0]))[0]["dice"] == toy_env.painting.dice()
