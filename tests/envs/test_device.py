"""Environments on a pretended CUDA device: no tensor is on the wrong device, and the host seldom waits for it."""

import numpy as np
import pytest
import schedule_toys
import torch
from device_police import DevicePolice
from segarena.datasets.echo.images import PhantomPatients
from segarena.datasets.scenes.images import PhantomScenes
from segarena.datasets.xray.images import PhantomStudies
from segarena.envs import ENVIRONMENTS
from segarena.envs.adapters import BatchEnv, SingleEnv, make_batch, make_single
from segarena.envs.learner_env import LearnerEnv

SPARS, ECHO = "SPARS-LiverCT-v0", "RL4Seg-Echo-v0"
ATTACK = {f"RPPGD-{name}-v0": {"size": 33, "phantom_scenes": PhantomScenes(val=3)} for name in ("VOC", "Cityscapes")}
ATTACK |= {"RPPGD-ADE20K-v0": ATTACK["RPPGD-VOC-v0"]}
ATTACK |= {"RPPGD-LiverCT-v0": {"cases": ["phantom_02000"], "grid_shape": (32, 32, 24)}}
APGA = "APGA-MURA-v0"
VOC, SEAT_ATTACK, SEAT = "RPPGD-VOC-v0", "SEATAttack-MSD-v0", "SEAT-MSD-v0"
SMALL = {
    SPARS: {"cases": ["phantom_02000", "phantom_02001"], "horizon": 12, "threshold": 0.9, "opponent": "random"},
    ECHO: {"size": 32, "phantom_patients": PhantomPatients(train=3)},
    APGA: {"size": 32, "phantom_studies": PhantomStudies(train=4), "grid": 4},
    **ATTACK,
    SEAT_ATTACK: {"split": "val[:3]", "horizon": 6},
    SEAT: schedule_toys.SMALL,
}
VARIANTS = [
    *((env_id, {}) for env_id in sorted(ENVIRONMENTS)),
    (SPARS, {"obs_mode": "features", "opponent": "greedy"}),
    (SPARS, {"obs_mode": "own_window", "obs_size": (8, 8, 8), "n_agents": 1, "start": "centre"}),
    (SPARS, {"lesion_rounds": 3, "threshold": 0.3, "accumulate": "both", "reduce": "max", "reward": "shaped"}),
    (SPARS, {"score_engine": "lazy", "action_set": "multidiscrete3", "opponent": "constant0", "reduce": "mean"}),
    (SPARS, {"score_source": "oracle_fraction", "obs_mode": "features", "reward": "diff"}),
    (SPARS, {"action_set": "continuous", "obs_mode": "features"}),
    (SPARS, {"profile": "patch", "threshold": 1.0}),
    (SPARS, {"profile": "search", "threshold": 1.0, "obs_mode": "features", "n_agents": 1}),
    (ECHO, {"sampler": "shared", "group": 4, "reward": ["dice", "pixel_accuracy"]}),
    (ECHO, {"reward": "anatomical", "compute_validity": True}),
    (APGA, {"action_mode": "pixel", "fill": "noise", "sampler": "shared", "log_aid": True}),
    (APGA, {"action_mode": "box", "fill": "blur", "reward_mode": "contrast", "reward_level": "batch"}),
    (APGA, {"action_mode": "beta", "blur_sigma_px": 2.0, "fill": "mean", "reward_kind": "logit"}),
    (APGA, {"action_mode": "sequential", "horizon": 4, "reward_mode": "cooperative", "reward_kind": "prob"}),
    (VOC, {"obs_mode": "map", "obs_grad": "probe", "residual_to": "segpgd", "rand_start": True, "best_iterate": True}),
    (VOC, {"action_mode": "discrete", "paired_baseline": "pgd", "reward": "p_y"}),
    (VOC, {"action_mode": "gridweight", "expose_x_adv": True}),
    (VOC, {"action_mode": "signmap", "cells": 2}),
    (
        SEAT_ATTACK,
        {"obs_mode": "dict", "start": "uniform", "eps_range": "window", "patches": "train", "stop_on_success": True},
    ),
    (SEAT_ATTACK, {"update_victim": "every_step", "start": "carry", "action_mode": "box"}),
    (SEAT_ATTACK, {"update_victim": "at_end", "return_delta": True, "reward": "margin"}),
    (SEAT, {"action_mode": "absolute", "eps_enlarger": True, "segment": None, "budget": 5, "patience": 1}),
]
"""Every environment with the defaults, and what else they can do."""


def made(env_id, num_envs, **settings):
    settings = {"device": "cuda", **SMALL.get(env_id, {}), **settings}
    return make_batch(ENVIRONMENTS[env_id].env_class, num_envs, **settings).batched


def begun(env_id, num_envs, **settings):
    env = made(env_id, num_envs, **settings)
    env.seed(range(num_envs))
    env.reset()
    return env


def actions_of(env, steps):
    """Random actions [steps, N, ...] on the host."""
    env.single_action_space.seed(0)
    drawn = [[env.single_action_space.sample() for _ in range(env.num_envs)] for _ in range(steps)]
    return torch.as_tensor(np.array(drawn))


@pytest.mark.parametrize(("env_id", "changes"), VARIANTS, ids=str)
def test_an_environment_plays_on_the_device_as_on_the_cpu(env_id, changes):

    def play(device):
        env = begun(env_id, 4, device=device, **changes)
        assert env.device.type == device
        seen = [env.observe()]
        for number, actions in enumerate(actions_of(env, 15)):
            step = env.advance(actions.to(env.device) if number % 2 else actions)  # actions may come from the host
            seen += [step.obs, step.reward, step.terminated, step.truncated, env.info(), env.reward_terms]
            seen += [step.ended.info, step.ended.episode_info] if step.ended and number % 3 == 0 else []
        assert env.render().dtype == np.uint8
        other = made(env_id, 4, device=device, **changes)
        other.load_state(env.state())
        seen += [other.advance(env.actions_from(actions.to(env.device))).reward]
        return seen

    with DevicePolice(watch="segarena", autocast=False) as police:  # without rounding to bfloat16
        there = play("cuda")
        assert police.on_device(there[2])
    assert not police.errors, police.errors
    np.testing.assert_equal(plain(there), plain(play("cpu")))


def plain(value):
    """The same in Python's and NumPy's types."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.numpy() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("env_id", sorted(ENVIRONMENTS))
def test_the_adapters_stand_between_a_device_and_numpy(police, env_id):
    single = SingleEnv(made(env_id, 1, render_mode="rgb_array"))
    vector, learner = (kind(made(env_id, 3)) for kind in (BatchEnv, LearnerEnv))
    single.reset(seed=0)
    vector.reset(seed=0)
    learner.reset()
    for action in actions_of(vector.batched, 20).numpy():
        obs, _, terminated, truncated, _ = single.step(action[0])
        assert single.observation_space.contains(obs)
        assert single.render().dtype == np.uint8
        if terminated or truncated:
            single.reset()
        vector.step(action)
        learner.step(action)


# -- waits for the device ------------------------------------------------------------------------------------------


def waits_of(police, env_id, num_envs, **changes):
    """Waits of each step of `advance` after a warm-up, and how many episodes ended in it."""
    env = begun(env_id, num_envs, **changes)
    seen = []
    for number, actions in enumerate(actions_of(env, 16).to("cuda")):
        with police.count() as counted:
            step = env.advance(actions)
        if number >= 3:
            seen.append((counted, 0 if step.ended is None else len(step.ended.env_ids)))
    return seen


@pytest.mark.parametrize(
    ("env_id", "most", "changes"),
    [
        (SPARS, 1, {"obs_mode": "features"}),
        (SPARS, 1, {"obs_mode": "two_window"}),
        (SPARS, 1, {"obs_mode": "features", "lesion_rounds": 3, "threshold": 0.3}),
        (SPARS, 1, {"obs_mode": "features", "action_set": "continuous", "threshold": 0.3}),
        (SPARS, 1, {"profile": "patch", "threshold": 1.0}),
        (ECHO, 0, {"sampler": "shared"}),
        (ECHO, 1, {"sampler": "per_env"}),
        (APGA, 2, {}),  # for the sampler, and whether a reward was not finite
        (APGA, 1, {"sampler": "shared"}),
        (APGA, 5, {"action_mode": "sequential", "horizon": 4}),  # and who ended, and which images are new
        (VOC, 2, {}),  # and whether a logit was not finite, where an episode ended
        (VOC, 2, {"obs_mode": "map", "horizons": [2, 3], "rand_start": True}),
        (SEAT_ATTACK, 3, {}),  # and who goes on
        (SEAT, 2, {}),  # and how often the passes are to be repeated
        (SEAT, 2, {"segment": 3, "budget": 9}),
    ],
)
def test_a_step_with_automatic_reset_waits_at_most_once(police, env_id, most, changes):
    """Once, to learn who ended; not at all where all end in every step."""
    seen = waits_of(police, env_id, 16, **changes)
    assert sum(ended for _, ended in seen) > 0
    for counted, _ in seen:
        assert counted.total <= most, counted.report()


def test_a_lazy_table_waits_for_its_lookups(police):
    """Windows never seen before are found and scored in each lookup: two of a step, and three where an episode ends."""
    for counted, ended in waits_of(police, SPARS, 8, score_engine="lazy", obs_mode="features"):
        assert counted.total <= (13 if ended else 8), counted.report()


def test_reset_and_step_of_echo_waits_never(police):
    env = begun(ECHO, 8, sampler="shared", compute_validity=False)
    mask = torch.zeros_like(env.mask)
    with police.count() as counted:
        env.reset()
        env.step(mask)
        env.info()
    assert counted.total == 0, counted.report()


@pytest.mark.parametrize("num_envs", [8, 64])
@pytest.mark.parametrize(
    ("adapter", "env_id", "going_on", "ending"),
    [
        (SingleEnv, SPARS, 1, 4),  # all comes down at once; then case, reason and overlap; a case's tumour goes up once
        (SingleEnv, ECHO, 1, 3),
        (BatchEnv, SPARS, 2, 4),  # and one more to learn who ended
        (BatchEnv, ECHO, 2, 4),
        (LearnerEnv, SPARS, 2, 4),
        (LearnerEnv, ECHO, 2, 4),
    ],
)
def test_an_adapter_waits_as_often_for_many_environments_as_for_few(
    police, adapter, env_id, going_on, ending, num_envs
):
    env = adapter(made(env_id, 1 if adapter is SingleEnv else num_envs))
    over = True
    ends = 0
    if adapter is not SingleEnv:
        env.reset()
    for number, action in enumerate(actions_of(env.batched, 30).numpy()):
        if adapter is SingleEnv and over:
            env.reset(seed=number)
        with police.count() as counted:
            _, _, *ended = env.step(action[0] if adapter is SingleEnv else action)
        over = np.any(ended[0]) or (adapter is not LearnerEnv and np.any(ended[1]))
        if number < 14:
            continue  # until each case's tumour was asked for once
        ends += over
        assert counted.total <= (ending if over else going_on), counted.report()
    assert ends


def test_gym_make_plays_on_the_cpu_and_waits_for_nothing(police):
    """One environment is slower on a GPU; a batch takes the GPU that there is."""
    env = make_single(ENVIRONMENTS[SPARS].env_class, **SMALL[SPARS])
    assert env.batched.device.type == "cpu"
    assert begun(SPARS, 2, device="auto").device.type == "cuda"
    env.reset(seed=0)
    with police.count() as counted:
        env.step(0)
    assert counted.total == 0, counted.report()
