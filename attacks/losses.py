"""Losses of each pixel, which the attacks raise, and the confidence that CosPGD weighs them by.

Each takes logits [B, K, *spatial] and targets, integers [B, *spatial] in 0 .. K - 1, and gives [B, *spatial] in nats;
whoever calls sets ignored pixels to any class and leaves their loss out. z = logits, p = softmax(z), y = target
(docs/rp-pgd.md, Method 6; docs/seat.md, Method 16).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..segmenters.dice_ce import kl_divergence

PixelLoss = Callable[[Tensor, Tensor], Tensor]
TINY = 1e-12
"""Added to a difference of logits that is divided by."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-ln p_y, at least 0."""
    return F.cross_entropy(logits, targets, reduction="none")


def jensen_shannon(logits: Tensor, targets: Tensor) -> Tensor:
    """(KL(p, m) + KL(e_y, m)) / 2 with m = (p + e_y) / 2, e_y one-hot: in [0, ln 2], bounded where p_y goes to 0.

    All other classes together have KL(p, m) = (1 - p_y) ln 2, so that it is ln 2 + (p_y ln p_y - (1 + p_y) ln(1 + p_y))
    / 2.
    """
    log_p = -cross_entropy(logits, targets)
    p = log_p.exp()
    return math.log(2) + (p * log_p - (1 + p) * p.log1p()) / 2


def spherical(logits: Tensor, targets: Tensor) -> Tensor:
    """-z_y / ||z||, in [-1, 1]: the logit of the true class on the sphere."""
    return -_at(F.normalize(logits, dim=1), targets)


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """-max(z_y - max over the others, 0), at most 0: how far a right pixel is from becoming wrong; 0 once it is."""
    others = logits.scatter(1, targets.unsqueeze(1), -math.inf).amax(dim=1)
    return -(_at(logits, targets) - others).clamp(min=0)


def dlr(logits: Tensor, targets: Tensor) -> Tensor:
    """-(z_y - max over the others) / (z_(1) - z_(3) + 1e-12), z_(1) >= z_(2) >= ... sorted: no scale of logits counts.

    Raises:
        ValueError: fewer than three classes, which have no third logit.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"the DLR loss needs at least 3 classes but there are {logits.shape[1]}; take another loss")
    others = logits.scatter(1, targets.unsqueeze(1), -math.inf).amax(dim=1)
    first, _, third = logits.topk(3, dim=1).values.unbind(dim=1)
    return (others - _at(logits, targets)) / (first - third + TINY)


def divergence_from(clean: Tensor) -> PixelLoss:
    """KL(softmax(clean) || p) of each pixel, what TRADES raises; it looks at no target.

    clean: logits of the clean images, [B, K, *spatial], without gradient.
    """
    fixed = clean.detach()
    return lambda logits, _targets: kl_divergence(fixed, logits)


def confidence(logits: Tensor, targets: Tensor) -> Tensor:
    """Cosine of p and the one-hot target, p_y / ||p||, in [0, 1], without gradient."""
    return _at(F.normalize(logits.detach().softmax(dim=1), dim=1), targets)


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the highest logit is the target's, bool [B, *spatial]; of equal ones, the first is the highest."""
    return logits.detach().max(dim=1).indices == targets  # argmax is the same, many times as slow on a CPU


def class_balance(targets: Tensor, counts: Tensor) -> Tensor:
    """Weight of each pixel, mean(N) / N_y, where `counts` [K] are the pixels N of each class in the training set."""
    counts = counts.to(targets.device).double().clamp(min=1)
    return (counts.mean() / counts).float()[targets]


def _at(maps: Tensor, targets: Tensor) -> Tensor:
    """The target's value of maps [B, K, *spatial]."""
    return torch.gather(maps, 1, targets.unsqueeze(1)).squeeze(1)
