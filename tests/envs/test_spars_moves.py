"""SPARS-LiverCT-v0: lattices, starts, moves and those that are wasted (docs/spars.md, Method 2 and 4)."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from segarena.datasets.liver.lattice import WindowLattice, nearest_index
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import MOVES
from segarena.envs.spars_rules import RULES
from spars_toys import ONE, ORACLE, linear_score, toy


def test_nearest_resizing_repeats_voxels_as_the_reference_does():
    """docs/spars.md, Method 4."""

    def repeats(size, out):
        return torch.bincount(nearest_index(size, out)).tolist()

    assert nearest_index(48, 256).tolist() == [3 * i // 16 for i in range(256)]
    assert repeats(48, 256)[:6] == [6, 5, 5, 6, 5, 5]
    assert nearest_index(24, 180).tolist() == [2 * i // 15 for i in range(180)]
    assert repeats(24, 180)[:4] == [8, 7, 8, 7]
    assert set(repeats(64, 256)) == {4}
    assert set(repeats(8, 256)) == {32}


def test_standard_windows_have_the_papers_lattices():
    """docs/spars.md, Method 2."""
    counts = {
        (8, 8, 8): 170_667,
        (16, 16, 8): 160_003,
        (32, 32, 16): 133_209,
        (48, 48, 24): 109_551,
        (64, 64, 32): 88_837,
    }
    for window, count in counts.items():
        assert WindowLattice((256, 256, 180), window, 4, (0, 0, 2)).size == count
    lattice = WindowLattice((256, 256, 180), (48, 48, 24), 4, (0, 0, 2))
    assert lattice.corners().amin(0).tolist() == [0, 0, 2]
    assert lattice.corners().amax(0).tolist() == [208, 208, 154]
    assert WindowLattice((256, 256, 180), (48, 48, 24), 4).shape == (53, 53, 40)


@pytest.mark.parametrize(
    ("start", "corner", "phase"), [("centre", [104, 104, 76], (0, 0, 0)), ("corner_paper", [128, 128, 90], (0, 0, 2))]
)
def test_episodes_start_where_the_profile_says(monkeypatch, start, corner, phase):
    toy(monkeypatch, (256, 256, 180), image=torch.zeros(256, 256, 180, dtype=torch.uint8))
    env = SparsEnv(
        grid_shape=(256, 256, 180),
        window_size=(48, 48, 24),
        start=start,
        obs_mode="own_window",
        score_source=linear_score_small,
        device="cpu",
    )
    env.seed([0])
    env.reset()
    assert env.info()["p_self"].tolist() == [corner] == env.info()["p_opp"].tolist()
    assert env.lattice.phase == phase


def linear_score_small(case, corners):
    return linear_score(case, corners) / 10


def test_random_starts_are_drawn_apart_over_the_whole_lattice():
    env = SparsEnv(**ORACLE, start="random_lattice", num_envs=500)
    env.seed(range(500))
    env.reset()
    at = env.at
    assert (at[0] != at[1]).float().mean() > 0.95
    for agent in at:
        cells = env.lattice.corners(agent) // 4
        assert cells.amin(0).tolist() == [0, 0, 0]
        assert cells.amax(0).tolist() == [n - 1 for n in env.lattice.shape]


def test_moves_are_the_papers_and_opposite_pairs():
    """docs/spars.md, Method 2."""
    table = torch.tensor(MOVES["axis6"]) * 4
    assert table.tolist() == [[0, 0, 4], [0, 0, -4], [0, 4, 0], [0, -4, 0], [4, 0, 0], [-4, 0, 0]]
    assert table.sum(0).tolist() == [0, 0, 0]
    assert all(torch.equal(table[a], -table[a ^ 1]) for a in range(6))
    assert MOVES["axis7"][6] == (0, 0, 0)
    assert len(MOVES["king26"]) == 26 == len(set(MOVES["king26"]) - {(0, 0, 0)})
    assert MOVES["king26"] == sorted(MOVES["king26"])


@pytest.mark.parametrize("action_set", list(MOVES))
def test_every_action_moves_as_its_table_says_and_is_clipped_at_the_border(action_set):
    env = gym.make("SPARS-LiverCT-v0", **ORACLE, action_set=action_set, threshold=1.0)
    batched = env.unwrapped.batched
    for start in ([24, 24, 20], [0, 0, 0], [48, 48, 40]):
        for action in range(len(MOVES[action_set])):
            _, info = env.reset(seed=0, options={"start": start})
            move = MOVES[action_set][action]
            taken = [m + 1 for m in move] if action_set == "multidiscrete3" else action
            _, _, _, _, info = env.step(taken)
            wanted = np.clip(
                np.add(start, np.multiply(move, 4)), 0, np.subtract(batched.lattice.full, batched.lattice.window)
            )
            assert info["p_self"].tolist() == wanted.tolist()


@pytest.mark.parametrize("action_set", list(MOVES))
@pytest.mark.parametrize("rule", ["random", "constant0", "greedy"])
def test_every_rule_plays_either_side_with_every_action_set(action_set, rule):
    env = SparsEnv(**ORACLE, action_set=action_set, opponent=rule, threshold=1.0, num_envs=3)
    env.seed(range(3))
    env.reset(options={"start": [24, 24, 20], "start_opponent": [24, 24, 20]})
    env.step(RULES[rule](env, 0))
    if rule == "constant0":
        assert env.info()["p_self"].tolist() == [[24, 24, 24]] * 3 == env.info()["p_opp"].tolist()


@pytest.mark.parametrize("action_set", list(MOVES))
def test_masks_leave_the_moves_that_change_the_place_or_mean_to_stay(action_set):
    env = SparsEnv(**ONE, num_envs=30, action_set=action_set, start="random_lattice", threshold=1.0)
    env.seed(range(30))
    corner = [[0, 0, 0], [48, 48, 40]]
    for start in (None, *corner):
        env.reset(options={} if start is None else {"start": start, "start_opponent": [0, 48, 40]})
        for player in (0, 1):
            masks, at = env.action_masks(player), env.at[player]
            if action_set == "multidiscrete3":
                moves = torch.cartesian_prod(*[torch.arange(3)] * 3)
                masks = torch.stack(
                    [masks[:, a] & masks[:, 3 + b] & masks[:, 6 + c] for a, b, c in moves.tolist()], dim=1
                )
                cells = env.lattice.corners(at) // env.config.step
                high = torch.tensor(env.lattice.shape) - 1
                there = cells[:, None] + moves - 1
                expected = ((there >= 0) & (there <= high)).all(dim=-1)  # no axis runs against the border
            else:
                stays = torch.tensor([move == (0, 0, 0) for move in MOVES[action_set]])
                expected = ((env.neighbours(at) != at) | stays[:, None]).T
            assert torch.equal(masks, expected)
            assert masks.any(dim=1).all()
    assert not expected.all(), "the corner has moves that are wasted"


def test_where_no_move_leads_anywhere_all_are_left():
    env = SparsEnv(**ONE, window_size=(64, 64, 48), score_source="oracle_fraction", threshold=1.0, start="centre")
    env.seed([0])
    env.reset()
    assert env.action_masks().tolist() == [[True] * 6]


@pytest.mark.parametrize(
    "settings", [{"obs_mode": "features"}, {"obs_mode": "features", "action_set": "multidiscrete3"}]
)
def test_maskable_ppo_learns_on_both_faces_and_wastes_no_move(settings):
    settings = {**ONE, **settings, "horizon": 12, "threshold": 1.0, "start": "random_lattice"}
    single = gym.make("SPARS-LiverCT-v0", **settings)
    learner = LearnerEnv(SparsEnv(num_envs=4, **settings))
    model = MaskablePPO("MlpPolicy", single, n_steps=32, batch_size=32, n_epochs=1, device="cpu", seed=0).learn(64)
    MaskablePPO("MlpPolicy", learner, n_steps=16, batch_size=32, n_epochs=1, device="cpu", seed=0).learn(128)
    corner = {"start": [0, 0, 0], "start_opponent": [48, 48, 40]}
    obs, info = single.reset(seed=1, options=corner)
    for _ in range(11):
        mask = single.get_wrapper_attr("action_masks")()
        assert not mask.all() or info["p_self"].any()
        before = info["p_self"]
        action, _ = model.predict(obs, action_masks=mask)
        obs, _, _, _, info = single.step(action)
        stayed = "action_set" in settings and (np.asarray(action) == 1).all()
        assert stayed or not np.array_equal(before, info["p_self"])
    learner.seed(3)
    learner.reset()
    rows = learner.env_method("action_masks")
    assert [row.tolist() for row in rows] == learner.batched.action_masks().tolist()
    assert [row.tolist() for row in learner.env_method("action_masks", indices=[2])] == [rows[2].tolist()]
