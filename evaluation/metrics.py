"""Metrics of masks and of classifiers (docs/spars.md, Method 13; docs/rl4seg.md, Method 12).

Masks are boolean tensors [*spatial] of equal shape; surface and lesion metrics take two or three axes. The values for
empty masks stand in one table, so that no case drops out of a mean unnoticed:

| truth | prediction | dice, iou, precision, recall, nsd, lesion_* | hd95_mm               | false_positive_ml        |
|-------|------------|---------------------------------------------|-----------------------|--------------------------|
| empty | empty      | 1                                           | 0                     | 0                        |
| empty | not empty  | 0                                           | diagonal of the image | volume of the prediction |
| not   | empty      | 0                                           | diagonal of the image | 0                        |

The diagonal (in mm, outer edge to outer edge) is the largest distance that the image allows: a missed target costs the
worst value instead of a NaN that a mean would skip. Cases with an empty target say nothing about overlap, so reports
leave them out of the means of `NEEDS_TARGET` and show their false-positive volume and specificity instead.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scipy import ndimage, stats
from torch import Tensor

NEEDS_TARGET = frozenset(
    {
        "dice",
        "iou",
        "precision",
        "recall",
        "hd95_mm",
        "nsd",
        "lesion_recall",
        "lesion_precision",
        "lesion_recall_iou",
        "lesion_precision_iou",
    }
)
"""Metrics whose mean leaves out the cases with an empty truth (`label_voxels` is 0)."""
LESION_MIN_IOU = 0.1
"""A lesion counts as found, by the stricter criterion, above this IoU with one component of the other mask."""

Floats = npt.NDArray[np.float64]


# -- overlap -------------------------------------------------------------------------------------------------------


def dice(pred: Tensor, label: Tensor) -> float:
    """Dice coefficient 2 TP / (2 TP + FP + FN), in [0, 1]; bool masks of any rank.

    Raises:
        ValueError: a mask that is not bool, or masks of different shapes.
    """
    tp, fp, fn = _confusion(pred, label)
    return _ratio(2 * tp, 2 * tp + fp + fn, empty=1.0)


def iou(pred: Tensor, label: Tensor) -> float:
    """Intersection over union TP / (TP + FP + FN), in [0, 1]; bool masks of any rank.

    Raises:
        ValueError: a mask that is not bool, or masks of different shapes.
    """
    tp, fp, fn = _confusion(pred, label)
    return _ratio(tp, tp + fp + fn, empty=1.0)


def precision(pred: Tensor, label: Tensor) -> float:
    """Share of the predicted voxels that are true, TP / (TP + FP), in [0, 1]; bool masks of any rank.

    An empty prediction gives 0, or 1 where the truth is empty too.

    Raises:
        ValueError: a mask that is not bool, or masks of different shapes.
    """
    tp, fp, fn = _confusion(pred, label)
    return _ratio(tp, tp + fp, empty=float(fn == 0))


def recall(pred: Tensor, label: Tensor) -> float:
    """Share of the true voxels that are predicted, TP / (TP + FN), in [0, 1]; bool masks of any rank.

    An empty truth gives 0, or 1 where the prediction is empty too.

    Raises:
        ValueError: a mask that is not bool, or masks of different shapes.
    """
    tp, fp, fn = _confusion(pred, label)
    return _ratio(tp, tp + fn, empty=float(fp == 0))


def false_positive_ml(pred: Tensor, label: Tensor, spacing_mm: Sequence[float]) -> float:
    """Volume in ml of what is predicted but not true; bool masks [X, Y, Z].

    Raises:
        ValueError: masks that do not match, are not bool or have no three axes; a spacing that does not fit them.
    """
    _, fp, _ = _confusion(pred, label)
    spacing = _check_spacing(spacing_mm, pred.ndim, ranks=(3,))
    return fp * math.prod(spacing) / 1000.0


# -- surfaces ------------------------------------------------------------------------------------------------------


def hd95_mm(pred: Tensor, label: Tensor, spacing_mm: Sequence[float], *, percentile: float = 95.0) -> float:
    """Hausdorff distance in mm: the larger of the two directed percentiles of the surface distances; 2-D or 3-D.

    The surface is made of the voxels of the mask that touch the outside by a face; the image border is outside.
    `percentile` 100 is the classic Hausdorff distance.

    Raises:
        ValueError: masks that do not match or are not bool; a spacing that does not fit them.
    """
    spacing = _check_surface_input(pred, label, spacing_mm)
    if not pred.any() or not label.any():
        extent = [n * s for n, s in zip(pred.shape, spacing, strict=True)]
        return math.hypot(*extent) if pred.any() or label.any() else 0.0
    edges = get_mask_edges(pred.cpu(), label.cpu())
    directed = (get_surface_distance(a, b, spacing=spacing) for a, b in (edges, edges[::-1]))
    return max(float(np.percentile(distances, percentile)) for distances in directed)


def nsd(pred: Tensor, label: Tensor, spacing_mm: Sequence[float], *, tolerance_mm: float) -> float:
    """Normalised surface Dice in [0, 1]: the share of both surfaces, by area, within `tolerance_mm` of the other.

    As in the Medical Segmentation Decathlon, whose tolerance for the liver is 7 mm: surface elements lie between
    voxels and are weighted with their area (2-D: length).

    Raises:
        ValueError: masks that do not match or are not bool; a spacing that does not fit them; a negative tolerance.
    """
    spacing = _check_surface_input(pred, label, spacing_mm)
    if not 0 <= tolerance_mm < math.inf:
        raise ValueError(f"tolerance_mm is {tolerance_mm!r} but must be finite and at least 0")
    if not pred.any() or not label.any():
        return float(pred.any() == label.any())
    edge_pred, edge_label, area_pred, area_label = get_mask_edges(pred.cpu(), label.cpu(), spacing=spacing)
    close = total = 0.0
    for here, there, area in ((edge_pred, edge_label, area_pred), (edge_label, edge_pred, area_label)):
        near = get_surface_distance(here, there, spacing=spacing) <= tolerance_mm
        area = area[here].double()
        close += float(area[near].sum())
        total += float(area.sum())
    return close / total


# -- lesions -------------------------------------------------------------------------------------------------------


def lesion_ious(pred: Tensor, label: Tensor) -> tuple[Floats, Floats]:
    """Best IoU of every true lesion with one predicted lesion [n_label], and of every predicted one [n_pred].

    A lesion is a component connected by faces, edges or corners: 26 neighbours in a volume, 8 in a picture.

    Raises:
        ValueError: a mask that is not bool, or masks of different shapes.
    """
    _check_masks(pred=pred, label=label)
    of_pred, of_label = (components(mask.cpu().numpy()) for mask in (pred, label))
    return best_ious(of_pred, of_label, np.bincount(of_label.ravel()))


def components(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Number of the component of each voxel, from 1, 0 outside: connected by faces, edges or corners."""
    parts: npt.NDArray[np.int32] = ndimage.label(mask, np.ones((3,) * mask.ndim, dtype=bool))[0]
    return parts


def best_ious(
    pred: npt.NDArray[np.int32], label: npt.NDArray[np.int32], label_sizes: npt.NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """`lesion_ious` of `components`; label_sizes: voxels of each, from 0."""
    pred_sizes, where = np.bincount(pred.ravel()), np.flatnonzero(label)
    i, j = label.ravel()[where], pred.ravel()[where]
    # the pairs that meet, counted as one number each: a dense table would not fit when both masks are speckled
    pairs, shared = np.unique(i[j > 0] * np.int64(len(pred_sizes)) + j[j > 0], return_counts=True)
    i, j = np.divmod(pairs, len(pred_sizes))
    overlap = shared / (label_sizes[i] + pred_sizes[j] - shared)
    best_label, best_pred = np.zeros(len(label_sizes) - 1), np.zeros(len(pred_sizes) - 1)
    np.maximum.at(best_label, i - 1, overlap)
    np.maximum.at(best_pred, j - 1, overlap)
    return best_label, best_pred


def lesion_recall(pred: Tensor, label: Tensor, *, min_iou: float = 0.0) -> float:
    """Share of the true lesions that one predicted lesion meets with an IoU above `min_iou`, in [0, 1].

    At 0 any common voxel is a hit; the stricter criterion of the reports is `LESION_MIN_IOU`.

    Raises:
        ValueError: a mask that is not bool, or masks of different shapes.
    """
    of_label, of_pred = lesion_ious(pred, label)
    return _hit_rate(of_label, of_pred, min_iou)


def lesion_precision(pred: Tensor, label: Tensor, *, min_iou: float = 0.0) -> float:
    """Share of the predicted lesions that one true lesion meets with an IoU above `min_iou`, in [0, 1].

    Raises:
        ValueError: a mask that is not bool, or masks of different shapes.
    """
    return lesion_recall(label, pred, min_iou=min_iou)


# -- all of them ---------------------------------------------------------------------------------------------------


def segmentation_metrics(
    pred: Tensor, label: Tensor, spacing_mm: Sequence[float], *, tolerance_mm: float = 7.0
) -> dict[str, float]:
    """Every metric of one case by name; `false_positive_ml` in volumes only. Bool masks [X, Y] or [X, Y, Z].

    `label_voxels` and `pred_voxels` come along, so that a report can tell the cases with an empty target.

    Raises:
        ValueError: masks that do not match or are not bool; a spacing that does not fit them; a negative tolerance.
    """
    of_label, of_pred = lesion_ious(pred, label)
    metrics = {
        "dice": dice(pred, label),
        "iou": iou(pred, label),
        "precision": precision(pred, label),
        "recall": recall(pred, label),
        "hd95_mm": hd95_mm(pred, label, spacing_mm),
        "nsd": nsd(pred, label, spacing_mm, tolerance_mm=tolerance_mm),
        "lesion_recall": _hit_rate(of_label, of_pred, 0.0),
        "lesion_precision": _hit_rate(of_pred, of_label, 0.0),
        "lesion_recall_iou": _hit_rate(of_label, of_pred, LESION_MIN_IOU),
        "lesion_precision_iou": _hit_rate(of_pred, of_label, LESION_MIN_IOU),
        "label_voxels": float(torch.count_nonzero(label)),
        "pred_voxels": float(torch.count_nonzero(pred)),
    }
    if pred.ndim == 3:
        metrics["false_positive_ml"] = false_positive_ml(pred, label, spacing_mm)
    return metrics


def classification_metrics(scores: Tensor, labels: Tensor, *, threshold: float = 0.5) -> dict[str, float]:
    """accuracy, precision, sensitivity, specificity, f1, auroc and ece of a binary classifier.

    scores: probabilities of the positive class in [0, 1], of any shape; labels: bool of that shape. A case is called
    positive where its score is above `threshold` (strictly, as SPARS ends an episode). A share of nothing is 0:
    precision where nothing is called positive, sensitivity without positives, specificity without negatives.

    Raises:
        ValueError: no cases, shapes that differ, labels that are not bool, scores outside [0, 1] or NaN.
    """
    _check_scores(scores, labels, probabilities=True)
    tp, fp, fn = _confusion(scores > threshold, labels)
    tn = labels.numel() - tp - fp - fn
    return {
        "accuracy": (tp + tn) / labels.numel(),
        "precision": _ratio(tp, tp + fp, empty=0.0),
        "sensitivity": _ratio(tp, tp + fn, empty=0.0),
        "specificity": _ratio(tn, tn + fp, empty=0.0),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn, empty=0.0),
        "auroc": auroc(scores, labels),
        "ece": ece(scores, labels),
    }


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Probability that a positive case scores above a negative one, ties counting half (Mann-Whitney U / n1 n0).

    scores: finite, of any shape and scale; labels: bool of that shape. With one class only, nothing can be ranked: NaN.

    Raises:
        ValueError: no cases, shapes that differ, labels that are not bool, scores that are not finite.
    """
    _check_scores(scores, labels, probabilities=False)
    positive = labels.flatten().cpu().numpy()
    n1 = int(positive.sum())
    n0 = positive.size - n1
    if n1 == 0 or n0 == 0:
        return math.nan
    ranks = stats.rankdata(scores.detach().flatten().cpu().numpy())
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def ece(scores: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: Σ (n_k / N) |mean score - share of positives| over equal-width bins.

    scores: in [0, 1], of any shape; labels: bool of that shape, whether what the score promises came true. Bins are
    (low, high], the first one closed.

    Raises:
        ValueError: no cases, shapes that differ, labels that are not bool, scores outside [0, 1] or NaN.
    """
    _check_scores(scores, labels, probabilities=True)
    scores = scores.detach().double().flatten()
    return float(bin_gaps(scores, labels, equal_width_bin(scores, bins)).abs().sum() / scores.numel())


def equal_width_bin(scores: Tensor, bins: int) -> Tensor:
    """Number of the bin of each score, int64 in 0..bins-1: (low, high], the first one closed; scores: float64, 0..1."""
    inner = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=scores.device)[1:-1]
    return torch.bucketize(scores, inner)


def bin_gaps(scores: Tensor, labels: Tensor, bin_of: Tensor) -> Tensor:
    """Σ (score - label) in each bin up to the last that holds something, float64; scores: float64 [N]."""
    return torch.bincount(bin_of, weights=scores - labels.flatten().double())


# -- helpers -------------------------------------------------------------------------------------------------------


def _confusion(pred: Tensor, label: Tensor) -> tuple[int, int, int]:
    """Numbers of true positive, false positive and false negative voxels."""
    _check_masks(pred=pred, label=label)
    tp = int(torch.count_nonzero(pred & label))
    return tp, int(torch.count_nonzero(pred)) - tp, int(torch.count_nonzero(label)) - tp


def _ratio(part: int, whole: int, *, empty: float) -> float:
    return part / whole if whole else empty


def _hit_rate(best: Floats, other: Floats, min_iou: float) -> float:
    """Share of the lesions with an IoU above `min_iou`; without any, 1 if the other mask has none either, else 0."""
    return float(np.mean(best > min_iou)) if best.size else float(other.size == 0)


def _check_masks(**masks: Tensor) -> None:
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise ValueError(f"{name} is {getattr(mask, 'dtype', type(mask).__name__)} but must be a bool tensor")
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    if len(set(shapes.values())) > 1 or 0 in next(iter(shapes.values())):
        raise ValueError(f"masks must have one shape and not be empty arrays, got {shapes}")


def _check_surface_input(pred: Tensor, label: Tensor, spacing_mm: Sequence[float]) -> tuple[float, ...]:
    _check_masks(pred=pred, label=label)
    return _check_spacing(spacing_mm, pred.ndim, ranks=(2, 3))


def _check_spacing(spacing_mm: Sequence[float], rank: int, ranks: tuple[int, ...]) -> tuple[float, ...]:
    if rank not in ranks:
        raise ValueError(f"the masks have {rank} axes but must have {' or '.join(map(str, ranks))}")
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != rank or not all(0 < s < math.inf for s in spacing):
        raise ValueError(f"spacing_mm is {spacing} but must be {rank} positive lengths, one for each axis")
    return spacing


def _check_scores(scores: Tensor, labels: Tensor, *, probabilities: bool) -> None:
    _check_masks(labels=labels)
    if scores.shape != labels.shape:
        raise ValueError(f"scores {list(scores.shape)} and labels {list(labels.shape)} must have one shape")
    if not bool(scores.isfinite().all()):
        raise ValueError("scores contain NaN or infinity")
    if probabilities and not bool(((scores >= 0) & (scores <= 1)).all()):
        raise ValueError(f"scores lie in [{float(scores.min())}, {float(scores.max())}] but must lie in [0, 1]")
