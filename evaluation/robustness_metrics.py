"""Metrics of attacked segmentation from the pixel counts of each image alone (docs/rp-pgd.md, Method 18 and 27).

I, P, G = pixels of a class that are both predicted and true, predicted, true, int64 [N, K] of N images; U = P + G - I.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ..common.checks import check_choice

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Absent = Literal["skip", "zero"]
"""A class that is neither predicted nor true anywhere: left out of the mean, or counted as 0."""
SIZES = {"small": (0.0, 0.01), "medium": (0.01, 0.1), "large": (0.1, math.inf)}
"""Sizes of an object, the true pixels of one class in one image: from, and below, this share of its valid pixels."""


class Counts(NamedTuple):
    """Pixels of each class in each image, int64 [N, K] each."""

    both: Ints
    predicted: Ints
    true: Ints

    @property
    def union(self) -> Ints:
        """U."""
        return self.predicted + self.true - self.both

    def of(self, images: Any) -> "Counts":
        """Those of some images, by an index of NumPy."""
        return Counts(*(part[images] for part in self))

    @property
    def accuracy(self) -> Floats:
        """Share of right pixels of each image, [N]; NaN without a valid pixel."""
        return _ratio(self.both.sum(axis=1), self.true.sum(axis=1))


@dataclass(frozen=True)
class Metrics:
    """What is said of one attack; each in [0, 1], NaN where nothing defines it."""

    miou: float
    """Mean over classes of sum I / sum U over all images."""
    macc: float
    """Mean over classes of sum I / sum G."""
    aacc: float
    """Share of all valid pixels that are right."""
    nmiou: float
    """Mean over images of the mean IoU over the classes that are in the image."""
    dice: float
    """Mean over images of the mean Dice over the foreground classes (all but 0) that are in the image."""
    iou_small: float
    """Mean IoU of the small objects; see `SIZES`."""
    iou_medium: float
    iou_large: float


def metrics(counts: Counts, absent: Absent = "skip") -> Metrics:
    """All metrics of the counts.

    Raises:
        ValueError: another way to treat absent classes.
    """
    check_choice("absent", absent, get_args(Absent))
    both, union, true = (part.sum(axis=0) for part in (counts.both, counts.union, counts.true))
    by_size = {name: _mean(sized_iou(counts, low, high)) for name, (low, high) in SIZES.items()}
    return Metrics(
        miou=_over_classes(both, union, absent),
        macc=_over_classes(both, true, absent),
        aacc=float(_ratio(both.sum(), true.sum())),
        nmiou=_mean(image_miou(counts)),
        dice=_mean(image_dice(counts)),
        **{f"iou_{name}": value for name, value in by_size.items()},
    )


def image_miou(counts: Counts) -> Floats:
    """Mean IoU over the classes predicted or true in each image, [N]; NaN without a valid pixel."""
    return _row_means(_ratio(counts.both, counts.union))


def image_dice(counts: Counts) -> Floats:
    """Mean Dice over the foreground classes predicted or true in each image, [N]; NaN without any."""
    return _row_means(_ratio(2 * counts.both, counts.predicted + counts.true)[:, 1:])


def sized_iou(counts: Counts, low: float, high: float) -> Floats:
    """IoU of each object whose share of its image lies in [low, high), of all images in one row."""
    share = _ratio(counts.true, counts.true.sum(axis=1, keepdims=True))
    chosen = (counts.true > 0) & (share >= low) & (share < high)
    return _ratio(counts.both, counts.union)[chosen]


def worst_by_image(attacks: Sequence[Counts]) -> Ints:
    """Number of the attack that leaves each image the fewest right pixels, [N]; the first of equal ones."""
    right = np.stack([one.both.sum(axis=1) for one in attacks])  # [A, N]
    chosen: Ints = right.argmin(axis=0)
    return chosen


def worst_by_search(attacks: Sequence[Counts], absent: Absent = "skip", seed: int = 0) -> Ints:
    """Number of the attack of each image, [N], so that the mean IoU of all images together is low: a greedy search.

    It begins with the attack of the lowest mean IoU for all images. In each round the images are shuffled, and an image
    takes the attack that lowers the mean IoU of all most, where one does; it ends with a round that changes nothing.

    Raises:
        ValueError: no attacks.
    """
    if not attacks:
        raise ValueError("the worst of no attacks is not defined: name at least one")
    both, union = (np.stack([getattr(one, name) for one in attacks]) for name in ("both", "union"))  # [A, N, K]
    first = min(range(len(attacks)), key=lambda number: metrics(attacks[number], absent).miou)
    chosen = np.full(both.shape[1], first, dtype=np.int64)
    total_both, total_union = both[first].sum(axis=0), union[first].sum(axis=0)
    random = np.random.default_rng(seed)
    changed = True
    while changed:
        changed = False
        for image in random.permutation(len(chosen)):
            now = chosen[image]
            ahead_both = total_both - both[now, image] + both[:, image]  # [A, K]
            ahead_union = total_union - union[now, image] + union[:, image]
            found = [_over_classes(b, u, absent) for b, u in zip(ahead_both, ahead_union, strict=True)]
            best = int(np.argmin(found))
            if found[best] < found[now] - 1e-12:
                chosen[image], changed = best, True
                total_both, total_union = ahead_both[best], ahead_union[best]
    return chosen


def mixed(attacks: Sequence[Counts], chosen: Ints) -> Counts:
    """Counts of the images, each under the attack that was chosen for it."""
    images = np.arange(len(chosen))
    return Counts(*(np.stack(parts)[chosen, images] for parts in zip(*attacks, strict=True)))


def _over_classes(part: Ints, whole: Ints, absent: Absent) -> float:
    shares = _ratio(part, whole)
    return float(np.nan_to_num(shares).mean()) if absent == "zero" else _mean(shares)


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    """part / whole, NaN where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    found = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=found, where=whole != 0)
    return found


def _row_means(values: Floats) -> Floats:
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=1), known.sum(axis=1))


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
