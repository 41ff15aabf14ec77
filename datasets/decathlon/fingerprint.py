"""What is known of a task's training cases: sizes, spacing, intensities of the foreground (docs/seat.md, Method 2)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from ...common.checks import POSITIVE, check
from ..sample import Sample
from .documents import load_document, save_document

Numbers = tuple[float, ...]
MOST_SLICES = 160.0
"""Slices along z that count of a median image."""
EVERY = 10
"""One in so many voxels of the foreground is looked at."""
PERCENTILES = (0.5, 99.5)
"""Of the intensities of a class: the ends of the window."""
LEAST_PART = 0.05
"""Share of the largest connected part of a class from which on another part counts as an object."""


@dataclass(frozen=True)
class Fingerprint:
    """Constants by which volumes of a task are prepared and patches planned.

    Raises:
        ValueError: a number out of its range, or channels that do not agree.
    """

    spacing_mm: tuple[float, float, float]
    """Size of a voxel that volumes are resampled to, (x, y, z)."""
    window: tuple[tuple[float, float], ...]
    """Lowest and highest intensity of each channel: HU of a CT, shares of the volume's own range of an MR."""
    mean: Numbers
    """Of the foreground, of each channel, in the same unit."""
    std: Numbers
    """Of the foreground, of each channel."""
    mean_size: tuple[float, float, float]
    """Median size of the images in voxels, z at most 160."""
    small_size: tuple[float, float, float]
    """Mean size of the box around an object of the smallest class, in voxels."""
    small_volume: float
    """Mean number of voxels of such an object."""

    def __post_init__(self) -> None:
        check(self, "fingerprint.", spacing_mm=POSITIVE, std=POSITIVE, mean_size=POSITIVE, small_size=POSITIVE)
        check(self, "fingerprint.", small_volume=POSITIVE)
        if not len(self.window) == len(self.mean) == len(self.std) > 0:
            raise ValueError(
                f"fingerprint.window, mean and std have {len(self.window)}, {len(self.mean)} and {len(self.std)} "
                "channels but must have one entry for each channel"
            )
        if any(low >= high for low, high in self.window):
            raise ValueError(f"fingerprint.window is {self.window} but each channel's must ascend")

    def z_window(self) -> tuple[tuple[float, float], ...]:
        """Lowest and highest prepared intensity of each channel: the window in units of z."""
        channels = zip(self.window, self.mean, self.std, strict=True)
        return tuple(((low - mean) / std, (high - mean) / std) for (low, high), mean, std in channels)

    def z_bounds(self) -> tuple[Tensor, Tensor]:
        """`z_window` as bounds of patches: lowest and highest prepared intensity, float32 [1, C, 1, 1, 1] each."""
        low, high = torch.tensor(self.z_window()).T.view(2, 1, -1, 1, 1, 1)
        return low, high

    def save(self, path: str | Path) -> None:
        """Write the fingerprint as JSON."""
        save_document(self, path)

    @staticmethod
    def load(path: str | Path) -> "Fingerprint":
        """The fingerprint of a JSON file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it holds no fingerprint.
        """
        return load_document(Fingerprint, path)


def own_range(image: Tensor) -> Tensor:
    """An image [C, *spatial] with each channel scaled to 0..1 by its own range; a constant channel becomes 0."""
    low, high = image.flatten(1).aminmax(dim=1)
    shape = (-1, *(1,) * (image.ndim - 1))
    return (image - low.view(shape)) / (high - low).clamp(min=torch.finfo(image.dtype).tiny).view(shape)


def measure(samples: Iterable[Sample], classes: int, *, ct: bool) -> Fingerprint:
    """The fingerprint of labelled training cases, as they are recorded.

    Args:
        samples: in HU (CT) or any unit (MR), read once, one at a time.
        classes: number of classes, the background counted.
        ct: whether intensities are HU; others are scaled by each volume's own range.

    Raises:
        ValueError: no case, one without labels, or a class that is in no case.
    """
    sizes, spacings = list[npt.NDArray[np.float64]](), list[tuple[float, ...]]()
    objects: list[list[npt.NDArray[np.float64]]] = [[] for _ in range(classes - 1)]

    def looked_at() -> Iterable[Sample]:
        for sample in samples:
            label = _label(sample).numpy()
            sizes.append(np.array(label.shape, float))
            spacings.append(sample.spacing_mm)
            for k in range(1, classes):
                objects[k - 1] += _objects(label == k)
            yield sample

    base = measure_intensities(looked_at(), classes, ct=ct)
    of_class = [np.mean(found, axis=0) for found in objects]  # size x, y, z, and volume
    smallest = min(of_class, key=lambda found: found[3])
    size = np.median(sizes, axis=0)
    return replace(
        base,
        spacing_mm=_triple(np.median(spacings, axis=0)),
        mean_size=_triple((size[0], size[1], min(size[2], MOST_SLICES))),
        small_size=_triple(np.round(smallest[:3])),
        small_volume=float(np.round(smallest[3])),
    )


def measure_intensities(samples: Iterable[Sample], classes: int, *, ct: bool) -> Fingerprint:
    """Window, mean and standard deviation of each channel over the foreground; the sizes in it are placeholders of 1.

    The window reaches from the lowest 0.5 to the highest 99.5 percentile of any class, of the voxels of all cases; mean
    and deviation are those of the foreground voxels inside the window, each channel by itself. Arguments and errors as
    of `measure`.
    """
    values: list[list[Tensor]] = [[] for _ in range(classes - 1)]
    for sample in samples:
        label, image = _label(sample), sample.image if ct else own_range(sample.image)
        for k in range(1, classes):
            values[k - 1].append(image[:, label == k][:, ::EVERY])
    if not any(values):
        raise ValueError("there is no case to measure; name a folder with labelled training cases")
    of_class = [torch.cat(found, dim=1).double().numpy() for found in values]  # [C, V] each
    if absent := [k for k, found in enumerate(of_class, start=1) if found.shape[1] < 2]:
        raise ValueError(f"class {absent[0]} is in none of the training cases, so that it cannot be measured")
    ends = np.stack([np.percentile(found, PERCENTILES, axis=1) for found in of_class])  # [K - 1, 2, C]
    low, high = ends[:, 0].min(0), ends[:, 1].max(0)
    foreground = np.concatenate(of_class, axis=1)
    inside = [channel[(channel >= a) & (channel <= b)] for channel, a, b in zip(foreground, low, high, strict=True)]
    return Fingerprint(
        spacing_mm=(1.0, 1.0, 1.0),
        window=tuple((float(a), float(b)) for a, b in zip(low, high, strict=True)),
        mean=tuple(float(channel.mean()) for channel in inside),
        std=tuple(float(channel.std(ddof=1)) for channel in inside),
        mean_size=(1.0, 1.0, 1.0),
        small_size=(1.0, 1.0, 1.0),
        small_volume=1.0,
    )


def _label(sample: Sample) -> Tensor:
    if sample.label is None:
        raise ValueError(f"{sample.id} has no label, so that its foreground cannot be measured")
    return sample.label


def _objects(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.float64]]:
    """Size of the box, and volume, of each connected part (26 neighbours) that is no crumb: [x, y, z, voxels] each."""
    parts, number = ndimage.label(mask, np.ones((3, 3, 3)))
    if not number:
        return []
    volumes = np.bincount(parts.ravel())[1:]
    boxes = ndimage.find_objects(parts)
    return [
        np.array([*(side.stop - side.start for side in box), volume], float)
        for box, volume in zip(boxes, volumes, strict=True)
        if volume > LEAST_PART * volumes.max()
    ]


def _triple(numbers: Iterable[float]) -> tuple[float, float, float]:
    x, y, z = (float(number) for number in numbers)
    return x, y, z
