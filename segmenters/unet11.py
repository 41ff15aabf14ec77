"""TernausNet's UNet11, the agent of APGA (docs/apga.md, Method 10): a U-Net on VGG-11, one logit for each pixel.

Symbols: x = images [B, C, H, W] in [0, 1]; φ = logits [B, 1, H, W]; σ(φ) = probability that a pixel is selected.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_range
from ..common.networks import Network

UNIT = 32
"""Pixels of which each side must be a multiple: it is halved five times."""


class UNet11(Network):
    """22 927 393 parameters with three channels, 22 926 241 with one; neither dropout nor normalisation.

    Args:
        in_channels: C. With 3, a grey picture of one channel is repeated.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        check_range("in_channels", in_channels, AT_LEAST_1)
        self.in_channels = in_channels
        self.conv1 = _conv(in_channels, 64)
        self.conv2 = _conv(64, 128)
        self.conv3s, self.conv3 = _conv(128, 256), _conv(256, 256)
        self.conv4s, self.conv4 = _conv(256, 512), _conv(512, 512)
        self.conv5s, self.conv5 = _conv(512, 512), _conv(512, 512)
        self.center = _up(512, 512, 256)
        self.dec5 = _up(256 + 512, 512, 256)
        self.dec4 = _up(256 + 512, 512, 128)
        self.dec3 = _up(128 + 256, 256, 64)
        self.dec2 = _up(64 + 128, 128, 32)
        self.dec1 = _conv(32 + 64, 32)
        self.final = nn.Conv2d(32, 1, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """φ [B, 1, H, W].

        Raises:
            ValueError: sides that are no multiples of 32, or another number of channels.
        """
        x = with_channels(x, self.in_channels, "UNet11")
        height, width = x.shape[-2:]
        if height % UNIT or width % UNIT:
            raise ValueError(
                f"images are {height} x {width} but UNet11 halves them five times and needs multiples of {UNIT}; "
                f"resize or pad them to {-(-height // UNIT) * UNIT} x {-(-width // UNIT) * UNIT}"
            )
        one = F.relu(self.conv1(x))
        two = F.relu(self.conv2(_halved(one)))
        three = F.relu(self.conv3(F.relu(self.conv3s(_halved(two)))))
        four = F.relu(self.conv4(F.relu(self.conv4s(_halved(three)))))
        five = F.relu(self.conv5(F.relu(self.conv5s(_halved(four)))))
        y = self.center(_halved(five))
        for up, skip in ((self.dec5, five), (self.dec4, four), (self.dec3, three), (self.dec2, two)):
            y = up(torch.cat([y, skip], dim=1))
        y = F.relu(self.dec1(torch.cat([y, one], dim=1)))
        logits: Tensor = self.final(y)
        return logits


def with_channels(x: Tensor, channels: int, network: str) -> Tensor:
    """Images [B, channels, H, W] of x [B, C, H, W]; one channel becomes three of the same.

    Raises:
        ValueError: another number of channels; names the network.
    """
    if x.ndim == 4 and x.shape[1] == 1 and channels == 3:
        return x.expand(-1, 3, -1, -1)
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"images have shape {list(x.shape)} but {network} needs [B, {channels}, H, W]")
    return x


def _conv(maps_in: int, maps_out: int) -> nn.Conv2d:
    return nn.Conv2d(maps_in, maps_out, 3, padding=1)


def _up(maps_in: int, middle: int, maps_out: int) -> nn.Sequential:
    """Convolution, then a transposed one that doubles the sides."""
    doubled = nn.ConvTranspose2d(middle, maps_out, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(_conv(maps_in, middle), nn.ReLU(inplace=True), doubled, nn.ReLU(inplace=True))


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)
