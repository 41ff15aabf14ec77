"""DensePPO by the settings of plain PPO: a ratio for each of many binary or categorical actions over an image."""

from dataclasses import fields

import torch

from ...envs.core import BatchedEnv
from ..ppo import PPOConfig
from .policy import map_shape
from .ppo import DensePPO, DensePPOConfig

INIT_CHANNELS = 8
"""Size of the U-Nets of actor and critic."""
SAME = (
    *("total_timesteps", "num_envs", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range"),
    *("ent_coef", "max_grad_norm", "target_kl"),
)
"""Settings that both have."""


def check_dense(ppo: PPOConfig, env: BatchedEnv) -> None:
    """Raises ValueError: an environment without a map of actions over an image, or a setting that DensePPO lacks.

    Advantages are never normalised, whatever `normalize_advantage` says.
    """
    map_shape(env.single_observation_space, env.single_action_space, env.action_shape)
    usual = PPOConfig()
    known = (*SAME, "learning_rate", "normalize_advantage")
    for name in (field.name for field in fields(ppo) if field.name not in known):
        if (value := getattr(ppo, name)) != getattr(usual, name):
            raise ValueError(
                f"ppo.{name} is {value!r}, which network 'dense' has no use for; leave it out, or use 'mlp'"
            )


def dense_learner(ppo: PPOConfig, env: BatchedEnv, seed: int) -> DensePPO:
    """The learner of an environment that `check_dense` takes, with one value for an image."""
    config = DensePPOConfig(
        **{name: getattr(ppo, name) for name in SAME},
        actor_lr=ppo.learning_rate,
        critic_lr=ppo.learning_rate,
        kl_coef=0.0,
        critic="scalar",
        value_output="linear",
    )
    network = {"norm_mode": "group", "init_channels": INIT_CHANNELS}
    return DensePPO("DensePolicy", env, config, policy_kwargs=network, seed=seed, device=torch.device(env.device))
