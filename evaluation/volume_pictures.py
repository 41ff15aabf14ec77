"""Slices of a volume with what an agent does in it, drawn with array operations: fast enough for every step.

Arrays are in RAS+ order: i grows to the patient's right, j to the front, k to the head. Slices are drawn as
radiologists hang them: the patient's left on the right of the picture, front and head up, and sagittal slices facing
left. All panels have one scale in mm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .drawing import Bytes, Colour, Heat, Mask, beside, blend, blend_heat, glyph

Index = npt.NDArray[np.intp]
Scalar = TypeVar("Scalar", bound=np.generic)
Box = tuple[Sequence[int], Sequence[int], Colour]
"""Lower corner and size in voxels, and the colour of the outline."""
PlaneName = Literal["axial", "coronal", "sagittal"]

# plane: its normal axis, the axes that run across and up, and the letters at the left, right, top and bottom
PLANES: dict[PlaneName, tuple[int, int, int, str]] = {
    "axial": (2, 0, 1, "RLAP"),
    "coronal": (1, 0, 2, "RLSI"),
    "sagittal": (0, 1, 2, "APSI"),
}
LINE_PX = 2
LETTER_SHARE = 20
"""Height of a picture in heights of its letters."""


def orthogonal_slices(
    image: Bytes,
    *,
    centre_ijk: Sequence[int],
    spacing_mm: Sequence[float],
    boxes: Sequence[Box] = (),
    heat: Heat | None = None,
    contours: Sequence[tuple[Mask, Colour]] = (),
    height_px: int = 256,
) -> Bytes:
    """Axial, coronal and sagittal slice through a voxel, side by side: uint8 [height_px, W, 3] (W even, for videos).

    image: uint8 [X, Y, Z]. heat: float [X, Y, Z] in 0..1, blended over the image, 0 is transparent. contours: bool
    [X, Y, Z] masks, outlined by 1 px. boxes: outlined where the slice cuts them; a box that lies in front of or behind
    the slice is dashed and dim. The shape of the picture depends on the shape of the image, spacing and height alone.

    Raises:
        ValueError: arrays of another shape or type, a centre outside the image, a spacing that does not fit, heat
            outside 0..1 or NaN, a height too small to show every axis.
    """
    _check(image, spacing_mm, height_px, heat, [mask for mask, _ in contours])
    if len(centre_ijk) != 3 or not all(0 <= c < n for c, n in zip(centre_ijk, image.shape, strict=True)):
        raise ValueError(f"centre_ijk is {tuple(centre_ijk)} but must lie in the image {image.shape}")
    extent_mm = [n * s for n, s in zip(image.shape, spacing_mm, strict=True)]
    px_per_mm = height_px / max(extent_mm[1], extent_mm[2])
    panels = []
    for plane, (normal, *_) in PLANES.items():
        view = View.of(image.shape, spacing_mm, plane, centre_ijk[normal], px_per_mm)
        panel = view.draw(image, heat=heat, contours=contours, boxes=boxes)
        _letter(panel, PLANES[plane][3], max(7, round(height_px / LETTER_SHARE)))
        above = (height_px - len(panel)) // 2
        panel = np.pad(panel, ((above, height_px - len(panel) - above), (0, 0), (0, 0)))
        panels.append(panel)
    return beside(panels)


@dataclass(frozen=True)
class View:
    """One slice seen at one scale: which voxel each pixel of the picture shows."""

    plane: PlaneName
    index: int
    """Number of the slice along the normal axis."""
    rows: Index
    """Voxel along the axis that runs up, [H], for each row of the picture."""
    cols: Index
    """Voxel along the axis that runs across, [W], for each column of the picture."""

    @classmethod
    def of(
        cls, shape: Sequence[int], spacing_mm: Sequence[float], plane: PlaneName, index: int, px_per_mm: float
    ) -> "View":
        """The view of a whole slice; its width is even."""
        _, across, up, _ = PLANES[plane]
        height = max(1, round(shape[up] * spacing_mm[up] * px_per_mm))
        width = 2 * max(1, round(shape[across] * spacing_mm[across] * px_per_mm / 2))
        return cls(plane, index, _nearest(shape[up], height), _nearest(shape[across], width))

    def sample(self, volume: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """The slice of `volume` [X, Y, Z] as the picture shows it, [H, W]."""
        plane = volume.take(self.index, axis=PLANES[self.plane][0]).T  # [up, across]
        return plane.take(self.rows, axis=0).take(self.cols, axis=1)

    def draw(
        self,
        image: Bytes,
        *,
        heat: Heat | None = None,
        contours: Sequence[tuple[Mask, Colour]] = (),
        boxes: Sequence[Box] = (),
    ) -> Bytes:
        """The slice of `image` with heat, contours and boxes over it: uint8 [H, W, 3]; arguments as above."""
        picture = np.repeat(self.sample(image)[..., None], 3, axis=-1)
        if heat is not None:
            blend_heat(picture, self.sample(heat))
        for low, size, rgb in boxes:
            self._outline(picture, low, size, rgb)
        for mask, rgb in contours:
            inside = self.sample(mask)
            picture[inside & ~ndimage.binary_erosion(inside)] = rgb
        return picture

    def _outline(self, picture: Bytes, low: Sequence[int], size: Sequence[int], rgb: Colour) -> None:
        normal, across, up, _ = PLANES[self.plane]
        in_rows = (self.rows >= low[up]) & (self.rows < low[up] + size[up])
        in_cols = (self.cols >= low[across]) & (self.cols < low[across] + size[across])
        line = np.outer(in_rows, in_cols) & ~np.outer(_shrink(in_rows, LINE_PX), _shrink(in_cols, LINE_PX))
        if low[normal] <= self.index < low[normal] + size[normal]:
            picture[line] = rgb
        else:
            y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
            blend(picture, line & ((x + y) // 5 % 2 == 0), rgb, 0.6)


def _nearest(voxels: int, pixels: int) -> Index:
    """For each pixel the voxel that its middle lies in, from the last voxel (left or top) to the first."""
    return voxels - 1 - (2 * np.arange(pixels) + 1) * voxels // (2 * pixels)


def _shrink(inside: Mask, by: int) -> Mask:
    """The run of True, shorter by `by` at both ends."""
    where = np.flatnonzero(inside)
    shrunk = np.zeros_like(inside)
    shrunk[where[by : max(by, len(where) - by)]] = True
    return shrunk


def _letter(panel: Bytes, letters: str, size_px: int) -> None:
    """Writes the letters of the directions at the left, right, top and bottom edge, where the panel has room."""
    height, width, _ = panel.shape
    if min(height, width) < 5 * size_px:
        return
    margin = size_px // 3
    for letter, edge in zip(letters, ("left", "right", "top", "bottom"), strict=True):
        opacity = glyph(letter, size_px)
        tall, wide = opacity.shape
        y, x = (height - tall) // 2, (width - wide) // 2
        y = {"top": margin, "bottom": height - tall - margin}.get(edge, y)
        x = {"left": margin, "right": width - wide - margin}.get(edge, x)
        drawn = opacity > 0
        blend(panel[y : y + tall, x : x + wide], drawn, (220, 220, 220), opacity[drawn])


def _check(image: Bytes, spacing_mm: Sequence[float], height_px: int, heat: Heat | None, masks: Sequence[Mask]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.size == 0:
        raise ValueError(f"image is {image.dtype} {image.shape} but must be uint8 [X, Y, Z]")
    if len(spacing_mm) != 3 or not all(0 < s < np.inf for s in spacing_mm):
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)} but must be three positive lengths")
    if height_px < 16:
        raise ValueError(f"height_px is {height_px} but must be at least 16")
    for mask in masks:
        if mask.dtype != np.bool_ or mask.shape != image.shape:
            raise ValueError(f"a contour mask is {mask.dtype} {mask.shape} but must be bool {image.shape}")
    if heat is not None and (heat.shape != image.shape or not np.issubdtype(heat.dtype, np.floating)):
        raise ValueError(f"heat is {heat.dtype} {heat.shape} but must be float {image.shape}")
