"""Validation of RL4Seg's policy while it learns."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from ...common.device import forked_rng
from ...common.runs import Run
from ...datasets.images import ImagePool
from ...evaluation.echo import echo_metrics, largest_heart
from ...evaluation.echo_pictures import PREDICTION, TRUTH, echo_panel
from ...rewards.echo_validity import valid_masks
from ..callbacks import Best
from ..dense_ppo.distribution import PixelCategorical
from ..dense_ppo.policy import DensePolicy
from .context import AT_ONCE

PICTURES_EVERY = 2
"""Validations from one picture to the next."""


class ValidationCallback(BaseCallback):
    """Validation, periodic and at the end, which keeps the weights of the best one.

    eval/val_reward_argmax, eval/val_reward_sampled: mean R of the most probable and of drawn masks. eval/anat_valid:
    share of valid masks. Where the truth is known, eval/dice_endo, eval/dice_epi, eval/hd_endo, eval/hd_epi (mm): they
    are logged, and choose nothing. It draws from a generator of its own, so that it changes nothing in the training.

    Args:
        stage: gets curves and pictures.
        images: the validation images.
        reward: R float32 [N, H, W] of one mask uint8 [N, H, W] for each of them.
        every: environment steps between two validations.
    """

    def __init__(self, stage: Run, images: ImagePool, reward: Callable[[Tensor], Tensor], every: int) -> None:
        super().__init__()
        self.stage, self.images, self.reward, self.every = stage, images, reward, every
        self.looks, self.seen = 0, -1
        self.best = Best()

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs."""
        return {"looks": self.looks, "seen": self.seen, "best": self.best.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self.looks, self.seen = state["looks"], state["seen"]
        self.best.load_state(state["best"])

    def _on_rollout_start(self) -> None:
        if self.seen < 0 or self.model.num_timesteps // self.every > self.seen // self.every:
            self.look()

    def _on_training_end(self) -> None:
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
        rows = torch.arange(len(self.images), device=self.images.images.device)
        logits = torch.cat([policy.logits(self.images.at(part)) for part in torch.split(rows, AT_ONCE)])
        policies = PixelCategorical(logits)
        with forked_rng(rows.device):
            torch.manual_seed(0)
            sampled = policies.sample()
        masks = policies.mode()
        scalars = {"eval/val_reward_sampled": float(self.reward(sampled).mean())}
        reward = self.reward(masks)
        scalars["eval/val_reward_argmax"] = score = float(reward.mean())
        hearts = largest_heart(masks)
        scalars["eval/anat_valid"] = float(valid_masks(hearts).float().mean())
        if (known := self.images.known_labels) is not None:
            values = echo_metrics(hearts[known.rows], known.labels, self.images.spacing_mm[known.rows])
            names = {"dice_endo": "dice_endo", "dice_epi": "dice_epi", "hd_endo_mm": "hd_endo", "hd_epi_mm": "hd_epi"}
            scalars |= {f"eval/{name}": float(values[metric].mean()) for metric, name in names.items()}
        self.stage.log(step, scalars)
        if self.looks % PICTURES_EVERY == 0:
            self._show(masks, reward, step)
        self.looks += 1
        if step:
            self.best.consider(score, step, policy)

    def _show(self, masks: Tensor, reward: Tensor, step: int) -> None:
        """The first validation image with its mask, and with 1 - R."""
        image, mask = self.images.images[0, 0].cpu().numpy(), masks[0].cpu().numpy()
        truth = [] if self.images.labels is None else [(self.images.labels[0].cpu().numpy(), TRUTH)]
        y, x = self.images.spacing_mm[0].tolist()
        doubt = (1 - reward[0]).clamp(0, 1).cpu().numpy()
        scale = max(1, 256 // len(image))
        self.stage.log_image(
            "eval/mask", echo_panel(image, masks=[(mask, PREDICTION), *truth], scale=scale, spacing_mm=(y, x)), step
        )
        self.stage.log_image("eval/doubt", echo_panel(image, heat=doubt, scale=scale, spacing_mm=(y, x)), step)

    def _on_step(self) -> bool:
        return True
