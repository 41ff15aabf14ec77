"""Seven attributes of a heart's shape, which the shape prior's code is trained to follow (docs/rl4seg.md, Method 8)."""

import math

import torch
from torch import Tensor

from ..datasets.echo.images import BACKGROUND, LV

ATTRIBUTES = (
    "lv_area",
    "lv_base_width",
    "lv_length",
    "lv_orientation",
    "myo_area",
    "epi_center_x",
    "epi_center_y",
)
"""t_0 ... t_6, in the order of the latent dimensions."""
BASE = 0.15
"""The base of the LV is this share of its length, at the lower end."""


def attributes(masks: Tensor) -> Tensor:
    """t, float32 [B, 7] in the order of ATTRIBUTES, of masks uint8 [B, H, W]; 0 where the structure is absent.

    Areas are shares of the image; lengths and positions shares of its diagonal and sides. Only their order among masks
    matters to the loss. The LV's long axis is its first principal axis; lv_orientation is that axis's angle from the
    vertical in radians, within +-pi/2, positive where it leans to the right downwards; lv_length is the LV's extent
    along it, lv_base_width its extent across it in the lowest `BASE` of the length.
    """
    height, width = masks.shape[-2:]
    y = torch.arange(height, device=masks.device, dtype=torch.float32)[:, None].expand(height, width)
    x = torch.arange(width, device=masks.device, dtype=torch.float32).expand(height, width)
    lv, epi = masks == LV, masks != BACKGROUND

    def mean(value: Tensor, region: Tensor) -> Tensor:
        return (value * region).sum(dim=(1, 2)) / region.sum(dim=(1, 2)).clamp(min=1)

    def extent(value: Tensor, region: Tensor) -> Tensor:
        low = value.masked_fill(~region, math.inf).amin(dim=(1, 2))
        high = value.masked_fill(~region, -math.inf).amax(dim=(1, 2))
        return torch.where(region.any(dim=2).any(dim=1), high - low + 1, 0)

    dy, dx = y - mean(y, lv)[:, None, None], x - mean(x, lv)[:, None, None]
    yy, xx, xy = mean(dy * dy, lv), mean(dx * dx, lv), mean(dx * dy, lv)
    angle = 0.5 * torch.atan2(2 * xy, yy - xx)
    sin, cos = angle.sin()[:, None, None], angle.cos()[:, None, None]
    along, across = cos * dy + sin * dx, cos * dx - sin * dy  # `along` grows downwards
    length = extent(along, lv)
    end = along.masked_fill(~lv, -math.inf).amax(dim=(1, 2))
    base = lv & (along >= (end - BASE * length)[:, None, None])
    diagonal, area = math.hypot(height, width), height * width
    myo_area = (epi & ~lv).sum(dim=(1, 2)) / area
    return torch.stack(
        [
            lv.sum(dim=(1, 2)) / area,
            extent(across, base) / diagonal,
            length / diagonal,
            angle,
            myo_area,
            mean(x, epi) / width,
            mean(y, epi) / height,
        ],
        dim=1,
    )
