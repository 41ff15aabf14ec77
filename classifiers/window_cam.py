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

CASES_KEPT = 8
"""Cases whose cells stay in memory: 23 MB each of a CT in float16, 0.4 MB of a phantom."""
MOST_NUMBERS = 2**24
"""Features of cells that are gathered at once, 64 MB."""


class WindowCam:
    """Class activation maps of the windows of some cases, on the device of the classifier.

    A block of the lattice is a feature cell: windows that share a block share its features.

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
        inside = torch.stack(torch.meshgrid(*(torch.arange(n, device=device) for n in cells), indexing="ij"), dim=-1)
        first = lattice.corners().to(device) // CELL  # of the cells that a phase leaves; of blocks, where it is 0
        self._first, self._inside = first, inside.view(-1, 3)
        self._cut = torch.tensor([int(phase > 0) for phase in lattice.phase], device=device)
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def blocks(self, ids: Tensor) -> Tensor:
        """Number, among all blocks, of each cell of the windows `ids` int64 [n]: int64 [n, w]."""
        x, y, z = (self._first[ids][:, None] + self._inside + self._cut).unbind(dim=-1)
        _, by, bz = self.lattice.block_shape
        return (x * by + y) * bz + z

    @torch.no_grad()
    def __call__(self, case: int, ids: Tensor) -> Tensor:
        """L_p / max L_p of the windows `ids` int64 [n] of a case: float32 [n, w] in [0, 1], in the order of `blocks`; 0
        where nothing in a window speaks for tumour."""
        cells = self._cells(case)
        shape = torch.tensor(cells.shape[1:], device=self.device)
        flat, most = cells.flatten(1), max(1, MOST_NUMBERS // (len(cells) * len(self._inside)))
        found = []
        for some in torch.split(ids, most):
            x, y, z = (self._first[some][:, None] + self._inside).unbind(dim=-1)
            features = flat[:, (x * shape[1] + y) * shape[2] + z].float()  # [K, n, w]
            weights = self._weights(torch.cat((features.mean(dim=2), features.amax(dim=2))).T)
            found.append(F.relu(torch.einsum("nk,knw->nw", weights, features)))
        maps = torch.cat(found) if found else torch.zeros(0, len(self._inside), device=self.device)
        return maps / maps.amax(dim=1, keepdim=True).clamp(min=1e-6)

    def _weights(self, pooled: Tensor) -> Tensor:
        """w_k = Σ over the cells of ∂z / ∂F_k, [n, K], of pooled features [n, 2K]: through the mean and the maximum."""
        with torch.enable_grad():
            leaf = pooled.detach().requires_grad_()
            logits = self.net.head(leaf)
            (found,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), leaf)
        of_mean, of_max = found.chunk(2, dim=1)
        return of_mean + of_max

    def _cells(self, case: int) -> Tensor:
        """F float16 [K, cx, cy, cz] of a case."""
        if case in self._kept:
            self._kept.move_to_end(case)
        else:
            volume = self.images[case].to(self.device)[None, None].float() / 255
            self._kept[case] = self.net.layers.cells(volume, self.lattice)[0].half()
            if len(self._kept) > CASES_KEPT:
                self._kept.popitem(last=False)
        return self._kept[case]
