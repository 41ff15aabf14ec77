"""The terms of the loss, pixel by pixel: pure functions of maps [B, H, W].

Eq. n.m are those of docs/rl4seg.md, Method n. Symbols: r = return of the action (its reward, where an episode is one
step); l, l_old, l_ref = log-probability of the action under the policy, the one that played and the reference network;
β = weight of the KL penalty; ρ = penalised reward; A = advantage; q = ratio; ε = clip range.
"""

from typing import Literal

import torch
from torch import Tensor

Ratio = Literal["factored", "mean", "sum"]


def penalised_reward(
    returns: Tensor, log_prob: Tensor, ref_log_prob: Tensor | None, gold: Tensor | None, kl_coef: float
) -> Tensor:
    """ρ = r - β (l - l_ref) [B, H, W], without gradient; 1 in every pixel of the gold images.

    returns: r [B, H, W]; gold: bool [B]. Without a reference network (None) ρ is r; without gold images (None)
    nothing is replaced.
    """
    rho = returns if ref_log_prob is None else returns - kl_coef * (log_prob - ref_log_prob).detach()  # Eq. 4.1
    return rho if gold is None else rho.masked_fill(gold[:, None, None], 1.0)


def log_ratio(log_prob: Tensor, old_log_prob: Tensor, ratio: Ratio = "factored") -> Tensor:
    """log q [B, H, W]: of each pixel (factored), or of the image in each pixel, l - l_old being averaged or summed."""
    of_pixels = log_prob - old_log_prob
    if ratio == "factored":
        return of_pixels
    of_image = of_pixels.sum(dim=(1, 2), keepdim=True)
    return (of_image / of_pixels[0].numel() if ratio == "mean" else of_image).expand_as(of_pixels)


def surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float, kind: Ratio = "factored"
) -> Tensor:
    """min(A q, A clip(q, 1 - ε, 1 + ε)) [B, H, W], to be maximised; A carries no gradient."""
    ratio = log_ratio(log_prob, old_log_prob, kind).exp()  # Eq. 4.3, by default one per pixel
    return torch.min(advantage * ratio, advantage * ratio.clamp(1 - clip_range, 1 + clip_range))  # of Eq. 4.4


def policy_gradient(log_prob: Tensor, rho: Tensor) -> Tensor:
    """l · (ρ - mean ρ) / std ρ [B, H, W], mean and deviation over all pixels of the batch."""
    return log_prob * (rho - rho.mean()) / (rho.std() + 1e-8)


@torch.no_grad()
def diagnostics(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float, kind: Ratio = "factored"
) -> dict[str, Tensor]:
    """What is logged of the ratio and the advantage, by name: means over all pixels, without gradient.

    approx_kl is that of a pixel, but of the image where the ratio is the image's product.
    """
    ratio = log_ratio(log_prob, old_log_prob, kind).exp()
    change = log_ratio(log_prob, old_log_prob, "sum" if kind == "sum" else "factored")
    return {
        "approx_kl": (change.exp() - 1 - change).mean(),
        "clip_fraction": ((ratio - 1).abs() > clip_range).float().mean(),
        "ratio_mean": ratio.mean(),
        "adv_mean": advantage.mean(),
    }


def rescale_per_image(reward: Tensor) -> Tensor:
    """(r - min r) / (max r - min r) over each map of [B, H, W]; a map that is constant stays as it is."""
    low, high = reward.amin(dim=(1, 2), keepdim=True), reward.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (reward - low) / (high - low).clamp(min=1e-12), reward)
