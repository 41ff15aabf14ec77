"""The U-Net of RL4Seg (docs/rl4seg.md, Method 3): policy, critic and reward network share it.

Symbols: x = images [B, in, H, W]; maps of the first level = init_channels / 2, doubled at each level below.
"""

import math
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, BELOW_1, check_choice, check_range
from ..common.networks import Network

Norm = Literal["batch", "group"]
LEVELS = 6
"""Resolutions: 1, 1/2, ..., 1/32."""
SMALLEST = 2 ** (LEVELS - 1)
"""Rows and columns that the lowest level needs to keep one pixel."""


class UNet(Network):
    """`levels` resolutions, two 3x3 convolutions each, transposed convolutions upwards, no activation at the end.

    Args:
        in_channels: channels of x.
        out_channels: channels of the output.
        init_channels: twice the number of maps of the first level; 32 in the paper's program (7 781 363 parameters for
            1 -> 3), less for small images.
        norm: "batch", or "group": groups of at most 8 maps, the same in training and use.
        levels: resolutions, 1 to 6; 6 in the paper's program. Fewer see less of the image around a pixel: 1 to 6 see 2,
            9, 23, 51, 107 and 219 pixels to each side at most.
        dropout: share of values set to zero after every 3x3 convolution in train mode; 0 in the paper's program, 0.25
            for its MC-dropout. Networks that differ in nothing else can read each other's weights.

    Any H, W from 32 on: where a size is no multiple of 32, the upward path is padded to the size of the skip.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        init_channels: int = 32,
        norm: Norm = "batch",
        dropout: float = 0.0,
        levels: int = LEVELS,
    ) -> None:
        super().__init__()
        check_range("in_channels", in_channels, AT_LEAST_1)
        check_range("levels", levels, (1, LEVELS))
        check_range("out_channels", out_channels, AT_LEAST_1)
        if init_channels < 2 or init_channels % 2:
            raise ValueError(f"init_channels is {init_channels} but must be even and at least 2")
        check_choice("norm", norm, get_args(Norm))
        check_range("dropout", dropout, (0, BELOW_1))
        self.in_channels, self.out_channels, self.init_channels = in_channels, out_channels, init_channels
        self.norm: Norm = norm
        self.dropout, self.levels = dropout, levels
        maps = [init_channels // 2 * 2**level for level in range(levels)]
        self.early = double_conv(in_channels, maps[0], norm, dropout)
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), double_conv(a, b, norm, dropout)) for a, b in pairwise(maps)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(list(pairwise(maps))))
        self.merge = nn.ModuleList(double_conv(2 * a, a, norm, dropout) for a in reversed(maps[:-1]))
        self.head = nn.Conv2d(maps[0], out_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)
        if norm == "batch":  # convolutions are a fifth faster so; PyTorch 2.13's GroupNorm can crash in that layout
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, out, H, W] of images [B, in, H, W].

        Raises:
            ValueError: fewer than 32 rows or columns.
        """
        if min(x.shape[-2:]) < SMALLEST:
            raise ValueError(f"images are {tuple(x.shape[-2:])} but the U-Net needs at least {SMALLEST} x {SMALLEST}")
        return self.after_early(self.early(x))

    def after_early(self, first: Tensor) -> Tensor:
        """Logits [B, out, H, W] of the first block's features [B, init_channels / 2, H, W]."""
        skips = [first]
        for down in self.down:
            skips.append(down(skips[-1]))
        y = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            skip, y = skips.pop(), up(y)
            if y.shape[-2:] != skip.shape[-2:]:
                dy, dx = (skip.shape[axis] - y.shape[axis] for axis in (-2, -1))
                y = F.pad(y, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
            y = merge(torch.cat([skip, y], dim=1))
        out: Tensor = self.head(y)
        return out


def double_conv(maps_in: int, maps_out: int, norm: Norm, dropout: float) -> nn.Sequential:
    """[conv 3x3, norm, ReLU, dropout] twice."""
    layers: list[nn.Module] = []
    for inputs in (maps_in, maps_out):
        layers += [nn.Conv2d(inputs, maps_out, 3, padding=1), _norm(norm, maps_out)]
        layers += [nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _norm(norm: Norm, maps: int) -> nn.Module:
    return nn.BatchNorm2d(maps) if norm == "batch" else nn.GroupNorm(maps // math.gcd(maps, 8), maps)
