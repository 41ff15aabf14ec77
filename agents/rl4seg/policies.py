"""One PPO of RL4Seg inside a stage, and what is watched while it learns (paper: RL4Seg, sections 4, 5.1, 11.5)."""

from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from ...common.runs import Run
from ...datasets.images import ImagePool
from ...envs.adapters import LearnerEnv
from ...envs.rl4seg import EchoEnv, RewardFunction
from ...evaluation.echo import echo_metrics, largest_heart
from ...evaluation.echo_figures import PREDICTION, TRUTH, echo_panel
from ...rewards.echo_validity import valid_masks
from ...segmenters.training import save_segmenter, segment
from ...segmenters.unet import UNet
from ..dense_ppo.buffer import stretched
from ..dense_ppo.policy import DensePolicy, PixelCategorical
from ..dense_ppo.ppo import DensePPO, DensePPOConfig
from ..ppo import learn, restore
from .context import AT_ONCE, CRITIC, SEGMENTER, Context, Gold

PICTURES_EVERY = 2
"""Looks at the validation images between two pictures."""


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
    (section 5.1).

    Args:
        context: the run's.
        stage: continues from its checkpoint, if it has one.
        i: iteration.
        start: π; stays as it is.
        reference: π_ref; stays as it is.
        reward: R(x, a), or the name of one that reads the truth.
        config: the learner.
        critic: V; None: a fresh one.
        gold: images whose action is given.
    """
    env = env_of(context, context.images(i, reward), reward, config)
    if gold is not None:
        env.set_gold(gold.rows, gold.masks)
    model = learner(context, env, config, context.seed(f"{stage.folder.name}/{i}"))
    policy = model.policy
    policy.actor.load_state_dict(start.state_dict())
    if policy.reference is not None:
        policy.reference.load_state_dict(reference.state_dict())
    every = context.experiment.ppo.examine_every * len(env.pool) * config.group_size
    examine = Examine(
        stage, context.target_val, env_of(context, context.target_val, reward, config, one_each=True), every
    )
    if critic is not None and policy.critic is not None:
        policy.critic.load_state_dict(critic.state_dict())
    elif policy.critic is not None and context.experiment.ppo.critic_start == "policy":
        worth = examine.worth(segment(start, context.target_val.images))
        worth = stretched(worth) if config.stretch_reward else worth
        _begin_with_features(policy.critic, start, float(worth.mean()))
    elif policy.critic is not None:
        context.adapt(policy.critic, i)
    checkpoint = stage.resume()
    if checkpoint:
        restore(model, checkpoint)
        examine.load_state(checkpoint.state["examine"])
    if config.total_timesteps:
        learn(
            model,
            stage,
            config.total_timesteps,
            [examine],
            checkpoint_every=every,
            extra_state=lambda: {"examine": examine.state()},
            checkpoint=checkpoint,
        )
        examine.look()
        policy.load_state_dict(examine.best_weights)
    files = {SEGMENTER: policy.actor, CRITIC: policy.critic}
    for name, net in files.items():
        if net is not None:
            assert isinstance(net, UNet)
            save_segmenter(stage.folder / name, net, {"stage": stage.folder.name})
    return [name for name, net in files.items() if net is not None]


def _begin_with_features(critic: nn.Module, policy: UNet, worth: float) -> None:
    """Give the critic the policy's features, and a last layer that says `worth` everywhere.

    A layer that begins elsewhere moves all features at once on its way there, and often leaves none alive.
    """
    features = {name: value for name, value in policy.state_dict().items() if not name.startswith("head.")}
    last = {name: torch.zeros_like(value) for name, value in critic.state_dict().items() if name.startswith("head.")}
    last["head.bias"] += torch.tensor(worth).clamp(0.01, 0.99).logit()
    critic.load_state_dict({**features, **last})


def learner(context: Context, env: EchoEnv, config: DensePPOConfig, seed: int) -> DensePPO:
    """A fresh learner in this env."""
    network = context.experiment.network
    settings = {"init_channels": network.init_channels, "norm_mode": network.norm_mode, "reference": config.kl_coef > 0}
    return DensePPO(
        DensePolicy, LearnerEnv(env), config, policy_kwargs=settings, seed=seed % 2**31, device=context.device
    )


def env_of(
    context: Context,
    images: ImagePool,
    reward: RewardFunction | str,
    config: DensePPOConfig,
    *,
    one_each: bool = False,
) -> EchoEnv:
    """The environment on these images, with as many slots as the learner's, or with `one_each` one for each image."""
    settings: dict[str, Any] = {"reward": reward} if isinstance(reward, str) else {"reward_function": reward}
    if not one_each:
        settings |= {"num_envs": config.num_envs, "deck": "shared", "group": config.group_size}
    else:
        settings |= {"num_envs": len(images)}
    return EchoEnv(images=images, device=context.device, expose_truth=False, **settings)


def exported(context: Context, policy: UNet) -> DensePPO:
    """A policy as a learner of Stable-Baselines3, for its zip; without critic and reference."""
    config = DensePPOConfig(critic="none", objective="pg", n_epochs=1, kl_coef=0.0)
    model = learner(context, env_of(context, context.source_val, "anatomical", config), config, context.experiment.seed)
    model.policy.actor.load_state_dict(policy.state_dict())
    return model


class Examine(BaseCallback):
    """Looks at the validation images now and then, and keeps the weights of the best look.

    eval/val_reward_argmax, eval/val_reward_sampled: mean R of the most probable and of drawn masks. eval/anat_valid:
    share of valid masks. Where the truth is known, eval/dice_endo, eval/dice_epi, eval/hd_endo, eval/hd_epi (mm): they
    are shown, and choose nothing. It draws from a generator of its own: training goes on as if nobody had looked.
    """

    def __init__(self, stage: Run, images: ImagePool, env: EchoEnv, every: int) -> None:
        super().__init__()
        self.stage, self.images, self.env, self.every = stage, images, env, every
        self.looks, self.seen, self.best = 0, -1, -torch.inf
        self.best_weights: dict[str, Tensor] = {}

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs."""
        weights = {name: value.clone() for name, value in self.best_weights.items()}
        return {"looks": self.looks, "seen": self.seen, "best": self.best, "weights": weights}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self.looks, self.seen, self.best = state["looks"], state["seen"], state["best"]
        self.best_weights = dict(state["weights"])

    def _on_rollout_start(self) -> None:
        if self.seen < 0 or self.model.num_timesteps // self.every > self.seen // self.every:
            self.look()

    @torch.no_grad()
    def look(self) -> None:
        """Judge the policy as it is now, unless that was done; the untrained one is shown but never the best."""
        step, policy = self.model.num_timesteps, self.model.policy
        if step == self.seen:
            return
        self.seen = step
        assert isinstance(policy, DensePolicy)
        policy.eval()
        rows = torch.arange(len(self.images), device=self.env.device)
        logits = torch.cat([policy.logits(self.images.at(part)) for part in torch.split(rows, AT_ONCE)])
        policies = PixelCategorical(logits)
        devices = [self.env.device] if self.env.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            sampled = policies.sample()
        masks = policies.mode()
        scalars = {"eval/val_reward_sampled": float(self.worth(sampled).mean())}
        worth = self.worth(masks)
        scalars["eval/val_reward_argmax"] = score = float(worth.mean())
        hearts = largest_heart(masks)
        if self.images.labels is None:
            scalars["eval/anat_valid"] = float(valid_masks(hearts).float().mean())
        else:
            values = echo_metrics(hearts, self.images.labels, self.images.spacing_mm)
            names = {"dice_endo": "dice_endo", "dice_epi": "dice_epi", "hd_endo_mm": "hd_endo", "hd_epi_mm": "hd_epi"}
            names |= {"valid": "anat_valid"}
            scalars |= {f"eval/{name}": float(values[metric].mean()) for metric, name in names.items()}
        self.stage.log(step, scalars)
        if self.looks % PICTURES_EVERY == 0:
            self._show(masks, worth, step)
        self.looks += 1
        if step and score > self.best:
            self.best = score
            self.best_weights = {name: value.detach().cpu().clone() for name, value in policy.state_dict().items()}

    def worth(self, masks: Tensor) -> Tensor:
        """R of one mask for each validation image, [N, H, W]."""
        self.env.reset(options={"index": list(range(len(masks)))})
        self.env.step(masks)
        return self.env.pixel_reward

    def _show(self, masks: Tensor, worth: Tensor, step: int) -> None:
        """The first validation image with its mask, and with 1 - R."""
        image, mask = self.images.images[0, 0].cpu().numpy(), masks[0].cpu().numpy()
        truth = [] if self.images.labels is None else [(self.images.labels[0].cpu().numpy(), TRUTH)]
        y, x = self.images.spacing_mm[0].tolist()
        doubt = (1 - worth[0]).clamp(0, 1).cpu().numpy()
        scale = max(1, 256 // len(image))
        self.stage.log_image(
            "eval/mask", echo_panel(image, masks=[(mask, PREDICTION), *truth], scale=scale, spacing_mm=(y, x)), step
        )
        self.stage.log_image("eval/doubt", echo_panel(image, heat=doubt, scale=scale, spacing_mm=(y, x)), step)

    def _on_step(self) -> bool:
        return True
