"""SPARS-LiverCT-v0 against the paper's rules and numbers (known values: docs/spars.md, Method 2-5)."""

import logging
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from segarena.datasets.liver import cases as liver_ct
from segarena.datasets.liver.lattice import WindowLattice, nearest_index
from segarena.datasets.liver.lesions import LesionConfig
from segarena.envs import core, spars
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import MOVES, SparsConfig
from segarena.envs.spars_rules import RULES
from stable_baselines3 import PPO

ONE = {"cases": ["phantom_02000"], "device": "cpu"}
ORACLE = {**ONE, "score_source": "oracle_fraction"}
PAINT = {"reduce": "sum", "upsample": "blocks"}
"""How the paper's profile makes masks."""


def toy(monkeypatch, full, label=None, image=None):
    """Let every environment play on one made-up case."""
    x, y, z = full
    image = torch.arange(x * y * z).reshape(full).remainder(256).to(torch.uint8) if image is None else image
    sample = liver_ct.load_liver_cases(liver_ct.LiverDataConfig(cases=["phantom_02000"]))[0]
    case = replace(sample, id="toy", image=image, label=label, spacing_mm=(1.0, 1.0, 1.0))
    monkeypatch.setattr(spars, "load_liver_cases", lambda config: [case])


def play(env, actions):
    """Reward, terminated, truncated of each action, taken in every environment."""
    return [env.step(torch.as_tensor([action] * env.num_envs)) for action in actions]


# -- docs/spars.md, Method 3: a toy volume ---------------------------------------------------------------------------


def linear_score(case, corners):
    return (corners.double() @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) * 1e-3).float()


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


# -- ties and strict thresholds: docs/spars.md, Method 3 and 5 -------------------------------------------------------


@pytest.mark.parametrize("tie_reward", [0.0, 1.0, -1.0])
def test_the_same_move_from_the_same_place_is_a_tie(tie_reward):
    """docs/spars.md, Method 3."""
    env = SparsEnv(**ORACLE, opponent="constant0", tie_reward=tie_reward, threshold=1.0)
    env.seed([3])
    env.reset(options={"start": [24, 24, 20], "start_opponent": [24, 24, 20]})
    reward, _, _ = env.step(torch.tensor([0]))
    assert reward.item() == tie_reward
    assert env.info()["win"].item() == 0


def test_a_score_of_exactly_tau_does_not_end_the_episode(monkeypatch):
    """docs/spars.md, Method 3."""
    toy(monkeypatch, (16, 16, 16))
    for threshold, over in ((0.25, False), (0.2499, True)):
        env = SparsEnv(
            grid_shape=(16, 16, 16),
            window_size=(8, 8, 8),
            device="cpu",
            score_source=lambda case, corners: torch.full((len(corners),), 0.25),
            threshold=threshold,
        )
        env.seed([0])
        env.reset()
        assert env.step(torch.tensor([0]))[1].item() is over


def test_a_painted_value_of_exactly_theta_is_not_in_the_mask(monkeypatch):
    """docs/spars.md, Method 5: two paints of 0.25."""
    toy(monkeypatch, (16, 16, 16))
    env = SparsEnv(
        grid_shape=(16, 16, 16),
        window_size=(8, 8, 8),
        device="cpu",
        action_set="axis7",
        score_source=lambda case, corners: torch.full((len(corners),), 0.25),
        **PAINT,
    )
    env.seed([0])
    env.reset()
    play(env, (6, 6))
    assert env.painting.voxel_map().max().item() == 0.5
    assert not env.painting.mask().any()
    play(env, (6,))
    assert env.painting.mask().sum().item() == 512


# -- geometry: docs/spars.md, Method 2 and 4 -------------------------------------------------------------------------


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


# -- observations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_agents", [1, 2])
@pytest.mark.parametrize("obs_mode", ["own_window", "two_window", "features"])
def test_observations_lie_in_their_space_in_every_mode(obs_mode, n_agents):
    env = gym.make("SPARS-LiverCT-v0", **ONE, obs_mode=obs_mode, n_agents=n_agents)
    obs, _ = env.reset(seed=0)
    for _ in range(10):
        assert env.observation_space.contains(obs)
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            obs, _ = env.reset()
    if obs_mode == "features":
        assert env.observation_space.shape == (n_agents * 128 + 4 * n_agents + 1,)


def test_windows_show_the_voxels_under_them_and_the_state_where_they_are():
    env = gym.make("SPARS-LiverCT-v0", **ORACLE, threshold=1.0)
    batched = env.unwrapped.batched
    obs, info = env.reset(seed=0, options={"start": [8, 12, 16], "start_opponent": [40, 4, 0]})
    image = batched.cases[0].image.numpy()
    for channel, (x, y, z) in enumerate(([8, 12, 16], [40, 4, 0])):
        np.testing.assert_array_equal(obs["windows"][channel], image[x : x + 16, y : y + 16, z : z + 8])
    free = np.array([48, 48, 40])
    scores = [2 * info["score_self"] - 1, 2 * info["score_opp"] - 1]
    expected = [*(2 * np.array([8, 12, 16]) / free - 1), *(2 * np.array([40, 4, 0]) / free - 1), *scores, -1.0]
    np.testing.assert_allclose(obs["state"], expected, atol=1e-6)


def test_windows_of_a_shifted_lattice_show_the_voxels_under_them(monkeypatch):
    toy(monkeypatch, (33, 30, 25))
    env = SparsEnv(
        grid_shape=(33, 30, 25), window_size=(8, 12, 8), phase=(1, 0, 3), device="cpu", score_source=linear_score
    )
    env.seed([0])
    env.reset(options={"start": [9, 4, 11], "start_opponent": [25, 16, 15]})
    windows, image = env.observe()["windows"][0], env.cases[0].image
    assert torch.equal(windows[0], image[9:17, 4:16, 11:19])
    assert torch.equal(windows[1], image[25:33, 16:28, 15:23])


@pytest.mark.parametrize("obs_mode", ["two_window", "features"])
def test_the_competitor_sees_the_mirrored_observation(obs_mode):
    env = SparsEnv(**ONE, obs_mode=obs_mode)
    env.seed([0])
    env.reset(options={"start": [8, 12, 16], "start_opponent": [40, 4, 0]})
    own, rival = env.observe(), env.observe(player=1)
    env.reset(options={"start": [40, 4, 0], "start_opponent": [8, 12, 16]})
    swapped = env.observe()
    for one, two in zip(*((o.values() if isinstance(o, dict) else [o]) for o in (rival, swapped)), strict=True):
        assert torch.equal(one, two)
    assert not all(
        torch.equal(one, two)
        for one, two in zip(*((o.values() if isinstance(o, dict) else [o]) for o in (own, rival)), strict=True)
    )


def test_features_are_the_classifiers_at_both_windows():
    env = SparsEnv(**ONE, obs_mode="features")
    env.seed([0])
    env.reset(options={"start": [8, 12, 16], "start_opponent": [40, 4, 0]})
    ids = env.lattice.ids(torch.tensor([[8, 12, 16], [40, 4, 0]]))
    rows = env.table.feature_rows(torch.zeros(2, dtype=torch.int64), ids).float()
    assert torch.equal(env.observe()[0, :256], rows.flatten())


def test_a_resized_own_window_repeats_its_voxels():
    env = gym.make("SPARS-LiverCT-v0", **ORACLE, obs_mode="own_window", obs_size=(32, 24, 8))
    obs, info = env.reset(seed=0)
    assert env.observation_space.shape == (1, 32, 24, 8) == obs.shape
    x, y, z = info["p_self"]
    window = env.unwrapped.batched.cases[0].image[x : x + 16, y : y + 16, z : z + 8]
    expected = window[nearest_index(16, 32)][:, nearest_index(16, 24)][:, :, nearest_index(8, 8)]
    np.testing.assert_array_equal(obs[0], expected)


# -- transition, rewards, ends ---------------------------------------------------------------------------------------


class Recorder:
    """A competitor that keeps what it saw and always takes one action."""

    def __init__(self, action):
        self.action, self.seen = action, []

    def act(self, obs, deterministic):
        assert not deterministic, "the competitor acts stochastically"
        self.seen.append({name: value.clone() for name, value in obs.items()})
        return torch.full((len(obs["state"]),), self.action)


def test_the_competitor_acts_on_the_state_before_the_learners_move():
    rival = Recorder(2)
    env = SparsEnv(**ORACLE, opponent=rival, threshold=1.0)
    env.seed([0])
    env.reset(options={"start": [24, 24, 20], "start_opponent": [24, 24, 20]})
    for number in range(3):
        before = env.observe(player=1)
        assert before["state"][0, -1].item() == pytest.approx(2 * number / 128 - 1)
        env.step(torch.tensor([4]))
        assert torch.equal(rival.seen[-1]["state"], before["state"])
    assert env.info()["p_opp"].tolist() == [[24, 36, 20]]


def test_swapping_the_players_swaps_the_sign_of_the_reward():
    """Zero-sum: what the learner wins, its mirror image loses."""
    for reward_mode in ("sign", "diff"):
        totals = []
        for mine, theirs in (((4, 4, 2), 0), ((0, 0, 0), None)):
            script = iter((4, 4, 2))
            rival = Recorder(theirs) if theirs is not None else _Script(script)
            env = SparsEnv(**ORACLE, opponent=rival, reward=reward_mode, threshold=0.05)
            env.seed([0])
            env.reset(options={"start": [8, 24, 20], "start_opponent": [8, 24, 20]})
            totals.append([float(env.step(torch.tensor([action]))[0]) for action in mine])
        np.testing.assert_allclose(totals[0], -np.array(totals[1]), atol=1e-6)


class _Script:
    def __init__(self, actions):
        self.actions = actions

    def act(self, obs, deterministic):
        return torch.tensor([next(self.actions)])


@pytest.mark.parametrize(("mode", "expected"), [("sign", -1.0), ("diff", 0.1 - 0.4), ("score", 0.1)])
def test_each_reward_mode_is_its_formula(monkeypatch, mode, expected):
    env = two_places(monkeypatch, reward=mode, threshold=1.0)
    reward, _, _ = env.step(torch.tensor([0]))
    assert reward.item() == pytest.approx(expected)


def two_places(monkeypatch, **settings):
    """Learner scores 0.1 and the competitor 0.4 after both move to +z, from 0.05 and 0.3."""
    toy(monkeypatch, (16, 16, 16))
    scores = {(0, 0, 0): 0.05, (0, 0, 4): 0.1, (8, 8, 0): 0.3, (8, 8, 4): 0.4}

    def score(case, corners):
        return torch.tensor([scores.get(tuple(c), 0.0) for c in corners.tolist()])

    env = SparsEnv(
        grid_shape=(16, 16, 16),
        window_size=(8, 8, 8),
        device="cpu",
        score_source=score,
        opponent="constant0",
        **settings,
    )
    env.seed([0])
    env.reset(options={"start": [0, 0, 0], "start_opponent": [8, 8, 0]})
    return env


def test_the_shaped_reward_adds_the_discounted_difference_of_the_potential(monkeypatch):
    env = two_places(monkeypatch, reward="shaped", gamma=0.9, threshold=1.0)
    assert env.step(torch.tensor([0]))[0].item() == pytest.approx(-1 + 0.9 * 0.1 - 0.05)
    env = two_places(monkeypatch, reward="shaped", gamma=0.9, threshold=0.35, terminal_bonus=0.0)
    reward, terminated, _ = env.step(torch.tensor([0]))
    assert terminated
    assert reward.item() == pytest.approx(-1 - 0.05), "the potential of the terminal state is zero"


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({}, {"duel": -1.0, "bonus": -10.0}),
        ({"reward": "diff"}, {"duel": 0.1 - 0.4, "bonus": -10.0}),
        ({"reward": "score"}, {"score": 0.1, "bonus": -10.0}),
        ({"reward": "shaped"}, {"duel": -1.0, "potential": -0.05, "bonus": -10.0}),
        ({"n_agents": 1}, {"potential": 0.99 * 0.1 - 0.05, "bonus": 0.0}),
        ({"n_agents": 1, "reward": "score"}, {"score": 0.1, "bonus": 0.0}),
    ],
)
def test_each_reward_has_its_named_terms(monkeypatch, settings, terms):
    env = two_places(monkeypatch, threshold=0.35, **settings)
    env.step(torch.tensor([0]))
    env.reset()  # which does not change the terms of the last step
    assert {name: term.item() for name, term in env.reward_terms.items()} == pytest.approx(terms)


@pytest.mark.parametrize("bonus", [0.0, 10.0])
def test_the_terminal_bonus_has_the_sign_of_the_duel(monkeypatch, bonus):
    env = two_places(monkeypatch, threshold=0.35, terminal_bonus=bonus)
    reward, terminated, _ = env.step(torch.tensor([0]))
    assert terminated
    assert reward.item() == -1.0 - bonus
    assert env.episode_info(torch.tensor([0]))[0]["reason"] == "tau_opp"


def test_without_tau_the_episode_is_truncated_at_its_horizon_and_not_terminated():
    env = SparsEnv(**ORACLE, threshold=1.0, horizon=5)
    env.seed([0])
    env.reset()
    steps = play(env, [0] * 5)
    assert [truncated.item() for _, _, truncated in steps] == [False] * 4 + [True]
    assert not any(terminated.item() for _, terminated, _ in steps)
    assert env.episode_info(torch.tensor([0]))[0]["reason"] == "time"


def test_a_score_above_tau_on_the_last_step_terminates_and_does_not_truncate(monkeypatch):
    env = two_places(monkeypatch, threshold=0.35, horizon=2)
    env.set_opponent(_Script(iter((1, 0))))
    assert [over.item() for over in env.step(torch.tensor([0]))[1:]] == [False, False]
    assert [over.item() for over in env.step(torch.tensor([0]))[1:]] == [True, False]


def test_alone_nobody_else_ends_the_episode_and_s2_counts_as_minus_one(monkeypatch):
    toy(monkeypatch, (16, 16, 16))
    env = SparsEnv(
        grid_shape=(16, 16, 16),
        window_size=(8, 8, 8),
        device="cpu",
        n_agents=1,
        score_source=lambda case, corners: torch.full((len(corners),), 0.2),
    )
    env.seed([0])
    env.reset()
    reward, terminated, _ = env.step(torch.tensor([0]))
    assert reward.item() == pytest.approx(0.99 * 0.2 - 0.2, abs=1e-6), "the discounted difference of the potential"
    assert not terminated
    info = env.info()
    assert (info["score_opp"].item(), info["win"].item(), info["p_opp"].tolist()) == (-1.0, 1, [[-1, -1, -1]])


def test_with_more_rounds_a_found_region_is_blanked_and_the_search_goes_on(monkeypatch):
    """Two tumours: the second round must find the other one, and only then the episode ends."""
    toy(monkeypatch, (40, 16, 16))

    def score(case, corners):
        return ((corners[:, 0] == 4) | (corners[:, 0] == 28)).float() * 0.9

    env = SparsEnv(
        grid_shape=(40, 16, 16),
        window_size=(8, 8, 8),
        device="cpu",
        n_agents=1,
        score_source=score,
        reward="score",
        **PAINT,
        lesion_rounds=2,
        start="centre",
        obs_mode="own_window",
    )
    env.seed([0])
    env.reset()
    assert env.info()["p_self"].tolist() == [[16, 4, 4]]
    rewards = play(env, (5, 5, 5))
    assert [t.item() for _, t, _ in rewards] == [False] * 3
    assert rewards[-1][0].item() == pytest.approx(10.9), "every find earns its bonus"
    assert env.info()["p_self"].tolist() == [[16, 4, 4]], "both agents start again"
    again = play(env, (5, 5, 5))
    assert [r.item() for r, _, _ in again] == [0.0] * 3, "a found place is blank"
    over = play(env, (4,) * 6)
    assert [t.item() for _, t, _ in over] == [False] * 5 + [True]
    assert set(torch.nonzero(env.painting.mask())[:, 0].tolist()) == {*range(4, 12), *range(28, 36)}


# -- painting and the exact block Dice: docs/spars.md, Method 5 ------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["sum", "mean", "max", "min"]), st.sampled_from(["learner", "both"]))
def test_the_event_log_paints_what_direct_painting_paints_and_block_dice_is_voxel_dice(seed, reduce, accumulate):
    painting = {"reduce": reduce, "upsample": "blocks", "accumulate": accumulate, "mask_threshold": 0.1}
    env = SparsEnv(**ORACLE, threshold=1.0, horizon=40, **painting)
    env.seed([seed])
    generator = torch.Generator().manual_seed(seed)
    env.reset()
    play(env, torch.randint(6, (13,), generator=generator).tolist())  # an unfinished episode that must leave no trace
    env.reset()
    total, once, peak, windows = (torch.zeros(64, 64, 48, dtype=torch.float64) for _ in range(4))
    lowest, known = torch.full_like(total, torch.inf), set()
    for action in torch.randint(6, (37,), generator=generator).tolist():
        env.step(torch.tensor([action]))
        info = env.info()
        for agent in ("self", "opp") if accumulate == "both" else ("self",):
            (x, y, z), score = info[f"p_{agent}"][0].tolist(), info[f"score_{agent}"].double().item()
            window = (slice(x, x + 16), slice(y, y + 16), slice(z, z + 8))
            total[window] += score
            if (x, y, z) not in known:
                known.add((x, y, z))
                once[window] += score
                windows[window] += 1
                peak[window] = peak[window].clamp(min=score)
                lowest[window] = lowest[window].clamp(max=score)
    lowest[windows == 0] = 0
    direct = {"sum": total, "max": peak, "min": lowest, "mean": once / windows.clamp(min=1)}[reduce]
    assert (env.lattice.expand(env.painting.block_map()) - direct).abs().max() < 1e-9
    mask, truth = env.painting.mask(), env.cases[0].label == 2
    voxel_dice = 2 * (mask & truth).sum().item() / (mask.sum().item() + truth.sum().item())
    assert env.painting.dice() == voxel_dice


def test_maps_of_several_environments_at_once_are_the_maps_of_each():
    env = SparsEnv(**ONE, **PAINT, threshold=1.0, horizon=30, num_envs=6)
    env.seed(range(6))
    env.reset()
    generator = torch.Generator().manual_seed(0)
    for number in range(50):
        _, terminated, truncated = env.step(torch.randint(6, (6,), generator=generator))
        if number == 9:
            env.reset(torch.tensor([1, 4]))
        over = (terminated | truncated).nonzero().flatten()
        if len(over):
            env.reset(over)
    together = env.painting.block_maps(torch.arange(6))
    assert together.flatten(1).sum(1).count_nonzero() > 1
    for env_id in range(6):
        assert torch.equal(together[env_id], env.painting.block_map(env_id))


# -- information hygiene ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("obs_mode", ["own_window", "two_window", "features"])
def test_the_label_changes_nothing_but_dice_precision_and_recall(monkeypatch, tmp_path, obs_mode):
    """docs/spars.md, Method 3, with the classifier as the scorer."""

    def trajectory(shuffle):
        real = liver_ct.load_liver_cases(liver_ct.LiverDataConfig(cases=["phantom_02000"]))
        if shuffle:
            order = torch.randperm(real[0].label.numel(), generator=torch.Generator().manual_seed(1))
            real = [replace(real[0], label=real[0].label.flatten()[order].view(real[0].label.shape))]
        monkeypatch.setattr(spars, "load_liver_cases", lambda config: real)
        apart = str(tmp_path / f"cache-{shuffle}")  # the same scores must come from the same image, not from a cache
        env = gym.make("SPARS-LiverCT-v0", **ONE, obs_mode=obs_mode, horizon=20, mask_threshold=0.0, cache_dir=apart)
        generator = np.random.default_rng(0)
        obs, _ = env.reset(seed=5)
        seen, facts = [obs], []
        for _ in range(60):
            obs, reward, terminated, truncated, info = env.step(generator.integers(6))
            facts.append({key: info.pop(key) for key in ("dice", "precision", "recall") if key in info})
            seen.append((obs, reward, terminated, truncated, info))
            if terminated or truncated:
                obs, _ = env.reset()
                seen.append(obs)
        return seen, facts

    (plain, truth), (shuffled, noise) = trajectory(False), trajectory(True)
    np.testing.assert_equal(plain, shuffled)
    assert truth != noise


# -- export, rendering, options --------------------------------------------------------------------------------------


def test_an_environment_names_where_its_cases_come_from(liver_data):
    real = {"data": str(liver_data), "cases": ["liver_2"], "score_source": "oracle_fraction", "device": "cpu"}
    real |= {"grid_shape": (32, 32, 24), "window_size": (8, 8, 8)}
    assert SparsEnv(**real).origin == "real"
    assert SparsEnv(**real, implant_lesions=LesionConfig(number=(1, 1))).origin == "implanted"
    assert SparsEnv(cases=["phantom_02000"], score_source="oracle_fraction", device="cpu").origin == "phantom"


def test_a_mask_is_written_in_the_space_of_the_cases_own_file(liver_data, tmp_path):
    import nibabel as nib

    env = gym.make(
        "SPARS-LiverCT-v0",
        data=str(liver_data),
        cases=["liver_2"],
        grid_shape=(64, 64, 48),
        window_size=(16, 16, 8),
        classifier="packaged",
        threshold=1.0,
        mask_threshold=0.0,
        device="cpu",
    )
    env.reset(seed=0)
    for _ in range(3):
        env.step(5)
    batched = env.unwrapped.batched
    batched.painting.save_episode_mask(tmp_path / "mask.nii.gz")
    written, original = nib.load(tmp_path / "mask.nii.gz"), nib.load(liver_data / "imagesTr" / "liver_2.nii.gz")
    assert written.shape == original.shape
    np.testing.assert_allclose(written.affine, original.affine)
    share, grid_share = np.asarray(written.dataobj).mean(), batched.painting.mask().float().mean().item()
    assert share == pytest.approx(grid_share, rel=0.1)


def test_the_picture_shows_both_windows_and_the_paint():
    env = gym.make("SPARS-LiverCT-v0", **ORACLE, render_mode="rgb_array", threshold=1.0)
    env.reset(seed=0, options={"start": [24, 24, 20], "start_opponent": [4, 24, 20]})
    frame = env.render().astype(int)
    for colour in ((64, 200, 255), (255, 120, 64)):
        assert (np.abs(frame - colour).sum(axis=2) < 3).any(), f"no outline in {colour}"


def test_reset_options_choose_case_and_starts_and_unknown_ones_are_refused():
    env = gym.make(
        "SPARS-LiverCT-v0", cases=["phantom_02000", "phantom_02001"], score_source="oracle_fraction", device="cpu"
    )
    for case_id in ("phantom_02001", "phantom_02000"):
        env.reset(seed=0, options={"case_id": case_id})
        batched = env.unwrapped.batched
        assert batched.cases[int(batched.case[0])].id == case_id
    with pytest.raises(ValueError, match="case_id 'nobody' is not among the cases"):
        env.reset(options={"case_id": "nobody"})
    with pytest.raises(ValueError, match=r"unknown reset options \['colour'\]"):
        env.reset(options={"colour": 1})
    with pytest.raises(ValueError, match="not on the lattice"):
        env.reset(options={"start": [1, 0, 0]})
    for bad in ((0, 0), (0.0, 0.0, 0.0), "middle", None):
        with pytest.raises(ValueError, match="must be integers"):
            env.reset(options={"start": bad})
    batched = env.unwrapped.batched
    with pytest.raises(ValueError, match="opponent is 'greedy' but must be"):
        batched.set_opponent("greedy")


def test_every_case_is_drawn():
    env = SparsEnv(cases=["phantom_0200?"], score_source="oracle_fraction", device="cpu", num_envs=200)
    env.seed(range(200))
    env.reset()
    assert sorted(set(env.case.tolist())) == list(range(10))


def test_it_logs_once_that_it_plays_on_phantoms(caplog):
    core.notice_phantom.cache_clear()
    with caplog.at_level(logging.WARNING):
        SparsEnv(**ORACLE)
        SparsEnv(**ORACLE)
    assert sum("plays on phantoms" in record.message for record in caplog.records) == 1


def test_the_paper_profile_is_what_text_and_program_specify():
    paper = SparsConfig(profile="paper", data="CT").resolved()
    assert (paper.obs_mode, paper.start, paper.horizon, paper.tie_reward, paper.terminal_bonus) == (
        "own_window",
        "corner_paper",
        32,
        1.0,
        0.0,
    )
    assert (paper.threshold, paper.step, paper.action_set, paper.mask_threshold) == (0.3, 4, "axis6", 0.5)
    env = gym.make("SPARS-LiverCT-v0", **ONE, profile="paper")
    assert isinstance(env.observation_space, spaces.Box)
    assert env.observation_space.shape == (1, 16, 16, 8)


def test_the_papers_episodes_on_phantoms_begin_below_tau_and_go_on():
    """From the paper's corner τ ends two in five of them in their first step."""
    lengths = {}
    for start in (None, "corner_paper"):
        env = SparsEnv(profile="paper", start=start, device="cpu", num_envs=64)
        env.seed(range(64))
        env.reset()
        assert start or float(env.scores.max()) <= 0.3
        generator = torch.Generator().manual_seed(0)
        ended = torch.zeros(64, dtype=torch.int64)
        for step in range(1, 33):
            _, terminated, truncated = env.step(torch.randint(6, (64,), generator=generator))
            ended = torch.where((ended == 0) & (terminated | truncated), step, ended)
        lengths[start] = ended
    assert (lengths["corner_paper"] == 1).float().mean() > 0.3
    assert (lengths[None] == 1).float().mean() < 0.15


def test_lazy_and_dense_scores_give_the_same_episodes():
    seen = []
    for engine in ("dense", "lazy"):
        env = SparsEnv(**ONE, score_engine=engine, num_envs=3)
        env.seed([1, 2, 3])
        env.reset()
        generator = torch.Generator().manual_seed(0)
        seen.append([env.advance(torch.randint(6, (3,), generator=generator)) for _ in range(60)])
    for one, two in zip(*seen, strict=True):
        torch.testing.assert_close(one.obs, two.obs, atol=2e-4, rtol=0)
        assert torch.equal(one.terminated, two.terminated)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"window_size": (128, 16, 8)}, r"window_size \(128, 16, 8\).*does not fit the volume \(64, 64, 48\) along x"),
        ({"window_size": (16, 18, 8)}, r"has 18 voxels along y but must be a positive multiple of step 4"),
        ({"threshold": 1.5}, r"threshold is 1.5 but must lie in \[0, 1\]"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"treshold": 0.5}, "unknown argument 'treshold'; did you mean 'threshold'"),
        ({"obs_mode": "map"}, "obs_mode is 'map' but must be one of 'own_window', 'two_window', 'features'"),
        ({"opponent": "nobody"}, "opponent is 'nobody' but must be one of 'snapshot', 'random', 'constant0', 'greedy'"),
        ({"horizon": 0}, "horizon is 0 but must lie in"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"mask_threshold": -1.0}, "mask_threshold is -1.0"),
        (
            {"n_agents": 1, "reward": "sign"},
            "reward is 'sign' but with profile 'default' and n_agents=1 it must be one of score, shaped",
        ),
        ({"lesion_rounds": 0}, "lesion_rounds is 0"),
        ({"phase": (4, 0, 0)}, r"phase \(4, 0, 0\) is 4 along x"),
        ({"profile": "mine"}, "profile is 'mine'"),
        ({"obs_size": (8, 8, 8)}, "obs_size"),
        ({"hu_window": (-100.0, 300.0)}, "was trained with another one"),
        ({"score_source": 3}, "is 3 but must be"),
        (
            {"opponent": 3},
            r"opponent is 3 but must be one of 'snapshot', .* or an object with act\(obs, deterministic\)",
        ),
        ({"opponent": object}, r"opponent is <class 'object'> but must be one of 'snapshot', .* an object with act"),
    ],
)
def test_bad_arguments_are_refused_with_value_rule_and_way_out(bad, match):
    with pytest.raises(ValueError, match=match):
        SparsEnv(**{**ONE, **bad})


def test_real_data_without_a_classifier_asks_for_one(liver_data):
    with pytest.raises(ValueError, match="no classifier for data="):
        SparsEnv(data=str(liver_data), split="all", grid_shape=(64, 64, 48), device="cpu")


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_scores_outside_their_range_are_refused(monkeypatch, value):
    toy(monkeypatch, (16, 16, 16))
    env = SparsEnv(
        grid_shape=(16, 16, 16),
        window_size=(8, 8, 8),
        device="cpu",
        score_source=lambda case, corners: torch.full((len(corners),), value),
    )
    env.seed([0])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        env.reset()


# -- the default environment is worth playing ------------------------------------------------------------------------


def test_the_default_episode_is_not_over_before_it_began():
    """Random play with the defaults: few starts above τ, and episodes of several steps."""
    env = SparsEnv(device="cpu", num_envs=256, eval_dice=False)
    env.seed(range(256))
    env.reset()
    assert (env.scores > env.config.threshold).any(dim=0).float().mean() < 0.1
    lengths = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        _, terminated, truncated = env.step(torch.randint(6, (256,), generator=generator))
        over = (terminated | truncated).nonzero().flatten()
        lengths += env.t[over].tolist()
        if len(over):
            env.reset(over)
    assert np.median(lengths) >= 5


@pytest.mark.parametrize("action_set", list(MOVES))
@pytest.mark.parametrize("rule", ["random", "constant0", "greedy"])
def test_every_rule_plays_either_side_with_every_action_set(action_set, rule):
    env = SparsEnv(**ORACLE, action_set=action_set, opponent=rule, threshold=1.0, num_envs=3)
    env.seed(range(3))
    env.reset(options={"start": [24, 24, 20], "start_opponent": [24, 24, 20]})
    env.step(RULES[rule](env, 0))
    if rule == "constant0":
        assert env.info()["p_self"].tolist() == [[24, 24, 24]] * 3 == env.info()["p_opp"].tolist()


def test_a_hit_with_rounds_left_on_the_last_step_ends_by_time(monkeypatch):
    env = two_places(monkeypatch, threshold=0.35, horizon=2, lesion_rounds=2)
    env.set_opponent(_Script(iter((1, 0))))
    env.step(torch.tensor([0]))
    _, terminated, truncated = env.step(torch.tensor([0]))
    assert env.duel[1].item() == pytest.approx(0.4), "a hit"
    assert (terminated.item(), truncated.item()) == (False, True)
    assert env.episode_info(torch.tensor([0]))[0]["reason"] == "time"


def test_windows_come_from_the_case_of_their_environment():
    env = SparsEnv(cases=["phantom_02000", "phantom_02001"], score_source="oracle_fraction", device="cpu", num_envs=8)
    env.seed(range(8))
    env.reset()
    assert len(set(env.case.tolist())) == 2
    windows, corners = env.observe()["windows"], env.info()["p_self"].tolist()
    for env_id, (x, y, z) in enumerate(corners):
        image = env.cases[int(env.case[env_id])].image
        assert torch.equal(windows[env_id, 0], image[x : x + 16, y : y + 16, z : z + 8])


def test_a_score_of_exactly_theta_is_not_in_the_mask_at_float_precision(monkeypatch):
    toy(monkeypatch, (16, 16, 16))
    env = SparsEnv(
        grid_shape=(16, 16, 16),
        window_size=(8, 8, 8),
        device="cpu",
        score_source=lambda case, corners: torch.full((len(corners),), 0.3),
        mask_threshold=0.3,
    )
    env.seed([0])
    env.reset()
    env.step(torch.tensor([0]))
    assert env.painting.voxel_map().max().item() == pytest.approx(0.3)
    assert not env.painting.mask().any()


# -- Dice of ended episodes ------------------------------------------------------------------------------------------


def plain_episode_dice(env, env_id):
    """Dice, precision, recall and painted blocks as counted window by window and voxel by voxel over the whole log."""
    lattice, cfg, case = env.lattice, env.config, int(env.case[env_id])
    painted, visits = torch.zeros(lattice.full, dtype=torch.int64), torch.zeros(lattice.full, dtype=torch.int64)
    once, highest = torch.zeros_like(painted), torch.zeros(lattice.full, dtype=torch.float64)
    covered = torch.zeros(lattice.full, dtype=torch.bool)
    lowest, known = torch.full_like(highest, torch.inf), set()
    place, length = env.painting._steps, int(env.t[env_id])
    for age in range(length):
        for player in range(2 if cfg.accumulate == "both" else 1):
            row = (place - 1 - age) % env.horizon
            at, score = env.painting._at[row, player, env_id], env.painting._scores[row, player, env_id].double()
            (x, y, z), (wx, wy, wz) = lattice.corners(at).tolist(), lattice.window
            inside = (slice(x, x + wx), slice(y, y + wy), slice(z, z + wz))
            painted[inside] += int((score * 2.0**40).round())
            covered[inside] = True
            if (x, y, z) not in known:
                known.add((x, y, z))
                once[inside] += int((score * 2.0**40).round())
                visits[inside] += 1
                highest[inside] = highest[inside].maximum(score)
                lowest[inside] = lowest[inside].minimum(score)
    total, mean = painted.double() / 2.0**40, once.double() / 2.0**40 / visits.clamp(min=1)
    worth = {"sum": total, "mean": mean, "max": highest, "min": lowest.where(visits > 0, 0.0)}[cfg.reduce].float()
    blocks = worth[::4, ::4, ::4]
    worth = lattice.interpolate(blocks) if cfg.upsample == "trilinear" else worth
    mask, truth = worth > env.painting.theta, env.cases[case].label == 2
    common, n_mask, n_truth = (int(part.sum()) for part in (mask & truth, mask, truth))
    return {
        "n_painted_blocks": int(covered[::4, ::4, ::4].sum()),
        "dice": 2 * common / (n_mask + n_truth) if n_mask + n_truth else 1.0,
        "precision": common / n_mask if n_mask else float(n_truth == 0),
        "recall": common / n_truth if n_truth else float(n_mask == 0),
    }


@pytest.mark.parametrize("accumulate", ["learner", "both"])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("upsample", ["blocks", "trilinear"])
def test_dice_of_many_ended_episodes_is_the_plain_one_digit_for_digit(reduce, accumulate, upsample):
    settings = {"cases": ["phantom_02000", "phantom_02001"], "horizon": 25, "threshold": 0.5, "mask_threshold": 0.2}
    settings |= {"fill": "none", "paint": "windows"}
    settings |= {"reduce": reduce, "accumulate": accumulate, "upsample": upsample}
    env = SparsEnv(device="cpu", num_envs=16, **settings)
    env.seed(range(16))
    env.reset()
    env.single_action_space.seed(1)
    lengths = set()
    for _ in range(60):
        _, terminated, truncated = env.step(torch.as_tensor([env.single_action_space.sample() for _ in range(16)]))
        over = (terminated | truncated).nonzero().flatten()
        if len(over):
            for env_id, facts in zip(over.tolist(), env.episode_info(over), strict=True):
                plain = plain_episode_dice(env, env_id)
                assert {name: facts[name] for name in plain} == plain
                lengths.add(int(env.t[env_id]))
            env.reset(over)
    assert max(lengths) == 25
    assert min(lengths) < 25
    assert len(lengths) >= 5, "episodes of several lengths end together"


def test_make_vec_leaves_dice_out_unless_it_is_asked_for():
    def facts(make, **settings):
        env = make("SPARS-LiverCT-v0", device="cpu", cases=["phantom_02000"], horizon=1, **settings)
        env.reset(seed=0)
        infos = env.step(env.action_space.sample())[4]
        return infos.get("final_info", infos)

    assert "dice" in facts(gym.make)
    assert "dice" not in facts(gym.make, eval_dice=False)
    assert "dice" not in facts(gym.make_vec, num_envs=2)
    assert facts(gym.make_vec, num_envs=2)["_reason"].all()
    assert facts(gym.make_vec, num_envs=2, eval_dice=True)["_dice"].all()
    assert facts(gym.make_vec, num_envs=2, config=SparsConfig(horizon=1))["_dice"].all(), (
        "a given config is taken whole"
    )


# -- moves that are wasted -------------------------------------------------------------------------------------------


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


# -- a model as competitor -------------------------------------------------------------------------------------------


def test_a_model_of_sb3_may_be_the_competitor_and_must_see_the_same():
    settings = {**ONE, "obs_mode": "features", "horizon": 8, "threshold": 1.0}
    model = PPO(
        "MlpPolicy", LearnerEnv(SparsEnv(num_envs=2, **settings)), n_steps=8, batch_size=16, device="cpu", seed=0
    )
    env = gym.make("SPARS-LiverCT-v0", opponent=model, **settings)
    env.reset(seed=0)
    torch.manual_seed(0)
    seen = env.unwrapped.batched.observe(player=1).numpy()
    before = env.unwrapped.batched.at[1].clone()
    env.step(0)
    torch.manual_seed(0)
    action, _ = model.predict(seen)
    batched = env.unwrapped.batched
    assert torch.equal(batched.at[1], batched._next[before * 6 + torch.as_tensor(action)])
    with pytest.raises(
        ValueError, match=r"opponent was trained on observations Box.* but here they are Dict.* obs_mode"
    ):
        gym.make("SPARS-LiverCT-v0", opponent=model, **{**settings, "obs_mode": "two_window"})


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"window_size": 16}, "window_size is 16 but must be a tuple of 3 whole numbers or None"),
        ({"window_size": (16, 16)}, r"window_size is \(16, 16\) but must be a tuple of 3"),
        ({"threshold": "a"}, "threshold is 'a' but must be a finite number"),
        ({"horizon": "10"}, "horizon is '10' but must be a whole number"),
        (
            {"cases": "phantom_00000"},
            r"cases is 'phantom_00000' but must be a list.*; put it into a list: \['phantom_00000'\]",
        ),
        ({"score_source": 3}, "score_source is 3 but must be 'classifier', 'oracle_fraction' or a function"),
        (
            {"opponent": 3},
            "opponent is 3 but must be one of 'snapshot', 'random', .*, a model of Stable-Baselines3, or",
        ),
        ({"opponent": "nobody"}, "opponent is 'nobody' but must be one of"),
        ({"split": "nope"}, "split is 'nope' but must be one of 'classifier_train'"),
        ({"max_episode_steps": 3}, "max_episode_steps is 3 but SparsEnv counts its own steps: give horizon=3"),
    ],
)
def test_wrong_types_are_refused_as_on_the_command_line(bad, match):
    with pytest.raises(ValueError, match=match):
        SparsEnv(**{**ONE, **bad})


def test_a_list_does_where_a_tuple_is_meant():
    assert SparsEnv(**ONE, window_size=[16, 16, 8]).config.window_size == (16, 16, 8)


@pytest.mark.parametrize(("reduce", "fill"), [("sum", "none"), ("min", "stationary")])
def test_painted_blocks_are_those_of_the_windows_that_were_seen(reduce, fill):
    """Neither what unseen windows are filled with counts, nor that a score is 0. A window has 4 x 4 x 2 blocks; a move
    along x adds 4 x 2."""
    env = SparsEnv(
        **ONE,
        score_source=lambda case, corners: torch.zeros(len(corners)),
        reduce=reduce,
        fill=fill,
        threshold=1.0,
        horizon=2,
    )
    env.seed([0])
    env.reset(options={"start": (24, 24, 20)})
    play(env, [4, 4])
    (facts,) = env.episode_info(torch.tensor([0]))
    assert facts["n_painted_blocks"] == 4 * 4 * 2 + 4 * 2
