"""MONAI's 3-D networks with the settings that SEAT's program gives them (docs/seat.md, Method 8).

Symbols: x = patches [B, C, D, H, W]; K = classes. Sides are checked, as MONAI fails at a concatenation, or not at all.
MONAI's networks take two seconds to import, and are imported when one of them is built.
"""

from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, POSITIVE, check_range
from ..common.networks import Network
from .rog import Stride, check_sides

TASK_PATCHES: dict[int, tuple[Stride, tuple[float, float, float]]] = {
    1: ((128, 128, 128), (1.0, 1.0, 1.0)),
    2: ((160, 192, 80), (1.25, 1.25, 1.37)),
    3: ((128, 128, 128), (0.77, 0.77, 1.0)),
    4: ((40, 56, 40), (1.0, 1.0, 1.0)),
    5: ((320, 256, 20), (0.62, 0.62, 3.6)),
    6: ((192, 160, 80), (0.79, 0.79, 1.24)),
    7: ((224, 224, 40), (0.8, 0.8, 2.5)),
    8: ((192, 192, 64), (0.8, 0.8, 1.5)),
    9: ((192, 160, 64), (0.79, 0.79, 1.6)),
    10: ((192, 160, 56), (0.78, 0.78, 3.0)),
}
"""Patch in voxels and spacing in mm of each Decathlon task, of MONAI's tutorial on DynUNet."""


class VolumeNetwork(Network):
    """A body for patches whose sides must be multiples of `unit`.

    Args:
        in_channels: C, at least 1.
        out_channels: K, at least 1.

    Raises:
        ValueError: a number below 1.
    """

    unit: Stride
    """Voxels per axis of which each side must be a multiple."""
    body: nn.Module

    def __init__(self, in_channels: int = 1, out_channels: int = 2) -> None:
        super().__init__()
        check_range("in_channels", in_channels, AT_LEAST_1)
        check_range("out_channels", out_channels, AT_LEAST_1)
        self.in_channels, self.out_channels = in_channels, out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K, D, H, W].

        Raises:
            ValueError: sides that the network cannot halve (`check_sides`).
        """
        check_sides(type(self).__name__, x, self.unit)
        logits: Tensor = self.body(x)
        return logits


class SegResNet(VolumeNetwork):
    """Residual blocks with group normalisation, and dropout of 0.2; sides that are multiples of 8."""

    unit = (8, 8, 8)

    def __init__(self, in_channels: int = 1, out_channels: int = 2) -> None:
        from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet

        super().__init__(in_channels, out_channels)
        self.body = MonaiSegResNet(
            in_channels=in_channels, out_channels=out_channels, init_filters=16, blocks_down=(1, 2, 2, 4),
            blocks_up=(1, 1, 1), dropout_prob=0.2,
        )  # fmt: skip


class UNet3D(VolumeNetwork):
    """Residual U-Net of five levels with batch normalisation, and dropout of 0.2; sides that are multiples of 16."""

    unit = (16, 16, 16)

    def __init__(self, in_channels: int = 1, out_channels: int = 2) -> None:
        from monai.networks.nets.unet import UNet as MonaiUNet

        super().__init__(in_channels, out_channels)
        self.body = MonaiUNet(
            spatial_dims=3, in_channels=in_channels, out_channels=out_channels, channels=(64, 128, 256, 512, 1024),
            strides=(2, 2, 2, 2), kernel_size=3, num_res_units=2, dropout=0.2, norm="batch",
        )  # fmt: skip


class DynUNet(VolumeNetwork):
    """nnU-Net's U-Net with instance normalisation, whose kernels and strides follow from a patch and its spacing.

    Args:
        in_channels: C, at least 1.
        out_channels: K, at least 1.
        patch_size: voxels of the patch that it is planned for, by axis; it takes any multiple of `unit`.
        spacing: of that patch in mm, by axis.

    Raises:
        ValueError: a number below 1, a spacing of 0 or below, or a patch that is too small to be halved.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        patch_size: Stride = TASK_PATCHES[4][0],
        spacing: tuple[float, float, float] = TASK_PATCHES[4][1],
    ) -> None:
        from monai.networks.nets.dynunet import DynUNet as MonaiDynUNet

        super().__init__(in_channels, out_channels)
        self.patch_size, self.spacing = patch_size, spacing
        kernels, strides = kernels_and_strides(patch_size, spacing)
        if len(strides) < 3:
            raise ValueError(f"patch_size is {patch_size} but a DynUNet needs one that can be halved twice")
        a, b, c = [1, 1, 1]
        for x, y, z in strides:
            a, b, c = a * x, b * y, c * z
        self.unit = (a, b, c)
        self.body = MonaiDynUNet(
            spatial_dims=3, in_channels=in_channels, out_channels=out_channels, kernel_size=kernels, strides=strides,
            upsample_kernel_size=strides[1:], norm_name="instance", deep_supervision=False,
        )  # fmt: skip


class SmallVolumeNet(VolumeNetwork):
    """Four convolutions with group normalisation at full size, the second and third dilated: for toys and two cores.

    Args:
        in_channels: C, at least 1.
        out_channels: K, at least 1.
        width: maps of each layer, even.
    """

    unit = (1, 1, 1)

    def __init__(self, in_channels: int = 1, out_channels: int = 2, width: int = 8) -> None:
        super().__init__(in_channels, out_channels)
        check_range("width", width, (2, 1024))
        self.width = width
        layers: list[nn.Module] = []
        for number, dilation in enumerate((1, 2, 4)):
            maps = width if number else in_channels
            layers += [
                nn.Conv3d(maps, width, 3, padding=dilation, dilation=dilation),
                nn.GroupNorm(2, width),
                nn.SiLU(),
            ]
        self.body = nn.Sequential(*layers, nn.Conv3d(width, out_channels, 3, padding=1))


def kernels_and_strides(
    patch_size: Stride, spacing: tuple[float, float, float]
) -> tuple[list[list[int]], list[list[int]]]:
    """Kernel and stride of each level, by axis.

    A level halves an axis whose spacing is at most twice the finest one and which has at least 8 voxels, and convolves
    over 3 voxels where the spacing is at most twice the finest one, else over 1. Where nothing is halved any more, a
    level with kernel 3 and stride 1 is put first and last.

    Raises:
        ValueError: a size below 1, or a spacing of 0 or below.
    """
    check_range("patch_size", patch_size, AT_LEAST_1)
    check_range("spacing", spacing, POSITIVE)
    sizes, distances = [float(size) for size in patch_size], [*spacing]
    kernels: list[list[int]] = []
    strides: list[list[int]] = []
    while True:
        near = [distance / min(distances) <= 2 for distance in distances]
        stride = [2 if close and size >= 8 else 1 for close, size in zip(near, sizes, strict=True)]
        if max(stride) == 1:
            break
        kernels.append([3 if close else 1 for close in near])
        strides.append(stride)
        sizes = [size / step for size, step in zip(sizes, stride, strict=True)]
        distances = [distance * step for distance, step in zip(distances, stride, strict=True)]
    return [*kernels, [3, 3, 3]], [[1, 1, 1], *strides]
