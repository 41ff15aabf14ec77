"""Where a window may stand on a grid, and the blocks that it covers (docs/spars.md, Method 2 and 5).

Symbols: full = grid shape (X, Y, Z) in voxels; w = window size; h = step; φ = phase; p = lower corner of the window.
A window covers the voxels p <= v < p + w. Corners lie on the lattice p = φ + h·i, i in [0, shape). Window sizes are
multiples of h, so every window is a union of h³ blocks; the first and the last block of an axis may be cut short.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

Triple = tuple[int, int, int]
SIDE = (1, 2048)
"""Range of a side of a volume or of a window, in voxels."""
FIXED_POINT = 2.0**40
"""Painted values are summed as int64 multiples of 2^-40: the difference array leaves no residue, in any order."""


@dataclass(frozen=True)
class WindowLattice:
    """All positions of a window of `window` voxels on a grid of `full` voxels, `step` voxels apart.

    Raises:
        ValueError: a window that is larger than the grid or no multiple of the step, or a phase outside [0, step).
    """

    full: Triple
    window: Triple
    step: int = 4
    phase: Triple = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(f"step is {self.step} voxels but must be at least 1")
        for axis, (full, window, phase) in enumerate(zip(self.full, self.window, self.phase, strict=True)):
            name = "xyz"[axis]
            if window < 1 or window % self.step:
                raise ValueError(
                    f"window_size {self.window} has {window} voxels along {name} but must be a positive multiple "
                    f"of step {self.step}"
                )
            if not 0 <= phase < self.step:
                raise ValueError(f"phase {self.phase} is {phase} along {name} but must lie in [0, {self.step})")
            if window + phase > full:
                raise ValueError(
                    f"window_size {self.window} (phase {self.phase}) does not fit the volume {self.full} along {name}; "
                    f"use a smaller window_size or a larger grid_shape"
                )

    # -- positions -------------------------------------------------------------------------------------------------

    @cached_property
    def shape(self) -> Triple:
        """Number of positions along each axis."""
        x, y, z = ((f - w - p) // self.step + 1 for f, w, p in zip(self.full, self.window, self.phase, strict=True))
        return x, y, z

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def strides(self) -> Triple:
        """Difference in a position's number between neighbouring cells along each axis."""
        return self.shape[1] * self.shape[2], self.shape[2], 1

    def corners(self, ids: Tensor | None = None) -> Tensor:
        """Lower corners in voxels, int64 [..., 3], of the positions numbered `ids` (all of them by default)."""
        cells = self._cells(torch.arange(self.size) if ids is None else ids)
        return torch.stack([cell * self.step + p for cell, p in zip(cells, self.phase, strict=True)], dim=-1)

    def _cells(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Place along each axis, int64 [...], of the positions numbered `ids`; by plain numbers, which CUDA need not be
        waited for to receive."""
        sx, sy, _ = self.strides
        return ids // sx, ids % sx // sy, ids % sy

    def ids(self, corners: Tensor) -> Tensor:
        """Numbers, int64 [...], of the positions with lower corners `corners`, int64 [..., 3] in voxels.

        Raises:
            ValueError: a corner that is not on the lattice.
        """
        offset = corners - torch.tensor(self.phase, device=corners.device)
        cells = torch.div(offset, self.step, rounding_mode="floor")
        limit = torch.tensor(self.shape, device=corners.device)
        bad = ((cells < 0) | (cells >= limit) | (cells * self.step != offset)).any(dim=-1)
        if bool(bad.any()):
            high = [p + (n - 1) * self.step for p, n in zip(self.phase, self.shape, strict=True)]
            raise ValueError(
                f"corner {corners[bad][0].tolist()} is not on the lattice from {list(self.phase)} to {high} "
                f"in steps of {self.step} voxels"
            )
        return (cells * torch.tensor(self.strides, device=corners.device)).sum(dim=-1)

    def move_table(self, cells: Tensor) -> Tensor:
        """Where each action leads: int64 [size, A], for moves `cells` int64 [A, 3] in cells, clipped at the border."""
        here = (self.corners() - torch.tensor(self.phase)) // self.step  # [L, 3]
        there = (here[:, None] + cells).clamp(min=torch.zeros(3, dtype=torch.int64), max=torch.tensor(self.shape) - 1)
        return (there * torch.tensor(self.strides)).sum(dim=-1)

    def window_sums(self, volume: Tensor) -> Tensor:
        """Sum of `volume` [X, Y, Z] inside the window at every position: int64 [size], by a summed-area table."""
        table = F.pad(volume.to(torch.int64), (1, 0, 1, 0, 1, 0))
        for axis in range(3):
            table = table.cumsum(dim=axis)
            low = torch.arange(self.shape[axis], device=volume.device) * self.step + self.phase[axis]
            table = table.index_select(axis, low + self.window[axis]) - table.index_select(axis, low)
        return table.flatten()

    # -- blocks ----------------------------------------------------------------------------------------------------

    @cached_property
    def block_widths(self) -> tuple[Tensor, Tensor, Tensor]:
        """Voxels per block along each axis, int64 [B_axis]; only the first (phase) and the last may differ from h."""

        def widths(full: int, phase: int) -> Tensor:
            edges = [0, *range(phase, full, self.step), full] if phase else [*range(0, full, self.step), full]
            return torch.tensor(edges).diff()

        x, y, z = (widths(f, p) for f, p in zip(self.full, self.phase, strict=True))
        return x, y, z

    @cached_property
    def block_shape(self) -> Triple:
        """Number of blocks along each axis."""
        x, y, z = (len(widths) for widths in self.block_widths)
        return x, y, z

    @cached_property
    def block_sizes(self) -> Tensor:
        """n_b: voxels in each block, int64 [Bx, By, Bz]."""
        x, y, z = self.block_widths
        return x[:, None, None] * y[None, :, None] * z[None, None, :]

    @cached_property
    def _sizes_on(self) -> dict[torch.device, Tensor]:
        """`block_sizes` on each device that asked for them."""
        return {}

    def block_sums(self, volume: Tensor) -> Tensor:
        """g_b: sum of `volume` [X, Y, Z] inside each block, int64 [Bx, By, Bz]."""
        sums = volume.to(torch.int64)
        for axis, widths in enumerate(self.block_widths):
            owner = torch.repeat_interleave(torch.arange(len(widths)), widths).to(volume.device)
            shape = (*sums.shape[:axis], len(widths), *sums.shape[axis + 1 :])
            sums = torch.zeros(shape, dtype=torch.int64, device=volume.device).index_add_(axis, owner, sums)
        return sums

    def block_overlap(self, inside: Tensor, target_blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Voxels of mask ∩ target, mask and target, int64 [...], from block counts: exact, and no voxel is touched.

        inside: bool [..., Bx, By, Bz], the blocks of the mask; target_blocks: g_b, int64, of the same shape.
        """
        if inside.device not in self._sizes_on:
            self._sizes_on[inside.device] = self.block_sizes.to(inside.device)
        sizes = self._sizes_on[inside.device]
        common, mask = ((counts * inside).sum(dim=(-3, -2, -1)) for counts in (target_blocks, sizes))
        return common, mask, target_blocks.sum(dim=(-3, -2, -1))

    def best_block_dice(self, target_blocks: Tensor) -> float:
        """Highest Dice that a union of blocks can have with the target, in [0, 1]; 1 for an empty target.

        The best union of m blocks has the m highest shares g_b / n_b, so that one pass over the sorted blocks finds it.

        Args:
            target_blocks: g_b, int64 [Bx, By, Bz].
        """
        hits, total = target_blocks.flatten().double(), int(target_blocks.sum())
        if not total:
            return 1.0
        sizes = self.block_sizes.to(hits.device).flatten().double()
        order = (hits / sizes).argsort(descending=True)
        return float((2 * hits[order].cumsum(0) / (sizes[order].cumsum(0) + total)).max())

    def expand(self, blocks: Tensor) -> Tensor:
        """Voxel map [..., X, Y, Z] in which every voxel carries the value of its block; blocks [..., Bx, By, Bz]."""
        for axis, widths in enumerate(self.block_widths):
            blocks = blocks.repeat_interleave(widths.to(blocks.device), dim=axis - 3)
        return blocks

    def interpolate(self, blocks: Tensor) -> Tensor:
        """Voxel map [..., X, Y, Z], trilinear between the middles of the blocks, constant outside of the outermost.

        blocks: floating point [..., Bx, By, Bz]. A cut block counts as a whole one whose rest lies outside the grid.
        """
        x, y, z = (self.step * n for n in self.block_shape)
        flat = blocks.reshape(1, -1, *self.block_shape)
        voxels = F.interpolate(flat, size=(x, y, z), mode="trilinear", align_corners=False)[0]
        for axis, (full, phase) in enumerate(zip(self.full, self.phase, strict=True)):
            voxels = voxels.narrow(axis + 1, (self.step - phase) % self.step, full)
        return voxels.reshape(*blocks.shape[:-3], *self.full)

    def paint(self, ids: Tensor, values: Tensor, reduce: str = "sum") -> Tensor:
        """Painted maps of overlapping windows, one value per block: float64 [K, Bx, By, Bz].

        ids: int64 [K, T], positions; an id of -1 paints nothing. values: [K, T], finite and >= 0.
        reduce: "sum" of the values that cover a block, their "mean" (sum / number of visits), "max" or "min". A block
        that no window covers is 0. Sums are exact for float32 values >= 2^-16 (they are added as 64-bit integers).
        """
        if reduce == "max":
            return self._highest(ids, values.double(), 0.0)
        if reduce == "min":  # the highest of the negative values; -inf where there is none
            lowest = -self._highest(ids, -values.double(), -torch.inf)
            return lowest.masked_fill(lowest.isinf(), 0.0)
        total = self._difference_array(ids, (values.double() * FIXED_POINT).round().long()).double() / FIXED_POINT
        if reduce == "mean":
            return total / self._difference_array(ids, torch.ones_like(ids)).clamp(min=1)
        if reduce == "sum":
            return total
        raise ValueError(f"reduce is {reduce!r} but must be 'sum', 'mean', 'max' or 'min'")

    def covered(self, ids: Tensor) -> Tensor:
        """The blocks that windows cover: bool [K, Bx, By, Bz] of positions int64 [K, T], -1 for none."""
        return self._difference_array(ids, torch.ones_like(ids)) > 0

    @cached_property
    def _updates_on(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        """`_updates` on each device that asked for them."""
        return {}

    def _updates(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cells of the difference array that a window at each position changes, int64 [size, 8]; their signs [8]."""
        if device not in self._updates_on:
            _, by, bz = (n + 1 for n in self.block_shape)
            cells = self._cells(torch.arange(self.size))
            low = [cell + int(p > 0) for cell, p in zip(cells, self.phase, strict=True)]  # a cut block is block 0
            ends = [(first, first + w // self.step) for first, w in zip(low, self.window, strict=True)]
            corners = list(product((0, 1), repeat=3))
            flat = [(ends[0][i] * by + ends[1][j]) * bz + ends[2][k] for i, j, k in corners]
            signs = torch.tensor([-1 if sum(corner) % 2 else 1 for corner in corners])
            self._updates_on[device] = torch.stack(flat, dim=1).to(device), signs.to(device)
        return self._updates_on[device]

    def _difference_array(self, ids: Tensor, values: Tensor) -> Tensor:
        """Sum of int64 `values` over the windows that cover each block: 8 signed updates an event, three cumsums."""
        episodes, device = len(ids), ids.device
        bx, by, bz = (n + 1 for n in self.block_shape)
        cells, signs = self._updates(device)
        base = torch.arange(episodes, device=device)[:, None, None] * (bx * by * bz)
        index = base + cells[ids.clamp(min=0)]  # [K, T, 8]
        changes = torch.where(ids >= 0, values, 0)[..., None] * signs
        flat = torch.zeros(episodes * bx * by * bz, dtype=torch.int64, device=device)
        grid = flat.index_add_(0, index.flatten(), changes.flatten()).view(episodes, bx, by, bz)
        return grid.cumsum(1).cumsum(2).cumsum(3)[:, :-1, :-1, :-1]

    def _highest(self, ids: Tensor, values: Tensor, nothing: float) -> Tensor:
        """The highest of `values` over the windows that cover each block, and at least `nothing`."""
        shape = (len(ids), self.size + 1)  # the last cell: id -1
        peaks = torch.full(shape, nothing, dtype=values.dtype, device=ids.device)
        peaks.scatter_reduce_(1, torch.where(ids >= 0, ids, self.size), values, "amax")
        return self._highest_over(peaks[:, :-1], nothing)

    def average(self, values: Tensor) -> Tensor:
        """The mean of the values of all windows, [K, L], over those that cover each block, 0 where none does:
        [K, Bx, By, Bz]."""
        total, number = (self._over(one, 0.0, torch.sum) for one in (values, torch.ones_like(values[:1])))
        return total / number.clamp(min=1)

    def _highest_over(self, values: Tensor, nothing: float) -> Tensor:
        """The highest of the values of all windows, [K, L], over those that cover each block; at least `nothing`."""
        return self._over(values, nothing, torch.amax)

    def _over(self, values: Tensor, nothing: float, combine: Callable[..., Tensor]) -> Tensor:
        """The values of all windows, [K, L], combined over those that cover each block, and `nothing` beyond them."""
        grid = values.view(-1, *self.shape)
        for axis in range(3):  # over the windows that reach a block, one axis at a time
            span = self.window[axis] // self.step
            pad = [0] * 6
            lead = span - 1 + int(self.phase[axis] > 0)
            pad[4 - 2 * axis : 6 - 2 * axis] = [lead, self.block_shape[axis] + span - 1 - lead - self.shape[axis]]
            grid = combine(F.pad(grid, pad, value=nothing).unfold(axis + 1, span, 1), dim=-1)
        return grid


def centred_start(full: Sequence[int], window: Sequence[int], step: int) -> Triple:
    """Lower corner, in voxels, of the window nearest the middle of the grid on the lattice of phase 0."""
    x, y, z = (step * ((f - w) // (2 * step)) for f, w in zip(full, window, strict=True))
    return x, y, z


def nearest_index(size: int, out: int, device: torch.device | None = None) -> Tensor:
    """Source index of each of `out` samples of an axis of `size` voxels: ⌊i·size/out⌋, int64 [out]
    (docs/spars.md, Method 4)."""
    return torch.arange(out, device=device) * size // out
