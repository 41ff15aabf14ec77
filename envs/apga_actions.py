"""Actions of APGA's environment as masks, and masks as actions (docs/apga.md, Method 12).

Symbols: S = side of the images in pixels; G = cells along each side of the grid (of S / G pixels each); cells = what an
action says of each cell, [N, 1, G, G] (of each pixel with action mode "pixel", where G is S); a = mask [N, 1, S, S].
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from ..classifiers.masked_images import blurred, enlarge

ActionMode = Literal["patch", "pixel", "box", "beta", "sequential"]


@dataclass(frozen=True)
class MaskActions:
    """The action space of a mode, and what its actions mean."""

    mode: ActionMode
    size: int
    """S."""
    grid: int
    """G."""
    blur_sigma_px: float = 0.0
    """Standard deviation of the Gaussian that smooths a of mode beta, in pixels; 0: none."""

    @property
    def space(self) -> spaces.Space[np.ndarray] | spaces.Space[np.int64]:
        """Actions of one environment."""
        count = self.grid**2
        if self.mode == "box":
            return spaces.MultiDiscrete([self.grid] * 4)
        if self.mode == "beta":
            return spaces.Box(0.0, 1.0, (count,), np.float32)
        return spaces.Discrete(count + 1) if self.mode == "sequential" else spaces.MultiBinary(count)

    @property
    def none(self) -> Tensor:
        """Cells [1, 1, G, G] of a mask that selects nothing."""
        return torch.zeros(1, 1, self.grid, self.grid, dtype=torch.float32 if self.mode == "beta" else torch.bool)

    def cells(self, actions: Tensor, now: Tensor) -> Tensor:
        """Cells that actions [N, ...] select: bool, or float32 in [0, 1] of mode beta.

        now: cells that are selected so far, which mode sequential adds one to.
        """
        number, grid = len(actions), self.grid
        if self.mode == "box":
            return box_masks(torch.cat((actions[:, :2], actions[:, 2:] + 1), dim=1), grid)
        if self.mode == "sequential":
            places = torch.arange(grid * grid, device=actions.device)
            return now | (places == actions.reshape(number, 1)).view(number, 1, grid, grid)
        cells = actions.reshape(number, 1, grid, grid)
        return cells.float().clamp(0, 1) if self.mode == "beta" else cells > 0

    def masks(self, cells: Tensor) -> Tensor:
        """a of cells [K, 1, G, G]: bool, each cell repeated; of mode beta float32, interpolated and smoothed."""
        if self.mode != "beta":
            return enlarge(cells, self.size)
        smooth = F.interpolate(cells, size=(self.size, self.size), mode="bilinear", align_corners=False)
        sigma_px = self.blur_sigma_px
        return blurred(smooth, sigma_px, max(1, round(sigma_px))) if sigma_px else smooth

    def stops(self, actions: Tensor) -> Tensor:
        """Whether each action ends its episode, bool [N]: of mode sequential the last one, of the others all."""
        if self.mode == "sequential":
            return actions == self.grid**2
        return torch.ones(len(actions), dtype=torch.bool, device=actions.device)

    def free(self, cells: Tensor) -> Tensor:
        """Actions of mode sequential that are not wasted, bool [N, G*G + 1]: cells not selected yet, and to stop."""
        return torch.cat((~cells.flatten(1), torch.ones_like(cells[:, 0, 0, :1])), dim=1)

    def nearest(self, masks: Tensor, now: Tensor) -> Tensor:
        """Actions [N, ...] that come near to masks [N, 1, S, S], bool or in [0, 1].

        A cell is selected where more than half of it is; of mode beta by its mean. A box is the smallest around these
        cells, or around the fullest cell where there is none. Mode sequential selects the next of these cells, and
        stops when it has them.

        now: cells that are selected so far.
        """
        grid = self.grid
        share = F.avg_pool2d(masks.float(), self.size // grid)  # [N, 1, G, G]
        if self.mode == "beta":
            return share.flatten(1)
        wanted = share > 0.5
        if self.mode == "sequential":
            missing = torch.cat((wanted & ~now, torch.ones_like(now[:, :, :1])), dim=2).flatten(1)[:, : grid * grid + 1]
            return missing.int().argmax(dim=1)  # the first of them; the last place is always there: to stop
        if self.mode != "box":
            return wanted.flatten(1).to(torch.uint8)
        fullest = share.flatten(1).argmax(dim=1)
        alone = (torch.arange(grid * grid, device=share.device) == fullest[:, None]).view_as(wanted)
        wanted = torch.where(wanted.flatten(1).any(dim=1)[:, None, None, None], wanted, alone)
        ends = []
        for along in (wanted.any(dim=3)[:, 0], wanted.any(dim=2)[:, 0]):  # rows, columns [N, G]
            first = along.int().argmax(dim=1)
            last = grid - 1 - along.flip(1).int().argmax(dim=1)
            ends.append((first, last - first))
        (top, height), (left, width) = ends
        return torch.stack((top, left, height, width), dim=1)


def box_masks(boxes: Tensor, size: int) -> Tensor:
    """Masks bool [N, 1, size, size] of boxes int64 [N, 4]: top, left, height, width; cut at the border."""
    place = torch.arange(size, device=boxes.device)
    first, extent = boxes[:, :2, None], boxes[:, 2:, None]
    inside = (place >= first) & (place < first + extent)  # [N, 2, size]
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
