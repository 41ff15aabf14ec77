"""The terms of the loss, pixel by pixel: pure functions of maps [B, H, W].

Eq. n.m are those of docs/rl4seg.md, Method n. Symbols: r = return of the action (its reward, where an episode is one
step); l, l_old, l_ref = log-probability of the action under the policy, the one that played and the reference network;
β = weight of the KL penalty; ρ = penalised reward; A = advantage; q = ratio; ε = clip range.
"""

from typing import Literal

import torch
from torch import Tensor

Ratio = Literal["sum", "mean", "factored"]
"""Of whole actions, their geometric mean over the places, or one for each place (docs/apga.md, Method 16)."""


def penalised_reward(
    returns: Tensor, log_prob: Tensor, ref_log_prob: Tensor | None, gold: Tensor | None, kl_coef: float
) -> Tensor:
    """ρ = r - β (l - l_ref) [B, H, W], without gradient; 1 in every pixel of the gold images.

    returns: r [B, H, W]; gold: bool [B]. Without a reference network (None) ρ is r; without gold images (None)
    nothing is replaced.
    """
    rho = returns if ref_log_prob is None else returns - kl_coef * (log_prob - ref_log_prob).detach()  # Eq. 4.1
    return rho if gold is None else rho.masked_fill(gold[:, None, None], 1.0)


def joined(log_ratio: Tensor, ratio: Ratio) -> Tensor:
    """log q of what is clipped as one: log-ratios [..., H, W] as they are (factored), or their sum or mean
    [..., 1, 1]."""
    if ratio == "factored":
        return log_ratio
    return log_ratio.sum(dim=(-2, -1), keepdim=True) if ratio == "sum" else log_ratio.mean(dim=(-2, -1), keepdim=True)


def surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float, ratio: Ratio = "factored"
) -> Tensor:
    """min(A q, A clip(q, 1 - ε, 1 + ε)) [B, H, W], to be maximised; A carries no gradient.

    ratio: see `joined`; with sum and mean A is [B, 1, 1], one of each action, and so is the result.
    """
    q = joined(log_prob - old_log_prob, ratio).exp()  # Eq. 4.3; factored: one per pixel, never multiplied over them
    return torch.min(advantage * q, advantage * q.clamp(1 - clip_range, 1 + clip_range))  # of Eq. 4.4


def policy_gradient(log_prob: Tensor, rho: Tensor) -> Tensor:
    """l · (ρ - mean ρ) / std ρ [B, H, W], mean and deviation over all pixels of the batch."""
    return log_prob * (rho - rho.mean()) / (rho.std() + 1e-8)


@torch.no_grad()
def diagnostics(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float) -> dict[str, Tensor]:
    """What is logged of the ratio and the advantage, by name: means over all pixels, without gradient."""
    log_ratio = log_prob - old_log_prob  # [B, H, W]
    ratio = log_ratio.exp()
    return {
        "approx_kl": (ratio - 1 - log_ratio).mean(),
        "clip_fraction": ((ratio - 1).abs() > clip_range).float().mean(),
        "ratio_mean": ratio.mean(),
        "adv_mean": advantage.mean(),
    }


def rescale_per_image(reward: Tensor) -> Tensor:
    """(r - min r) / (max r - min r) over each map of [B, H, W]; a map that is constant stays as it is."""
    low, high = reward.amin(dim=(1, 2), keepdim=True), reward.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (reward - low) / (high - low).clamp(min=1e-12), reward)
