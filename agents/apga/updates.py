"""How a masking agent learns from rewards: pure functions of logits, masks and rewards (docs/apga.md, Method 15).

Eq. n.m are those of docs/apga.md, Method n. Symbols: φ = logits [B, 1, h, w]; p = σ(φ); a = mask like them, 1 where
selected; N = h w; K = masks of an image; r = reward [K, B] of each; A = advantage [K, B]; b = baseline. Gradients point
to higher rewards; losses are minimised.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

POLICY, ZEROS, ONES = 100.0, 0.1, 0.01
"""Coefficients of the released program (Eq. 15.2)."""
DECAY = 0.5
"""Share of the old baseline in the program's new one."""
LEAST_STD = 1e-8


# -- the program's --------------------------------------------------------------------------------------------------


def threshold(logits: Tensor, *, ties: bool = False) -> Tensor:
    """a = 1[p > 0.5] as φ's type; with `ties` p = 0.5 is selected, too."""
    return (logits >= 0 if ties else logits > 0).to(logits.dtype)


def bce(logits: Tensor, target: Tensor | float) -> Tensor:
    """BCE(p, target), the mean over all pixels in nats, computed from logits."""
    wanted = target if isinstance(target, Tensor) else torch.full_like(logits, target)
    return F.binary_cross_entropy_with_logits(logits, wanted)


class MovingMean:
    """Moving mean of the mean reward of each batch, half of it the newest: a baseline."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def take(self, reward: Tensor) -> Tensor:
        """The mean, `reward` (a scalar) included: what the program takes off that reward (Eq. 15.1)."""
        before = reward if self.value is None else self.value.to(reward)
        self.value = DECAY * before + (1 - DECAY) * reward
        return self.value

    def before(self, reward: Tensor) -> Tensor:
        """The mean of earlier batches, 0 at first; `reward` is taken in afterwards."""
        found = torch.zeros_like(reward) if self.value is None else self.value.to(reward)
        self.take(reward)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The mean."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.value = state["value"]


def legacy_loss(logits: Tensor, mask: Tensor, advantage: Tensor) -> Tensor:
    """100 R BCE(p, a) + 0.1 |R| BCE(p, 0) + 0.01 |R| BCE(p, 1) (Eq. 15.2); R = r - b of the whole batch, a scalar."""
    size = advantage.abs()
    return POLICY * advantage * bce(logits, mask) + size * (ZEROS * bce(logits, 0.0) + ONES * bce(logits, 1.0))


# -- REINFORCE ------------------------------------------------------------------------------------------------------


def log_prob(logits: Tensor, masks: Tensor) -> Tensor:
    """log π(a) of each place; of masks [..., B, 1, h, w] in their shape."""
    return -F.binary_cross_entropy_with_logits(logits.expand_as(masks), masks, reduction="none")


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each place in nats, as the logits."""
    return F.softplus(logits) - logits * logits.sigmoid()


def draw(logits: Tensor, number: int) -> Tensor:
    """Masks [number, B, 1, h, w] of the policy, independent, as φ's type; from PyTorch's generator of the device."""
    p = logits.detach().sigmoid()
    return (torch.rand(number, *p.shape, device=p.device) < p).to(p.dtype)


def leave_one_out(rewards: Tensor) -> Tensor:
    """A_k = r_k less the mean of the image's other rewards (Eq. 15.3), [K, B].

    Raises:
        ValueError: one mask of each image only, which has no others.
    """
    number = len(rewards)
    if number < 2:
        raise ValueError("leave-one-out needs at least 2 masks of each image but there is 1; raise samples")
    return rewards - (rewards.sum(dim=0) - rewards) / (number - 1)


def normalised(advantage: Tensor) -> Tensor:
    """Advantages over their deviation in the batch."""
    return advantage / (advantage.std(correction=0) + LEAST_STD)


def reinforce_loss(logits: Tensor, masks: Tensor, advantage: Tensor) -> Tensor:
    """-mean over images and masks of A (1/N) Σ log π(a) (Eq. 15.3)."""
    return -(advantage.detach() * log_prob(logits, masks).flatten(2).mean(dim=2)).mean()


def regulariser(logits: Tensor, zeros: float, ones: float, ent: float) -> Tensor:
    """zeros BCE(p, 0) + ones BCE(p, 1) - ent H, H the mean entropy of a place (Eq. 15.4)."""
    total = logits.new_zeros(())
    if zeros:
        total = total + zeros * bce(logits, 0.0)
    if ones:
        total = total + ones * bce(logits, 1.0)
    return total - ent * entropy(logits).mean() if ent else total


# -- antithetic pairs ------------------------------------------------------------------------------------------------


def antithetic(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """z = 1[u > σ(-φ)] and z̃ = 1[u < σ(φ)], as u [..., B, 1, h, w], which is uniform in (0, 1)."""
    return (u > (-logits).sigmoid()).to(u.dtype), (u < logits.sigmoid()).to(u.dtype)


def arm(reward: Tensor, other: Tensor, u: Tensor) -> Tensor:
    """(r(z) - r(z̃)) (u - 1/2): unbiased gradient of E[r] in φ (Eq. 15.5); rewards [K, B], u [K, B, 1, h, w]."""
    return (reward - other)[:, :, None, None, None] * (u - 0.5)


def disarm(reward: Tensor, other: Tensor, z: Tensor, z_other: Tensor, logits: Tensor) -> Tensor:
    """½ (r(z) - r(z̃)) (-1)^z̃ 1[z ≠ z̃] σ(|φ|): ARM with u integrated out (Eq. 15.6)."""
    sign = torch.where(z_other > 0.5, -1.0, 1.0) * (z != z_other)
    return 0.5 * (reward - other)[:, :, None, None, None] * sign * logits.abs().sigmoid()


def along(logits: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose gradient in φ is minus `gradient` [K, B, 1, h, w], mean over masks and images, over N."""
    return -(gradient.detach().mean(dim=0) * logits).flatten(1).mean(dim=1).mean()


# -- differentiable masks --------------------------------------------------------------------------------------------


def relaxed(logits: Tensor, temperature: float) -> Tensor:
    """A binary concrete mask σ((φ + L) / τ), L logistic noise: soft, with a gradient in φ (Eq. 15.7)."""
    u = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    return ((logits + u.log() - (-u).log1p()) / temperature).sigmoid()


def soft_mask_loss(loss: Tensor, logits: Tensor, zeros: float, ones: float) -> Tensor:
    """ℓ(f(x p), y) + zeros BCE(p, 0) + ones BCE(p, 1), the program's end-to-end loss (Eq. 15.8)."""
    return loss + regulariser(logits, zeros, ones, 0.0)
