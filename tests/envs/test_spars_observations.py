"""SPARS-LiverCT-v0: what both players see, and that nobody sees the label."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from segarena.datasets.liver import cases as liver_ct
from segarena.datasets.liver.lattice import nearest_index
from segarena.envs import spars
from segarena.envs.spars import SparsEnv
from spars_toys import ONE, ORACLE, linear_score, toy


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


def test_windows_come_from_the_case_of_their_environment():
    env = SparsEnv(cases=["phantom_02000", "phantom_02001"], score_source="oracle_fraction", device="cpu", num_envs=8)
    env.seed(range(8))
    env.reset()
    assert len(set(env.case.tolist())) == 2
    windows, corners = env.observe()["windows"], env.info()["p_self"].tolist()
    for env_id, (x, y, z) in enumerate(corners):
        image = env.cases[int(env.case[env_id])].image
        assert torch.equal(windows[env_id, 0], image[x : x + 16, y : y + 16, z : z + 8])
