"""From a volume as it is recorded to what networks see, resampled, clipped, in z-scores, and back (docs/seat.md,
Method 3)."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from ...common.files import file_digest
from ..cache import cached
from ..msd import CaseFiles, read_sample
from ..nifti import MOST_VOXELS, Frame
from ..sample import Sample
from .fingerprint import Fingerprint, measure_intensities, own_range
from .tasks import Task

log = logging.getLogger(__name__)
PREPARATION = 2
"""Part of every cache key: raise it when the same file and constants shall give other tensors."""
MOST_SLICES = 300
"""Slices of a training case along its coarse axis."""
AROUND = 30
"""Slices that are kept before and behind the foreground, if there are that many."""
ANISOTROPIC = 3.0
"""Ratio of the largest to the smallest side of a voxel above which slices are resampled one by one."""
Array = npt.NDArray[np.float32]


def prepare(sample: Sample, constants: Fingerprint, *, ct: bool) -> Sample:
    """The volume at the spacing of the constants, float32 [C, X, Y, Z] in z-scores, with its label uint8 [X, Y, Z].

    Its affine says where each of its voxels lies in the recorded volume, from which `restored` finds back.

    Args:
        sample: in HU (CT) or any unit (MR).
        constants: spacing, and window, mean and deviation of each channel.
        ct: False scales each channel by its own range first.

    Raises:
        ValueError: another number of channels than the constants have, or too many voxels at their spacing, or none.
    """
    channels = len(constants.window)
    if len(sample.image) != channels:
        raise ValueError(f"{sample.id} has {len(sample.image)} channels but the constants are of {channels}")
    spacing, target = np.array(sample.spacing_mm), np.array(constants.spacing_mm)
    sizes = np.round(np.array(sample.image.shape[1:]) * spacing / target)
    if sizes.prod() > MOST_VOXELS:
        old, new = (" x ".join(f"{mm:g}" for mm in sides) for sides in (spacing, target))
        raise ValueError(
            f"{sample.id} has voxels of {old} mm and would have {sizes.prod():,.0f} of {new} mm, more than "
            f"{MOST_VOXELS:,}; check the size in its file"
        )
    if sizes.min() < 1:
        raise ValueError(
            f"{sample.id} is {sizes.min():.0f} voxels of {constants.spacing_mm} mm thick along an axis; check the size "
            "of its voxels in its file"
        )
    coarse = _coarse_axis(spacing, target)
    axis = 2 if coarse is None else coarse
    image = sample.image.numpy()
    label = None if sample.label is None else sample.label.numpy()
    image, label, first = cut_slices(image, label, axis)
    before = image.shape[1:]
    image = np.stack([resampled(channel, spacing / target, 3, coarse) for channel in image])
    steps = _steps(before, image.shape[1:])
    label = None if label is None else resampled(label, spacing / target, 0, coarse)
    image, label, later = cut_slices(image, label, axis)  # resampled, there may be too many again
    recorded = np.diag([*steps, 1.0])  # voxel of what is made here to voxel of the sample
    recorded[axis, 3] = first + later * steps[axis]
    return Sample(
        id=sample.id,
        image=to_z(torch.from_numpy(np.ascontiguousarray(image)), constants, ct=ct),
        label=None if label is None else torch.from_numpy(np.ascontiguousarray(label)),
        spacing_mm=constants.spacing_mm,
        affine=sample.affine @ recorded,
        origin=sample.origin,
    )


def restored(scores: Tensor, prepared: Sample, frame: Frame) -> Tensor:
    """Class numbers of a volume as it was recorded, uint8 [X, Y, Z] in RAS+ order, on the device of the scores.

    Scores are resampled, linear, but along a coarse axis those of the nearest slice are taken; then each voxel has the
    class with the highest one. What `prepare` cut off is background.

    Args:
        scores: of each class, such as probabilities, [K, *spatial] in the space of `prepared`.
        prepared: what `prepare` made of the recorded volume.
        frame: of the recorded volume.
    """
    back = np.linalg.inv(prepared.affine) @ frame.ras_affine  # diagonal, with a shift: nothing was turned
    coarse = _coarse_axis(np.array(frame.ras_spacing_mm), np.array(prepared.spacing_mm))
    inside = torch.ones((), dtype=torch.bool, device=scores.device)
    for axis, (size, number) in enumerate(zip(scores.shape[1:], frame.ras_shape, strict=True)):
        places = torch.arange(number, dtype=torch.float64, device=scores.device) * back[axis, axis] + back[axis, 3]
        kept = (places >= -0.5) & (places <= size - 0.5) | (size == 1)
        inside = inside[..., None] & kept
        places = places.clamp(0, size - 1)
        places = places.round() if axis == coarse else places
        low = places.floor().long().clamp(max=max(size - 2, 0))
        share = (places - low).to(scores).view(-1, *(1,) * (2 - axis))
        high = (low + 1).clamp(max=size - 1)
        scores = torch.lerp(scores.index_select(axis + 1, low), scores.index_select(axis + 1, high), share)
    return torch.where(inside, scores.argmax(dim=0), 0).to(torch.uint8)


def _steps(before: Sequence[int], after: Sequence[int]) -> npt.NDArray[np.float64]:
    """Voxels of a volume before it was resampled for each one after: first and last stay in place."""
    apart = [(old - 1) / (new - 1) if min(old, new) > 1 else old / new for old, new in zip(before, after, strict=True)]
    return np.array(apart)


def to_z(image: Tensor, constants: Fingerprint, *, ct: bool) -> Tensor:
    """Intensities [C, *spatial] in z-scores: scaled by their own range (MR), clipped to the window, less the mean and
    divided by the deviation of the foreground. A constant channel is 0 before it is clipped."""
    shape = (-1, *(1,) * (image.ndim - 1))
    low, high = (torch.tensor([ends[n] for ends in constants.window]).view(shape) for n in (0, 1))
    mean, std = (torch.tensor(values).view(shape) for values in (constants.mean, constants.std))
    return ((image if ct else own_range(image)).clamp(low, high) - mean) / std


def resampled(volume: npt.NDArray[np.generic], factor: npt.ArrayLike, order: int, coarse: int | None) -> Array:
    """A volume [X, Y, Z] with `factor` times as many voxels along each axis, of its own type.

    Args:
        volume: image or label.
        factor: of each axis; sizes are rounded, and the first and last voxels of an axis stay in place.
        order: 3 (cubic) for images, 0 (nearest) for labels.
        coarse: the axis along which slices lie too far apart to be mixed: each slice is resampled by itself, then
            slices are repeated or left out; None: all axes alike.
    """
    factors = np.array(factor, float)
    if (factors == 1).all():
        return volume  # type: ignore[return-value]
    if coarse is not None:
        in_plane = np.delete(factors, coarse)
        slices = np.moveaxis(volume, coarse, 0)
        slices = np.stack([ndimage.zoom(one, in_plane, order=order, mode="mirror") for one in slices])
        volume = np.moveaxis(slices, 0, coarse)
        factors[np.arange(3) != coarse] = 1
        order = 0
    found: Array = ndimage.zoom(volume, factors, order=order, mode="mirror")
    return found


def cut_slices(image: Array, label: Array | None, axis: int) -> tuple[Array, Array | None, int]:
    """Image [C, X, Y, Z] and label [X, Y, Z], cut to 300 slices along `axis` around the foreground, and the number of
    the first slice that is kept.

    Only of one channel, with a label, and with more slices. A foreground that needs more with 30 slices on each side
    keeps all that it needs; without foreground the middle is kept.
    """
    if label is None or len(image) > 1 or label.shape[axis] <= MOST_SLICES:
        return image, label, 0
    slices = label.shape[axis]
    others = tuple(other for other in range(3) if other != axis)
    (found,) = np.nonzero((label > 0).any(axis=others))
    first, last = (found[0], found[-1] + 1) if len(found) else (slices // 2, slices // 2)
    first, last = max(first - AROUND, 0), min(last + AROUND, slices)
    if last - first <= MOST_SLICES:
        first = min(max((first + last) // 2 - MOST_SLICES // 2, 0), slices - MOST_SLICES)
        last = first + MOST_SLICES
    kept = (slice(None),) * axis + (slice(int(first), int(last)),)
    return image[(slice(None), *kept)], label[kept], int(first)


def _coarse_axis(spacing: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> int | None:
    """The axis of the largest side, where voxels are, or shall be, more than three times as long as wide."""
    for sides in (spacing, target):
        if sides.max() / sides.min() > ANISOTROPIC:
            return int(sides.argmax())
    return None


def read_case(files: CaseFiles, task: Task) -> Sample:
    """A case of the task as it is recorded.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: another number of channels than the task has, and what else `read_sample` refuses.
    """
    return read_sample(files, len(task.classes), len(task.channels))


def prepared_case(
    files: CaseFiles, task: Task, constants: Fingerprint, cache_dir: str | None = None, place: str = "1 of 1"
) -> Sample:
    """A case prepared, by `prepare`; kept on disk by its contents, and said where it is prepared anew.

    Args:
        files: of image and label.
        task: of these.
        constants: as of `prepare`.
        cache_dir: see `cache_folder`.
        place: of the case among those that are loaded, for the log.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: what `read_case` and `prepare` refuse.
    """
    used = asdict(constants)
    key = {**_key(files, task), "constants": [used[name] for name in ("spacing_mm", "window", "mean", "std")]}

    def build() -> dict[str, Tensor]:
        log.info("preparing %s of %s (%s), kept in the cache for the next time", files.id, task.name, place)
        made = prepare(read_case(files, task), constants, ct=task.ct)
        found = {"image": made.image, "affine": torch.from_numpy(made.affine)}
        return found if made.label is None else {**found, "label": made.label}

    tensors = cached("decathlon", key, build, cache_dir)
    image, label, affine = tensors["image"], tensors.get("label"), tensors["affine"].numpy()
    return Sample(files.id, image, label, constants.spacing_mm, affine)


def measured_cases(cases: Sequence[CaseFiles], task: Task, cache_dir: str | None = None) -> Fingerprint:
    """`measure_intensities` of some cases; kept on disk by their contents, and said where they are measured anew.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: what `read_case` and `measure_intensities` refuse.
    """

    def build() -> dict[str, Tensor]:
        log.info("measuring the intensities of %d training cases of %s, kept for the next time", len(cases), task.name)
        samples = (read_case(files, task) for files in cases)
        found = measure_intensities(samples, len(task.classes), ct=task.ct)
        values = {"window": found.window, "mean": found.mean, "std": found.std}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    key = {"cases": [_key(files, task) for files in cases]}
    found = {name: values.tolist() for name, values in cached("decathlon_fingerprint", key, build, cache_dir).items()}
    return replace(
        task.fingerprint,
        window=tuple((low, high) for low, high in found["window"]),
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )


def _key(files: CaseFiles, task: Task) -> dict[str, object]:
    """What a case as it is read depends on."""
    for path in (files.image, files.label):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; unpack the archive again")
    return {
        "preparation": PREPARATION,
        "image": file_digest(files.image),
        "label": None if files.label is None else file_digest(files.label),
        "ct": task.ct,
        "channels": len(task.channels),
        "classes": len(task.classes),
    }
