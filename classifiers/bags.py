"""Learning from labels of whole slabs or patients: windows as a bag of instances (docs/spars.md, Method 7).

Symbols: z(p) = logit of window p, class 1 minus class 0; L = windows of a bag; Z = logit of the bag; ρ = sharpness.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.liver.lattice import WindowLattice
from .presence_config import PresenceTrainingConfig, Supervision


def pool_logits(z: Tensor, config: PresenceTrainingConfig) -> Tensor:
    """Z [...] of bags with the logits z [..., L].

    logsumexp: (1/ρ) log((1/|L|) Σ exp(ρ z)), between the mean (ρ → 0) and the maximum (ρ → ∞); max: the maximum; topk:
    the mean of the k highest, or of all where there are fewer.
    """
    if config.pooling == "max":
        return z.amax(dim=-1)
    if config.pooling == "topk":
        return z.topk(min(config.topk, z.shape[-1]), dim=-1).values.mean(dim=-1)
    return (torch.logsumexp(config.sharpness * z, dim=-1) - math.log(z.shape[-1])) / config.sharpness


def bag_logits(z: Tensor, config: PresenceTrainingConfig) -> Tensor:
    """Z of the bags of B volumes with the logits z [B, sx, sy, sz]: [B] by patient, [B, sz] by slab."""
    bags = z.flatten(1) if config.supervision == "patient" else z.movedim(3, 1).flatten(2)
    return pool_logits(bags, config)


def bag_labels(tumours: Tensor, lattice: WindowLattice, config: PresenceTrainingConfig) -> Tensor:
    """Whether the bags of B volumes hold tumour, bool: [B] by patient, [B, sz] by slab.

    A slab is all that lies between the lower and the upper end of the windows of one height.

    tumours: bool [B, X, Y, Z].
    """
    planes = tumours.sum(dim=(1, 2))  # [B, Z]
    if config.supervision == "patient":
        return planes.sum(dim=1) >= config.min_tumour_voxels
    below = F.pad(planes.cumsum(dim=1), (1, 0))
    low = torch.arange(lattice.shape[2], device=tumours.device) * lattice.step + lattice.phase[2]
    return below[:, low + lattice.window[2]] - below[:, low] >= config.min_tumour_voxels


def bag_loss(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of bags, mean over them; the positive ones count `weight` times. logits, labels bool: [N]."""
    return F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weight)


def positive_weight(labels: Tensor, purpose: str, supervision: Supervision) -> Tensor:
    """Negative bags for each positive one, a number; labels: bool [N].

    Raises:
        ValueError: bags of one label only.
    """
    positive = labels.sum()
    if not 0 < int(positive) < len(labels):
        raise ValueError(
            f"presence.supervision is {supervision!r} but {int(positive)} of the {len(labels)} {supervision}s of the "
            f"{purpose} cases hold tumour, and both kinds are needed; choose other cases, or have phantoms without "
            f"tumour (classifier_train.tumour_free and validation.tumour_free)"
        )
    return (len(labels) - positive) / positive
