"""SPARS-LiverCT-v0: its cases, profiles, arguments and options of reset, and pictures; a model as competitor."""

import logging

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from segarena.datasets.liver.lesions import LesionConfig
from segarena.envs import core
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import SparsConfig
from spars_toys import ONE, ORACLE, toy
from stable_baselines3 import PPO


def test_an_environment_names_where_its_cases_come_from(liver_data):
    real = {"data": str(liver_data), "cases": ["liver_2"], "score_source": "oracle_fraction", "device": "cpu"}
    real |= {"grid_shape": (32, 32, 24), "window_size": (8, 8, 8)}
    assert SparsEnv(**real).origin == "real"
    assert SparsEnv(**real, implant_lesions=LesionConfig(number=(1, 1))).origin == "implanted"
    assert SparsEnv(cases=["phantom_02000"], score_source="oracle_fraction", device="cpu").origin == "phantom"


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
