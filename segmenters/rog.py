"""ROG: a light lattice of cells at four resolutions for 3-D patches (docs/seat.md, Method 8).

Symbols: x = patches [B, C, D, H, W]; K = classes; s0, s1, s2 = strides of the two stems and of the first level; level l
has 64 * 2^l maps. Names of the parts are those of the published checkpoints (`pretrained.py:load_rog`).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_range
from ..common.networks import Network

STEM = 32
"""Maps of the first stem, and of the head."""
WIDTH = 64
"""Maps of level 0; each further level has twice as many."""
UP, SAME, DOWN = -1, 0, 1
"""Edges of a cell, by the change of level."""
LATTICE: tuple[dict[int, tuple[int, ...]], ...] = (
    {0: (SAME, DOWN)},
    {1: (UP, SAME, DOWN)},
    {0: (SAME, DOWN), 2: (UP, SAME, DOWN)},
    {1: (UP, SAME, DOWN), 3: (UP, SAME)},
    {0: (SAME, DOWN), 2: (UP, SAME, DOWN)},
    {1: (UP, SAME, DOWN), 3: (UP,)},
    {0: (SAME, DOWN), 2: (UP,)},
    {1: (UP,)},
    {0: (UP,)},
)
"""Columns from left to right: the cells of each by their level, with their edges."""
Stride = tuple[int, int, int]


class ROG(Network):
    """ROG for patches of C channels and K classes; 2,596,192 + 59 C + 32 K parameters.

    Instance normalisation alone: what it gives of an image does not depend on the other ones, in training neither.

    Args:
        in_channels: C, at least 1.
        out_channels: K, at least 1.
        s0: stride of the first stem, and factor of the last upsampling, by axis.
        s1: stride of the second stem, and factor of the last cell.
        s2: stride between levels 0 and 1; the ones below halve each axis.

    Raises:
        ValueError: a number below 1, or a stride that is not of three axes.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        s0: Stride = (1, 1, 1),
        s1: Stride = (1, 1, 1),
        s2: Stride = (2, 2, 2),
    ) -> None:
        super().__init__()
        check_range("in_channels", in_channels, AT_LEAST_1)
        check_range("out_channels", out_channels, AT_LEAST_1)
        for name, stride in {"s0": s0, "s1": s1, "s2": s2}.items():
            check_range(name, stride, AT_LEAST_1)
            if len(stride) != 3:
                raise ValueError(f"{name} is {stride!r} but must be three strides, one for each axis")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.s0, self.s1, self.s2 = s0, s1, s2
        small = nn.Sequential(
            SeparableConv(in_channels, STEM),
            Norm(STEM),
            nn.SiLU(),
            SeparableConv(STEM, STEM, s0),
            Norm(STEM),
            nn.SiLU(),
        )
        smaller = nn.Sequential(
            SeparableConv(STEM, STEM), Norm(STEM), nn.SiLU(), SeparableConv(STEM, WIDTH, s1), Norm(WIDTH)
        )
        self.stem = nn.ModuleList([small, smaller])
        self.backbone = nn.ModuleList([Column(cells, s1, s2) for cells in LATTICE])
        self.combination = nn.Sequential(nn.SiLU(), nn.Conv3d(STEM, STEM, 3, padding=1, bias=False), Norm(STEM))
        self.final = nn.Sequential(nn.SiLU(), nn.Conv3d(STEM, out_channels, 1, bias=False))

    @property
    def unit(self) -> Stride:
        """Voxels per axis of which each side must be a multiple: s0 * s1 * s2 * 4."""
        a, b, c = (4 * first * second * third for first, second, third in zip(self.s0, self.s1, self.s2, strict=True))
        return a, b, c

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K, D, H, W].

        Raises:
            ValueError: sides that the strides do not divide, or a deepest level of a single voxel, which has no
                variance.
        """
        check_sides(type(self).__name__, x, self.unit)
        small = self.stem[0](x)  # [B, 32, *spatial / s0]
        queued: list[list[Tensor]] = [[] for _ in range(4)]
        queued[0] = [self.stem[1](small)]  # [B, 64, *spatial / s0 / s1]
        for column in self.backbone:
            queued = column(queued)
        (out,) = queued[-1]
        logits: Tensor = self.final(enlarged(self.combination(out + small), self.s0))
        return logits


class Column(nn.Module):
    """Cells of one depth, each at its level: takes what is queued there, and queues its outputs for the next column.

    Args:
        cells: edges by level.
        s1: factor of the last upsampling, which leaves level 0.
        s2: between levels 0 and 1.
    """

    def __init__(self, cells: dict[int, tuple[int, ...]], s1: Stride, s2: Stride) -> None:
        super().__init__()
        ups, downs = (s1, s2, (2, 2, 2), (2, 2, 2)), (s2, (2, 2, 2), (2, 2, 2), (1, 1, 1))
        self.levels = [*cells]
        self.cells = nn.ModuleList(
            [Cell(WIDTH * 2**level, edges, ups[level], downs[level]) for level, edges in cells.items()]
        )

    def forward(self, queued: list[list[Tensor]]) -> list[list[Tensor]]:
        """Queues of levels 0 to 3, and last that of what leaves level 0 upwards."""
        after = [*map(list, queued)]
        for level in self.levels:
            after[level] = []
        after += [[]] * (5 - len(after))
        for level, cell in zip(self.levels, self.cells, strict=True):
            for change, output in cell(sum(queued[level][1:], start=queued[level][0])).items():
                after[level + change] = [*after[level + change], output]
        return after


class Cell(nn.Module):
    """Two separable convolutions with a residual, and an output for each edge: halved or doubled maps, or the same."""

    def __init__(self, channels: int, edges: Sequence[int], up: Stride, down: Stride) -> None:
        super().__init__()
        self.edges, self.factor = edges, up
        self.up = self.down = None
        if UP in edges:
            self.up = nn.Sequential(nn.SiLU(), nn.Conv3d(channels, channels // 2, 1, bias=False), Norm(channels // 2))
        if DOWN in edges:
            self.down = nn.Sequential(
                nn.SiLU(), nn.Conv3d(channels, channels * 2, 1, down, bias=False), Norm(channels * 2)
            )
        self.core = nn.Sequential(
            nn.SiLU(), SeparableConv(channels, channels), Norm(channels),
            nn.SiLU(), SeparableConv(channels, channels), Norm(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Outputs by edge."""
        z = x + self.core(x)
        outputs = {SAME: z} if SAME in self.edges else {}
        if self.up is not None:
            outputs[UP] = enlarged(self.up(z), self.factor)
        if self.down is not None:
            outputs[DOWN] = self.down(z)
        return outputs


class SeparableConv(nn.Module):
    """3x3x3 convolution of each map by itself, then 1x1x1 over maps, both without bias."""

    def __init__(self, channels: int, out_channels: int, stride: Stride = (1, 1, 1)) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv3d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, out_channels, *spatial / stride]."""
        mixed: Tensor = self.pointwise(self.conv(x))
        return mixed


class Norm(nn.Module):
    """Instance normalisation with scale and shift; the checkpoints have it one level deeper."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        normalised: Tensor = self.norm(x)
        return normalised


def enlarged(x: Tensor, factor: Stride) -> Tensor:
    """x [B, C, *spatial] with each axis `factor` times as long: linear, aligned corners."""
    if factor == (1, 1, 1):
        return x
    size = [length * times for length, times in zip(x.shape[2:], factor, strict=True)]
    return F.interpolate(x, size, mode="trilinear", align_corners=True)


def check_sides(network: str, x: Tensor, unit: Stride) -> None:
    """Check that patches [B, C, D, H, W] have sides that a network can halve.

    Raises:
        ValueError: another number of axes, a side that is no multiple of `unit`, or all sides equal to it, so that the
            deepest level is one voxel, which has no variance.
    """
    sides = tuple(x.shape[2:])
    if len(sides) != 3 or any(side < 1 or side % of for side, of in zip(sides, unit, strict=True)):
        raise ValueError(
            f"patches are {[*x.shape]} but {network} needs [B, C, D, H, W] with sides that are multiples of {unit}; "
            "pad them, or choose another patch size"
        )
    if sides == unit:
        raise ValueError(
            f"patches have sides {sides} but {network} needs a larger one: at its deepest level a single voxel is left"
        )
