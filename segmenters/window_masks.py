"""Maps of voxels from the scores of windows that overlap (docs/spars.md, Method 5): what every method of SPARS does
alike, whichever windows it looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..datasets.liver.lattice import FIXED_POINT, WindowLattice
from .score_prior import ScorePrior

Reduce = Literal["sum", "mean", "max", "min"]
Upsample = Literal["blocks", "trilinear"]
MOST_NUMBERS = 2**22
"""Shares of windows in blocks that are added at once, 100 MB."""


class Evidence(Protocol):
    """How the score of a window is divided among the blocks in it, w of them."""

    def blocks(self, ids: Tensor) -> Tensor:
        """Number of each block of the windows `ids` int64 [n]: int64 [n, w]."""

    def __call__(self, case: int, ids: Tensor) -> Tensor:
        """The share of each, float32 [n, w] in [0, 1], on the image of case number `case`."""


@dataclass(frozen=True, eq=False)
class MaskMaker:
    """From the scores f of some windows to a map A, whose super-level set is the mask.

    Windows that were not seen get their likely score from `prior`; the scores of the windows over a block become one
    number by `reduce`; with `evidence` seen windows say which of their blocks they mean; blocks become voxels by
    `upsample`.
    """

    lattice: WindowLattice
    reduce: Reduce
    """sum: of all visits (paper). mean, max, min: of the windows that cover a block, however often they were visited.
    A window is labelled by any tumour voxel in it, which dilates the tumour by the window: min is the erosion."""
    upsample: Upsample
    """blocks: every voxel has the value of its block of step³ voxels; trilinear: between the middles of the blocks."""
    prior: ScorePrior | None = None
    """What the scores of unseen windows are taken from; None: unseen windows cover nothing."""
    evidence: Evidence | None = None
    """How scores are divided; None: every block of a window gets its score. Not with `reduce` sum."""
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    """Scores and C of the cases, by number, all of whose windows were seen: C is the same for every `reduce`."""

    def paint(self, at: Tensor, scores: Tensor, cases: Sequence[int]) -> Tensor:
        """A of visited windows, one value per block: float64 [K, Bx, By, Bz].

        at: positions int64 [K, T], -1 for none; scores: float32 [K, T]; cases: number of the case of each, K.
        """
        if self.reduce == "sum":
            return self.lattice.paint(at, scores, "sum")
        return self.blocks(self.seen(at, scores), cases)

    def seen(self, at: Tensor, scores: Tensor) -> Tensor:
        """The score of every window that was visited, and NaN for the others: float32 [K, L]; at, scores: [K, T]."""
        size = self.lattice.size
        table = torch.full((len(at), size + 1), -1.0, device=at.device)  # the last column: -1
        table.scatter_reduce_(1, torch.where(at >= 0, at, size), scores, "amax")
        return table[:, :-1].masked_fill(table[:, :-1] < 0, torch.nan)

    def blocks(self, seen: Tensor, cases: Sequence[int]) -> Tensor:
        """A, one value per block, of the scores of windows, float32 [K, L] with NaN for unseen ones: float64
        [K, Bx, By, Bz]; 0 where no window covers a block. cases: number of the case of each, K."""
        known = seen if self.prior is None else self.prior.fill(seen)
        ids = torch.arange(self.lattice.size, device=seen.device)
        maps = self.lattice.paint(torch.where(known.isnan(), -1, ids), known.nan_to_num(), self.reduce)
        if self.evidence is None:
            return maps
        return torch.stack([self._divided(*one) for one in zip(maps, seen, cases, strict=True)])

    def _divided(self, scores: Tensor, seen: Tensor, case: int) -> Tensor:
        """√(C M) of the map M of one case, float64 [Bx, By, Bz]: C(b) = mean share of block b in the scores of the seen
        windows over it; M / 2 where none was seen."""
        known, means = self.kept.get(case, (None, scores))
        if known is None or not torch.equal(known, seen):  # NaN is equal to nothing
            ids = (~seen.isnan()).nonzero()[:, 0]
            means = self._mean_shares(seen, ids, case)
            if len(ids) == len(seen):
                self.kept[case] = seen, means
        means = torch.where(means >= 0, means, scores.flatten() / 4)
        return (means.view_as(scores) * scores).sqrt()

    def _mean_shares(self, seen: Tensor, ids: Tensor, case: int) -> Tensor:
        """C of each block by the windows `ids`, float64; -1 where none of them covers it."""
        assert self.evidence is not None
        windows, sums = torch.zeros(2, prod(self.lattice.block_shape), dtype=torch.int64, device=seen.device)
        most = max(1, MOST_NUMBERS // prod(width // self.lattice.step for width in self.lattice.window))
        for some in torch.split(ids, most):
            blocks, shares = self.evidence.blocks(some).flatten(), self.evidence(case, some) * seen[some, None]
            windows.index_add_(0, blocks, torch.ones_like(blocks))
            sums.index_add_(0, blocks, (shares.double() * FIXED_POINT).round().long().flatten())
        return torch.where(windows > 0, sums.double() / FIXED_POINT / windows.clamp(min=1), -1.0)

    def voxels(self, blocks: Tensor) -> Tensor:
        """A of voxels, float32 [..., X, Y, Z], of A of blocks [..., Bx, By, Bz]."""
        if self.upsample == "blocks":
            return self.lattice.expand(blocks.float())
        return self.lattice.interpolate(blocks.float())
