"""The light agent of APGA (docs/apga.md, Method 10): one logit for each cell of a grid, and the value of the image.

Symbols: x = images [B, C, S, S] in [0, 1]; G = cells along each side; φ = logits [B, 1, G, G]; V = value [B].
"""

import math

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_range
from ..common.networks import Network
from .unet11 import with_channels

FIRST_SHARE = 0.1
"""Share of the cells that the first masks select."""
GROUPS = 8
"""Groups of maps that are normalised together."""


class GridNetwork(Network):
    """Levels of two 3x3 convolutions with group normalisation, halved between them until S has become G.

    Its logits are near logit(0.1) at first, so that masks begin small.

    Args:
        image_size: S, G times a power of two.
        grid: G.
        in_channels: C: 1, 2 where the mask is seen too, or 3, to which a grey picture is repeated.
        width: maps of the first level, doubled at each level below; a multiple of 8.

    Raises:
        ValueError: a number outside its range, or S / G is no power of two.
    """

    def __init__(self, image_size: int = 224, grid: int = 14, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        for name, value in (("image_size", image_size), ("grid", grid), ("in_channels", in_channels), ("width", width)):
            check_range(name, value, AT_LEAST_1)
        if width % GROUPS:
            raise ValueError(f"width is {width} but must be a multiple of {GROUPS}, the groups that are normalised")
        self.image_size, self.grid, self.in_channels, self.width = image_size, grid, in_channels, width
        maps = [width * 2**level for level in range(halvings(image_size, grid) + 1)]
        levels: list[nn.Module] = []
        for level, number in enumerate(maps):
            levels += [nn.MaxPool2d(2)] if level else []
            levels += [*_conv(maps[level - 1] if level else in_channels, number), *_conv(number, number)]
        self.trunk = nn.Sequential(*levels)
        self.logits = nn.Conv2d(maps[-1], 1, 1)
        self.value = nn.Linear(maps[-1], 1)
        nn.init.constant_(self.logits.bias, math.log(FIRST_SHARE / (1 - FIRST_SHARE)))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """φ [B, 1, G, G].

        Raises:
            ValueError: images of another size or number of channels.
        """
        logits: Tensor = self.logits(self.features(x))
        return logits

    def logits_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """φ [B, 1, G, G] and V [B], of one pass through the trunk; raises as `forward`."""
        features = self.features(x)
        return self.logits(features), self.value(features.mean(dim=(2, 3)))[:, 0]

    def features(self, x: Tensor) -> Tensor:
        """Maps [B, width 2^(levels - 1), G, G] of the trunk, never negative; raises as `forward`."""
        x = with_channels(x, self.in_channels, "the network")
        if x.shape[-2:] != torch.Size((self.image_size, self.image_size)):
            height, width = x.shape[-2:]
            raise ValueError(
                f"images are {height} x {width} but the network was built for {self.image_size} x {self.image_size}; "
                f"resize them, or build a GridNetwork with image_size={height}"
            )
        maps: Tensor = self.trunk(x)
        return maps


def halvings(image_size: int, grid: int) -> int:
    """How often `image_size` must be halved to become `grid`.

    Raises:
        ValueError: no number of times; names grids that do.
    """
    cell = image_size // grid
    if image_size % grid or cell & (cell - 1):
        possible = [image_size // 2**n for n in range(image_size.bit_length()) if image_size % 2**n == 0]
        raise ValueError(
            f"grid is {grid} but must be image_size ({image_size}) halved a number of times: one of {possible}"
        )
    return cell.bit_length() - 1


def _conv(maps_in: int, maps_out: int) -> list[nn.Module]:
    convolution = nn.Conv2d(maps_in, maps_out, 3, padding=1, bias=False)
    return [convolution, nn.GroupNorm(GROUPS, maps_out), nn.ReLU(inplace=True)]
