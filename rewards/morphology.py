"""Repair of masks, many at a time: biggest components and filled holes (docs/rl4seg.md, Method 8).

The images stand on top of each other in one tall picture, a row of background between two of them: one call labels the
components of all. Neighbours are those across an edge.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..datasets.echo.images import BACKGROUND, LV, MYO

Masks = npt.NDArray[np.uint8]
Regions = npt.NDArray[np.bool_]
Value = TypeVar("Value", bound=np.generic)


def clean_masks(masks: Masks) -> Masks:
    """Label maps, uint8 [N, H, W], with one LV and one MYO in one piece and no hole in the heart.

    Of each class the biggest component stays and its holes are filled; where both claim a pixel it is LV's. What LV and
    MYO enclose together becomes MYO.
    """
    cleaned = np.zeros_like(masks)
    heart = masks != BACKGROUND
    rows, columns = np.flatnonzero(heart.any(axis=(0, 2))), np.flatnonzero(heart.any(axis=(0, 1)))
    if not len(rows):
        return cleaned
    box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))  # nothing to find around it
    lv, myo = (fill_holes(biggest_components(masks[box] == label)) for label in (LV, MYO))
    cleaned[box][fill_holes(lv | myo)] = MYO
    cleaned[box][lv] = LV
    return cleaned


def biggest_components(regions: Regions) -> Regions:
    """The biggest component of each region, bool [N, H, W]; of equal ones the first in reading order."""
    tall = _stacked(regions)
    labels, number = ndimage.label(tall)
    at = np.flatnonzero(tall)
    found = labels.ravel()[at]
    sizes = np.bincount(found, minlength=number + 1)
    owner = np.zeros(number + 1, dtype=np.int64)
    owner[found] = at // (len(tall) // len(regions) * tall.shape[1])
    ids = np.arange(1, number + 1)
    order = ids[np.lexsort((-ids, sizes[1:], owner[1:]))]
    biggest = np.zeros(len(regions), dtype=np.int64)
    biggest[owner[order]] = order  # the last of an image's components stays written: its biggest
    kept = np.zeros(number + 1, dtype=bool)
    kept[biggest] = True
    kept[0] = False
    return _unstacked(kept[labels], regions)


def label_components(regions: Regions) -> tuple[npt.NDArray[np.int32], int]:
    """The components of each region, bool [N, H, W], numbered from 1 on, image after image; and how many there are."""
    labels, number = ndimage.label(_stacked(regions))
    return _unstacked(labels, regions), number


def fill_holes(regions: Regions) -> Regions:
    """The regions, bool [N, H, W], with all that they enclose; what touches the border of the image is not enclosed."""
    tall, number = ndimage.label(_stacked(~regions))
    labels: npt.NDArray[np.int32] = _unstacked(tall, regions)
    outside = np.zeros(number + 1, dtype=bool)
    for border in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        outside[border] = True
    outside[0] = False  # the regions themselves
    holes_and_all: Regions = ~outside[labels]
    return holes_and_all


def _stacked(regions: Regions) -> Regions:
    return np.pad(regions, ((0, 0), (0, 1), (0, 0))).reshape(-1, regions.shape[2])


def _unstacked(tall: npt.NDArray[Value], regions: Regions) -> npt.NDArray[Value]:
    number, height, width = regions.shape
    return tall.reshape(number, height + 1, width)[:, :height]
