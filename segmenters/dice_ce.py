"""The training loss of SEAT, Dice part + cross-entropy, and the divergence of TRADES (docs/seat.md, Method 9).

Symbols: z = logits [B, K, *spatial]; p = softmax(z); y = labels; k = class, 0 is the background; Omega = valid voxels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5
"""Added to the denominator of the soft Dice, in voxels."""


def dice_ce(logits: Tensor, labels: Tensor, *, ignore_absent: bool = False, ignore_index: int = 255) -> Tensor:
    """Mean over the images of 1 - soft Dice of the foreground + cross-entropy, a number of at least 0.

    It is the mean of `dice_ce_of_images`, as both parts are linear in the image: the mean over the batch first and then
    over classes, as the program takes it, is the same.

    Args:
        logits: [B, K, *spatial], at least two classes.
        labels: integers [B, *spatial] in 0 .. K - 1, or `ignore_index`.
        ignore_absent: leave a class that is not in an image's label out of that image's Dice; False: it counts 0
            there, however little of it is predicted.
        ignore_index: label of voxels that count for nothing.

    Raises:
        ValueError: shapes or types that do not fit, or a single class.
    """
    return dice_ce_of_images(logits, labels, ignore_absent=ignore_absent, ignore_index=ignore_index).mean()


def dice_ce_of_images(
    logits: Tensor, labels: Tensor, *, ignore_absent: bool = False, ignore_index: int = 255
) -> Tensor:
    """The loss of each image, [B], which only that image changes; arguments and errors as those of `dice_ce`."""
    valid = labels != ignore_index
    _check(logits, labels)
    losses = F.cross_entropy(logits, torch.where(valid, labels, 0).long(), reduction="none") * valid
    cross_entropy = losses.flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1).clamp(min=1)
    return soft_dice_loss(logits, labels, valid, ignore_absent=ignore_absent) + cross_entropy


def soft_dice_loss(logits: Tensor, labels: Tensor, valid: Tensor, *, ignore_absent: bool = False) -> Tensor:
    """1 - mean over classes k >= 1 of 2 TP / (2 TP + FP + FN + 1e-5), [B]; 0 where no voxel is valid.

    TP, FP and FN are sums over the valid voxels of p q, p (1 - q) and (1 - p) q, q the one-hot label. A class that is
    absent from the label gives 0, or is left out (`ignore_absent`; 0 is the loss of an image without any foreground).

    Args:
        logits: [B, K, *spatial].
        labels: integers [B, *spatial] in 0 .. K - 1, of voxels that are valid.
        valid: bool [B, *spatial].
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # sums of many voxels
    counted = valid.flatten(1).unsqueeze(1)  # [B, 1, V]
    p = logits.softmax(dim=1).flatten(2) * counted
    targets = torch.where(valid, labels, 0).long().flatten(1).unsqueeze(1)
    q = torch.zeros_like(p).scatter_(1, targets, 1.0) * counted  # [B, K, V]
    hits, true = ((of * q).sum(dim=2)[:, 1:] for of in (p, q))  # TP and TP + FN, [B, K - 1]
    score = 2 * hits / (p.sum(dim=2)[:, 1:] + true + SMOOTH)  # p sums to TP + FP
    if ignore_absent:
        present = true > 0
        number = present.sum(dim=1)
        return torch.where(number > 0, 1 - (score * present).sum(dim=1) / number.clamp(min=1), 0.0)
    return torch.where(valid.flatten(1).any(dim=1), 1 - score.mean(dim=1), 0.0)


def kl_divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(other)) of each voxel in nats, [B, *spatial], at least 0; 0 for equal logits.

    TRADES adds 6 times its mean over voxels to the loss of the clean images.

    Args:
        clean: logits of clean images, [B, K, *spatial]; gradients reach both.
        other: logits of the same images under attack.
    """
    log_p = clean.log_softmax(dim=1)
    return (log_p.exp() * (log_p - other.log_softmax(dim=1))).sum(dim=1)


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() < 3 or labels.shape != (len(logits), *logits.shape[2:]) or logits.shape[1] < 2:
        raise ValueError(
            f"logits are {[*logits.shape]} and labels {[*labels.shape]} but must be [B, K, *spatial] with at least two "
            "classes and [B, *spatial]"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype} but must be integers")
