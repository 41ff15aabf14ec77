"""Plain counterpart of RL4Seg in the speed benchmark: its work in the order of the released program (docs/rl4seg.md,
Method 7 and 13).

Symbols: x = images, a = argmax or played masks, a_s = sampled masks, c = corrected masks; r = reward map; l, l_old,
l_ref = log-probabilities of a; V = value map; β = weight of the KL penalty. Plain PyTorch: what is computed twice
there is computed twice here.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from measuring import Parts
from segarena.agents.dense_ppo.ppo import DensePPOConfig
from segarena.common.device import bfloat16_on_cuda
from segarena.common.overlap import class_dice
from segarena.datasets.echo.images import LV, MYO
from segarena.rewards.reward_data import RewardDataConfig, add_noise, adjust_contrast
from torch import Tensor, nn
from torch.distributions import Categorical

RULES = Path(__file__).resolve().parents[1] / "tests" / "rewards" / "test_echo_validity.py"


class PlainPPO:
    """PPO as docs/rl4seg.md, Method 13, counts it: 380 GFLOP an image at 256 x 256, where 239 are needed.

    Args:
        actor: logits [B, C, H, W] of images; it, reference and critic are used in train mode.
        reference: the same, frozen.
        critic: [B, 1, H, W] of images, without its sigmoid.
        reward: r of images and actions uint8; in the mode in which it is.
        config: K, β, ε, learning rates, weight of the entropy and bound on the gradient.
        as_released: float32, and PyTorch's usual memory layout; else precision and layout are ours.
    """

    def __init__(
        self,
        actor: nn.Module,
        reference: nn.Module,
        critic: nn.Module,
        reward: nn.Module,
        config: DensePPOConfig,
        *,
        as_released: bool,
    ) -> None:
        layout = torch.contiguous_format if as_released else torch.channels_last
        for net in (actor, reference, critic, reward):
            net.to(memory_format=layout)
        self.actor, self.reference, self.critic, self.reward = actor.train(), reference.train(), critic.train(), reward
        self.config, self.as_released = config, as_released
        self.actor_optimizer = torch.optim.Adam(actor.parameters(), lr=config.actor_lr)
        self.critic_optimizer = torch.optim.Adam(critic.parameters(), lr=config.critic_lr)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """One iteration on the images float32 [B, 1, H, W]; the policy losses of its inner steps."""
        return self.update(x, *self.rollout(x))

    @torch.no_grad()
    def rollout(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, r and l_old, each [B, H, W], of six forwards: two to act, the reward, three to evaluate."""
        a = self._policy(self.actor, x).sample()
        self._policy(self.reference, x).sample()
        r = self.reward(x, a.byte())
        l_old = self._policy(self.actor, x).log_prob(a)
        self._policy(self.reference, x).log_prob(a)
        self._forward(self.critic, x)
        return a, r, l_old

    def update(self, x: Tensor, a: Tensor, r: Tensor, l_old: Tensor) -> list[Tensor]:
        """K inner steps on one rollout; their policy losses."""
        cfg, losses = self.config, []
        for _ in range(cfg.n_epochs):
            policy = self._policy(self.actor, x)
            log_prob = policy.log_prob(a)
            with torch.no_grad():
                l_ref = self._policy(self.reference, x).log_prob(a)
            value = self._forward(self.critic, x)[:, 0].sigmoid()
            # V is not detached: the gradient of the policy's loss runs through the critic, too
            advantage = r - cfg.kl_coef * (log_prob - l_ref).detach() - value
            ratio = (log_prob - l_old).exp()
            clipped = ratio.clamp(1 - cfg.clip_range, 1 + cfg.clip_range)
            policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
            self.actor_optimizer.zero_grad()
            (policy_loss - cfg.ent_coef * policy.entropy().mean()).backward(retain_graph=True)
            nn.utils.clip_grad_norm_(chain(self.actor.parameters(), self.critic.parameters()), cfg.max_grad_norm)
            self.actor_optimizer.step()
            self.critic_optimizer.zero_grad()
            F.mse_loss(value, r).backward()
            self.critic_optimizer.step()
            losses.append(policy_loss.detach())
        return losses

    def _policy(self, net: nn.Module, x: Tensor) -> Categorical:
        return Categorical(logits=self._forward(net, x).permute(0, 2, 3, 1))

    def _forward(self, net: nn.Module, x: Tensor) -> Tensor:
        if self.as_released:
            return net(x)
        with bfloat16_on_cuda(x.device):
            return net(x).float()


@dataclass
class PlainRewardData:
    """Nine triplets of every image, all of which must be gold: docs/rl4seg.md, Method 7 and 13.

    Each image is corrected, judged and perturbed by itself; noise is drawn for all weights on the CPU, and the clean
    weights are loaded again; each triplet is written as three compressed NIfTI files.
    """

    net: nn.Module
    corrector: Callable[[Tensor], Tensor]
    valid: Callable[[Tensor], bool]
    """Validity of one mask uint8 [H, W]."""
    config: RewardDataConfig
    folder: Path
    parts: Parts
    """Gets the seconds of predictions, noise (with loading the clean weights) and files."""

    @torch.no_grad()
    def __call__(self, x: Tensor) -> int:
        """Triplets of the images float32 [N, 1, H, W]; returns how many there are."""
        number = 0
        with self.parts("predictions"):
            logits = self.net.eval()(x)
            a = logits.argmax(dim=1).byte()
            a_s = Categorical(logits=logits.permute(0, 2, 3, 1)).sample().byte()
        for row in range(len(x)):
            one = x[row : row + 1]
            c = self.corrector(a[row : row + 1])
            valid, _ = self.valid(a[row]), self.valid(c[0])  # both are judged, whatever the first verdict
            if not valid or class_dice(a[row : row + 1], c, (LV, MYO)).mean() <= self.config.sim_threshold:
                raise ValueError(f"image {row} is not gold, but only gold ones are measured")
            for a_bad in (a_s[torch.randint(len(x), ())], *self._perturbed(one)):
                with self.parts("files"):
                    self._write(number, one[0, 0], a[row], a_bad)
                number += 1
        return number

    def _perturbed(self, x: Tensor) -> list[Tensor]:
        """Masks of one image, [1, 1, H, W], under the eight perturbations."""
        clean = {name: value.clone() for name, value in self.net.state_dict().items()}
        masks = []
        for m in self.config.weight_noise:
            with self.parts("noise"):
                for parameter in self.net.parameters():
                    parameter.add_(m * torch.randn(parameter.shape).to(parameter.device))
            masks.append(self._argmax(x))
            with self.parts("noise"):
                self.net.load_state_dict(clean)
        masks += [self._argmax(adjust_contrast(x, factor)) for factor in self.config.contrast]
        return masks + [self._argmax(add_noise(x, s * torch.randn_like(x))) for s in self.config.noise]

    def _argmax(self, x: Tensor) -> Tensor:
        with self.parts("predictions"):
            return self.net(x)[0].argmax(dim=0).byte().cpu()

    def _write(self, number: int, *arrays: Tensor) -> None:
        for name, array in zip(("image", "good", "bad"), arrays, strict=True):
            nib.save(nib.Nifti1Image(array.cpu().numpy(), np.eye(4)), self.folder / f"{number}_{name}.nii.gz")


def plain_validity() -> Callable[[Tensor], bool]:
    """Validity of one mask uint8 [H, W] by the rules of docs/rl4seg.md, Method 9: the reference of the tests.

    Raises:
        ModuleNotFoundError: what the tests need is not installed.
    """
    spec = importlib.util.spec_from_file_location("plain_rules", RULES)
    assert spec is not None
    assert spec.loader is not None
    rules: Any = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(rules)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{RULES.name} needs {error.name}; pip install -e '.[test]'") from error
    return lambda mask: bool(rules.plain_verdict(rules.plain_metrics(mask.cpu().numpy())))
