"""How well a saliency map shows what a classifier needs: deletion and insertion curves (docs/apga.md, Method 9).

Petsiuk, Das, Saenko: RISE (2018). Symbols: x = images [B, C, H, W]; q(s) = probability of the class of the whole image
when a share s of the pixels, from the most salient on, is deleted, or inserted.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class DeletionCurves(NamedTuple):
    """q at the shares s, and the areas under it."""

    shares: Tensor
    """s [T + 1], rising from 0 to 1."""
    deletion: Tensor
    """q [B, T + 1] with the most salient pixels set to the fill."""
    insertion: Tensor
    """q [B, T + 1] with all others set to the fill."""

    @property
    def deletion_auc(self) -> Tensor:
        """Area [B] in [0, 1] by trapezoids; low where the map is good."""
        return torch.trapezoid(self.deletion, self.shares)

    @property
    def insertion_auc(self) -> Tensor:
        """Area [B] in [0, 1] by trapezoids; high where the map is good."""
        return torch.trapezoid(self.insertion, self.shares)


@torch.no_grad()
def deletion_curves(
    probabilities: Callable[[Tensor], Tensor],
    x: Tensor,
    saliency: Tensor,
    *,
    steps: int = 32,
    fill: Tensor | float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
) -> DeletionCurves:
    """Curves of deletion and insertion of images, each by its own map.

    Args:
        probabilities: p [n, K] of images [n, C, H, W]; each image must count for itself, as in eval mode.
        x: images, floating point.
        saliency: [B, H, W], of any scale; a binary mask too. Equal pixels are in random order.
        steps: T, the number of shares above 0.
        fill: what a deleted pixel becomes, such as 0 or blurred images like x.
        seed: of the order of equal pixels.
        batch_size: images that the classifier sees in one pass.

    Raises:
        ValueError: shapes that do not go together, a map that is not finite, or no step.
    """
    if x.ndim != 4 or saliency.shape != (len(x), *x.shape[2:]) or x.numel() == 0:
        raise ValueError(
            f"images {list(x.shape)} need maps [B, H, W], not {list(saliency.shape)}, and must not be empty"
        )
    if not bool(saliency.isfinite().all()):
        raise ValueError("the maps contain NaN or infinity; a map that says nothing is constant")
    pixels = saliency[0].numel()
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps is {steps} but must lie in [1, {pixels}], the pixels of an image")
    ranks = ranks_of(saliency.float().flatten(1), seed).view(saliency.shape)[:, None]  # [B, 1, H, W]
    numbers = (torch.arange(steps + 1, device=x.device, dtype=torch.float64) * pixels / steps).round().long()
    filled = (fill if isinstance(fill, Tensor) else x.new_full((), fill)).expand_as(x)
    image = torch.arange(len(x), device=x.device).repeat_interleave(steps + 1)  # of each point of each curve
    number = numbers.repeat(len(x))
    classes = torch.cat([probabilities(part).argmax(dim=1) for part in torch.split(x, batch_size)])
    curves: list[list[Tensor]] = [[], []]
    for rows in torch.split(torch.arange(len(image), device=x.device), batch_size):
        of = image[rows]
        salient = ranks[of] < number[rows, None, None, None]
        for curve, gone in zip(curves, (salient, ~salient), strict=True):
            p = probabilities(torch.where(gone, filled[of], x[of]))
            curve.append(p.gather(1, classes[of, None])[:, 0].double())
    deletion, insertion = (torch.cat(curve).view(len(x), steps + 1) for curve in curves)
    return DeletionCurves(numbers.double() / pixels, deletion, insertion)


def ranks_of(values: Tensor, seed: int) -> Tensor:
    """Place of each value in its row, int64 [B, n], 0 for the highest; equal ones in random order."""
    generator = Generator().manual_seed(seed)
    shuffled = torch.rand(values.shape, generator=generator).argsort(dim=1).to(values.device)
    order = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    order = shuffled.gather(1, order)
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(values.shape[1], device=values.device).expand_as(order)
    )
