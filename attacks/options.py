"""Options of the region-and-prototype attacks, and the preset that repeats the released program's defects.

Each default is the method as it is meant; each option can be changed alone (docs/rp-pgd.md, Method 10).
"""

from dataclasses import dataclass
from typing import Literal

from ..common.checks import AT_LEAST_0, check


@dataclass(frozen=True)
class RPOptions:
    """Options of RP-region, RP-PGD, RP-PGD++ and RP-global; the other attacks take none of them.

    Raises:
        ValueError: names field, value and what is allowed.
    """

    w_region: float = 0.5
    """Weight of the region loss."""
    w_inter: float = 0.5
    """Weight of the inter-class term (RP-PGD, RP-PGD++)."""
    w_intra: float = 0.25
    """Weight of the intra-class term (RP-PGD++); below 0 it spreads the classes."""
    lambda_base: Literal[0, 1] = 1
    """Number of the first step in the schedule of region weights; 0 in the released program."""
    region_norm: Literal["image", "batch", "global"] = "image"
    """What a region's mean is taken over: the region of each image, of the batch, or all valid pixels of the image."""
    proto_scope: Literal["image", "batch"] = "image"
    """Prototypes of each image, or of the batch."""
    inter_norm: Literal["mean", "ordered"] = "mean"
    """Mean over pairs of classes, or twice that, as where ordered pairs are divided by the number of unordered ones."""
    intra_agg: Literal["mean", "last"] = "mean"
    """Mean over classes, or the value of the highest class alone."""
    intra_skip: tuple[int, ...] = (0,)
    """Classes without an intra-class term: the background; () where class 0 is a thing, as in Cityscapes."""
    detach_features: bool = False
    """Cut the gradient through the features, which leaves the prototype terms without effect."""
    ignore_as_false: bool = False
    """Count ignored pixels as False ones whose loss is 0."""
    norm_clamp_start: bool = False
    """Start from noise that is added and clamped to [0, 1] after normalisation, whatever `random_start` is; needs a
    `Normalized` model."""

    def __post_init__(self) -> None:
        check(self, w_region=AT_LEAST_0, intra_skip=AT_LEAST_0)


RELEASED = RPOptions(
    w_inter=0.25,
    lambda_base=0,
    region_norm="batch",
    proto_scope="batch",
    inter_norm="ordered",
    intra_agg="last",
    detach_features=True,
    ignore_as_false=True,
    norm_clamp_start=True,
)
"""The program of the authors, defects and all, to compare numbers with."""
