"""SPARS-LiverCT-v0: transition, rewards and ends of episodes (docs/spars.md, Method 3)."""

import numpy as np
import pytest
import torch
from segarena.envs.spars import SparsEnv
from spars_toys import ONE, ORACLE, PAINT, play, toy


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


def test_a_hit_with_rounds_left_on_the_last_step_ends_by_time(monkeypatch):
    env = two_places(monkeypatch, threshold=0.35, horizon=2, lesion_rounds=2)
    env.set_opponent(_Script(iter((1, 0))))
    env.step(torch.tensor([0]))
    _, terminated, truncated = env.step(torch.tensor([0]))
    assert env.duel[1].item() == pytest.approx(0.4), "a hit"
    assert (terminated.item(), truncated.item()) == (False, True)
    assert env.episode_info(torch.tensor([0]))[0]["reason"] == "time"
