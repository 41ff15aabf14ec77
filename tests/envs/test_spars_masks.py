"""SPARS-LiverCT-v0: what is painted, and the exact Dice of blocks (docs/spars.md, Method 5)."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import SparsConfig
from spars_toys import ONE, ORACLE, PAINT, play, toy


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
