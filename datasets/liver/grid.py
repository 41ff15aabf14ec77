"""From a CT's own voxels to a working grid and back.

native: a volume's own voxels in RAS+ order. grid: what agents and classifiers see. Image (trilinear) and label
(nearest) are resampled about the same voxel centres, so that they stay aligned, then cropped or padded alike.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..nifti import MOST_VOXELS, Frame
from ..sample import Sample
from .lattice import Triple

AIR_HU = -1000.0
BODY_HU = -200.0
"""Voxels above this are body, not air or lung."""


@dataclass(frozen=True, eq=False)
class GridFrame:
    """Map from a file to the grid and back: turned to RAS+, resampled to `resampled` voxels, then cut at `offset`."""

    file: Frame
    shape: Triple
    """Voxels of the grid."""
    resampled: Triple
    """Voxels of the whole volume at the grid's resolution."""
    offset: Triple = (0, 0, 0)
    """Resampled voxel that is voxel 0 of the grid; negative where the grid was padded."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel of the grid."""
        native = zip(self.file.ras_spacing_mm, self.file.ras_shape, self.resampled, strict=True)
        x, y, z = (size * count / new for size, count, new in native)
        return x, y, z

    def image(self, native: Tensor) -> Tensor:
        """A native image in HU, float32 [X, Y, Z], on the grid; air where the grid is larger.

        Trilinear without anti-aliasing (as the paper's stretch); strong downsampling aliases.
        """
        return _cut(_resample(native, self.resampled, "trilinear"), self.offset, self.shape, AIR_HU)

    def label(self, native: Tensor) -> Tensor:
        """A native label, uint8 [X, Y, Z], on the grid; 0 where the grid is larger."""
        return _cut(_resample(native, self.resampled, "nearest-exact"), self.offset, self.shape, 0)

    def to_file(self, volume: Tensor) -> npt.NDArray[Any]:
        """A mask or map on the grid, [X, Y, Z], in the shape and voxel order of the file (nearest; 0 outside)."""
        back = (-self.offset[0], -self.offset[1], -self.offset[2])
        whole = _cut(volume.cpu(), back, self.resampled, 0)
        native: npt.NDArray[Any] = _resample(whole, self.file.ras_shape, "nearest-exact").numpy()
        return np.ascontiguousarray(self.file.from_ras(native))


def resample_to_shape(file: Frame, shape: Triple) -> GridFrame:
    """The whole volume stretched or squeezed to `shape` voxels."""
    return GridFrame(file, shape, resampled=shape)


def crop_around_body(sample: Sample, file: Frame, shape: Triple, spacing_mm: tuple[float, float, float]) -> GridFrame:
    """The volume at about `spacing_mm`, cropped to `shape` voxels around the body, or padded on both sides alike.

    Raises:
        ValueError: the whole volume would have too many voxels at this spacing.
    """
    sizes = zip(sample.image.shape[1:], sample.spacing_mm, spacing_mm, strict=True)
    x, y, z = (max(1, round(count * old / new)) for count, old, new in sizes)
    if x * y * z > MOST_VOXELS:
        old, new = (" x ".join(f"{mm:g}" for mm in sizes_mm) for sizes_mm in (sample.spacing_mm, spacing_mm))
        raise ValueError(
            f"{sample.id} has voxels of {old} mm and would have {x} x {y} x {z} voxels at spacing_mm {new}, more than "
            f"{MOST_VOXELS:,}; raise spacing_mm, or check the voxel size in its file"
        )
    body = sample.image[0] > BODY_HU
    offset = []
    for axis, (have, want) in enumerate(zip((x, y, z), shape, strict=True)):
        weight = body.sum(dim=[other for other in range(3) if other != axis]).double() + 1e-9  # no body: the middle
        middle = float((weight * (torch.arange(len(weight)) + 0.5)).sum() / weight.sum()) * have / len(weight)
        spare = have - want
        offset.append(min(max(round(middle - want / 2), 0), spare) if spare > 0 else -(-spare // 2))
    return GridFrame(file, shape, (x, y, z), (offset[0], offset[1], offset[2]))


def scale_hu(hu: Tensor, window: tuple[float, float]) -> Tensor:
    """HU as uint8: window[0] becomes 0 and window[1] 255, rounded half to even; values outside saturate."""
    low, high = window
    return ((hu - low) / (high - low) * 255).clamp(0, 255).round().to(torch.uint8)


def _resample(volume: Tensor, shape: Triple, mode: str) -> Tensor:
    """`volume` [X, Y, Z] at `shape` voxels, voxel centres placed as with align_corners=False."""
    corners = False if mode == "trilinear" else None
    return F.interpolate(volume[None, None], size=shape, mode=mode, align_corners=corners)[0, 0]


def _cut(volume: Tensor, offset: Triple, shape: Triple, fill: float) -> Tensor:
    """`shape` voxels of `volume` [X, Y, Z] from `offset` on, with `fill` where it has none."""
    ends = [(-o, o + want - have) for o, want, have in zip(offset, shape, volume.shape, strict=True)]
    return F.pad(volume, [side for axis in reversed(ends) for side in axis], value=fill)
