"""Whether an uncertainty map can be believed (docs/rl4seg.md, Method 12).

Symbols: r = confidence that a pixel's label is right, in [0, 1]; u = 1 - r (or any other uncertainty of the pixel).
Calibration asks whether of the pixels with confidence r a share of r is right; error detection, risk-coverage and
mutual information ask only whether wrong pixels are the more uncertain ones. Tensors stay on their device, and equal
uncertainties are treated as in random order, so that no number depends on the order of the pixels.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .metrics import auroc, bin_gaps, ece, equal_width_bin

Floats = npt.NDArray[np.float64]
BINS = 20
MI_BINS = 10
"""Bins of each axis of the histogram of errors and uncertainties of one image."""


@dataclass(frozen=True)
class Calibration:
    """Calibration errors of a confidence, and the arrays of its reliability diagram."""

    ece: float
    """Expected calibration error, in [0, 1]: Σ (n_k / n) |confidence_k - accuracy_k| over bins of equal width."""
    mce: float
    """Maximum calibration error: the largest |confidence_k - accuracy_k| of these bins."""
    ace: float
    """Adaptive calibration error: the formula of `ece` over bins that hold equally many pixels."""
    count: npt.NDArray[np.int64]
    """Pixels in each bin of equal width, [bins]."""
    confidence: Floats
    """Mean confidence in the bin, [bins]; NaN where it is empty."""
    accuracy: Floats
    """Share of right pixels in the bin, [bins]; NaN where it is empty."""


class RiskCoverage(NamedTuple):
    """Mean risk of what is kept when the most uncertain are refused."""

    coverage: Floats
    """Shares that are kept, rising to 1."""
    risk: Floats
    """Mean risk of the share that is kept."""
    aurc: float
    """Area under the curve: the mean over all n coverages 1/n, 2/n, ..., 1."""


class _Ties(NamedTuple):
    """The different values in rising order, how often each stands, and the weight there; float64 [values]."""

    value: Tensor
    times: Tensor
    total: Tensor
    """Sum of the weights over the places where the value stands."""


def calibration(confidence: Tensor, correct: Tensor, *, bins: int = BINS) -> Calibration:
    """Calibration errors of a confidence in [0, 1], of any shape; correct: bool of that shape.

    Bins of equal width are (low, high], the first one closed. Bins of equal count hold n / bins pixels exactly: a
    pixel on a boundary is shared, and pixels of equal confidence are spread over their bins alike.

    Raises:
        ValueError: no pixels, shapes that differ, `correct` not bool, a confidence outside [0, 1] or NaN, no bins.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins} but must be at least 1")
    value = ece(confidence, correct, bins=bins)
    score, right = confidence.detach().double().flatten(), correct.flatten()
    bin_of = equal_width_bin(score, bins)
    count = torch.bincount(bin_of, minlength=bins)
    sure, true = (torch.bincount(bin_of, weights=w, minlength=bins) for w in (score, right.double()))
    gap = bin_gaps(score, right, bin_of).abs()
    mce = (gap / count[: len(gap)].clamp(min=1)).max()
    ties = _ties(score, right)
    position, gaps = ties.times.cumsum(0), (ties.value * ties.times - ties.total).cumsum(0)
    edges = np.linspace(0, len(score), bins + 1)
    at_edge = np.interp(edges, _from_zero(position), _from_zero(gaps))
    return Calibration(
        ece=value,
        mce=float(mce),
        ace=float(np.abs(np.diff(at_edge)).sum() / len(score)),
        count=count.cpu().numpy(),
        confidence=(sure / count).cpu().numpy(),
        accuracy=(true / count).cpu().numpy(),
    )


def error_detection(uncertainty: Tensor, wrong: Tensor) -> tuple[float, float]:
    """AUROC and AUPRC of finding the wrong pixels by their uncertainty.

    uncertainty: finite, of any shape and scale; wrong: bool of that shape.

    AUPRC is the average precision Σ (recall_k - recall_k-1) precision_k over the different thresholds. Where no pixel
    is wrong both are NaN; where all are, AUROC is NaN and AUPRC is 1.

    Raises:
        ValueError: no pixels, shapes that differ, `wrong` not bool, an uncertainty that is not finite.
    """
    ranked = auroc(uncertainty, wrong)
    ties = _ties(uncertainty, wrong)
    found = ties.total.flip(0)  # of the most uncertain pixels first
    precision = found.cumsum(0) / ties.times.flip(0).cumsum(0)
    errors = float(found.sum())
    return ranked, float((found * precision).sum()) / errors if errors else math.nan


def risk_coverage(uncertainty: Tensor, risk: Tensor, *, points: int = 100) -> RiskCoverage:
    """Risk-coverage curve and its area: the k least uncertain are kept, for every k.

    uncertainty: finite, of any shape: of images or pixels; risk: of that shape, such as 1 - Dice of an image or whether
    a pixel is wrong. The curve has at most `points` points; the area rests on all.

    Raises:
        ValueError: nothing to rank, shapes that differ, values that are not finite, no points.
    """
    risk = risk.detach().double()
    if uncertainty.shape != risk.shape or risk.numel() == 0:
        raise ValueError(f"uncertainty {list(uncertainty.shape)} and risk {list(risk.shape)} must match, not be empty")
    if not bool(uncertainty.isfinite().all() & risk.isfinite().all()):
        raise ValueError("uncertainty or risk contains NaN or infinity")
    if points < 1:
        raise ValueError(f"points is {points} but must be at least 1")
    ties = _ties(uncertainty, risk)
    each = torch.repeat_interleave(ties.total / ties.times, ties.times.long())  # [n], the least uncertain first
    n = len(each)
    kept = torch.arange(1, n + 1, device=each.device, dtype=torch.float64)
    mean_risk = each.cumsum(0) / kept
    shares = torch.arange(1, points + 1, device=each.device)
    shown = torch.unique((shares * n + points - 1) // points) - 1  # rounded up
    return RiskCoverage((kept[shown] / n).cpu().numpy(), mean_risk[shown].cpu().numpy(), aurc=float(mean_risk.mean()))


def mutual_information(errors: Tensor, uncertainty: Tensor, *, bins: int = MI_BINS) -> tuple[Tensor, Tensor]:
    """Mutual information in nats and 2 MI / (H_e + H_u), in [0, 1], of the two maps of each image; both float64 [N].

    errors, uncertainty: [N, *spatial], one shape. Each axis of an image's histogram spans the range of its map, as
    `numpy.histogram2d` has it, so uncertainties of different scale compare. A constant map tells nothing: both are 0.

    Raises:
        ValueError: maps of different shapes, without pixels or not finite; no bins.
    """
    if errors.shape != uncertainty.shape or errors.ndim < 2 or errors.numel() == 0:
        raise ValueError(
            f"maps must be [N, *spatial] of one shape, got {list(errors.shape)}, {list(uncertainty.shape)}"
        )
    if bins < 1:
        raise ValueError(f"bins is {bins} but must be at least 1")
    first, second = (_level(x.detach().flatten(1).double(), bins) for x in (errors, uncertainty))
    images = torch.arange(len(errors), device=errors.device)[:, None]
    cell = (images * bins + first) * bins + second
    joint = torch.bincount(cell.flatten(), minlength=len(errors) * bins * bins).view(-1, bins, bins)
    share = joint.double() / first.shape[1]
    of_errors, of_uncertainty = _entropy(share.sum(2)), _entropy(share.sum(1))
    mutual = (of_errors + of_uncertainty - _entropy(share.flatten(1))).clamp(min=0)
    return mutual, 2 * mutual / (of_errors + of_uncertainty).clamp(min=torch.finfo(torch.float64).tiny)


def image_uncertainty(uncertainty: Tensor, pred: Tensor) -> dict[str, Tensor]:
    """Uncertainty of each image from its map [N, H, W], float64 [N]: `mean`, and `per_foreground` = Σ u / #foreground.

    pred: labels [N, H, W]; the foreground is predicted, since the truth is unknown where a threshold is put to use. An
    empty prediction counts as one pixel.

    Raises:
        ValueError: maps and predictions of different shapes.
    """
    if uncertainty.shape != pred.shape or pred.ndim != 3:
        raise ValueError(f"maps must be [N, H, W] of one shape, got {list(uncertainty.shape)} and {list(pred.shape)}")
    total = uncertainty.detach().double().sum(dim=(1, 2))
    foreground = (pred != 0).sum(dim=(1, 2))
    return {"mean": total / pred[0].numel(), "per_foreground": total / foreground.clamp(min=1)}


def pearson(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two [N], in [-1, 1]; NaN where one does not vary.

    Raises:
        ValueError: shapes that differ, or fewer than two values.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(f"a {list(a.shape)} and b {list(b.shape)} must be [N] of one length of at least 2")
    x, y = (v.double() - v.double().mean() for v in (a, b))
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale else math.nan


class UncertaintyReport(NamedTuple):
    """Every measure of one uncertainty method on one set of images."""

    metrics: dict[str, float]
    calibration: Calibration
    pixels: RiskCoverage


def uncertainty_report(uncertainty: Tensor, pred: Tensor, truth: Tensor, dice: Tensor) -> UncertaintyReport:
    """All of the above by name, for maps u in [0, 1], predictions and truths [N, H, W] and the Dice [N] of the images.

    ece, mce, ace, error_auroc, error_auprc and aurc_pixel are over the pixels that prediction or truth calls
    foreground: the rest is easy background. mi and nmi are over whole images; aurc_image ranks by
    Σ u / #foreground with risk 1 - Dice; correlation_mean and correlation_foreground are Pearson's, of Dice with
    `image_uncertainty` (negative is good).

    Raises:
        ValueError: shapes that do not match, u outside [0, 1] or NaN, no foreground at all, fewer than two images.
    """
    if not uncertainty.shape == pred.shape == truth.shape or pred.ndim != 3 or dice.shape != pred.shape[:1]:
        shapes = [list(x.shape) for x in (uncertainty, pred, truth, dice)]
        raise ValueError(f"uncertainty, pred and truth must be [N, H, W] and dice [N], got {shapes}")
    foreground, wrong = (pred | truth) != 0, pred != truth
    if not bool(foreground.any()):
        raise ValueError("neither the predictions nor the truths hold any foreground to measure uncertainty on")
    u, error = uncertainty.detach()[foreground], wrong[foreground]
    calibrated = calibration(1 - u, ~error)
    found, precise = error_detection(u, error)
    mutual, normalised = mutual_information(wrong, uncertainty)
    of_image, dice = image_uncertainty(uncertainty, pred), dice.to(uncertainty.device)
    pixels = risk_coverage(u, error)
    metrics = {
        "ece": calibrated.ece,
        "mce": calibrated.mce,
        "ace": calibrated.ace,
        "error_auroc": found,
        "error_auprc": precise,
        "aurc_pixel": pixels.aurc,
        "aurc_image": risk_coverage(of_image["per_foreground"], 1 - dice).aurc,
        "mi": float(mutual.mean()),
        "nmi": float(normalised.mean()),
        "correlation_mean": pearson(dice, of_image["mean"]),
        "correlation_foreground": pearson(dice, of_image["per_foreground"]),
    }
    return UncertaintyReport(metrics, calibrated, pixels)


def _ties(values: Tensor, weights: Tensor) -> _Ties:
    """The weights summed over equal values; both of one shape."""
    different, place, count = torch.unique(values.detach().flatten(), return_inverse=True, return_counts=True)
    total = torch.bincount(place, weights=weights.flatten().double())
    return _Ties(different.double(), count.double(), total)


def _from_zero(rising: Tensor) -> Floats:
    return np.concatenate(([0.0], rising.cpu().numpy()))


def _level(maps: Tensor, bins: int) -> Tensor:
    """Bin of each value within the range of its row, int64 [N, P]; the last bin is closed. maps: float64 [N, P]."""
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise ValueError("maps contain NaN or infinity")
    width = torch.where(high > low, high - low, 1.0)
    return ((maps - low) / width * bins).long().clamp(max=bins - 1)


def _entropy(share: Tensor) -> Tensor:
    """Entropy in nats [N] of the distributions [N, K]."""
    entropy: Tensor = torch.special.entr(share).sum(1)
    return entropy
