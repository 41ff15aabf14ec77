"""Anatomical validity of a mask: nine rules on the shape of the ventricle and its wall (docs/rl4seg.md, Method 9).

LV is the cavity, MYO the wall, epi both of them, BG the rest; the apex-base axis is roughly vertical. All sizes
are in pixels, so the spacing plays no role; S = H·W / 2^14 is the size below which a component is ignored. The rules
are numbered as there.

Components are looked for in the heart's bounding box only. What lies around it is one background, except where the
heart touches the border, and there the rules differ in what they call outside: `_Heart` holds the box in two forms.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from ..common.checks import check_choice
from ..datasets.echo.images import BACKGROUND, CLASSES, LV, MYO

BorderPolicy = Literal["vital", "padded"]
"""vital: as in the paper. padded: the same for the image with a pixel of background put around it."""
Mask = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.bool_]

LIMITS: dict[str, tuple[float, float]] = {
    "lv_pixels": (0, 0),
    "holes_in_lv": (0, 0),
    "disconnectivity_in_lv": (0, 0),
    "disconnectivity_in_myo": (0, 0),
    "erosion_ratio_before_myo_split": (0.12, math.inf),
    "holes_in_epi": (0, 0),
    "holes_between_lv_and_myo": (0, 0),
    "width_ratio_between_lv_and_myo": (0, 4.15),
    "frontier_ratio_between_lv_and_bg": (0.05, 1.5),
}
"""The lowest and the highest value of each metric that a heart may have; NaN is never allowed."""
METRICS = tuple(LIMITS)
"""The nine metrics in the paper's order."""

EIGHT = np.ones((3, 3), dtype=bool)
"""Neighbours by edge and corner; without it `ndimage.label` joins by edges only."""


def anatomical_metrics(mask: Mask, *, border_policy: BorderPolicy = "vital") -> dict[str, float]:
    """The nine values of `METRICS` of one mask, uint8 [H, W] with labels 0..2.

    NaN says that a ratio has no meaning: the erosion ratio without MYO (or without anything else), the width ratio
    where the middle row lacks LV or MYO, the frontier ratio without LV. Areas of what is missing are 0.

    Raises:
        ValueError: another dtype or rank, no pixels, a label above 2, an unknown policy.
    """
    _check_masks(mask, 2, border_policy)
    heart = _Heart.of(mask, border_policy)
    return {name: float(_MEASURES[name](heart)) for name in METRICS}


def broken_rules(metrics: Mapping[str, float]) -> list[str]:
    """Names of the metrics outside their `LIMITS`, in the paper's order: empty for a valid heart."""
    return [name for name in METRICS if not _allowed(name, metrics[name])]


def is_valid(mask: Mask, *, border_policy: BorderPolicy = "vital") -> bool:
    """Whether the mask, uint8 [H, W] with labels 0..2, obeys all nine rules. Without LV or MYO it does not.

    Raises:
        ValueError: another dtype or rank, no pixels, a label above 2, an unknown policy.
    """
    _check_masks(mask, 2, border_policy)
    return _is_valid(mask, border_policy)


def valid_masks(masks: Tensor | Mask, *, border_policy: BorderPolicy = "vital") -> Tensor:
    """`is_valid` of many masks: bool [N], on the CPU. masks: uint8 [N, H, W] with labels 0..2, on any device.

    Raises:
        ValueError: another dtype or rank, no pixels, a label above 2, an unknown policy.
    """
    array = masks.detach().cpu().numpy() if isinstance(masks, Tensor) else masks
    _check_masks(array, 3, border_policy)
    # about half a millisecond each; worker processes would need a second to start and as long to be sent the masks
    return torch.tensor([_is_valid(mask, border_policy) for mask in array], dtype=torch.bool)


def anatomical_reward(actions: Tensor, *, border_policy: BorderPolicy = "vital") -> Tensor:
    """Validity of each mask at all of its pixels: 1 valid, 0 not; float32 [B, H, W], on the device of `actions`.

    actions: uint8 [B, H, W] with labels 0..2.

    Raises:
        ValueError: another dtype or rank, no pixels, a label above 2, an unknown policy.
    """
    valid = valid_masks(actions, border_policy=border_policy).to(actions.device)
    return valid[:, None, None].expand(actions.shape).float()


# -- the heart in its box ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Heart:
    """The bounding box of LV and MYO (all of an image without them)."""

    seen: Mask
    """The box and a pixel around it where the image goes on: what lies outside of the image is not background."""
    framed: Mask
    """The box and a pixel of background around it on all sides."""
    beyond: int
    """Pixels of the image below or to the right of `seen`."""
    speck: float
    """S, pixels: smaller components are ignored."""

    @classmethod
    def of(cls, mask: Mask, border_policy: BorderPolicy) -> "_Heart":
        if border_policy == "padded":
            mask = np.pad(mask, 1)
        (top, bottom), (left, right) = _bounds(mask, 0), _bounds(mask, 1)
        framed = np.zeros((bottom - top + 2, right - left + 2), dtype=np.uint8)
        framed[1:-1, 1:-1] = mask[top:bottom, left:right]
        height, width = mask.shape
        end_y, end_x = min(bottom + 1, height), min(right + 1, width)
        seen = mask[max(top - 1, 0) : end_y, max(left - 1, 0) : end_x]
        return cls(seen, framed, beyond=height * width - end_y * end_x, speck=height * width / 2**14)


def _is_valid(mask: Mask, border_policy: BorderPolicy) -> bool:
    heart = _Heart.of(mask, border_policy)
    if not all(_allowed(name, _MEASURES[name](heart)) for name in _CHEAPEST_FIRST):
        return False
    enough, _ = LIMITS["erosion_ratio_before_myo_split"]
    return _erosion_ratio(heart, enough) >= enough


def _allowed(name: str, value: float) -> bool:
    low, high = LIMITS[name]
    return low <= value <= high


# -- the rules -----------------------------------------------------------------------------------------------------


def _lv_pixels(heart: _Heart) -> int:
    """Rule 1: 1 where there is no LV, else 0."""
    return int(not (heart.seen == LV).any())


def _holes_in_lv(heart: _Heart) -> int:
    """Rule 2: hole pixels inside the LV."""
    return _holes(heart.framed != LV)


def _disconnectivity_in_lv(heart: _Heart) -> int:
    """Rule 3: pixels of the LV outside its largest component."""
    return _disconnectivity(heart.seen == LV)


def _disconnectivity_in_myo(heart: _Heart) -> int:
    """Rule 4: pixels of MYO outside its largest component."""
    return _disconnectivity(heart.seen == MYO)


def _erosion_ratio(heart: _Heart, enough: float = math.inf) -> float:
    """Rule 5: n / d; or some value from `enough` to n / d, as soon as n / d is known to be at least `enough`.

    n is how often MYO can be eroded before it falls apart or is gone, d its largest depth (Euclidean distance to what
    is not MYO). n erosions leave the pixels with a chessboard depth above n, less the pieces smaller than S; and what
    is left of such a piece later is smaller still, so that the specks of earlier erosions need no remembering.
    """
    myo = heart.seen == MYO
    if myo.all() or not myo.any():
        return math.nan
    depth = ndimage.distance_transform_cdt(myo, "chessboard")
    most = math.sqrt(2 * int(depth.max()) ** 2)  # d lies between the largest chessboard depth and √2 times that
    n = 0
    while n / most < enough and _is_one_piece(depth > n, heart.speck if n else 0):
        n += 1
    if n / most >= enough:
        return n / most
    return float(n / ndimage.distance_transform_edt(myo).max())


def _holes_in_epi(heart: _Heart) -> int:
    """Rule 6: hole pixels inside the epicardium."""
    return _holes(heart.framed == BACKGROUND)


def _holes_between(heart: _Heart) -> int:
    """Rule 7: pixels of the holes that are neither in LV alone nor in MYO alone.

    The rule fills the holes of LV that hold no MYO and those of MYO that hold no LV, and counts the background that is
    left and cut off from pixel (0, 0). That is: the 4-connected pieces of background that touch both LV and MYO.
    """
    seen = heart.seen
    labels, n = ndimage.label(seen == BACKGROUND)
    outside = labels[0, 0]  # the piece of the image's pixel (0, 0); 0 where the heart covers that pixel
    if n == 1 and outside:
        return 0
    between = _touching(labels, n, seen == LV) & _touching(labels, n, seen == MYO)
    between[[0, outside]] = False
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    sizes[labels[-1, -1]] += heart.beyond  # they belong to this piece, or else to the outside
    area = int(sizes[between].sum())
    return area if area > heart.speck else 0


def _width_ratio(heart: _Heart) -> float:
    """Rule 8: width of LV over width of MYO in the row of the centre of mass."""
    per_row = np.count_nonzero(heart.seen, axis=1)
    middle = heart.seen[int(per_row @ np.arange(len(per_row))) // max(int(per_row.sum()), 1)]
    lv, myo = np.count_nonzero(middle == LV), np.count_nonzero(middle == MYO)
    return lv / myo if lv and myo else math.nan


def _frontier_ratio(heart: _Heart) -> float:
    """Rule 9: pixels of LV with background among their eight neighbours, over the width of LV."""
    lv = heart.seen == LV
    if not lv.any():
        return math.nan
    left, right = _bounds(lv, 1)
    frontier = np.count_nonzero(lv & ~_eroded(heart.seen != BACKGROUND))
    return frontier / (right - left) if frontier > 1 else 0.0


_MEASURES: dict[str, Callable[[_Heart], float]] = {
    "lv_pixels": _lv_pixels,
    "holes_in_lv": _holes_in_lv,
    "disconnectivity_in_lv": _disconnectivity_in_lv,
    "disconnectivity_in_myo": _disconnectivity_in_myo,
    "erosion_ratio_before_myo_split": _erosion_ratio,
    "holes_in_epi": _holes_in_epi,
    "holes_between_lv_and_myo": _holes_between,
    "width_ratio_between_lv_and_myo": _width_ratio,
    "frontier_ratio_between_lv_and_bg": _frontier_ratio,
}
# A missing LV fails 8 and a torn MYO fails 5: rules 1 and 4 never decide. Rule 5 is the dearest and comes last.
_CHEAPEST_FIRST = (
    "width_ratio_between_lv_and_myo",
    "frontier_ratio_between_lv_and_bg",
    "disconnectivity_in_lv",
    "holes_between_lv_and_myo",
    "holes_in_lv",
    "holes_in_epi",
)


# -- helpers -------------------------------------------------------------------------------------------------------


def _holes(outside: Pixels) -> int:
    """Pixels of `outside` that are not 8-connected to its first one, which lies in the frame."""
    labels, n = ndimage.label(outside, EIGHT)
    return int(np.count_nonzero(outside) - np.count_nonzero(labels == labels[0, 0])) if n > 1 else 0


def _disconnectivity(structure: Pixels) -> int:
    """Pixels of the 8-connected components but the largest."""
    labels, n = ndimage.label(structure, EIGHT)
    if n <= 1:
        return 0
    sizes = np.bincount(labels.ravel())[1:]
    return int(sizes.sum() - sizes.max())


def _is_one_piece(structure: Pixels, speck: float) -> bool:
    """Whether there is one 8-connected component once the 4-connected ones smaller than `speck` are gone."""
    labels, n = ndimage.label(structure)
    if n <= 1:
        return bool(n == 1 and np.count_nonzero(structure) >= speck)
    keep = np.bincount(labels.ravel()) >= speck
    keep[0] = False
    _, n = ndimage.label(keep[labels], EIGHT)
    return bool(n == 1)


def _touching(labels: npt.NDArray[np.int32], n: int, structure: Pixels) -> Pixels:
    """Which of the components 0..n have a pixel beside (by edge) one of `structure`; 0 has no meaning."""
    beside = np.zeros_like(structure)
    beside[1:] |= structure[:-1]
    beside[:-1] |= structure[1:]
    beside[:, 1:] |= structure[:, :-1]
    beside[:, :-1] |= structure[:, 1:]
    touching = np.zeros(n + 1, dtype=bool)
    touching[labels[beside]] = True
    return touching


def _eroded(structure: Pixels) -> Pixels:
    """Pixels whose 3 × 3 neighbourhood lies in `structure`; so does all that is outside of the array."""
    rows = structure.copy()
    rows[1:] &= structure[:-1]
    rows[:-1] &= structure[1:]
    both = rows.copy()
    both[:, 1:] &= rows[:, :-1]
    both[:, :-1] &= rows[:, 1:]
    return both


def _bounds(structure: Mask | Pixels, axis: int) -> tuple[int, int]:
    """First row (axis 0) or column (1) with something in it and one past the last; all of them if there is nothing."""
    flags = np.asarray(structure.any(axis=1 - axis))
    return int(flags.argmax()), len(flags) - int(flags[::-1].argmax())


def _check_masks(masks: Mask, rank: int, border_policy: str) -> None:
    check_choice("border_policy", border_policy, get_args(BorderPolicy))
    if not isinstance(masks, np.ndarray) or masks.dtype != np.uint8:
        raise ValueError(f"masks are {getattr(masks, 'dtype', type(masks).__name__)} but must be uint8 arrays")
    if masks.ndim != rank or 0 in masks.shape[-2:]:
        raise ValueError(f"masks are {list(masks.shape)} but must be {'[H, W]' if rank == 2 else '[N, H, W]'}")
    if masks.size and (highest := int(masks.max())) > MYO:
        raise ValueError(f"a mask has label {highest} but labels are 0..{MYO}: {', '.join(CLASSES)}")
