"""How well classes of X-rays are told apart, by image and by study (docs/apga.md, Method 9).

Symbols: p = probabilities [N, K], or [S, N, K] of S seeds on the same images; a study has one image or several.
With two classes sensitivity, specificity, F1 and AUROC are those of class 1; with more, means over the classes that
occur, each against all others. A metric that nothing can tell is NaN: AUROC with one true class alone, for example.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .statistics import Interval, draw_counts, percentile_interval

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
METRICS = ("accuracy", "balanced_accuracy", "auroc", "kappa", "sensitivity", "specificity", "f1")
STUDY = "study_"
"""Beginning of the names of metrics of studies."""
RESAMPLES = 2000
MOST_NUMBERS = 2**22
"""Weights of cases that are looked at together: 32 MB."""
SUM = 1e-3
"""By how much the probabilities of an image may miss the sum 1."""


def image_metrics(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """The metrics `METRICS` of images.

    Args:
        probabilities: p [N, K].
        labels: int64 [N] in 0..K-1.

    Raises:
        ValueError: shapes that do not go together, no images, probabilities or labels outside their range.
    """
    p, y = _checked(probabilities, labels)
    if len(p) != 1:
        raise ValueError(f"probabilities have shape {list(probabilities.shape)} but must be [N, K]")
    ones = np.ones((1, len(y)), dtype=np.int64)
    return {name: float(values[0, 0]) for name, values in _judge(p, y, ones).items()}


def predicted_classes(probabilities: Tensor) -> Tensor:
    """Class int64 [...] of p [..., K]: of two, 1 where its probability is above a half; else the most likely."""
    return (probabilities[..., 1] > 0.5).long() if probabilities.shape[-1] == 2 else probabilities.argmax(dim=-1)


def level_metrics(probabilities: Tensor, labels: Tensor, studies: Sequence[Hashable]) -> dict[str, float]:
    """The metrics of images, and those of studies as `study_<metric>`; see `study_level`."""
    of_studies = image_metrics(*study_level(probabilities, labels, studies))
    return image_metrics(probabilities, labels) | {f"{STUDY}{name}": value for name, value in of_studies.items()}


def study_level(probabilities: Tensor, labels: Tensor, studies: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """Mean probabilities of the images of each study, [..., M, K], and their label, int64 [M], by first occurrence.

    Args:
        probabilities: p.
        labels: int64 [N], the same for all images of a study.
        studies: [N], the study of each image.

    Raises:
        ValueError: as `image_metrics`, or a study whose images have different labels.
    """
    _checked(probabilities, labels)
    study_of, names = _numbered(studies, len(labels))
    number, device = len(names), probabilities.device
    index, y = torch.from_numpy(study_of).to(device), labels.to(device)
    first = torch.full((number,), -1, device=device).scatter_reduce(0, index, y, "amax")
    if wrong := (first[index] != y).nonzero()[:, 0].tolist():
        raise ValueError(
            f"study {names[study_of[wrong[0]]]!r} has images of different labels, but a study has one; name a study of "
            f"its own for each"
        )
    sizes = torch.bincount(index, minlength=number)
    shape = (*probabilities.shape[:-2], number, probabilities.shape[-1])
    sums = torch.zeros(shape, dtype=torch.float64, device=device).index_add(-2, index, probabilities.double())
    return sums / sizes[:, None], first


def metric_intervals(
    probabilities: Tensor,
    labels: Tensor,
    studies: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Each metric of images and of studies, the mean over the seeds, with its bootstrap interval.

    Studies are drawn with replacement, each with all of its images, and seeds independently of them. A resample in
    which a metric is undefined does not count for it; of one study alone the bounds are NaN.

    Args:
        probabilities: p.
        labels: int64 [N].
        studies: [N], the study of each image.
        level: share of the resamples between the bounds.
        resamples: number of them.
        seed: of the resamples: methods on the same images get the same ones.

    Raises:
        ValueError: as `study_level`, a level outside (0, 1), or less than one resample.
    """
    return _intervals(_Resampled(probabilities, labels, studies, resamples, seed), None, level)


def paired_differences(
    probabilities: Tensor,
    others: Tensor,
    labels: Tensor,
    studies: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """By how much each metric of one method is above that of another on the same images, with its bootstrap interval.

    Both are judged on the same resamples of studies and seeds, so that what is hard for both cancels out. `others`: p
    of the other method, of the same shape. All else, and what is raised, as `metric_intervals`.
    """
    if probabilities.shape != others.shape:
        raise ValueError(
            f"the methods have probabilities {list(probabilities.shape)} and {list(others.shape)}, but pairs need the "
            f"same images, classes and seeds"
        )
    one, other = (_Resampled(p, labels, studies, resamples, seed) for p in (probabilities, others))
    return _intervals(one, other, level)


class _Level(NamedTuple):
    """Cases of one kind, images or studies."""

    prefix: str
    probabilities: Floats
    """[S, N, K]."""
    labels: Integers
    """[N]."""
    study_of: Integers
    """[N]."""


class _Resampled:
    """Metrics of one method: on all cases, `whole` [S], and on resamples of them, `drawn` [S, R]; by name."""

    def __init__(
        self, probabilities: Tensor, labels: Tensor, studies: Sequence[Hashable], resamples: int, seed: int
    ) -> None:
        if resamples < 1:
            raise ValueError(f"resamples is {resamples} but must be at least 1")
        study_of, names = _numbered(studies, len(labels))
        levels = [_Level("", *_checked(probabilities, labels), study_of)]
        levels.append(_Level(STUDY, *_checked(*study_level(probabilities, labels, studies)), np.arange(len(names))))
        rng = np.random.default_rng(seed)
        counts = draw_counts(rng, len(names), resamples)  # [R, M]
        self.of_seeds = draw_counts(rng, len(levels[0].probabilities), resamples)  # [R, S]
        self.number = len(names)
        self.whole: dict[str, Floats] = {}
        self.drawn: dict[str, Floats] = {}
        block = max(1, MOST_NUMBERS // len(labels))
        for prefix, p, y, owner in levels:
            self.whole |= {f"{prefix}{k}": v[:, 0] for k, v in _judge(p, y, np.ones((1, len(y)), np.int64)).items()}
            parts = [_judge(p, y, counts[row : row + block, owner]) for row in range(0, resamples, block)]
            self.drawn |= {f"{prefix}{k}": np.concatenate([part[k] for part in parts], axis=1) for k in METRICS}


def _intervals(one: _Resampled, other: _Resampled | None, level: float) -> dict[str, Interval]:
    found = {}
    for name, whole in one.whole.items():
        drawn = one.drawn[name]
        if other is not None:
            whole, drawn = whole - other.whole[name], drawn - other.drawn[name]
        # NaN of a seed that was not drawn must not count
        values = np.where(one.of_seeds.T > 0, drawn * one.of_seeds.T, 0.0).sum(axis=0) / one.of_seeds.sum(axis=1)
        bounds = np.array([]) if one.number == 1 else values[np.isfinite(values)]
        found[name] = percentile_interval(float(whole.mean()), bounds, level)
    return found


def _judge(p: Floats, y: Integers, counts: Integers) -> dict[str, Floats]:
    """Each metric, [S, R], of p [S, N, K] with labels y [N], case n counting counts[r, n] times."""
    classes = p.shape[2]
    predicted = predicted_classes(torch.from_numpy(p)).numpy()  # [S, N]
    cells = np.eye(classes * classes)[y * classes + predicted]  # [S, N, K K]
    rates = _rates((counts @ cells).reshape(len(p), len(counts), classes, classes))
    wanted = (1,) if classes == 2 else range(classes)
    of_classes = [np.stack([_auroc(one[:, c], y == c, counts) for one in p]) for c in wanted]  # of each: [S, R]
    if classes == 2:
        return rates | {"auroc": of_classes[0]}
    occurs = counts @ np.eye(classes, dtype=np.int64)[y] > 0  # [R, K]
    return rates | {"auroc": _mean_where(np.stack(of_classes, axis=2), occurs)}


def _rates(confusion: Floats) -> dict[str, Floats]:
    """What follows from confusion matrices [..., K, K], rows true, as [...]."""
    hits, true, predicted = np.einsum("...kk->...k", confusion), confusion.sum(axis=-1), confusion.sum(axis=-2)
    total = true.sum(axis=-1)
    negatives = total[..., None] - true
    with np.errstate(invalid="ignore"):
        recall, specificity = hits / true, (negatives - predicted + hits) / negatives
        f1, accuracy = 2 * hits / (true + predicted), hits.sum(axis=-1) / total
        chance = (true * predicted).sum(axis=-1) / total**2
        kappa = (accuracy - chance) / (1 - chance)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": _mean_where(recall, true > 0),
        "kappa": kappa,
        "sensitivity": _over_classes(recall, true > 0),
        "specificity": _over_classes(specificity, true > 0),
        "f1": _over_classes(f1, true > 0),
    }


def _auroc(scores: Floats, positive: npt.NDArray[np.bool_], counts: Integers) -> Floats:
    """AUROC [R] of scores [N], case n counting counts[r, n] times, ties half; NaN without pairs."""
    values, rank = np.unique(scores, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    starts = np.searchsorted(rank[order], np.arange(len(values)))
    ups, downs = (np.add.reduceat(counts[:, order] * side[order], starts, axis=1) for side in (positive, ~positive))
    below = downs.cumsum(axis=1) - downs / 2  # [R, values]: cases of the other classes below, and half of the ties
    pairs = ups.sum(axis=1) * downs.sum(axis=1)
    with np.errstate(invalid="ignore"):
        area: Floats = (ups * below).sum(axis=1) / pairs
    return area


def _over_classes(values: Floats, occurs: npt.NDArray[np.bool_]) -> Floats:
    """Of values [..., K] of classes: that of class 1 of two, or the mean of those that occur, [...]."""
    if values.shape[-1] == 2:
        of_one: Floats = values[..., 1]
        return of_one
    return _mean_where(values, occurs)


def _mean_where(values: Floats, where: npt.NDArray[np.bool_]) -> Floats:
    mean: Floats = np.where(where, values, 0.0).sum(axis=-1) / where.sum(axis=-1)
    return mean


def _numbered(studies: Sequence[Hashable], cases: int) -> tuple[Integers, list[Hashable]]:
    """Number of each case's study, [N], and the studies by number."""
    if len(studies) != cases:
        raise ValueError(f"{cases} images need as many studies, got {len(studies)}")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(study, len(numbers)) for study in studies], dtype=np.int64), [*numbers]


def _checked(probabilities: Tensor, labels: Tensor) -> tuple[Floats, Integers]:
    """Both as arrays, [S, N, K] and [N].

    Raises:
        ValueError: see `image_metrics`.
    """
    p, y = probabilities.detach().cpu().double().numpy(), labels.detach().cpu().numpy()
    if p.ndim not in (2, 3) or y.shape != p.shape[-2:-1] or p.shape[-1] < 2 or p.size == 0:
        raise ValueError(
            f"probabilities have shape {list(p.shape)} and labels {list(y.shape)} but must be [N, K] or [seeds, N, K], "
            f"and [N], not empty, of at least two classes"
        )
    if not (np.isfinite(p).all() and (p >= 0).all() and (np.abs(p.sum(axis=-1) - 1) < SUM).all()):
        raise ValueError("probabilities must be finite, at least 0, and sum to 1 for each image; give a softmax")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[-1]:
        raise ValueError(f"labels are {y.dtype} from {y.min()} to {y.max()} but must be whole, 0..{p.shape[-1] - 1}")
    return p.reshape(-1, *p.shape[-2:]), y.astype(np.int64)
