"""The contract of every environment, over the registry: a new id is tested because it is registered."""

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as gymnasium_check
from segarena.envs import ENVIRONMENTS
from segarena.envs.adapters import make_batch, make_single
from segarena.envs.learner_env import LearnerEnv
from segarena.testing import check_env_contract
from small_envs import IDS, STEPS, actions_for, begun, flat, small
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.evaluation import evaluate_policy

ALLOWED_WARNINGS = (
    "WARN: A Box observation space minimum value is -infinity",  # features are unbounded
    "WARN: A Box observation space maximum value is infinity",
    "Your observation windows has an unconventional shape",  # SB3 says so of every 4-D box
    "Your observation  has an unconventional shape",
    "It seems that your observation  is an image but its `dtype`",  # RL4Seg's networks take floats in [0, 1] ...
    "It seems that your observation space  is an image but the upper and lower bounds are not in [0, 255]",
    "The minimal resolution for an image is 36x36",  # ... and act on 16 x 16 here, with MlpPolicy
)


def allowed_only(caught):
    return [str(w.message) for w in caught if not any(text in str(w.message) for text in ALLOWED_WARNINGS)]


@pytest.mark.parametrize("env_id", IDS)
def test_every_environment_keeps_the_contract_that_anybody_can_check(env_id):
    check_env_contract(env_id, steps=STEPS[env_id], **small(env_id))


@pytest.mark.parametrize("env_id", IDS)
def test_both_checkers_pass_with_allowed_warnings_only(env_id):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gymnasium_check(gym.make(env_id, **small(env_id)).unwrapped)
        sb3_check(gym.make(env_id, **small(env_id)).unwrapped)
    assert allowed_only(caught) == []


@pytest.mark.parametrize("env_id", IDS)
def test_a_learner_can_be_built_and_learns_a_little(env_id):
    env = gym.make(env_id, **small(env_id))
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    PPO(policy, env, n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(32)
    learner = LearnerEnv(make_batch(ENVIRONMENTS[env_id].env_class, num_envs=4, **small(env_id)).batched)
    model = PPO(policy, learner, n_steps=8, batch_size=16, n_epochs=1, device="cpu").learn(64)
    mean, _ = evaluate_policy(model, learner, n_eval_episodes=2)
    assert np.isfinite(mean)


@pytest.mark.parametrize("env_id", IDS)
def test_the_same_seed_gives_the_same_episode_and_another_seed_another(env_id):
    settings = small(env_id)
    env = gym.make(env_id, **settings)
    actions = actions_for(env.action_space, 2 * STEPS[env_id], 1)[:, 0]

    def play(seed):
        seen = [flat(env.reset(seed=seed)[0])]
        for action in actions:
            obs, reward, terminated, truncated, _ = env.step(action)
            seen.append(np.append(flat(obs), reward))
            if terminated or truncated:
                seen.append(flat(env.reset()[0]))
        return np.concatenate(seen)

    first = play(1)
    np.testing.assert_array_equal(first, play(1))
    assert not np.array_equal(first, play(2))


@pytest.mark.parametrize("env_id", IDS)
def test_a_saved_state_continues_the_same_episodes(env_id):
    def build():
        return make_batch(ENVIRONMENTS[env_id].env_class, num_envs=3, **small(env_id)).batched

    def play(env, actions):
        seen = []
        for action in actions:
            step = env.advance(env.actions_from(action))
            seen.append((step.reward.clone(), step.terminated.clone(), step.truncated.clone()))
        return seen

    env = build()
    actions = actions_for(env.single_action_space, STEPS[env_id], 3)
    env.seed([1, 2, 3])
    env.reset()
    play(env, actions[:7])
    other = build()
    other.load_state(pickle.loads(pickle.dumps(env.state())))
    for one, two in zip(play(env, actions[7:]), play(other, actions[7:]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("env_id", IDS)
def test_to_switch_a_term_off_changes_the_reward_by_that_term(env_id):
    for name in begun(env_id).reward_weights:
        whole, without, twice = (begun(env_id) for _ in range(3))
        without.reward_weights[name], twice.reward_weights[name] = 0.0, 2 * whole.reward_weights[name]
        acted = False
        for action in map(whole.actions_from, actions_for(whole.single_action_space, STEPS[env_id], 3)):
            reward, less, more = (env.advance(action).reward for env in (whole, without, twice))
            term = whole.reward_terms[name]
            for found in (reward - less, more - reward):
                torch.testing.assert_close(found, term, rtol=0, atol=1e-6)  # sums round
            acted |= bool(term.any())
        assert acted, f"{name}: no step paid it"


@pytest.mark.parametrize("env_id", IDS)
def test_render_gives_pictures_that_change_and_can_be_recorded(env_id, tmp_path):
    env = gym.make(env_id, render_mode="rgb_array", **small(env_id))
    env.reset(seed=0)
    first = env.render()
    assert first.dtype == np.uint8
    assert first.ndim == 3
    assert first.shape[2] == 3
    changed = False
    for action in actions_for(env.action_space, 8, 1)[:, 0]:
        _, _, terminated, truncated, _ = env.step(action)
        assert env.render().shape == first.shape
        changed |= not np.array_equal(env.render(), first)
        if changed:
            break
        if terminated or truncated:  # an action may be to stop at once
            env.reset(seed=0)
    assert changed
    with pytest.raises(ValueError, match="render_mode is 'ascii'"):
        make_single(ENVIRONMENTS[env_id].env_class, render_mode="ascii", **small(env_id))


@pytest.mark.parametrize("env_id", IDS)
def test_a_step_before_reset_is_refused_by_every_adapter(env_id):
    env = ENVIRONMENTS[env_id].env_class
    single = make_single(env, **small(env_id))
    with pytest.raises(ResetNeeded, match="call reset"):
        single.step(single.action_space.sample())
    vector = make_batch(env, num_envs=2, **small(env_id))
    with pytest.raises(ResetNeeded, match="call reset"):
        vector.step(vector.action_space.sample())
    learner = LearnerEnv(make_batch(env, num_envs=2, **small(env_id)).batched)
    with pytest.raises(ResetNeeded, match="call reset"):
        learner.step(vector.action_space.sample())


@pytest.mark.parametrize("env_id", IDS)
def test_a_step_after_the_end_is_refused(env_id):
    env = make_single(ENVIRONMENTS[env_id].env_class, **small(env_id))
    env.reset(seed=0)
    over = False
    while not over:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        over = terminated or truncated
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step(env.action_space.sample())


@pytest.mark.parametrize("env_id", IDS)
def test_actions_out_of_range_or_shape_are_refused_and_nothing_moves(env_id):
    vector = gym.make_vec(env_id, num_envs=2, **small(env_id))
    vector.reset(seed=0)
    good = vector.action_space.sample()
    for bad, match in (
        (np.full(good.shape, 10_000), "outside"),
        (np.full(good.shape, -2), "outside"),
        (good[:1], "shape"),
        (good.astype(np.complex64), "dtype"),
        (np.full(good.shape, np.nan), "dtype|outside"),
    ):
        with pytest.raises(ValueError, match=match):
            vector.step(bad)
    assert vector.batched.t.tolist() == [0, 0]
