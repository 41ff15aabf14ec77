"""DeepLabv3 (Chen et al., 2017) as in RP-PGD's program (docs/rp-pgd.md, Method 12).

Symbols: x = output of the last stage [B, D, h, w].
"""

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_range
from .dilated import DilatedSegmenter, conv_norm_relu, resize
from .resnet import Backbone, stage_widths


class DeepLabV3(DilatedSegmenter):
    """A ResNet at output stride 8, atrous spatial pyramid pooling, and heads of 1x1 convolutions.

    Args:
        in_channels: channels of the images.
        out_channels: number of classes K.
        backbone: resnet50 in the paper (39 316 586 parameters for 3 -> 21); resnet18 for two cores (12 167 274).
        deep_stem: three 3x3 convolutions as the stem, as in semseg and in DDC-AT's program; RP-PGD has one of 7x7.
        rates: dilations of the 3x3 branches; DeepLabv3's own paper has (12, 24, 36) at this stride.
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
        rates: tuple[int, ...] = (6, 12, 18),
        dropout: float = 0.1,
        ddc_at: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, backbone, deep_stem, dropout, ddc_at)
        check_range("rates", rates, AT_LEAST_1)
        self.rates = rates
        maps = stage_widths(backbone)[-1]
        width = maps // 8
        self.context = AtrousPooling(maps, width, rates)
        self._set_heads(width * (len(rates) + 2), width, kernel=1)


class AtrousPooling(nn.Module):
    """A 1x1 convolution, 3x3 ones of several dilations, and the mean of the image, side by side."""

    def __init__(self, maps: int, width: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Sequential(*conv_norm_relu(maps, width, 1)),
                *(nn.Sequential(*conv_norm_relu(maps, width, 3, rate)) for rate in rates),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(maps, width, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, width (rates + 2), h, w] of [B, D, h, w]."""
        *local, pooled = self.convs
        return torch.cat([*(conv(x) for conv in local), resize(pooled(x), x.shape[-2:])], dim=1)
