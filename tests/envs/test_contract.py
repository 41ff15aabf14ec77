"""The contract of every environment, over the registry: a new id is tested because it is registered."""

import inspect
import pickle
import pydoc
import textwrap
import warnings
from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import seat_toys
import torch
from attack_toys import small_victim
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode
from segarena.datasets.echo.images import PhantomPatients
from segarena.datasets.scenes.images import PhantomScenes
from segarena.envs import ENVIRONMENTS
from segarena.envs.adapters import BatchEnv, SingleEnv, class_of, make_batch, make_single, of_env, to_numpy
from segarena.envs.core import BatchedEnv, EnvConfig
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.random import Streams
from segarena.testing import check_env_contract
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.evaluation import evaluate_policy

IDS = sorted(ENVIRONMENTS)
SMALL = {
    "RL4Seg-Echo-v0": {"size": 32, "phantom_patients": PhantomPatients(train=3)},
    "SPARS-LiverCT-v0": {
        "cases": ["phantom_02000", "phantom_02001"],
        "horizon": 20,
        "threshold": 0.9,
        "eval_dice": True,  # gym.make_vec would leave it out
    },
    "RPPGD-VOC-v0": {"size": 33, "phantom_scenes": PhantomScenes(val=3), "horizons": (2, 6)},
    **{
        f"RPPGD-{name}-v0": {
            "size": 16,  # whole vectors: what is left over is rounded otherwise
            "phantom_scenes": PhantomScenes(val=3),
            "horizons": (2, 6),
            "model": small_victim(),
            "feature_layer": "features",
        }
        for name in ("Cityscapes", "ADE20K")
    },
    "RPPGD-LiverCT-v0": {"cases": ["phantom_02000"], "grid_shape": (32, 32, 24), "horizons": (2, 6)},
    "SEAT-MSD-v0": {**seat_toys.SMALL, "budget": 14},
}
"""Arguments that keep an environment small; an id that is not named here plays with its defaults."""
ALLOWED_WARNINGS = (
    "WARN: A Box observation space minimum value is -infinity",  # features are unbounded
    "WARN: A Box observation space maximum value is infinity",
    "Your observation windows has an unconventional shape",  # SB3 says so of every 4-D box
    "Your observation  has an unconventional shape",
    "It seems that your observation  is an image but its `dtype`",  # RL4Seg's networks take floats in [0, 1] ...
    "It seems that your observation space  is an image but the upper and lower bounds are not in [0, 255]",
    "The minimal resolution for an image is 36x36",  # ... and act on 32 x 32 here, with MlpPolicy
)
SEED = 7
NEVER_CUT = [env_id for env_id in IDS if env_id.startswith("RPPGD")]
"""Environments of several steps that end by themselves: the observation tells when."""
FEW = [*NEVER_CUT, "SEAT-MSD-v0"]
"""Environments whose episodes have six steps at most here, each of which passes a network."""
SOME = {env_id: 24 if env_id in FEW else 60 for env_id in IDS}
ROUNDING = 2e-7
"""Of a sum of a few terms of at most 1, in float32."""
STEPS = {env_id: 40 if env_id in FEW else 200 for env_id in IDS}


def small(env_id, **settings):
    return {"device": "cpu", **SMALL.get(env_id, {}), **settings}


def flat(obs):
    """An observation as one row of numbers."""
    parts = obs.values() if isinstance(obs, dict) else [obs]
    return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts])


def actions_for(space, steps, num_envs):
    space.seed(SEED)
    return np.array([[space.sample() for _ in range(num_envs)] for _ in range(steps)])


def allowed_only(caught):
    return [str(w.message) for w in caught if not any(text in str(w.message) for text in ALLOWED_WARNINGS)]


@pytest.mark.parametrize("env_id", IDS)
def test_every_environment_keeps_the_contract_that_anybody_can_check(env_id):
    check_env_contract(env_id, steps=24 if env_id in FEW else 60, **small(env_id))


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
def test_the_three_adapters_give_the_same_trajectories(env_id):
    """docs/spars.md, Method 3: N = 4 and four single environments, many steps with automatic reset."""
    n, batched = 4, ENVIRONMENTS[env_id].env_class
    vector = gym.make_vec(env_id, num_envs=n, **small(env_id))
    learner = LearnerEnv(make_batch(batched, num_envs=n, **small(env_id)).batched)
    singles = [gym.make(env_id, **small(env_id)) for _ in range(n)]
    actions = actions_for(singles[0].action_space, STEPS[env_id], n)

    learner.seed(SEED)
    seen = [vector.reset(seed=SEED)[0], learner.reset()]
    alone = [env.reset(seed=SEED + i)[0] for i, env in enumerate(singles)]
    for i in range(n):
        for obs in seen:
            np.testing.assert_array_equal(flat(alone[i]), flat(row(obs, i)))
    ends, cuts, lengths = 0, 0, []
    for action in actions:
        v_obs, v_reward, v_term, v_trunc, v_info = vector.step(action)
        l_obs, l_reward, l_done, l_infos = learner.step(action)
        for i, env in enumerate(singles):
            obs, reward, terminated, truncated, info = env.step(action[i])
            assert (reward, terminated, truncated) == (v_reward[i], v_term[i], v_trunc[i])
            assert (np.float32(reward), terminated or truncated) == (l_reward[i], l_done[i])
            if terminated or truncated:
                ends, cuts = ends + 1, cuts + truncated
                lengths.append(l_infos[i]["episode"]["l"])
                np.testing.assert_array_equal(flat(obs), flat(v_info["final_obs"][i]))
                np.testing.assert_array_equal(flat(obs), flat(l_infos[i]["terminal_observation"]))
                assert l_infos[i]["TimeLimit.truncated"] == truncated
                assert not (terminated and truncated)
                for key in info:
                    np.testing.assert_array_equal(v_info["final_info"][key][i], info[key])
                    np.testing.assert_array_equal(l_infos[i][key], info[key])
                obs, _ = env.reset()
            else:
                assert l_infos[i] == {}
            np.testing.assert_array_equal(flat(obs), flat(row(v_obs, i)))
            np.testing.assert_array_equal(flat(obs), flat(row(l_obs, i)))
    assert ends >= n, "the comparison must cover automatic resets"
    if learner.batched.horizon > 1:
        assert cuts or env_id in NEVER_CUT, "and truncations"
        assert max(lengths) >= 5, "and episodes of several steps"


def row(obs, i):
    return {name: value[i] for name, value in obs.items()} if isinstance(obs, dict) else obs[i]


@pytest.mark.parametrize("env_id", IDS)
def test_the_same_seed_gives_the_same_episode_and_another_seed_another(env_id):
    settings = small(env_id)
    env = gym.make(env_id, **settings)
    actions = actions_for(env.action_space, STEPS[env_id], 1)[:, 0]

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
def test_monitor_statistics_of_the_learners_adapter_are_the_episodes(env_id):
    learner = LearnerEnv(make_batch(ENVIRONMENTS[env_id].env_class, num_envs=3, **small(env_id)).batched)
    learner.seed(0)
    learner.reset()
    returns, lengths = np.zeros(3), np.zeros(3, dtype=int)
    for action in actions_for(learner.action_space, 60, 3):
        _, reward, done, infos = learner.step(action)
        returns, lengths = returns + reward, lengths + 1
        for i in np.flatnonzero(done):
            assert infos[i]["episode"]["r"] == pytest.approx(returns[i], abs=1e-4)
            assert infos[i]["episode"]["l"] == lengths[i]
            returns[i], lengths[i] = 0.0, 0


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
    actions = actions_for(env.single_action_space, 60, 3)
    env.seed([1, 2, 3])
    env.reset()
    play(env, actions[:17])
    other = build()
    other.load_state(pickle.loads(pickle.dumps(env.state())))
    for one, two in zip(play(env, actions[17:]), play(other, actions[17:]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def begun(env_id, num_envs=3, **settings):
    env = make_batch(ENVIRONMENTS[env_id].env_class, num_envs, **small(env_id, **settings)).batched
    env.seed(range(num_envs))
    env.reset()
    return env


@pytest.mark.parametrize("env_id", IDS)
def test_reward_terms_add_up_to_the_reward_and_stand_in_the_info_of_every_adapter(env_id):
    env = begun(env_id, 2)
    names = list(env.reward_weights)
    vector, learner = BatchEnv(begun(env_id, 2)), LearnerEnv(begun(env_id, 2))
    single = make_single(ENVIRONMENTS[env_id].env_class, **small(env_id))
    infos = [single.reset(seed=0)[1], vector.reset(seed=0)[1]]
    assert all(not np.any(info[f"reward/{name}"]) for info in infos for name in names), "0 at the start"
    learner.seed(0)
    learner.reset()
    for action in actions_for(env.single_action_space, SOME[env_id], 2):
        step = env.advance(env.actions_from(action))
        assert list(env.reward_terms) == names
        terms = {name: term.clone() for name, term in env.reward_terms.items()}
        assert torch.equal(sum(terms.values()), step.reward), "those of ended episodes too"
        _, _, terminated, truncated, told = single.step(action[0])
        v_info, l_infos = vector.step(action)[4], learner.step(action)[3]
        for name in names:
            key = f"reward/{name}"
            assert told[key] == terms[name][0]
            for i in range(2):
                if step.terminated[i] or step.truncated[i]:
                    assert v_info["final_info"][key][i] == l_infos[i][key] == terms[name][i]
                    assert v_info[key][i] == 0, "a new episode"
                else:
                    assert v_info[key][i] == terms[name][i]
        if terminated or truncated:
            single.reset()


@pytest.mark.parametrize("env_id", IDS)
def test_to_switch_a_term_off_changes_the_reward_by_exactly_that_term(env_id):
    for name in begun(env_id).reward_weights:
        whole, without, twice = (begun(env_id) for _ in range(3))
        without.reward_weights[name], twice.reward_weights[name] = 0.0, 2 * whole.reward_weights[name]
        acted = False
        for action in map(whole.actions_from, actions_for(whole.single_action_space, SOME[env_id], 3)):
            reward, less, more = (env.advance(action).reward for env in (whole, without, twice))
            term = whole.reward_terms[name]
            torch.testing.assert_close(reward - less, term, rtol=0, atol=ROUNDING)
            torch.testing.assert_close(more - reward, term, rtol=0, atol=ROUNDING)
            acted |= bool(term.any())
        assert acted, f"{name}: no step paid it"


@pytest.mark.parametrize("env_id", IDS)
def test_facts_of_an_episode_are_made_when_asked_for_and_are_those_of_its_end(env_id, monkeypatch):
    asked, made = begun(env_id), []
    late = begun(env_id)
    plain = type(late)._episode_info

    def counted(self, env_ids):
        make = plain(self, env_ids)
        return lambda: made.append(len(env_ids)) or make()

    monkeypatch.setattr(late, "_episode_info", counted.__get__(late))
    kept = []
    for action in map(late.actions_from, actions_for(late.single_action_space, SOME[env_id], 3)):
        at_once, later = asked.advance(action).ended, late.advance(action).ended
        kept += [(str(at_once.episode_info), later)] if later else []
    assert kept
    assert made == [], "nobody asked"
    for facts, ended in kept:  # after the logs were overwritten, and everybody plays other episodes
        assert str(ended.episode_info) == facts
        assert ended.episode_info is ended.episode_info
    assert len(made) == len(kept), "once each"


@pytest.mark.parametrize("env_id", IDS)
def test_arguments_of_gymnasium_point_to_ours(env_id):
    with pytest.raises(ValueError, match=r"num_envs is 4 but gym.make makes one .* gym.make_vec\(id, num_envs=4\)"):
        gym.make(env_id, num_envs=4, **small(env_id))
    with pytest.raises(ValueError, match="max_episode_steps is 5 ") as refused:
        gym.make_vec(env_id, num_envs=2, max_episode_steps=5, **small(env_id))
    try:  # the way out must be one
        gym.make_vec(env_id, num_envs=2, **{**small(env_id), "horizon": 5}).close()
    except ValueError:
        assert "leave it out" in str(refused.value)
    else:
        assert "give horizon=5" in str(refused.value)
    with pytest.raises(ValueError, match=r"render_mode is 'human' .* this machine has no display"):
        gym.make_vec(env_id, num_envs=2, render_mode="human", **small(env_id))


@pytest.mark.parametrize("env_id", IDS)
def test_the_adapters_document_themselves_by_the_environment(env_id):
    single, vector = gym.make(env_id, **small(env_id)), gym.make_vec(env_id, num_envs=2, **small(env_id))
    assert single.unwrapped.__doc__ == type(single.unwrapped.batched).__doc__ == vector.unwrapped.__doc__
    first_line = single.unwrapped.__doc__.partition("\n")[0]
    assert first_line in pydoc.plain(pydoc.render_doc(single)), "help(env)"
    assert first_line in pydoc.plain(pydoc.render_doc(vector)), "help(envs)"
    for section in ("Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End"):
        assert f"## {section}\n" in single.unwrapped.__doc__


@pytest.mark.parametrize("env_id", IDS)
def test_actions_may_be_tensors_and_are_checked_as_arrays_are(env_id):
    env = begun(env_id)
    action = actions_for(env.single_action_space, 1, 3)[0]
    assert torch.equal(env.actions_from(torch.as_tensor(action)), env.actions_from(action))
    with pytest.raises(ValueError, match="outside"):
        env.actions_from(torch.full_like(torch.as_tensor(action), 10_000))


@pytest.mark.parametrize("env_id", IDS)
def test_render_gives_pictures_that_change_and_can_be_recorded(env_id, tmp_path):
    env = gym.make(env_id, render_mode="rgb_array", **small(env_id))
    env.reset(seed=0)
    first = env.render()
    assert first.dtype == np.uint8
    assert first.ndim == 3
    assert first.shape[2] == 3
    env.step(env.action_space.sample())
    assert env.render().shape == first.shape
    assert not np.array_equal(env.render(), first)
    with pytest.raises(ValueError, match="render_mode is 'ascii'"):
        make_single(ENVIRONMENTS[env_id].env_class, render_mode="ascii", **small(env_id))


@pytest.mark.parametrize("env_id", IDS)
def test_the_spec_can_be_pickled_and_made_again(env_id):
    env = gym.make(env_id, **small(env_id))
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    assert again.observation_space == env.observation_space
    assert gym.make(f"segarena:{env_id}", **small(env_id)).action_space == env.action_space


@pytest.mark.parametrize("env_id", IDS)
def test_closing_twice_is_allowed(env_id):
    for env in (gym.make(env_id, **small(env_id)), gym.make_vec(env_id, num_envs=2, **small(env_id))):
        env.close()
        env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_metadata_declares_the_same_step_reset(env_id):
    vector = gym.make_vec(env_id, num_envs=2, **small(env_id))
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


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
        (np.full_like(good, 10_000), "outside"),
        (np.full_like(good, -2), "outside"),
        (good[:1], "shape"),
        (good.astype(np.complex64), "dtype"),
        (np.full(good.shape, np.nan), "dtype|outside"),
    ):
        with pytest.raises(ValueError, match=match):
            vector.step(bad)
    assert vector.batched.t.tolist() == [0, 0]


@pytest.mark.parametrize("env_id", IDS)
def test_the_ends_of_many_episodes_are_told_as_gymnasium_adds_them_one_by_one(env_id):
    """The plain version: `_add_info` of Gymnasium for each environment whose episode ended."""
    vector, twin = BatchEnv(begun(env_id)), begun(env_id)
    vector.reset(seed=0)
    twin.seed(range(3))
    twin.reset()
    ends = 0
    for action in actions_for(twin.single_action_space, 60, 3):
        infos, step = vector.step(action)[4], twin.advance(twin.actions_from(action))
        plain = vector._present(to_numpy(twin.info()))
        if step.ended:
            last = to_numpy({"ids": step.ended.env_ids, "obs": step.ended.obs, "info": step.ended.info})
            for k, env_id in enumerate(last["ids"].tolist()):
                told = {**{name: value[k] for name, value in last["info"].items()}, **step.ended.episode_info[k]}
                told = {name: bool(value) if isinstance(value, np.bool_) else value for name, value in told.items()}
                plain = vector._add_info(plain, {"final_obs": of_env(last["obs"], k), "final_info": told}, env_id)
                ends += 1
        for told in (infos, plain):  # an array of objects is not compared item by item
            told["final_obs"] = list(told.get("final_obs", []))
        np.testing.assert_equal(infos, plain)
        assert {name: array.dtype for name, array in infos.get("final_info", {}).items()} == {
            name: array.dtype for name, array in plain.get("final_info", {}).items()
        }
    assert ends >= 3


@pytest.mark.parametrize("env_id", IDS)
def test_signatures_name_every_argument(env_id):
    env_class = class_of(ENVIRONMENTS[env_id].env_class)
    arguments = inspect.signature(env_class).parameters
    names = {one.name for one in fields(env_class.config_class)}
    assert names | {"config", "num_envs", "device", "render_mode"} <= arguments.keys()
    assert not any(one.kind is one.VAR_KEYWORD for one in arguments.values())
    assert "self" not in arguments
    default = env_class.config_class()
    own = inspect.signature(env_class.__init__).parameters
    for name in names - own.keys():
        assert arguments[name].default == getattr(default, name)
    assert set(list(names)[:1]) <= set(
        pydoc.plain(pydoc.render_doc(env_class)).replace(",", " ").replace(":", " ").split()
    )


def test_a_signature_keeps_the_arguments_that_a_subclass_names_itself():
    assert list(inspect.signature(Graph).parameters) == []
    assert list(inspect.signature(Guess).parameters) == ["config", "num_envs", "device", "render_mode", "horizon"]


@pytest.mark.parametrize("env_id", IDS)
def test_gym_make_gives_the_environment_itself(env_id):
    """Gymnasium's two wrappers check what it checks anyway, and would hide its help and its methods."""
    assert type(gym.make(env_id, **small(env_id))) is SingleEnv


def test_an_entry_that_names_no_environment_is_refused():
    for name in ("segarena.envs.spars", "segarena.envs.spars:Nobody"):
        with pytest.raises(ValueError, match=rf"env_class \({name}\) cannot be loaded: AttributeError"):
            make_single(name)
    with pytest.raises(ValueError, match=r"plugins:Table' but must be 'module:Class' of a BatchedEnv"):
        make_single("segarena.common.plugins:Table")


class Graph(BatchedEnv):
    """Keeps a gradient graph between steps, ends after one step, and has a map of pixel rewards in its info."""

    def __init__(self):
        super().__init__(num_envs=3, device="cpu", horizon=2)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.single_action_space = spaces.MultiDiscrete([3] * 4)
        self.x = torch.zeros(3, 2)

    def _reset(self, env_ids, options):
        with torch.enable_grad():
            x = self.x.detach().clone()
            x[env_ids] = 1.0
            self.x = x.requires_grad_()
        self.reward_map = torch.zeros(3, 2, 2)

    def _step(self, actions):
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad((self.x**2).sum(), self.x)
            self.x = (self.x + gradient).detach().requires_grad_()
            self.reward_map = actions.view(3, 2, 2) * self.x.sum(dim=1)[:, None, None]
        return {"reward": self.reward_map.mean(dim=(1, 2))}, torch.ones(3, dtype=torch.bool)

    def observe(self, env_ids=None):
        return self.x if env_ids is None else self.x[env_ids]

    def _info(self):
        return {"pixel_reward": self.reward_map}

    def _render_frame(self, env_id):
        return np.zeros((2, 2, 3), np.uint8)


def test_an_environment_may_keep_a_graph_and_act_per_pixel_and_end_after_one_step():
    actions = np.array([[0, 1, 2, 1]] * 3)
    env = Graph()
    env.seed([0, 1, 2])
    env.reset()
    with torch.no_grad():  # learners step like this
        step = env.advance(env.actions_from(actions))
    assert not step.reward.requires_grad
    assert step.ended.info["pixel_reward"].shape == (3, 2, 2), "read before the next episode began"
    assert step.ended.info["pixel_reward"].abs().sum() > 0
    assert step.reward.tolist() == [6.0] * 3

    learner = LearnerEnv(Graph())
    learner.reset()
    _, reward, done, infos = learner.step(actions)
    assert reward.tolist() == [6.0] * 3
    assert done.all()
    assert infos[0]["pixel_reward"].shape == (2, 2)
    vector = BatchEnv(Graph())
    vector.reset(seed=0)
    assert vector.step(actions)[4]["final_info"]["pixel_reward"].shape == (3, 2, 2)


class Guess(BatchedEnv):
    """Pays the action in two terms; never terminates by itself."""

    def __init__(self, **settings):
        super().__init__(device="cpu", **settings)
        self.single_observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.single_action_space = spaces.Discrete(3)
        self.reward_weights = {"high": 1.0, "low": 0.5}

    def _reset(self, env_ids, options):
        pass

    def _step(self, actions):
        terms = {"high": actions.float(), "low": -actions.float()}
        return terms, torch.zeros(self.num_envs, dtype=torch.bool)

    def observe(self, env_ids=None):
        return torch.zeros(self.num_envs if env_ids is None else len(env_ids), 1)

    def _render_frame(self, env_id):
        return np.zeros((2, 2, 3), np.uint8)


def test_the_example_of_the_contract_is_a_whole_environment():
    lines = BatchedEnv.__doc__.split("class GuessEnv", 1)[1].split("`GuessEnv(", 1)[0]
    known = (BatchedEnv, EnvConfig)
    scope = {"Any": object, "np": np, "spaces": spaces, "torch": torch, **{one.__name__: one for one in known}}
    exec(textwrap.dedent("        class GuessEnv" + lines), scope)
    guess = scope["GuessEnv"]
    gymnasium_check(SingleEnv(guess(device="cpu")), skip_render_check=True)
    env = LearnerEnv(guess(num_envs=64, device="cpu", horizon=20))
    env.seed(0)
    obs = env.reset()
    for _ in range(20):
        obs, reward, done, infos = env.step((obs[:, 0] > 0.5).astype(np.int64))
        assert reward.tolist() == [1.0] * 64
    assert done.all()
    assert infos[0]["episode"]["r"] == 20
    assert 0.3 < obs.mean() < 0.7


def test_terms_are_weighted_and_each_needs_a_weight():
    env = Guess(num_envs=2)
    env.reset()
    reward, _, _ = env.step(torch.tensor([2, 1]))
    assert reward.tolist() == [1.0, 0.5]
    assert {name: term.tolist() for name, term in env.reward_terms.items()} == {"high": [2.0, 1.0], "low": [-1.0, -0.5]}
    del env.reward_weights["low"]
    with pytest.raises(ValueError, match=r"reward_weights names \['high'\] but the reward terms are \['high', 'low'\]"):
        env.step(torch.tensor([2, 1]))


def test_the_single_step_of_an_episode_terminates_it_and_one_of_several_is_truncated():
    for horizon, terminates in ((1, True), (2, False)):
        env = Guess(num_envs=2, horizon=horizon)
        env.reset()
        for left in reversed(range(horizon)):
            step = env.advance(torch.zeros(2, dtype=torch.int64))
            assert step.terminated.tolist() == [terminates and not left] * 2
            assert step.truncated.tolist() == [not terminates and not left] * 2
        assert step.ended.env_ids.tolist() == [0, 1]
        assert step.ended.episode_info == [{}, {}]


def test_an_unknown_argument_names_the_closest():
    with pytest.raises(ValueError, match="unknown argument 'horizn'; did you mean 'horizon'"):
        Guess(horizn=3)


def test_a_saved_state_is_a_copy():
    batched, other = Graph(), Graph()
    for env in (batched, other):
        env.seed([0, 1, 2])
        env.reset()
    state = batched.state()
    other.load_state(state)
    other.streams.uniform(1)
    other.t += 5
    assert batched.t.tolist() == [0, 0, 0]
    assert batched.streams.drawn.tolist() == [0, 0, 0]


def test_every_environment_has_its_own_stream_whatever_stands_beside_it():
    many, one = Streams(5, torch.device("cpu")), Streams(1, torch.device("cpu"))
    many.seed(range(10, 15))
    one.seed([13])
    for _ in range(70):
        assert torch.equal(many.uniform(3)[3], one.uniform(3)[0])
        assert many.tick()[3] == one.tick()[0]


def test_streams_are_uniform_and_differ_between_seeds():
    streams = Streams(2000, torch.device("cpu"))
    streams.seed(range(2000))
    draws = streams.uniform(20)
    ticks = torch.stack([streams.tick() for _ in range(20)])
    for sample in (draws, ticks):
        counts = torch.histc(sample.float(), bins=10, min=0, max=1)
        assert ((counts / sample.numel() - 0.1).abs() < 0.01).all()
    assert len(torch.unique(draws)) == draws.numel()
    correlation = torch.corrcoef(torch.cat((draws, ticks.T), dim=1).T)
    assert (correlation - torch.eye(40)).abs().max() < 0.12


def test_only_the_streams_that_draw_move_on():
    streams = Streams(3, torch.device("cpu"))
    streams.seed([1, 2, 3])
    first = streams.uniform(2)
    streams.seed([1, 2, 3])
    env_ids = torch.tensor([1])
    assert torch.equal(streams.uniform(2, env_ids)[0], first[1])
    after = streams.uniform(2)
    assert torch.equal(after[[0, 2]], first[[0, 2]])
    assert not torch.equal(after[1], first[1])
