"""The convolutions of our classifiers: from voxels to feature cells (docs/spars.md, Method 6).

A cell holds the features of 4x4x4 voxels. The convolutions are unpadded, so that a crop that carries the `HALO` voxels
that they use up on every side has the same cells as the whole volume.
"""

from itertools import pairwise
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.device import bfloat16_on_cuda
from ..datasets.liver.lattice import WindowLattice

HALO = 9
"""Voxels that the unpadded layers use up on every side; outside the volume they are 0, the scaled value of air."""
CELL = 4
"""Voxels per feature cell along each axis: two 2x pools."""
CHANNELS = (1, 16, 32, 32, 64)
POOLED = (True, False, True, False)
CHUNK_VOXELS = 2**23
"""Voxels that go through the layers at once when nothing is trained: bounds memory (about 0.15 kB each in float32)."""


def conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv3d:
    """Conv3d 3x3x3, unpadded, with its weights in the order that makes it 1.5 to 2.5 times as fast on a CPU."""
    layer = nn.Conv3d(channels_in, channels_out, 3, stride)
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return layer


class ConvNorm(nn.Module):
    """BatchNorm(Conv3d 3x3x3, unpadded); in eval mode folded into one convolution, which saves a pass over memory."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv, self.norm = conv(channels_in, channels_out), nn.BatchNorm3d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, out, X - 2, Y - 2, Z - 2] of x [B, in, X, Y, Z]."""
        conv, norm = self.conv, self.norm
        if self.training:
            out: Tensor = norm(conv(x))
            return out
        assert conv.bias is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = (conv.bias - norm.running_mean) * scale + norm.bias
        return F.conv3d(x, conv.weight * scale[:, None, None, None, None], bias)


class Stem(nn.ModuleList):
    """Conv-BN-ReLU four times, all 3x3x3 and unpadded: 1→16, pool, 16→32, 32→32, pool, 32→64.

    Nothing normalises over space (an InstanceNorm would see more in a volume than in a crop). On CUDA it runs in
    bfloat16 in training and in TF32 in use, where bfloat16 would shift scores by 0.01.
    """

    def __init__(self) -> None:
        super().__init__(ConvNorm(i, o) for i, o in pairwise(CHANNELS))

    def forward(self, padded: Tensor) -> Tensor:
        """Feature cells float32 [B, 64, cx, cy, cz] of a volume with halo, [B, 1, 4 cx + 18, 4 cy + 18, 4 cz + 18]."""
        x = padded
        with bfloat16_on_cuda(x.device, enabled=self.training):
            for layer, pooled in zip(self, POOLED, strict=True):
                x = layer(x)
                x = F.relu(F.max_pool3d(x, 2) if pooled else x)  # ReLU and max commute; after the pool there is less
        return x.float()

    def cells(self, volume: Tensor, lattice: WindowLattice) -> Tensor:
        """Feature cells float32 [B, 64, cx, cy, cz] under the windows of a lattice on volume [B, 1, X, Y, Z] in [0, 1].

        Raises:
            ValueError: a lattice whose windows do not lie on cells, or one of another grid.
        """
        if lattice.step % CELL:
            raise ValueError(f"step is {lattice.step} but a dense forward needs a multiple of {CELL} voxels")
        if volume.shape[2:] != lattice.full:
            raise ValueError(f"volume is {list(volume.shape[2:])} but the lattice stands on {list(lattice.full)}")
        pad: list[int] = []
        for full, phase, n, window in zip(lattice.full, lattice.phase, lattice.shape, lattice.window, strict=True):
            covered = (n - 1) * lattice.step + window  # the phase shifts the cells; beyond the last window is halo
            pad = [HALO - phase, phase + covered + HALO - full, *pad]
        return self._in_slabs(F.pad(volume, pad))

    def _in_slabs(self, padded: Tensor) -> Tensor:
        """`forward`, a slab of x at a time; whole in training, where BatchNorm needs the statistics of everything."""
        cells = (padded.shape[2] - 2 * HALO) // CELL
        layer = padded[:, :, 0].numel()  # voxels
        width = cells if self.training else max(1, (CHUNK_VOXELS // layer - 2 * HALO) // CELL)
        width = ceil(cells / ceil(cells / width))  # equal slabs: PyTorch has slow kernels for thin ones
        slabs = [
            self(padded[:, :, CELL * low : CELL * min(low + width, cells) + 2 * HALO]) for low in range(0, cells, width)
        ]
        return torch.cat(slabs, dim=2)


def pool_cells(cells: Tensor, lattice: WindowLattice) -> Tensor:
    """Mean ⊕ max [B, sx, sy, sz, 2K] of the cells [B, K, cx, cy, cz] under each window of the lattice.

    What lies beyond the last window is left out.
    """
    mean = peak = cells.contiguous()  # unfold is slow on channels_last
    for axis, window in enumerate(lattice.window, start=2):  # a box is separable
        mean = mean.unfold(axis, window // CELL, lattice.step // CELL).mean(dim=-1)
        peak = peak.unfold(axis, window // CELL, lattice.step // CELL).amax(dim=-1)
    return torch.cat((mean, peak), dim=1).movedim(1, -1)


def cell_lattice(lattice: WindowLattice) -> WindowLattice:
    """The lattice whose windows are the feature cells of the volume; those of `lattice` are unions of them."""
    x, y, z = (phase % CELL for phase in lattice.phase)
    return WindowLattice(lattice.full, (CELL, CELL, CELL), CELL, (x, y, z))
