"""Does a reward prefer the truth to a policy's own mask? (docs/rl4seg.md, Method 12)

Symbols: x = image, a = the policy's mask, y = the true one, R(x, a) = reward map. Ties count one half, so that a reward
that sees the place only, and not the label, is at chance in every region.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..datasets.images import ImagePool
from .regions import disagreement

Judge = Callable[[Tensor, Tensor], Tensor]
"""R float32 [B, H, W], or [B, 1, 1], of images float32 [B, 1, H, W] in [0, 1] and masks uint8 [B, H, W]."""


class Preferred(NamedTuple):
    """How often the truth is preferred, of each of K labelled images; NaN where the mask is the truth."""

    image: Tensor
    """float64 [K]: 1 where mean R(x, y) > mean R(x, a), 0 where it is less, 0.5 where they are equal."""
    regions: Tensor
    """float64 [K]: share of the connected regions in which a differs from y such that a with y's labels in this region
    alone has a higher mean R in the region than a has."""

    def means(self) -> dict[str, float]:
        """Means over the images in which mask and truth differ; {} where there is none."""
        shares = {"truth_preferred": self.image, "truth_preferred_regions": self.regions}
        judged = ~self.image.isnan()
        return {name: float(share[judged].mean()) for name, share in shares.items()} if judged.any() else {}


@torch.no_grad()
def truth_preferred(judge: Judge, images: ImagePool, masks: Tensor, batch_size: int = 64) -> Preferred:
    """Ask a reward whether it prefers the truth, on the images of a pool whose labels are known.

    Args:
        judge: the reward; one call for each batch of images, and one for each batch of regions.
        images: the pool, of N images.
        masks: a of each, uint8 [N, H, W], on its device.
        batch_size: masks at once.

    Raises:
        ValueError: no labels, or masks of another shape.
    """
    if (known := images.known_labels) is None or masks.shape != images.images[:, 0].shape:
        raise ValueError(
            f"masks are {list(masks.shape)} and {len(images.unlabelled)} of {len(images)} images have no labels; give "
            f"a mask {list(images.images.shape[2:])} for each image, and labels of some"
        )
    rows = torch.tensor(known.rows, device=masks.device)
    own, truth = masks[rows], known.labels
    number, image = regions = disagreement(own, truth)

    def asked(at: Tensor, given: Tensor) -> Tensor:
        return judge(images.at(rows[at]), given).expand_as(given)

    worth = torch.empty(own.shape, device=own.device)
    gains = []
    for at in torch.split(torch.arange(len(rows), device=rows.device), batch_size):
        worth[at] = asked(at, own[at])
        gains.append((asked(at, truth[at]) - worth[at]).double().mean(dim=(1, 2)))
    local = [image.new_zeros(0, dtype=torch.float64)]
    for part in torch.split(torch.arange(len(image), device=rows.device), batch_size):
        at = image[part]
        here = number[at] == part[:, None, None] + 1
        gain = asked(at, torch.where(here, truth[at], own[at])) - worth[at]
        local.append((gain.double() * here).sum(dim=(1, 2)))
    differs = (own != truth).flatten(1).any(dim=1)
    by_image = _half_of_ties(torch.cat(gains)).where(differs, torch.nan)
    return Preferred(by_image, regions.means(_half_of_ties(torch.cat(local))))


def _half_of_ties(gains: Tensor) -> Tensor:
    return (1 + gains.sign()) / 2
