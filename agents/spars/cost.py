"""What looking at windows costs: seconds of the presence classifier, on the machine that evaluates
(docs/spars.md, Method 13)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

import torch

from ...envs.spars import SparsEnv

REPEATS = 8
"""Single windows that are timed, after one that is not."""
DENSE_REPEATS = 2
"""Dense forwards that are timed, after one that is not."""


@dataclass(frozen=True)
class ClassifierCost:
    """Seconds of a classifier: medians of a few forwards on the first case of an environment."""

    window: float
    """Of one window that is scored alone."""
    volume: float | None
    """Of all windows of a case by one dense forward; None for a classifier that has none on the lattice."""

    @classmethod
    def measured(cls, env: SparsEnv) -> "ClassifierCost | None":
        """Measure the classifier of an environment on its device; None where its scores are of something else."""
        net, lattice = env.table.net, env.lattice
        if net is None:
            return None
        volume, first = env.cases[0].image.to(env.device), torch.zeros(1, dtype=torch.int64, device=env.device)
        ids = torch.linspace(0, lattice.size - 1, REPEATS + 1).long()
        corners = lattice.corners(ids).to(env.device)[:, None]
        single = [_seconds(partial(net.score_windows, volume[None], first, at, lattice.window)) for at in corners]
        forward = partial(net.score_lattice, volume, lattice)
        dense = [_seconds(forward) for _ in range(DENSE_REPEATS + 1)] if net.has_dense(lattice) else []
        return cls(median(single[1:]), median(dense[1:]) if dense else None)

    def of(self, windows: float, *, all_of_them: bool) -> dict[str, float | None]:
        """Seconds for the windows of a case: one by one and, where they are all of them, by the dense forward."""
        return {"one_by_one": windows * self.window, **({"dense": self.volume} if all_of_them else {})}


def _seconds(forward: Callable[[], object]) -> float:
    start = perf_counter()
    forward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - start
