"""Small environments, networks and learners for the tests of PPO per pixel."""

from dataclasses import replace

import numpy as np
import torch
from gymnasium import spaces
from segarena.agents.dense_ppo.policy import DensePolicy
from segarena.agents.dense_ppo.ppo import DensePPO, DensePPOConfig
from segarena.envs.core import BatchedEnv
from segarena.envs.learner_env import LearnerEnv
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

SIZE = 16

PLAIN = DensePPOConfig(num_envs=16, ent_coef=0.0, kl_coef=0.0, actor_lr=0.02, critic_lr=0.02)


class Shapes(BatchedEnv):
    """A textured disc in a ring: three classes, or two. r is pay[1] where the label is right, else pay[0].

    cell: an action for each cell of that many pixels' side, whose label is that of a pixel in its middle.
    """

    def __init__(
        self,
        num_envs=16,
        classes=3,
        size=SIZE,
        horizon=1,
        *,
        cell=1,
        binary=False,
        gold=False,
        group=1,
        scalar=False,
        pay=(0.0, 1.0),
    ):
        super().__init__(num_envs=num_envs, device="cpu", horizon=horizon)
        self.classes, self.size, self.gold, self.group, self.scalar = classes, size, gold, group, scalar
        self.pay, self.cell = pay, cell
        self.reward_weights = {"right": 1.0, "wrong": 1.0}
        self.single_observation_space = spaces.Box(-10.0, 10.0, (1, size, size), np.float32)
        grid = size // cell
        self.action_shape = None if cell == 1 else (grid, grid)
        pixels = grid * grid
        self.single_action_space = (
            spaces.MultiBinary(pixels) if binary else spaces.MultiDiscrete(np.full(pixels, classes))
        )
        self.truth = torch.zeros(num_envs, grid, grid, dtype=torch.uint8)
        self.image = torch.zeros(num_envs, 1, size, size)
        self.pixel_reward = torch.zeros(num_envs, grid, grid)

    def _reset(self, env_ids, options):
        draws = self.streams.uniform(4)
        draws = draws.view(-1, self.group, 4)[:, :1].expand(-1, self.group, 4).reshape(-1, 4)[env_ids].float()
        grid = (torch.arange(self.size) + 0.5) / self.size
        y, x = 0.35 + 0.3 * draws[:, 0, None, None], 0.35 + 0.3 * draws[:, 1, None, None]
        radius = 0.15 + 0.1 * draws[:, 2, None, None]
        far = ((grid[:, None] - y) ** 2 + (grid[None, :] - x) ** 2).sqrt()
        disc, ring = far < radius, (far >= radius) & (far < radius + 0.12)
        truth = disc.byte() + (2 * ring.byte() if self.classes > 2 else 0)
        middle = slice(self.cell // 2, None, self.cell)
        self.truth = self.truth.index_copy(0, env_ids, truth[:, middle, middle])
        texture = torch.sin(40 * grid[:, None] * (1 + draws[:, 3, None, None]) + 31 * grid[None, :])
        image = disc.float() + 0.4 * ring + 0.15 * texture
        self.image = self.image.index_copy(0, env_ids, image[:, None])

    def _step(self, actions):
        masks = actions.view(self.truth.shape)
        assert masks.dtype == torch.uint8
        self.pixel_reward = torch.where(masks == self.truth, self.pay[1], self.pay[0])
        right = (masks == self.truth).float().mean(dim=(1, 2))
        wrong = 1 - right
        terms = {"right": self.pay[1] * right, "wrong": self.pay[0] * wrong}
        return terms, torch.zeros(self.num_envs, dtype=torch.bool)

    def observe(self, env_ids=None):
        return self.image if env_ids is None else self.image[env_ids]

    def _info(self):
        info = {} if self.scalar else {"pixel_reward": self.pixel_reward}
        if self.gold:
            info |= {"gold": torch.ones(self.num_envs, dtype=torch.bool), "gold_action": (self.truth > 0).byte()}
        return info

    def state(self):
        return {**super().state(), "truth": self.truth, "image": self.image}

    def load_state(self, state):
        super().load_state(state)
        self.truth, self.image = state["truth"].clone(), state["image"].clone()

    def _render_frame(self, env_id):
        return np.zeros((self.size, self.size, 3), np.uint8)


class OnePixel(BatchedEnv):
    """An image of one pixel and five channels; pays for its action by a fixed table."""

    def __init__(self, num_envs, classes):
        super().__init__(num_envs=num_envs, device="cpu", horizon=1)
        self.single_observation_space = spaces.Box(0.0, 1.0, (5, 1, 1), np.float32)
        self.single_action_space = spaces.MultiDiscrete([classes])
        self.image = torch.zeros(num_envs, 5, 1, 1)

    def _reset(self, env_ids, options):
        self.image = self.image.index_copy(0, env_ids, self.streams.uniform(5, env_ids).float()[..., None, None])

    def _step(self, actions):
        worth = self.image[:, 0, 0, 0] * (actions[:, 0] + 1) / 4
        return {"reward": worth}, torch.ones(self.num_envs, dtype=torch.bool)

    def observe(self, env_ids=None):
        return self.image if env_ids is None else self.image[env_ids]

    def _render_frame(self, env_id):
        return np.zeros((1, 1, 3), np.uint8)


class Few(DensePolicy):
    """Actor and critic are three convolutions each: enough for the toy, and fast."""

    def make_networks(self):
        outputs = (1 if self.head == "bernoulli" else self.classes, 1)
        actor, critic = (
            nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.GroupNorm(2, 8) if self.norm_mode == "group" else nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, out, 1),
            )
            for out in outputs
        )
        return actor, None if self.critic_kind == "none" else critic


class Dots(DensePolicy):
    """Actor and critic are 1 x 1 convolutions."""

    def make_networks(self):
        channels = self.observation_space.shape[0]
        critic = None if self.critic_kind == "none" else nn.Conv2d(channels, 1, 1)
        return nn.Conv2d(channels, self.classes, 1), critic


def learner(config=PLAIN, env=None, policy=Few, seed=0, **policy_kwargs):
    kwargs = {"norm_mode": "batch", **policy_kwargs}
    env = env or Shapes(config.num_envs, group=config.group_size)
    return DensePPO(policy, LearnerEnv(env), config, policy_kwargs=kwargs, seed=seed, device="cpu")


def unet_learner(config=PLAIN, seed=0, **policy_kwargs):
    """The networks of the paper, small."""
    config, env = replace(config, actor_lr=2e-3, critic_lr=2e-3), Shapes(config.num_envs, size=32)
    return learner(config, env, DensePolicy, seed, init_channels=8, **policy_kwargs)


class Curves(BaseCallback):
    """What was logged, and mean r and entropy, at every rollout; also that SB3's hooks are called."""

    def __init__(self):
        super().__init__()
        self.rows, self.rewards, self.calls = [], [], []

    def _on_rollout_start(self):
        self.calls.append("start")
        self.rows.append(dict(self.logger.name_to_value))

    def _on_step(self):
        self.calls.append("step")
        return True

    def _on_rollout_end(self):
        self.calls.append("end")
        self.rewards.append(float(self.model.rollout_buffer.rewards.mean()))


def trained(model, rollouts):
    """Train; the curves of it."""
    curves = Curves()
    model.learn(rollouts * model.n_steps * model.n_envs, callback=curves)
    curves.rows.append(dict(model.logger.name_to_value))
    return curves
