"""Maps of voxels from the scores of windows that overlap (docs/spars.md, Method 5): what every method of SPARS does
alike, whichever windows it looked at."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..datasets.liver.lattice import WindowLattice
from .score_prior import ScorePrior

Reduce = Literal["sum", "mean", "max", "min"]
Upsample = Literal["blocks", "trilinear"]


@dataclass(frozen=True, eq=False)
class MaskMaker:
    """From the scores f of some windows to a map A, whose super-level set is the mask.

    Windows that were not seen get their likely score from `prior`; the scores of the windows over a block become one
    number by `reduce`; blocks become voxels by `upsample`.
    """

    lattice: WindowLattice
    reduce: Reduce
    """sum: of all visits (paper). mean, max, min: of the windows that cover a block, however often they were visited.
    A window is labelled by any tumour voxel in it, which dilates the tumour by the window: min is the erosion."""
    upsample: Upsample
    """blocks: every voxel has the value of its block of step³ voxels; trilinear: between the middles of the blocks."""
    prior: ScorePrior | None = None
    """What the scores of unseen windows are taken from; None: unseen windows cover nothing."""

    def paint(self, at: Tensor, scores: Tensor) -> Tensor:
        """A of visited windows, one value per block: float64 [K, Bx, By, Bz].

        at: positions int64 [K, T], -1 for none; scores: float32 [K, T].
        """
        if self.reduce == "sum":
            return self.lattice.paint(at, scores, "sum")
        return self.blocks(self.seen(at, scores))

    def seen(self, at: Tensor, scores: Tensor) -> Tensor:
        """The score of every window that was visited, and NaN for the others: float32 [K, L]; at, scores: [K, T]."""
        size = self.lattice.size
        table = torch.full((len(at), size + 1), -1.0, device=at.device)  # the last column: -1
        table.scatter_reduce_(1, torch.where(at >= 0, at, size), scores, "amax")
        return table[:, :-1].masked_fill(table[:, :-1] < 0, torch.nan)

    def blocks(self, seen: Tensor) -> Tensor:
        """A, one value per block, of the scores of windows, float32 [K, L] with NaN for unseen ones: float64
        [K, Bx, By, Bz]; 0 where no window covers a block."""
        if self.prior is not None:
            seen = self.prior.fill(seen)
        ids = torch.arange(self.lattice.size, device=seen.device)
        return self.lattice.paint(torch.where(seen.isnan(), -1, ids), seen.nan_to_num(), self.reduce)

    def voxels(self, blocks: Tensor) -> Tensor:
        """A of voxels, float32 [..., X, Y, Z], of A of blocks [..., Bx, By, Bz]."""
        if self.upsample == "blocks":
            return self.lattice.expand(blocks.float())
        return self.lattice.interpolate(blocks.float())
