"""One PPO of RL4Seg inside a stage (docs/rl4seg.md, Method 4-5)."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...common.checkpoints import restoring
from ...common.fitting import STEPS, steps_done
from ...common.networks import save_network
from ...common.runs import Run
from ...datasets.images import ImagePool
from ...envs.learner_env import LearnerEnv
from ...envs.rl4seg import EchoEnv, RewardFunction
from ...segmenters.inference import segment
from ...segmenters.unet import UNet
from ..dense_ppo.loss import rescale_per_image
from ..dense_ppo.policy import DensePolicy
from ..dense_ppo.ppo import DensePPO, DensePPOConfig
from ..learning import learn, restore
from .callbacks import ValidationCallback
from .context import AT_ONCE, CRITIC, SEGMENTER, Context, Gold


def train_policy(
    context: Context,
    stage: Run,
    *,
    i: int,
    start: UNet,
    reference: UNet,
    reward: RewardFunction | str,
    config: DensePPOConfig,
    critic: UNet | None = None,
    gold: Gold | None = None,
) -> list[str]:
    """Fine-tune `start` on the target images seen up to iteration i (0: all); returns the files it leaves in the stage.

    Of the looks at the validation images, the one with the highest mean reward of argmax masks gives the policy
    (docs/rl4seg.md, Method 5).

    Args:
        context: the run's.
        stage: continues from its checkpoint, if it has one.
        i: iteration.
        start: π; stays as it is.
        reference: π_ref; stays as it is.
        reward: R(x, a), or the name of one that reads the truth.
        config: the learner.
        critic: V; None: a fresh one.
        gold: images whose action is given, which is imitated; None: nothing is.
    """
    config = replace(config, imitate=gold is not None)
    env = env_of(context, context.images(i, reward), reward, config)
    if gold is not None:
        env.set_gold(gold.rows, gold.masks)
    model = learner(context, env, config, context.seed(f"{stage.folder.name}/{i}"))
    policy = model.policy
    policy.actor.load_state_dict(start.state_dict())
    if policy.reference is not None:
        policy.reference.load_state_dict(reference.state_dict())
    every = context.experiment.ppo.examine_every * len(env.pool) * config.group_size
    judge = partial(rewards_of, env_of(context, context.target_val, reward))
    validation = ValidationCallback(stage, context.target_val, judge, every)
    if critic is not None and policy.critic is not None:
        policy.critic.load_state_dict(critic.state_dict())
    elif policy.critic is not None and context.experiment.ppo.critic_start == "policy":
        worth = judge(segment(start, context.target_val.images))
        worth = rescale_per_image(worth) if config.stretch_reward else worth
        _begin_with_features(policy.critic, start, float(worth.mean()))
    elif policy.critic is not None:
        context.adapt(policy.critic, i)
    checkpoint = stage.resume()
    if checkpoint:
        restore(model, checkpoint)
        with restoring(checkpoint):
            validation.load_state(checkpoint.state["examine"])
    if config.total_timesteps:
        learn(
            model,
            stage,
            config.total_timesteps,
            [validation],
            checkpoint_every=every,
            extra_state=lambda: {"examine": validation.state()},
            checkpoint=checkpoint,
        )
        stage.log(model.num_timesteps, {f"train/{STEPS}": steps_done(policy.optimizer)})
        policy.load_state_dict(validation.best.weights)
    files = {SEGMENTER: policy.actor, CRITIC: policy.critic}
    for name, net in files.items():
        if net is not None:
            assert isinstance(net, UNet)
            save_network(stage.folder / name, net)
    return [name for name, net in files.items() if net is not None]


def _begin_with_features(critic: nn.Module, policy: UNet, worth: float) -> None:
    """Give the critic the policy's features, and a last layer whose value is `worth` everywhere.

    A layer that begins elsewhere moves all features at once on its way there, and often leaves none alive.
    """
    features = {name: value for name, value in policy.state_dict().items() if not name.startswith("head.")}
    last = {name: torch.zeros_like(value) for name, value in critic.state_dict().items() if name.startswith("head.")}
    last["head.bias"] += torch.tensor(worth).clamp(0.01, 0.99).logit()
    critic.load_state_dict({**features, **last})


def learner(context: Context, env: EchoEnv, config: DensePPOConfig, seed: int) -> DensePPO:
    """A fresh learner in this env."""
    network = context.experiment.network
    settings = {"init_channels": network.init_channels, "norm_mode": network.norm_mode}
    return DensePPO(
        DensePolicy, LearnerEnv(env), config, policy_kwargs=settings, seed=seed % 2**31, device=context.device
    )


def env_of(
    context: Context, images: ImagePool, reward: RewardFunction | str, config: DensePPOConfig | None = None
) -> EchoEnv:
    """The environment on these images: as the learner of `config` plays it, or without one as `rewards_of` asks it."""
    settings: dict[str, Any] = {"reward": reward} if isinstance(reward, str) else {"reward_function": reward}
    if config is not None:
        settings |= {"num_envs": config.num_envs, "sampler": "shared", "group": config.group_size}
    else:
        settings |= {"num_envs": min(len(images), AT_ONCE)}
    return EchoEnv(images=images, device=context.device, expose_truth=False, **settings)


def rewards_of(env: EchoEnv, masks: Tensor) -> Tensor:
    """R of a mask for each image of the environment: float32 [K, H, W] of uint8 [K, H, W]; num_envs at once."""
    parts = []
    for first in range(0, len(masks), env.num_envs):
        index = torch.arange(first, first + env.num_envs).clamp(max=len(masks) - 1)  # the last one fills up the end
        env.reset(options={"index": index})
        env.step(masks[index.to(masks.device)])
        parts.append(env.pixel_reward)
    return torch.cat(parts)[: len(masks)]


def exported(context: Context, policy: UNet) -> DensePPO:
    """A policy as a learner of Stable-Baselines3, for its zip; without critic and reference."""
    config = DensePPOConfig(critic="none", objective="pg", n_epochs=1, kl_coef=0.0)
    model = learner(context, env_of(context, context.source_val, "anatomical", config), config, context.experiment.seed)
    model.policy.actor.load_state_dict(policy.state_dict())
    return model
