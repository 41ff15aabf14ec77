"""Hausdorff distances of many 2-D masks at once."""

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import KDTree
from torch import Tensor

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.bool_]


def hausdorff_mm(preds: Tensor, truths: Tensor, spacing_mm: Tensor) -> Tensor:
    """Largest distance in mm from the boundary of one mask to that of the other, float64 [N], on the CPU.

    Equals `metrics.hd95_mm` with percentile 100, many times as fast. preds, truths: bool [N, H, W]; spacing_mm: [N, 2].

    Raises:
        ValueError: masks that are not bool [N, H, W] of one shape, or spacings that are not N positive pairs.
    """
    if preds.shape != truths.shape or preds.ndim != 3 or not preds.dtype == truths.dtype == torch.bool:
        raise ValueError(f"masks must be bool [N, H, W], got {preds.dtype} {[*preds.shape]}, {[*truths.shape]}")
    spacing = spacing_mm.double().cpu().numpy()
    if spacing.shape != (len(preds), 2) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing_mm is {spacing.tolist()} but must be {len(preds)} pairs of positive lengths")
    edges = [_edges(mask.cpu().numpy()) for mask in (preds, truths)]
    points = [_points(edge, spacing) for edge in edges]
    apart = [_points(here & ~there, spacing) for here, there in (edges, edges[::-1])]  # the others have distance 0
    extent = spacing * preds.shape[1:]
    distances = np.zeros(len(preds))
    for n, (p, g) in enumerate(zip(*points, strict=True)):
        if len(p) and len(g):
            directed = ((apart[0][n], g), (apart[1][n], p))
            distances[n] = max(float(KDTree(to).query(of)[0].max()) if len(of) else 0.0 for of, to in directed)
        elif len(p) or len(g):
            distances[n] = math.hypot(*extent[n])
    return torch.from_numpy(distances)


def _edges(masks: Pixels) -> Pixels:
    """The pixels of the masks [N, H, W] with a neighbour by a side outside; the image border is outside."""
    framed = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    rows, cols = framed[:, :, 1:-1], framed[:, 1:-1]
    return masks & ~(rows[:, :-2] & rows[:, 2:] & cols[:, :, :-2] & cols[:, :, 2:])


def _points(edges: Pixels, spacing: Floats) -> list[Floats]:
    """Positions in mm, [points, 2], of the pixels of each image."""
    image, y, x = np.nonzero(edges)
    at = np.stack([y, x], axis=1) * spacing[image]
    return np.split(at, np.searchsorted(image, np.arange(1, len(edges))))
