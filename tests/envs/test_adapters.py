"""The adapters of every environment, over the registry: they play the same, and say what they are."""

import inspect
import pickle
import pydoc
from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from segarena.envs import ENVIRONMENTS
from segarena.envs.adapters import BatchEnv, SingleEnv, class_of, make_batch, make_single, of_env, to_numpy
from segarena.envs.learner_env import LearnerEnv
from small_envs import IDS, NEVER_CUT, SEED, STEPS, actions_for, begun, flat, small


@pytest.mark.parametrize("env_id", IDS)
def test_the_three_adapters_give_the_same_trajectories(env_id):
    """docs/spars.md, Method 3: N = 4 and four single environments, many steps with automatic reset."""
    n, batched = 4, ENVIRONMENTS[env_id].env_class
    vector = gym.make_vec(env_id, num_envs=n, **small(env_id))
    learner = LearnerEnv(make_batch(batched, num_envs=n, **small(env_id)).batched)
    singles = [gym.make(env_id, **small(env_id)) for _ in range(n)]
    actions = actions_for(singles[0].action_space, 2 * STEPS[env_id], n)

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
def test_monitor_statistics_of_the_learners_adapter_are_the_episodes(env_id):
    learner = LearnerEnv(make_batch(ENVIRONMENTS[env_id].env_class, num_envs=3, **small(env_id)).batched)
    learner.seed(0)
    learner.reset()
    returns, lengths = np.zeros(3), np.zeros(3, dtype=int)
    for action in actions_for(learner.action_space, STEPS[env_id], 3):
        _, reward, done, infos = learner.step(action)
        returns, lengths = returns + reward, lengths + 1
        for i in np.flatnonzero(done):
            assert infos[i]["episode"]["r"] == pytest.approx(returns[i], abs=1e-4)
            assert infos[i]["episode"]["l"] == lengths[i]
            returns[i], lengths[i] = 0.0, 0


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
    for action in actions_for(env.single_action_space, STEPS[env_id], 2):
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
def test_facts_of_an_episode_are_made_when_asked_for_and_are_those_of_its_end(env_id, monkeypatch):
    asked, made = begun(env_id), []
    late = begun(env_id)
    plain = type(late)._episode_info

    def counted(self, env_ids):
        make = plain(self, env_ids)
        return lambda: made.append(len(env_ids)) or make()

    monkeypatch.setattr(late, "_episode_info", counted.__get__(late))
    kept = []
    for action in map(late.actions_from, actions_for(late.single_action_space, STEPS[env_id], 3)):
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
    said = [str(refused.value)]
    try:  # the way out must be one
        gym.make_vec(env_id, num_envs=2, **{**small(env_id), "horizon": 5}).close()
    except ValueError as wrong:
        said.append(str(wrong))
    assert ("give horizon=5" if len(said) == 1 else "leave it out") in said[-1] or "leave it out" in said[0]
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
    given = torch.as_tensor(action)
    far = torch.full_like(given if given.is_floating_point() else given.long(), 10_000)  # int8 does not hold it
    with pytest.raises(ValueError, match="outside"):
        env.actions_from(far)


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
def test_the_ends_of_many_episodes_are_told_as_gymnasium_adds_them_one_by_one(env_id):
    """The plain version: `_add_info` of Gymnasium for each environment whose episode ended."""
    vector, twin = BatchEnv(begun(env_id)), begun(env_id)
    vector.reset(seed=0)
    twin.seed(range(3))
    twin.reset()
    ends = 0
    for action in actions_for(twin.single_action_space, STEPS[env_id], 3):
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
