"""Bootstrap intervals of means and p-values of differences, for every report."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Test = TypeVar("Test", bound=Hashable)
"""Name of a test, such as that of a method."""


class Interval(NamedTuple):
    """A mean and its confidence interval; the bounds are NaN where one case cannot tell them."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: npt.ArrayLike,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    *,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Mean of `values` and its percentile bootstrap interval, in the unit of the values.

    values: [cases], or [seeds, cases] where every seed was evaluated on the same cases. Cases and seeds are crossed:
    an unlucky seed is unlucky on all cases, a hard case is hard for all seeds. So each resample draws a set of cases
    and, independently, a set of seeds, and averages over their product (the pigeonhole bootstrap: Owen, Annals of
    Applied Statistics 1(2), 2007). Drawing seeds afresh for every case would hide the luck of a seed, and so would
    averaging the seeds first.

    clusters: [cases], the patient of each case, where cases of one patient are alike. Patients are drawn then, each
    with all of their cases; every case counts the same, so the mean stays that of the cases.

    With a single case (or cluster) the interval is (NaN, NaN): nothing is known about other cases. With a single seed
    the interval speaks of cases only.

    Raises:
        ValueError: no values, more than two axes, NaN or infinity, a level outside (0, 1), less than one resample, not
            one cluster per case.
    """
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))  # [S, C]
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"values have shape {np.shape(values)} but must be [cases] or [seeds, cases], not empty")
    if not np.isfinite(table).all():
        raise ValueError("values contain NaN or infinity")
    _check_level(level)
    if resamples < 1:
        raise ValueError(f"resamples is {resamples} but must be at least 1")
    mean = float(table.mean())
    spread = float(np.ptp(table))
    sizes = np.ones(table.shape[1], dtype=np.int64)
    if clusters is not None:
        table, sizes = _cluster_sums(table, clusters)
    seeds, units = table.shape
    if units == 1:
        return Interval(mean, float("nan"), float("nan"))
    if spread == 0:  # rounding in the sums below would otherwise open a gap
        return Interval(mean, mean, mean)
    rng = np.random.default_rng(seed)
    drawn = draw_counts(rng, units, resamples)  # [R, U]: units are cases or clusters
    of_cases = drawn / (drawn @ sizes)[:, None]
    of_seeds = draw_counts(rng, seeds, resamples) / seeds  # [R, S]
    means = np.einsum("rs,rs->r", of_seeds, of_cases @ table.T)  # the resampled mean is a product of matrices
    return percentile_interval(mean, means, level)


def draw_counts(rng: np.random.Generator, units: int, resamples: int) -> Counts:
    """How often each of n units is in each resample, [R, n]: n of n drawn with replacement, which is multinomial."""
    return rng.multinomial(units, np.full(units, 1 / units), size=resamples)


def percentile_interval(mean: float, resampled: Floats, level: float = 0.95) -> Interval:
    """`mean` and the bounds between which a share `level` of the resampled values [R] lies; NaN where there are none.

    Raises:
        ValueError: a level outside (0, 1).
    """
    _check_level(level)
    if not resampled.size:
        return Interval(mean, float("nan"), float("nan"))
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level} but must lie between 0 and 1")


def cluster_means(values: npt.ArrayLike, clusters: Sequence[Hashable]) -> Floats:
    """Mean of the values [cases] within each cluster, [number of clusters], in the order of first occurrence.

    Raises:
        ValueError: not one cluster per case.
    """
    sums, sizes = _cluster_sums(np.atleast_2d(np.asarray(values, dtype=np.float64)), clusters)
    means: Floats = sums[0] / sizes
    return means


def holm(p_values: Mapping[Test, float]) -> dict[Test, float]:
    """The p-values of several tests, each raised so that all of them together keep the level (Holm, 1979).

    The smallest is multiplied by the number of tests, the next one by one less, and so on; none falls below a smaller
    one, none exceeds 1. One test alone stays as it is.
    """
    corrected, least = dict[Test, float](), 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}


def paired_wilcoxon(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Two-sided p-value of the Wilcoxon signed-rank test that paired values a and b, [cases], differ.

    Pairs without a difference are dropped (Wilcoxon's own rule); when all are, p is 1.

    Raises:
        ValueError: no pairs, shapes that differ, NaN or infinity.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(f"a {first.shape} and b {second.shape} must be [cases] of one length, not empty")
    difference = first - second
    if not np.isfinite(difference).all():
        raise ValueError("a or b contains NaN or infinity")
    difference = difference[difference != 0]
    return float(stats.wilcoxon(difference).pvalue) if difference.size else 1.0


def _cluster_sums(table: Floats, clusters: Sequence[Hashable]) -> tuple[Floats, Counts]:
    """Sum [rows, clusters] of the table [rows, cases] over the cases of each cluster, and their numbers [clusters]."""
    if len(clusters) != table.shape[1]:
        raise ValueError(f"{table.shape[1]} cases need as many clusters, got {len(clusters)}")
    numbers: dict[Hashable, int] = {}
    cluster_of = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    sums: Floats = np.stack([np.bincount(cluster_of, weights=row) for row in table]).astype(np.float64)
    return sums, np.bincount(cluster_of).astype(np.int64)
