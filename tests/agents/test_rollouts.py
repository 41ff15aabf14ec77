"""Rollouts on the device are those of Stable-Baselines3: the same steps, advantages and returns, whatever is played."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from segarena.agents.ppo import Learner, MaskableLearner
from segarena.agents.rollout_buffer import FlatRolloutBuffer, advantages
from segarena.envs.core import BatchedEnv
from segarena.envs.learner_env import LearnerEnv
from stable_baselines3 import PPO
from stable_baselines3.common import buffers
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

STEPS, ENVS = 12, 6
BOX = spaces.Box(-0.3, 0.3, (2,), np.float32)
"""Narrower than what a new policy draws."""


class Walk(BatchedEnv):
    """Walk on a line: the sum of the action's parts moves it. Some episodes terminate, others are truncated."""

    def __init__(self, action_space, *, parts=False, num_envs=ENVS):
        super().__init__(num_envs=num_envs, device="cpu", horizon=5)
        self.single_action_space, self.parts = action_space, parts
        box = spaces.Box(-100.0, 100.0, (2,), np.float32)
        grey = spaces.Box(0, 255, (3,), np.uint8)
        self.single_observation_space = spaces.Dict({"place": box, "grey": grey}) if parts else box
        self.place = torch.zeros(num_envs)
        self.played = []

    def _reset(self, env_ids, options):
        self.place = self.place.index_copy(0, env_ids, self.streams.uniform(1, env_ids)[:, 0].float())

    def _step(self, actions):
        self.played.append(actions)
        scale = 1.0 if isinstance(self.single_action_space, spaces.Box) else 0.1
        self.place = self.place + scale * actions.reshape(self.num_envs, -1).sum(dim=1).float()
        return {"reward": 1 - self.place.abs()}, self.place.abs() > 1.5

    def observe(self, env_ids=None):
        place = self.place if env_ids is None else self.place[env_ids]
        vector = torch.stack((place, torch.ones_like(place)), dim=1)
        grey = (50 * place.abs()).clamp(0, 255).byte()[:, None].expand(-1, 3)
        return {"place": vector, "grey": grey} if self.parts else vector

    def action_masks(self):
        masks = super().action_masks().clone()
        masks[self.place > 0.5, 0] = False
        return masks

    def _render_frame(self, env_id):
        return np.zeros((1, 1, 3), np.uint8)


class Look(BaseCallback):
    """What callbacks see of every step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_step(self):
        names = ("rewards", "dones", "infos", "actions", "new_obs")
        self.seen.append({name: self.locals[name] for name in names} | {"step": self.num_timesteps})
        return True


def collected(kind, env, rollouts=2, **settings):
    """A learner after some rollouts that taught nothing, and what a callback saw."""
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    model = kind(policy, env, n_steps=STEPS, batch_size=24, seed=5, device="cpu", gamma=0.9, gae_lambda=0.7, **settings)
    model.train = lambda: None
    look = Look()
    model.learn(rollouts * STEPS * ENVS, callback=look)
    return model, look.seen


def numpy_of(value):
    if isinstance(value, dict):
        return {name: numpy_of(part) for name, part in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value


def same(mine, theirs, atol=1e-6):
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys()
        for name in theirs:
            same(mine[name], theirs[name], atol)
    else:
        np.testing.assert_allclose(numpy_of(mine), numpy_of(theirs), rtol=0, atol=atol)


DISCRETE, MULTI = spaces.Discrete(5), spaces.MultiDiscrete([3, 4])
CASES = {
    "discrete": (PPO, Learner, DISCRETE, {}),
    "multi-discrete": (PPO, Learner, MULTI, {}),
    "box": (PPO, Learner, BOX, {}),
    "box in two axes": (PPO, Learner, spaces.Box(-1, 1, (2, 2), np.float32), {}),
    "box, state-dependent noise": (PPO, Learner, BOX, {"use_sde": True, "sde_sample_freq": 3}),
    "box, squashed": (
        *(PPO, Learner, BOX),
        {"use_sde": True, "policy_kwargs": {"squash_output": True}},
    ),
    "discrete, masked": (MaskablePPO, MaskableLearner, DISCRETE, {}),
    "multi-discrete, masked": (MaskablePPO, MaskableLearner, MULTI, {}),
    "binary, masked": (MaskablePPO, MaskableLearner, spaces.MultiBinary(3), {}),
}


@pytest.mark.parametrize("parts", [False, True], ids=["vector", "dict"])
@pytest.mark.parametrize("case", CASES)
def test_rollouts_on_the_device_equal_those_of_sb3(case, parts):
    plain, ours, space, settings = CASES[case]
    theirs, seen_there = collected(plain, LearnerEnv(Walk(space, parts=parts)), **settings)
    drawn = torch.rand(1)
    mine, seen = collected(ours, LearnerEnv(Walk(space, parts=parts)), **settings)
    assert torch.equal(torch.rand(1), drawn), "another number of random numbers was drawn"
    got, own = theirs.rollout_buffer, mine.rollout_buffer
    assert isinstance(own, FlatRolloutBuffer)
    names = {"observations": "observations", "actions": "actions", "rewards": "rewards", "old_values": "values"}
    names |= {"old_log_prob": "log_probs", "advantages": "advantages", "returns": "returns"}
    for name, there in names.items():
        same(getattr(own, name), getattr(got, there))
    np.testing.assert_array_equal(own.dones[:-1], got.episode_starts[1:])
    if ours is MaskableLearner:
        np.testing.assert_array_equal(own.action_masks, got.action_masks)
        assert not own.action_masks.all()
    same(mine._last_obs, theirs._last_obs)
    np.testing.assert_array_equal(mine._last_episode_starts, theirs._last_episode_starts)
    episodes = [[(one["r"], one["l"]) for one in model.ep_info_buffer] for model in (mine, theirs)]
    np.testing.assert_allclose(*episodes, rtol=0, atol=1e-5)
    assert 0 < sum(length < 5 for _, length in episodes[0]) < len(episodes[0]), "all terminated, or all were truncated"
    for one, other in zip(seen, seen_there, strict=True):
        assert one["step"] == other["step"]
        for name in ("rewards", "dones", "actions", "new_obs"):
            if name != "rewards":  # SB3 adds to its array afterwards what is to come
                same(one[name], other[name])
        told = [{key: value for key, value in info.items() if key != "terminal_observation"} for info in other["infos"]]
        assert [info.keys() for info in one["infos"]] == [info.keys() for info in told]
        for info, there in zip(one["infos"], told, strict=True):
            assert {name: value for name, value in info.items() if name != "episode"} == {
                name: value for name, value in there.items() if name != "episode"
            }
    assert isinstance(seen[0]["dones"], np.ndarray)
    assert isinstance(seen[0]["rewards"], torch.Tensor)


def test_a_truncated_episode_is_followed_by_the_value_of_its_last_observation_and_a_terminated_one_by_nothing():
    model, seen = collected(Learner, LearnerEnv(Walk(BOX)), rollouts=1)
    buffer, kinds = model.rollout_buffer, set()
    for step, (told, reward) in enumerate(zip(seen, buffer.rewards, strict=True)):
        for env_id, info in enumerate(told["infos"]):
            extra = float(reward[env_id] - told["rewards"][env_id])
            cut = info.get("TimeLimit.truncated", False)
            kinds.add((bool(info), cut))
            assert (abs(extra) > 1e-7) == cut, (step, env_id)
    assert kinds >= {(False, False), (True, True)}


def test_actions_are_played_within_their_box_but_learned_as_drawn():
    env = Walk(BOX)
    model, _ = collected(Learner, LearnerEnv(env), rollouts=1)
    played, drawn = torch.stack(env.played), model.rollout_buffer.actions
    assert float(drawn.abs().max()) > 1.0
    torch.testing.assert_close(played, drawn.clamp(-0.3, 0.3))


def test_binary_actions_are_played_as_integers():
    env = Walk(spaces.MultiBinary(3))
    collected(Learner, LearnerEnv(env), rollouts=1)
    assert env.played[0].dtype == torch.int64


@pytest.mark.parametrize("masked", [False, True])
def test_an_update_on_the_device_is_sb3s_on_the_same_minibatches(monkeypatch, masked):
    """Both take the rollout in the same order: SB3 counts its steps environment by environment, the tensors do not."""
    order = np.random.default_rng(0).permutation(STEPS * ENVS)
    monkeypatch.setattr(np.random, "permutation", lambda n: order)
    there = order % STEPS * ENVS + order // STEPS
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.from_numpy(there))
    weights, explained = [], []
    for kind in (MaskablePPO, MaskableLearner) if masked else (PPO, Learner):
        env = LearnerEnv(Walk(MULTI, parts=True))
        model = kind("MultiInputPolicy", env, n_steps=STEPS, batch_size=24, n_epochs=3, seed=5, device="cpu")
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(STEPS * ENVS)
        weights.append(model.policy.state_dict())
        explained.append(model.logger.name_to_value["train/explained_variance"])
    assert explained[1] == pytest.approx(explained[0], abs=1e-5)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5)
    assert any(not torch.equal(before[name], value) for name, value in weights[1].items())


def test_without_masking_a_masked_learner_takes_every_action():
    env = LearnerEnv(Walk(DISCRETE))
    model = MaskableLearner("MlpPolicy", env, n_steps=STEPS, batch_size=24, seed=5, device="cpu")
    for use_masking in (False, True, False):
        model.learn(STEPS * ENVS, use_masking=use_masking)
        masks = model.rollout_buffer.action_masks
        assert masks is None if not use_masking else masks.shape == (STEPS, ENVS, 5)


def test_the_graph_of_an_environment_stays_its_own():
    class Graph(Walk):
        def observe(self, env_ids=None):
            with torch.enable_grad():
                return super().observe(env_ids) * torch.ones((), requires_grad=True)

    model = Learner("MlpPolicy", LearnerEnv(Graph(BOX)), n_steps=STEPS, batch_size=24, seed=5, device="cpu")
    model.learn(2 * STEPS * ENVS)
    assert model.env.batched.observe().requires_grad
    assert not model.rollout_buffer.observations.requires_grad


# -- where the rollouts are SB3's own ----------------------------------------------------------------------------------


class Doubled(LearnerEnv):
    """Pays twice."""

    def step_wait(self):
        obs, rewards, dones, infos = super().step_wait()
        return obs, 2 * rewards, dones, infos


@pytest.mark.parametrize("wrap", [VecNormalize, lambda env: Doubled(env.batched)], ids=["wrapper", "subclass"])
def test_whatever_changes_a_step_is_not_passed_by(wrap):
    theirs, _ = collected(PPO, wrap(LearnerEnv(Walk(BOX))))
    mine, _ = collected(Learner, wrap(LearnerEnv(Walk(BOX))))
    assert type(mine.rollout_buffer) is buffers.RolloutBuffer
    for name in ("observations", "rewards", "advantages", "returns"):
        np.testing.assert_array_equal(getattr(mine.rollout_buffer, name), getattr(theirs.rollout_buffer, name))


def test_environments_of_others_are_learned_from():
    model = Learner("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, device="cpu", seed=0)
    model.learn(64)
    assert model.num_timesteps == 64
    assert len(model.ep_info_buffer) > 0


def test_the_buffer_follows_the_environment():
    model, _ = collected(Learner, LearnerEnv(Walk(BOX)))
    for env, kind in (
        (VecNormalize(LearnerEnv(Walk(BOX))), buffers.RolloutBuffer),
        (LearnerEnv(Walk(BOX)), FlatRolloutBuffer),
    ):
        model.set_env(env)
        assert type(model.rollout_buffer) is kind
        model.learn(STEPS * ENVS)


def test_a_buffer_of_the_caller_stays():
    class Own(buffers.RolloutBuffer):
        pass

    model, _ = collected(Learner, LearnerEnv(Walk(BOX)), rollout_buffer_class=Own)
    assert type(model.rollout_buffer) is Own
    assert model.rollout_buffer.advantages.any()


def test_actions_that_do_not_begin_at_0_are_refused_by_name():
    """SB3 numbers them from 0."""
    with pytest.raises(ValueError, match=r"action .* is outside Discrete\(3, start=7\)"):
        collected(Learner, LearnerEnv(Walk(spaces.Discrete(3, start=7))))


def test_a_learner_that_a_callback_stopped_goes_on_from_where_it_stands():
    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 3

    env = LearnerEnv(Walk(BOX))
    model = Learner("MlpPolicy", env, n_steps=STEPS, batch_size=24, seed=5, device="cpu")
    model.learn(STEPS * ENVS, callback=Stop())
    np.testing.assert_array_equal(model._last_obs, env.batched.observe().numpy())


# -- advantages --------------------------------------------------------------------------------------------------------


def test_advantages_of_two_steps_are_those_computed_by_hand():
    """A1 = r1 + γ V(end) - V1 = 2 + 0.5·8 - 3 = 3; A0 = 1 + 0.5·3 - 2 + 0.5·0.2·3 = 0.8; nothing passes an end."""
    rewards, values = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[2.0, 2.0], [3.0, 3.0]])
    dones = torch.tensor([[False, True], [False, False]])
    found = advantages(rewards, values, dones, torch.tensor([8.0, 8.0]), gamma=0.5, gae_lambda=0.2)
    torch.testing.assert_close(found, torch.tensor([[0.8, -1.0], [3.0, 3.0]]))


def test_minibatches_take_every_step_once_and_their_order_from_pytorchs_generator():
    model, _ = collected(Learner, LearnerEnv(Walk(DISCRETE)))
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append([batch.old_log_prob for batch in model.rollout_buffer.get(24)])
    assert [len(batch) for batch in drawn[0]] == [24, 24, 24]
    assert all(torch.equal(*pair) for pair in zip(*drawn, strict=True))
    everything = model.rollout_buffer.old_log_prob.flatten()
    assert torch.equal(torch.cat(drawn[0]).sort().values, everything.sort().values)
    assert not torch.equal(torch.cat(drawn[0]), everything)
