"""What an agent sees of an attack on a patch: sixteen numbers, and volumes (docs/seat.md, Method 18).

Symbols: L = loss, g = gradient, delta = perturbation, b = radius, m = relative magnitude; t = now, 0 = at the start.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.budget import image_range
from ..attacks.losses import margin
from ..attacks.replays import Replays
from ..common.overlap import class_counts, dice_batch, dice_case
from ..rewards.lipschitz import magnitude, relative_magnitude
from ..segmenters.dice_ce import soft_dice_loss

if TYPE_CHECKING:
    from .seat_attack import SEATAttackEnv

NUMBER = 16
"""Numbers of an observation."""
TINY = 1e-12
"""Added to what a logarithm is taken of, or divided by."""
HIGHEST = 10.0
"""Of a loss and of an intensity, in volumes either way."""
MAPS = 2
"""Volumes beside those of the channels and classes."""


@torch.no_grad()
def measures(replays: Replays) -> dict[str, Tensor]:
    """What there is to say of the last pass, each [N] but dice_per_class [N, K - 1]."""
    logits, labels = replays.logits, replays.labels
    counts = class_counts(logits.argmax(dim=1), labels, logits.shape[1])
    low, high = image_range(replays.images)
    valid = torch.ones_like(labels, dtype=torch.bool)
    return {
        "loss": replays.losses,
        "dice_soft": 1 - soft_dice_loss(logits, labels, valid),
        "dice_hard": dice_batch(counts),
        "dice_per_class": dice_case(counts),
        "grad_l1": magnitude(replays.gradient),
        "grad_l1_rel": relative_magnitude(replays.gradient, low, high),
        "margin": -margin(logits, labels).flatten(1).mean(dim=1),
    }


@torch.no_grad()
def changes(replays: Replays, before: Tensor, gradient: Tensor, delta: Tensor) -> Tensor:
    """Of the last step of each environment, float32 [N, 4]: L_t - L_{t-1}, cosine of g_t and g_{t-1}, share of voxels
    whose gradient changed its sign, and how linear the loss was.

    Args:
        replays: after the step.
        before: L_{t-1}, [N].
        gradient: g_{t-1}.
        delta: delta_{t-1}.
    """
    risen = replays.losses - before
    now, last = replays.gradient.flatten(1), gradient.flatten(1)
    cosine = (now * last).sum(dim=1) / (now.norm(dim=1) * last.norm(dim=1)).clamp(min=torch.finfo(now.dtype).tiny)
    flipped = (now.sign() * last.sign() < 0).float().mean(dim=1)
    expected = (last * (replays.delta - delta).flatten(1)).sum(dim=1)
    linear = (risen / (expected + TINY)).clamp(-2, 2)
    return torch.stack([risen, cosine, flipped, torch.where(expected == 0, 0, linear)], dim=1)


@torch.no_grad()
def radii(replays: Replays) -> Tensor:
    """abs(delta) / b of each voxel, 0 where b is, [N, C, *spatial]."""
    radius = replays.ball.radius
    return torch.where(radius > 0, replays.delta.abs() / torch.where(radius > 0, radius, 1), 0.0)


@torch.no_grad()
def stats(env: "SEATAttackEnv") -> Tensor:
    """The numbers float32 [N, 16]."""
    now, begun, replays = env.now, env.begun_at, env.replays
    ball, moved = replays.ball, radii(replays)
    at_edge = (replays.adversarial >= ball.images + ball.radius) | (replays.adversarial <= ball.images - ball.radius)
    strength, first = now["grad_l1_rel"], begun["grad_l1_rel"]
    reference = env.config.reference_magnitude
    risen, cosine, flipped, linear = env.changed.unbind(dim=1)
    columns = [
        env.t / env.horizon,
        torch.full_like(strength, env.eps.grey_levels / 16),
        now["loss"].clamp(max=HIGHEST),
        now["loss"] - begun["loss"],
        risen,
        now["dice_soft"],
        now["dice_hard"],
        (strength + TINY).log10(),
        torch.where(first > 0, strength / torch.where(first > 0, first, 1) - 1, 0.0),
        torch.zeros_like(strength) if reference is None else strength / reference - 1,
        cosine,
        flipped,
        moved.flatten(1).mean(dim=1),
        (at_edge & (ball.radius > 0)).flatten(1).float().mean(dim=1),
        linear,
        begun["dice_hard"],
    ]
    return torch.stack([column.float() for column in columns], dim=1).nan_to_num(0.0)


@torch.no_grad()
def volumes(env: "SEATAttackEnv", env_ids: Tensor) -> Tensor:
    """Volumes float32 [K, C + classes + 2, *spatial] of the environments `env_ids` int64 [K].

    Image, softmax, abs(delta) / b and abs(g) / its largest, of both the mean over channels; means over the voxels of
    each cell, unless they are to have full size.
    """
    replays = env.replays
    steep = replays.gradient[env_ids].abs().float()
    most = steep.flatten(1).amax(dim=1).view(-1, 1, 1, 1, 1)
    steep = torch.where(most > 0, steep / torch.where(most > 0, most, 1), 0.0)
    parts = [
        replays.adversarial[env_ids].clamp(-HIGHEST, HIGHEST),
        replays.logits[env_ids].softmax(dim=1),
        radii(replays)[env_ids].mean(dim=1, keepdim=True),
        steep.mean(dim=1, keepdim=True),
    ]
    full = torch.cat([part.float() for part in parts], dim=1).nan_to_num(0.0)
    return full if env.config.obs_mode == "volume_full" else F.adaptive_avg_pool3d(full, env.config.volume_size)
