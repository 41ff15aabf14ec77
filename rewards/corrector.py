"""The corrector: pieces and holes repaired, then what the shape prior makes of a mask (docs/rl4seg.md, Method 8).

Symbols: z = latent code of the shape prior, g(a) = corrected mask.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from ..common.checks import check_choice
from ..segmenters.inference import device_of
from .morphology import clean_masks
from .shape_prior import ARVAE

AT_ONCE = 64
"""Masks that are corrected at once."""
LINE_STEPS = 8
"""Steps of the line search between two codes."""

Projection = Literal["decode", "nearest_valid"]


class Corrector:
    """g: a mask's pieces and holes repaired, then what the shape prior makes of it.

    Args:
        prior: is put in eval mode; decides the device.
        projection: "decode" is the paper's: the decoded code, valid or not. With "nearest_valid" an invalid result is
            moved in latent space towards the nearest code of a valid training mask, until it is valid: it always is
            in the end (ours).
        masks: uint8 [N, H, W], the prior's training masks, for nearest_valid.
        valid: masks uint8 [N, H, W] to bool [N], for nearest_valid.

    Raises:
        ValueError: an unknown projection; nearest_valid without masks or `valid`, or with none whose reconstruction is
            valid.
    """

    def __init__(
        self,
        prior: ARVAE,
        *,
        projection: Projection = "decode",
        masks: Tensor | None = None,
        valid: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_choice("projection", projection, get_args(Projection))
        self._prior, self._device = prior.eval(), device_of(prior)
        self._valid = None
        if projection == "nearest_valid":
            if masks is None or valid is None:
                raise ValueError("projection 'nearest_valid' needs the training masks and what judges them")
            self._valid = valid
            with torch.no_grad():
                codes = torch.cat([prior.encode(part.to(self._device))[0] for part in torch.split(masks, AT_ONCE)])
                decoded = torch.cat([prior.masks(part) for part in torch.split(codes, AT_ONCE)])
            good = valid(decoded).to(self._device)
            if not good.any():
                raise ValueError(
                    f"none of the {len(masks)} masks is valid after reconstruction; train the shape prior longer"
                )
            self._codes, self._decoded = codes[good], decoded[good]

    @torch.no_grad()
    def __call__(self, masks: Tensor) -> Tensor:
        """Corrected masks uint8 [N, H, W], on the device of `masks`, uint8 [N, H, W], of the prior's size.

        Raises:
            ValueError: masks of another type or size.
        """
        if masks.dtype != torch.uint8 or masks.shape[1:] != self._prior.size:
            raise ValueError(
                f"masks are {masks.dtype} {list(masks.shape)} but the shape prior was trained on uint8 [N, "
                f"{self._prior.size[0]}, {self._prior.size[1]}]"
            )
        return torch.cat([self._corrected(part) for part in torch.split(masks, AT_ONCE)])

    def _corrected(self, masks: Tensor) -> Tensor:
        cleaned = torch.from_numpy(clean_masks(masks.cpu().numpy())).to(self._device)
        z = self._prior.encode(cleaned)[0]
        found = self._prior.masks(z)
        if self._valid is not None:
            found = self._moved_to_valid(z, found, self._valid)
        return found.to(masks.device)

    def _moved_to_valid(self, z: Tensor, found: Tensor, valid: Callable[[Tensor], Tensor]) -> Tensor:
        """`found`, the masks of the codes z, with the invalid ones replaced by the first valid one on the way."""
        rows = (~valid(found).to(self._device)).nonzero()[:, 0]
        nearest = torch.cdist(z[rows], self._codes).argmin(dim=1)
        for step in range(1, LINE_STEPS + 1):
            if not len(rows):
                break
            if step < LINE_STEPS:
                tried = self._prior.masks(torch.lerp(z[rows], self._codes[nearest], step / LINE_STEPS))
                good = valid(tried).to(self._device)
            else:
                tried, good = self._decoded[nearest], torch.ones_like(rows, dtype=torch.bool)
            found[rows[good]] = tried[good]
            rows, nearest = rows[~good], nearest[~good]
        return found
