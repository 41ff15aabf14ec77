"""Class activation maps of windows: which of the feature cells in a window speak for tumour (docs/spars.md, Method 5).

Symbols: p = window; z = its logit; F_k(c) = feature k of cell c; L_p(c) = its map, of the cells in it.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.liver.lattice import WindowLattice
from .presence import DensePresenceNet
from .stem import CELL

MOST_KEPT = 2**28
"""Bytes of cells that stay in memory: 23 MB of a CT in float16, 0.4 MB of a phantom."""
MOST_NUMBERS = 2**24
"""Features of cells that are gathered at once, 64 MB, unless one line of windows needs more."""


class WindowCam:
    """Class activation maps of the windows of some cases, on the device of the classifier.

    A block of the lattice is a feature cell: windows that share a block share its features. The windows of one line
    along z, which share most of theirs, are taken together, and L of all of them is one product of matrices.

    Args:
        net: frozen.
        lattice: its step is that of the cells, 4 voxels.
        images: uint8 [X, Y, Z] of each case.
    """

    def __init__(self, net: DensePresenceNet, lattice: WindowLattice, images: Sequence[Tensor]) -> None:
        if lattice.step != CELL:
            raise ValueError(f"step is {lattice.step} but a window's class activation map needs {CELL}, as its cells")
        self.net, self.lattice, self.images = net, lattice, images
        device = next(net.parameters()).device
        self.device = device
        cells = tuple(width // CELL for width in lattice.window)
        inside = torch.cartesian_prod(*(torch.arange(number) for number in cells)).view(-1, 3)  # the cells of a window
        first = lattice.corners() // CELL  # of the cells that a phase leaves; of blocks, where it is 0
        cut = torch.tensor([int(phase > 0) for phase in lattice.phase])
        _, by, bz = lattice.block_shape
        blocks = torch.tensor((by * bz, bz, 1))
        self._first_block = ((first + cut) * blocks).sum(dim=1).to(device)  # [L]
        self._further_blocks = (inside * blocks).sum(dim=1).to(device)  # [w]
        self._deep, self._places = cells[2], lattice.shape[2]  # cells of a window, and windows, along z
        columns = torch.tensor((lattice.shape[1] + cells[1] - 1, 1))
        self._first_column = (first[:: self._places, :2] * columns).sum(dim=1).to(device)  # [lines]
        self._further_columns = (inside[:: self._deep, :2] * columns).sum(dim=1).to(device)  # [w / deep]
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def blocks(self, ids: Tensor) -> Tensor:
        """Number, among all blocks, of each cell of the windows `ids` int64 [n]: int64 [n, w]."""
        return self._first_block[ids][:, None] + self._further_blocks

    @torch.no_grad()
    def __call__(self, case: int, ids: Tensor) -> Tensor:
        """L_p / max L_p of the windows `ids` int64 [n] of a case: float32 [n, w] in [0, 1], in the order of `blocks`; 0
        where nothing in a window speaks for tumour."""
        columns = self._columns(case)
        lines, owner = torch.unique(ids // self._places, return_inverse=True)
        most = max(1, MOST_NUMBERS // (len(self._further_columns) * columns[0].numel()))
        maps = torch.empty(len(ids), len(self._further_blocks), device=self.device)
        for number, some in enumerate(torch.split(lines, most)):
            found = self._of_lines(columns[self._first_column[some][:, None] + self._further_columns].float())
            mine = (owner // most == number).nonzero()[:, 0]
            maps[mine] = found[owner[mine] % most, ids[mine] % self._places]
        return maps / maps.amax(dim=1, keepdim=True).clamp(min=1e-6)

    def _of_lines(self, features: Tensor) -> Tensor:
        """L of all windows of some lines along z, [n, sz, w], of the cells under them, [n, w / deep, cz, K]."""
        mean, peak = (x.unfold(1, self._deep, 1) for x in (features.mean(dim=1), features.amax(dim=1)))
        pooled = torch.cat((mean.mean(dim=-1), peak.amax(dim=-1)), dim=-1)  # [n, sz, 2K]
        weights = self._weights(pooled.flatten(0, 1)).view_as(mean[..., 0])  # [n, sz, K]
        says = (features.flatten(1, 2) @ weights.mT).view(*features.shape[:3], self._places)  # of cells to all windows
        own = says.unfold(2, self._deep, 1).diagonal(dim1=2, dim2=3)  # [n, w / deep, deep, sz]
        return F.relu(own).flatten(1, 2).mT

    def _weights(self, pooled: Tensor) -> Tensor:
        """w_k = Σ over the cells of ∂z / ∂F_k, [n, K], of pooled features [n, 2K]: through the mean and the maximum."""
        with torch.enable_grad():
            leaf = pooled.detach().requires_grad_()
            logits = self.net.head(leaf)
            (found,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), leaf)
        of_mean, of_max = found.chunk(2, dim=1)
        return of_mean + of_max

    def _columns(self, case: int) -> Tensor:
        """F float16 [cx cy, cz, K] of a case."""
        if case in self._kept:
            self._kept.move_to_end(case)
        else:
            volume = self.images[case].to(self.device)[None, None].float() / 255
            cells = self.net.layers.cells(volume, self.lattice)[0].half()
            self._kept[case] = cells.flatten(1, 2).permute(1, 2, 0).contiguous()
            while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > MOST_KEPT:
                self._kept.popitem(last=False)
        return self._kept[case]
