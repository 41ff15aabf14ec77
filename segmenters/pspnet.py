"""PSPNet (Zhao et al., CVPR 2017) as in RP-PGD's program (docs/rp-pgd.md, Method 12).

Symbols: x = output of the last stage [B, D, h, w].
"""

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_range
from .dilated import DilatedSegmenter, conv_norm_relu, resize
from .resnet import Backbone, stage_widths


class PSPNet(DilatedSegmenter):
    """A ResNet at output stride 8, pyramid pooling, and heads with a 3x3 convolution.

    Args:
        in_channels: channels of the images.
        out_channels: number of classes K.
        backbone: resnet50 in the paper (48 957 802 parameters for 3 -> 21); resnet18 for two cores (12 771 242).
        deep_stem: three 3x3 convolutions as the stem, as in semseg and in DDC-AT's program; RP-PGD has one of 7x7.
        bins: rows and columns that the last stage is pooled to, one branch for each; their number divides its maps.
        dropout: share of maps set to zero in the heads in train mode.
        ddc_at: with the two further heads of DDC-AT.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        backbone: Backbone = "resnet50",
        deep_stem: bool = False,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        dropout: float = 0.1,
        ddc_at: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, backbone, deep_stem, dropout, ddc_at)
        maps = stage_widths(backbone)[-1]
        check_range("bins", bins, AT_LEAST_1)
        if not bins or maps % len(bins):
            raise ValueError(f"bins is {bins} but their number must divide the {maps} maps of {backbone}")
        self.bins = bins
        self.context = PyramidPooling(maps, bins)
        self._set_heads(2 * maps, maps // 4, kernel=3)


class PyramidPooling(nn.Module):
    """The maps, and beside them as many again: of each bin, their means, reduced and resized."""

    def __init__(self, maps: int, bins: tuple[int, ...]) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), *conv_norm_relu(maps, maps // len(bins), 1)) for size in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, 2 D, h, w] of [B, D, h, w]."""
        return torch.cat([x, *(resize(branch(x), x.shape[-2:]) for branch in self.features)], dim=1)
