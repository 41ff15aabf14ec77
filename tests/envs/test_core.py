"""What every environment has of `BatchedEnv`, on two that are made up."""

import inspect
import textwrap

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check
from segarena.envs.adapters import BatchEnv, SingleEnv
from segarena.envs.core import BatchedEnv, EnvConfig
from segarena.envs.learner_env import LearnerEnv


def test_a_signature_keeps_the_arguments_that_a_subclass_names_itself():
    assert list(inspect.signature(Graph).parameters) == []
    assert list(inspect.signature(Guess).parameters) == ["config", "num_envs", "device", "render_mode", "horizon"]


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
