"""The terms of the loss, pixel by pixel (docs/rl4seg.md, Method 4): pure functions of maps [B, H, W].

Symbols: r = reward; l, l_old, l_ref = log-probability of the action under the policy, the one that played and the
reference; β = weight of the KL penalty; ρ = penalised reward; A = advantage; ε = clip range.
"""

import torch
from torch import Tensor


def penalised_reward(
    reward: Tensor, log_prob: Tensor, ref_log_prob: Tensor | None, gold: Tensor | None, kl_coef: float
) -> Tensor:
    """ρ = r - β (l - l_ref), without gradient; 1 in every pixel of the gold images. Maps [B, H, W]; gold: bool [B].

    Without a reference (None) ρ is r; without gold images (None) nothing is replaced.
    """
    rho = reward if ref_log_prob is None else reward - kl_coef * (log_prob - ref_log_prob).detach()
    return rho if gold is None else rho.masked_fill(gold[:, None, None], 1.0)


def surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """min(A q, A clip(q, 1 - ε, 1 + ε)) of every pixel, to be maximised; A carries no gradient. Maps [B, H, W]."""
    ratio = (log_prob - old_log_prob).exp()  # q, one per pixel, never multiplied over the image
    return torch.min(advantage * ratio, advantage * ratio.clamp(1 - clip_range, 1 + clip_range))


def policy_gradient(log_prob: Tensor, rho: Tensor) -> Tensor:
    """l · (ρ - mean ρ) / std ρ of every pixel, mean and deviation over all pixels of the batch."""
    return log_prob * (rho - rho.mean()) / (rho.std() + 1e-8)


def stretched(reward: Tensor) -> Tensor:
    """(r - min r) / (max r - min r) over each map of [B, H, W]; a map that is constant stays as it is."""
    low, high = reward.amin(dim=(1, 2), keepdim=True), reward.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (reward - low) / (high - low).clamp(min=1e-12), reward)
