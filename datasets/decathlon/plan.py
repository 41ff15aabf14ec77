"""Which patches a network of a task learns from and is judged on (docs/seat.md, Method 2).

Symbols, along one axis: i = size of the median image, j = size of the smallest class, n = number of halvings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.checks import AT_LEAST_1, POSITIVE, check, check_range
from .documents import load_document, save_document

Triple = tuple[int, int, int]
LARGE = 128
"""Images that are longer count as 0.7 times as long, so that patches fit into memory."""
MARGIN = 20
"""Voxels that a patch has beyond what the network sees of it, so that turning it brings no border into it."""
DEEP, DEEPER = 4, 5
"""Halvings of a network for a small, and for a large smallest class."""
SMALL_CLASS = 32**3
"""Voxels from which on the smallest class is large."""
MOST_LAST, MOST_DEEPER = 12 * 12 * 6, 12 * 12 * 4
"""Positions of the deepest features, from which on one more halving is taken, and then smaller patches."""


@dataclass(frozen=True)
class Plan:
    """Sizes of patches and strides of the network, along (x, y, z).

    Raises:
        ValueError: a size or stride below 1, a network that would see more than the patch holds.
    """

    p_size: Triple
    """Voxels of a patch before it is augmented."""
    in_size: Triple
    """Voxels that the network sees of it while it learns: the middle."""
    val_size: Triple
    """Voxels of a patch on which the network is judged."""
    strides: tuple[Triple, Triple, Triple]
    """s0, s1, s2 of the ROG lattice."""
    batch: int
    """Patches of one gradient step."""

    def __post_init__(self) -> None:
        check(self, "plan.", p_size=AT_LEAST_1, in_size=AT_LEAST_1, val_size=AT_LEAST_1, batch=AT_LEAST_1)
        for stride in self.strides:
            check_range("plan.strides", stride, AT_LEAST_1)
        if any(inner > outer for inner, outer in zip(self.in_size, self.p_size, strict=True)):
            raise ValueError(f"plan.in_size is {self.in_size} but must not exceed p_size, which is {self.p_size}")

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        save_document(self, path)

    @staticmethod
    def load(path: str | Path) -> "Plan":
        """The plan of a JSON file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it holds no plan.
        """
        return load_document(Plan, path)


def plan_of(mean_size: Sequence[float], small_size: Sequence[float], small_volume: float, batch: int) -> Plan:
    """The plan for images and classes of these sizes.

    Args:
        mean_size: median size of the images in voxels, (x, y, z).
        small_size: mean size of the box around the smallest class.
        small_volume: mean number of its voxels.
        batch: patches of one gradient step; no rule gives it.

    Raises:
        ValueError: a size that is not positive, or an image of fewer than 8 voxels along an axis.

    >>> from segarena.datasets.decathlon.plan import plan_of
    >>> plan = plan_of((35, 50, 36), (19, 23, 20), 1580, batch=22)
    >>> plan.in_size, plan.strides
    ((32, 48, 32), ((1, 1, 1), (1, 1, 1), (2, 2, 2)))
    """
    for name, value in (("mean_size", mean_size), ("small_size", small_size), ("small_volume", (small_volume,))):
        check_range(name, tuple(value), POSITIVE)
    check_range("mean_size", tuple(mean_size), (8, math.inf))
    halvings = DEEP if small_volume < SMALL_CLASS else DEEPER
    axes = _axes(mean_size, small_size, halvings)
    if _last(axes) >= MOST_LAST:
        halvings = DEEPER
        axes = _axes(mean_size, small_size, halvings)
    if _last(axes) >= MOST_DEEPER:
        axes = _axes(mean_size, small_size, halvings, cap=6)
    rows = [[1 if k < halvings - axis.halved else 2 for axis in axes] for k in range(halvings)]
    rows = [[1, 1, 1]] * (DEEPER - halvings) + rows
    s0, s1, s2 = (_triple(row) for row in rows[:3])
    return Plan(
        p_size=_triple([axis.patch for axis in axes]),
        in_size=_triple([axis.inside for axis in axes]),
        val_size=_triple([axis.judged for axis in axes]),
        strides=(s0, s1, s2),
        batch=batch,
    )


@dataclass(frozen=True)
class _Axis:
    patch: int
    inside: int
    judged: int
    halved: int
    """Times that the axis is halved on the way down."""
    last: float
    """Positions of the deepest features."""


def _axes(mean_size: Sequence[float], small_size: Sequence[float], halvings: int, cap: int = 7) -> list[_Axis]:
    return [_axis(i, j, halvings, cap) for i, j in zip(mean_size, small_size, strict=True)]


def _axis(whole: float, small: float, halvings: int, cap: int) -> _Axis:
    size = whole if whole <= LARGE else 0.7 * whole
    power = math.floor(math.log2(size))
    inside, judged = float(2 ** min(power, cap)), float(2 ** min(power, 7))
    halved = max(min(math.floor(math.log2(small)), halvings, min(power, cap) - 2), 0)
    if inside * 1.5 < size and not (inside / 2**halved >= 8 and halvings == DEEPER):
        inside *= 1.5
    if judged * 1.5 < size:
        judged *= 1.5
    return _Axis(
        patch=int(inside + MARGIN if inside + MARGIN < size else inside),
        inside=int(inside),
        judged=max(int(whole // 2), int(judged)),
        halved=halved,
        last=inside / 2**halved,
    )


def _last(axes: Sequence[_Axis]) -> float:
    return math.prod(axis.last for axis in axes)


def _triple(sizes: Sequence[int]) -> Triple:
    x, y, z = sizes
    return x, y, z
