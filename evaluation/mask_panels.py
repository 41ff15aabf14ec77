"""Pictures of masks on X-rays: the image, what is selected of it, and what is left where that is erased or kept."""

import numpy as np
from torch import Tensor

from .attack_panels import image_picture
from .drawing import Bytes, Colour, Legend, Mask, beside, blend, enlarged

SELECTED: Colour = (255, 159, 28)
LESION: Colour = (86, 204, 242)
OPACITY = 0.45
SIDE_PX = 256
"""Side of a panel, about."""
LEGEND: Legend = ((SELECTED, "selected"), (LESION, "box around the lesion"))


def mask_panel(images: Tensor, masks: Tensor, erased: Tensor, kept: Tensor, regions: Tensor | None = None) -> Bytes:
    """A row for each image: itself, with its mask over it, erased and kept; uint8 [H, W, 3].

    Args:
        images: [B, 1, S, S] in [0, 1].
        masks: [B, 1, S, S] in [0, 1], 1 where selected.
        erased: the images where that is erased.
        kept: the images where nothing else is kept.
        regions: bool [B, S, S], boxes around lesions, outlined into the first two panels; None: not known.
    """
    rows = []
    for row in range(len(images)):
        first, second, third, fourth = (image_picture(one[row]).copy() for one in (images, images, erased, kept))
        selected = masks[row, 0].float().cpu().numpy()
        blend(second, selected > 0, SELECTED, OPACITY * selected[selected > 0])
        if regions is not None:
            edge = outline(regions[row].cpu().numpy())
            first[edge], second[edge] = LESION, LESION
        rows.append(beside([enlarged(one, SIDE_PX) for one in (first, second, third, fourth)]))
    return beside(rows, axis=0)


def outline(region: Mask) -> Mask:
    """Pixels of a region [H, W] that have a neighbour outside of it."""
    padded = np.pad(region, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: Mask = region & ~inner
    return edge
