"""One pool of 3-D volumes of their own sizes: resident on a device, from which batches of patches are cut.

The voxels of all volumes lie one after the other, z fastest, so that a batch of patches is one lookup. Row n of every
field belongs to the same volume. Axes are (x, y, z), in RAS+ order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .sample import Origin, Sample


class Patches(NamedTuple):
    """A batch cut from volumes."""

    images: Tensor
    """float32 [B, C, X, Y, Z]."""
    labels: Tensor
    """int64 [B, X, Y, Z], class numbers."""


@dataclass(frozen=True, eq=False)
class VolumePool:
    """N volumes, N at least 1.

    Raises:
        ValueError: fields of another type or shape than stated, or of different lengths.

    >>> from segarena.datasets.decathlon.cases import DecathlonConfig, load_decathlon
    >>> pool = load_decathlon(DecathlonConfig(task="toy"), "train[:3]")
    >>> import torch
    >>> rows, corners = torch.tensor([2, 0]), torch.tensor([[0, 0, 0], [-2, 4, 10]])
    >>> patches = pool.patches(rows, corners, (8, 8, 8))
    >>> patches.images.shape, patches.labels.shape
    (torch.Size([2, 1, 8, 8, 8]), torch.Size([2, 8, 8, 8]))
    """

    images: Tensor
    """float32 or float16 [C, V]: the voxels of all volumes."""
    labels: Tensor | None
    """uint8 [V], class numbers; None unless they are known of every volume."""
    shapes: Tensor
    """int64 [N, 3]."""
    ids: list[str]
    """Name of each volume, such as hippocampus_001."""
    groups: list[str]
    """Patient of each volume: volumes of one group never lie in two splits."""
    spacing_mm: tuple[float, float, float]
    """Size of a voxel of all volumes."""
    affines: list[npt.NDArray[np.float64]]
    """Voxel index to patient coordinates in mm (RAS+), of each volume."""
    channels: tuple[str, ...]
    """Name of each channel."""
    classes: tuple[str, ...]
    """Name of each label value; 0 is the background."""
    origin: Origin

    def __post_init__(self) -> None:
        images, labels, shapes = self.images, self.labels, self.shapes
        if images.dtype not in (torch.float32, torch.float16) or images.ndim != 2 or len(images) != len(self.channels):
            given = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"images are {given} but must be float32 or float16 [{len(self.channels)}, V]")
        if shapes.dtype != torch.int64 or shapes.ndim != 2 or shapes.shape[1] != 3 or not len(shapes):
            raise ValueError(f"shapes are {shapes.dtype} {tuple(shapes.shape)} but must be int64 [N, 3], N at least 1")
        if (voxels := int(shapes.prod(1).sum())) != images.shape[1]:
            raise ValueError(f"shapes are of {voxels:,} voxels but images have {images.shape[1]:,}")
        if labels is not None and (labels.dtype != torch.uint8 or labels.shape != images.shape[1:]):
            raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)} but must be uint8 ({voxels},)")
        for name, count in {"ids": len(self.ids), "groups": len(self.groups), "affines": len(self.affines)}.items():
            if count != len(shapes):
                raise ValueError(f"{name} has {count} entries but there are {len(shapes)} volumes")
        if len({tensor.device for tensor in (images, labels, shapes) if tensor is not None}) > 1:
            raise ValueError("images, labels and shapes lie on different devices; use VolumePool.to")

    @staticmethod
    def of(
        samples: Sequence[Sample], groups: Sequence[str], channels: tuple[str, ...], classes: tuple[str, ...]
    ) -> "VolumePool":
        """The pool of some samples, on the CPU. It has labels if all of them have.

        Raises:
            ValueError: no sample; samples of other numbers of channels, of different spacing or origin; labels of
                another shape than the image, or outside of the classes.
        """
        if not samples:
            raise ValueError("there is no volume, but a pool needs at least one")
        for sample in samples:
            shape, label = tuple(sample.image.shape), sample.label
            if len(shape) != 4 or shape[0] != len(channels):
                raise ValueError(f"{sample.id} has shape {shape} but must be [{len(channels)}, X, Y, Z]: {channels}")
            if label is not None and tuple(label.shape) != shape[1:]:
                raise ValueError(f"the label of {sample.id} has shape {tuple(label.shape)}, its image {shape[1:]}")
            if label is not None and (highest := int(label.max())) >= len(classes):
                raise ValueError(f"{sample.id} has the label {highest} but the classes are 0..{len(classes) - 1}")
        if len(kinds := {(sample.spacing_mm, sample.origin) for sample in samples}) > 1:
            raise ValueError(f"volumes of one spacing and origin make a pool, got {sorted(map(str, kinds))}")
        labels = [sample.label.flatten() for sample in samples if sample.label is not None]
        x, y, z = samples[0].spacing_mm
        return VolumePool(
            images=torch.cat([sample.image.flatten(1) for sample in samples], dim=1),
            labels=torch.cat(labels) if len(labels) == len(samples) else None,
            shapes=torch.tensor([sample.image.shape[1:] for sample in samples], dtype=torch.int64),
            ids=[sample.id for sample in samples],
            groups=list(groups),
            spacing_mm=(x, y, z),
            affines=[sample.affine for sample in samples],
            channels=channels,
            classes=classes,
            origin=samples[0].origin,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Sample:
        """One whole volume, float32, on the device of the pool; its label is a view.

        Raises:
            IndexError: no such row.
        """
        row = range(len(self))[row]
        (x, y, z), first = self._sizes[row], sum(map(math.prod, self._sizes[:row]))
        voxels = slice(first, first + x * y * z)
        return Sample(
            id=self.ids[row],
            image=self.images[:, voxels].float().view(-1, x, y, z),
            label=None if self.labels is None else self.labels[voxels].view(x, y, z),
            spacing_mm=self.spacing_mm,
            affine=self.affines[row],
            origin=self.origin,
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "VolumePool":
        """The same volumes on a device; float16 halves their memory, and patches are float32 all the same."""
        return replace(
            self,
            images=self.images.to(device, dtype),
            labels=None if self.labels is None else self.labels.to(device),
            shapes=self.shapes.to(device),
        )

    @property
    def device(self) -> torch.device:
        """Where the volumes lie."""
        return self.images.device

    def take(self, rows: Sequence[int]) -> "VolumePool":
        """These rows only, in this order, on the device of the pool."""
        parts = [self[row] for row in rows]
        taken = VolumePool.of(parts, [self.groups[row] for row in rows], self.channels, self.classes)
        return replace(taken.to(self.device, self.images.dtype), origin=self.origin)

    def patches(self, rows: Tensor, corners: Tensor, size: tuple[int, int, int]) -> Patches:
        """Patches of these volumes, on the device of the pool; beyond the border of a volume they are its reflection.

        The border itself is not repeated: voxel -1 is voxel 1.

        Args:
            rows: int64 [B].
            corners: int64 [B, 3], lower corner of each patch in voxels of its volume; negative ones lie outside.
            size: voxels of the patches, (x, y, z).

        Raises:
            ValueError: the volumes have no labels.
        """
        if self.labels is None:
            raise ValueError(f"the volumes of this pool, {self.ids[0]} and others, have no labels; take whole volumes")
        shapes = self.shapes[rows]  # [B, 3]
        x, y, z = (
            _reflected(corners[:, axis, None] + torch.arange(size[axis], device=self.device), shapes[:, axis, None])
            for axis in range(3)
        )
        columns = x[:, :, None] * shapes[:, 1, None, None] + y[:, None]  # [B, X, Y]
        lines = self.firsts[rows, None, None] + columns * shapes[:, 2, None, None]
        voxels = (lines[..., None] + z[:, None, None]).flatten()
        images = self.images.index_select(1, voxels).view(len(self.channels), len(rows), *size)
        labels = self.labels.index_select(0, voxels).view(len(rows), *size)
        return Patches(images.movedim(0, 1).float().contiguous(), labels.long())

    @cached_property
    def firsts(self) -> Tensor:
        """Place of the first voxel of each volume in `images`, int64 [N]."""
        voxels = self.shapes.prod(1)
        return voxels.cumsum(0) - voxels

    @cached_property
    def _sizes(self) -> list[list[int]]:
        sizes: list[list[int]] = self.shapes.tolist()
        return sizes


def _reflected(places: Tensor, size: Tensor) -> Tensor:
    """Places along an axis of `size` voxels, with those beyond its ends reflected, as often as it needs."""
    period = 2 * (size - 1).clamp(min=1)
    inside = places.remainder(period)
    return torch.minimum(torch.minimum(inside, period - inside), size - 1)
