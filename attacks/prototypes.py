"""Class prototypes of the features and the two terms that RP-PGD makes of them (docs/rp-pgd.md, Method 7).

A prototype c_k is the mean of the features, resized to the labels' size, over the True pixels of class k. Resizing is
linear, phi_full = U phi, hence c_k = phi U^T m_k / |m_k| for the class mask m_k: masks go down to the features' grid,
features never go up. sim(u, v) = (1 + cos(u, v)) / 2, in [0, 1].
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HIGH = 0.9
"""Similarity from which a pixel counts as close to its prototype."""
SHORTEST = 1e-12
"""Length below which a feature has no direction, as in `torch.nn.functional.normalize`."""
LOW_SHARE, HIGH_SHARE = 0.75, 0.25
"""Weights of the mean similarity of the pixels below and from `HIGH`."""


class Prototypes(NamedTuple):
    """Prototypes of B images (or of one batch, B = 1) with the grid positions Q that they come from."""

    vectors: Tensor
    """c_k, [B, K, D]; 0 where a class has no True pixel."""
    present: Tensor
    """Whether a class has a True pixel, bool [B, K]."""
    features: Tensor
    """[B, D, Q]."""
    weights: Tensor
    """U^T m_k, how much of class k lies at a position of the grid, [B, K, Q], at least 0."""


def resize_matrix(size: int, full: int, like: Tensor) -> Tensor:
    """Linear interpolation along one axis with aligned corners, [full, size], of `like`'s type and device."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    scale = (size - 1) / (full - 1) if full > 1 else 0.0
    places = torch.arange(full, dtype=dtype, device=like.device) * scale
    grid = torch.arange(size, dtype=dtype, device=like.device)
    return (1 - (places[:, None] - grid).abs()).clamp(min=0).to(like.dtype)


def pool_masks(masks: Tensor, grid: torch.Size) -> Tensor:
    """U^T m: masks [B, K, *spatial] on the grid of the features, [B, K, *grid], by the transposed linear resize."""
    for axis in range(len(grid) + 1, 1, -1):  # the last axis lies in memory as a product of matrices wants it
        size = grid[axis - 2]
        if masks.shape[axis] != size:
            masks = (masks.movedim(axis, -1) @ resize_matrix(size, masks.shape[axis], masks)).movedim(-1, axis)
    return masks


def class_masks(labels: Tensor, inside: Tensor, classes: int, like: Tensor) -> Tensor:
    """1 where a pixel of `inside` has the class, [B, K, *spatial], in the type of `like`; labels in 0 .. K - 1."""
    numbers = torch.arange(classes, device=labels.device).view(1, -1, *[1] * (labels.dim() - 1))
    return ((labels.unsqueeze(1) == numbers) & inside.unsqueeze(1)).to(like.dtype)


def prototypes(features: Tensor, masks: Tensor, scope: Literal["image", "batch"] = "image") -> Prototypes:
    """Mean of the features over each class mask, as if the features were resized to the masks' size.

    Args:
        features: [B, D, *grid].
        masks: 0 or 1, [B, K, *spatial]: the True pixels of each class.
        scope: "image", or "batch": over all images together, so that they depend on each other.
    """
    weights, features = pool_masks(masks, features.shape[2:]).flatten(2), features.flatten(2)
    sizes = masks.flatten(2).sum(dim=2)  # [B, K]
    if scope == "batch":
        weights, features = (x.transpose(0, 1).flatten(1).unsqueeze(0) for x in (weights, features))
        sizes = sizes.sum(dim=0, keepdim=True)
    vectors = torch.einsum("bkq,bdq->bkd", weights, features) / sizes.clamp(min=1)[..., None]
    return Prototypes(vectors, sizes > 0, features, weights)


def inter_class(protos: Prototypes, norm: Literal["mean", "ordered"] = "mean") -> Tensor:
    """Mean similarity of the prototypes of two classes, [B] in [0, 1]; 0 with fewer than two classes.

    Raised, it draws the classes together. `norm="ordered"` gives twice the mean, as the released program.
    """
    units = F.normalize(protos.vectors, dim=2)
    similar = (1 + units @ units.transpose(1, 2)) / 2  # [B, K, K]
    pairs = protos.present[:, :, None] & protos.present[:, None, :]
    pairs = pairs & ~torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)
    mean = (similar * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)
    return 2 * mean if norm == "ordered" else mean


def intra_class(
    protos: Prototypes, skip: tuple[int, ...] = (0,), aggregate: Literal["mean", "last"] = "mean"
) -> Tensor:
    """Similarity of the features of a class to its prototype, mean over classes, [B] in [0, 1].

    0.75 * mean of the similarities below 0.9 + 0.25 * mean of the others, 0 for what is missing. A cosine is not
    linear, so that on the features' grid, weighed by U^T m_k, it approximates its mean over pixels; it is exact where
    the features were resized to the masks' size before.

    Args:
        protos: of `prototypes`.
        skip: classes that are left out.
        aggregate: "mean" over the classes, or "last": the highest class alone, as in the released program.
    """
    lengths = protos.features.norm(dim=1, keepdim=True).clamp(min=SHORTEST)  # [B, 1, Q]: less work than unit features
    similar = (1 + F.normalize(protos.vectors, dim=2) @ protos.features / lengths) / 2  # [B, K, Q]
    high = similar.detach() >= HIGH
    value = LOW_SHARE * _mean(similar, protos.weights * ~high) + HIGH_SHARE * _mean(similar, protos.weights * high)
    numbers = torch.arange(value.shape[1], device=value.device)
    counted = protos.present
    for number in skip:
        counted = counted & (numbers != number)
    if aggregate == "last":
        counted = counted & (numbers == torch.where(counted, numbers, -1).amax(dim=1, keepdim=True))
    return _mean(value, counted.to(value.dtype))


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean along the last axis, 0 where no weight is."""
    total = weights.sum(dim=-1)
    return (values * weights).sum(dim=-1) / torch.where(total > 0, total, 1)
