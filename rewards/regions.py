"""Connected regions in which two masks differ (docs/rl4seg.md, Method 7 and 12).

Neighbours are those across an edge. Two masks of one image with different labels at a pixel disagree there, whatever
the labels are.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .morphology import label_components


class Regions(NamedTuple):
    """The R regions of N images."""

    number: Tensor
    """int64 [N, H, W]: 1 to R in the regions, in the order of their images; 0 where the masks agree."""
    image: Tensor
    """int64 [R]: the image of each region."""

    def means(self, values: Tensor) -> Tensor:
        """Mean of each image's regions, float64 [N], of values [R]; NaN of an image without region."""
        n = len(self.number)
        total = values.new_zeros(n, dtype=torch.float64).index_add(0, self.image, values.double())
        return total / torch.bincount(self.image, minlength=n)


def disagreement(one: Tensor, other: Tensor) -> Regions:
    """The connected regions in which masks uint8 [N, H, W] differ; labelled on the CPU, on the device of the masks.

    Raises:
        ValueError: masks of different shapes.
    """
    if one.shape != other.shape or one.ndim != 3:
        raise ValueError(f"masks are {list(one.shape)} and {list(other.shape)} but both must be [N, H, W] of one size")
    labels, count = label_components((one != other).cpu().numpy())
    number = torch.from_numpy(labels).to(one.device, torch.int64)
    image = torch.zeros(count + 1, dtype=torch.int64, device=one.device)
    owner = torch.arange(len(one), device=one.device)[:, None, None].expand_as(number)
    image[number.flatten()] = owner.flatten()  # a region lies in one image; what is written at 0 is not kept
    return Regions(number, image[1:])


def mix_regions(good: Tensor, bad: Tensor, probability: float, generator: Generator) -> Tensor:
    """`bad` with each region in which it differs from `good` put right with this probability; uint8 [N, H, W].

    Where a mask differs then says no longer where it is wrong. generator: on the CPU.
    """
    number, image = disagreement(good, bad)
    drawn = torch.rand(len(image) + 1, generator=generator) < probability
    return torch.where(drawn.to(good.device)[number], good, bad)
