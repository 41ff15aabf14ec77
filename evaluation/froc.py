"""FROC of heat maps: share of the lesions found against false positives per scan (docs/spars.md, Method 13).

A detection is a component (26 neighbours) of the voxels whose value exceeds a threshold. A lesion is found where one
detection meets it with an IoU above `min_iou`; a detection that meets no lesion so is a false positive. With `min_iou`
0 any common voxel is a hit, and a threshold so low that all voxels are one detection finds everything at no false
positive: then the curve says nothing of the map.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import Tensor

from .metrics import LESION_MIN_IOU, best_ious, components

Counts = npt.NDArray[np.int64]
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which the sensitivity is told."""
THRESHOLDS = 32
"""Number of thresholds at which the curve is known."""
SMALLEST_SHARE = 1e-4
"""Share of the values that the highest threshold leaves, but for that which leaves none."""


class Detections(NamedTuple):
    """What the map of one scan finds at each of T thresholds."""

    lesions: int
    """Number of lesions."""
    found: Counts
    """Lesions that are found, int64 [T]."""
    false_positives: Counts
    """Detections that meet none, int64 [T]."""


def levels_of(values: npt.NDArray[np.floating]) -> list[float]:
    """Ascending thresholds for maps of which `values`, of any shape, is a sample: at most `THRESHOLDS` upper quantiles
    of the positive ones, denser above, since lesions are small; 0 where there is none."""
    positive = values[values > 0]
    if not positive.size:
        return [0.0]
    quantiles = np.quantile(positive, 1 - np.geomspace(SMALLEST_SHARE, 1, THRESHOLDS))
    return [float(level) for level in np.unique(quantiles.astype(np.float32))]


def detections(
    values: Tensor, label: Tensor, thresholds: Sequence[float], *, min_iou: float = LESION_MIN_IOU
) -> Detections:
    """What a map, floating point [X, Y, Z], finds of the lesions of a mask, bool [X, Y, Z], at ascending thresholds.

    Raises:
        ValueError: a map and a mask of different shapes, or thresholds that do not ascend.
    """
    if values.shape != label.shape:
        raise ValueError(f"the map has shape {(*values.shape,)} but the mask {(*label.shape,)}; they must be equal")
    if list(thresholds) != sorted(thresholds):
        raise ValueError(f"thresholds are {list(thresholds)} but must ascend")
    heat, lesions = values.cpu().numpy(), components(label.cpu().numpy())
    sizes = np.bincount(lesions.ravel())
    found, wrong = np.zeros((2, len(thresholds)), dtype=np.int64)
    for number, threshold in enumerate(thresholds):
        inside = heat > threshold
        boxes = ndimage.find_objects(inside.view(np.int8))
        if not boxes:
            break
        heat, lesions = heat[boxes[0]], lesions[boxes[0]]  # what a higher threshold leaves lies in the same box
        of_lesion, of_detection = best_ious(components(inside[boxes[0]]), lesions, sizes)
        found[number], wrong[number] = np.sum(of_lesion > min_iou), np.sum(of_detection <= min_iou)
    return Detections(len(sizes) - 1, found, wrong)


def froc(scans: Sequence[Detections]) -> dict[str, float]:
    """froc_0.125, ... froc_8: the highest share of all lesions that one threshold finds with at most so many false
    positives per scan, in [0, 1], 0 where none does; froc_mean: their mean. NaN without lesions.

    scans: `detections` of every scan at the same thresholds, those without lesions too.
    """
    lesions = sum(scan.lesions for scan in scans)
    found = np.sum([scan.found for scan in scans], axis=0)
    per_scan = np.mean([scan.false_positives for scan in scans], axis=0)
    shares = [found[per_scan <= rate].max(initial=0) / lesions if lesions else math.nan for rate in RATES]
    return {
        **{f"froc_{rate:g}": float(share) for rate, share in zip(RATES, shares, strict=True)},
        "froc_mean": float(np.mean(shares)),
    }
