"""NIfTI volumes in RAS+ order, and masks back into a file's own order.

A file stores its voxels in any of 48 axis orders. We read every volume into RAS+ (index rises to the patient's right,
front, head) and keep the file's own `Frame`, so that a mask found in RAS+ can be written to lie on the file it is for.
"""

# nibabel annotates only part of its functions
# mypy: disable-error-code=no-untyped-call

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import affines, orientations

from ..common.files import replacing

Dtype = TypeVar("Dtype", bound=np.generic)
DAMAGE = (OSError, EOFError, ValueError, zlib.error)
"""Errors of nibabel, gzip and zlib on a truncated or corrupted file."""


@dataclass(frozen=True, eq=False)
class Frame:
    """Shape and affine of a file: the order of its voxels, and where they lie in the patient."""

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    """Voxel index of the file to patient coordinates in mm (RAS+)."""
    header: nib.Nifti1Header | None = None
    """The file's own header, for what is written in its space; None where it is no NIfTI file."""

    @property
    def ras_shape(self) -> tuple[int, int, int]:
        """The file's shape in RAS+ order."""
        x, y, z = (self.shape[int(axis)] for axis in self._from_ras[:, 0])
        return x, y, z

    @property
    def ras_affine(self) -> npt.NDArray[np.float64]:
        """Voxel index in RAS+ order to patient coordinates in mm."""
        order = orientations.io_orientation(self.affine)
        affine: npt.NDArray[np.float64] = self.affine @ orientations.inv_ornt_aff(order, self.shape)
        return affine

    @property
    def ras_spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along the axes of the RAS+ order."""
        x, y, z = affines.voxel_sizes(self.ras_affine)
        return float(x), float(y), float(z)

    def to_ras(self, volume: npt.NDArray[Dtype]) -> npt.NDArray[Dtype]:
        """A volume in the file's order, turned to RAS+ order (a view)."""
        turned: npt.NDArray[Dtype] = orientations.apply_orientation(volume, orientations.io_orientation(self.affine))
        return turned

    def from_ras(self, volume: npt.NDArray[Dtype]) -> npt.NDArray[Dtype]:
        """A volume in RAS+ order, turned to the file's order (a view); the inverse of `to_ras`."""
        turned: npt.NDArray[Dtype] = orientations.apply_orientation(volume, self._from_ras)
        return turned

    @property
    def _from_ras(self) -> npt.NDArray[np.float64]:
        ras = orientations.axcodes2ornt("RAS")
        turn: npt.NDArray[np.float64] = orientations.ornt_transform(ras, orientations.io_orientation(self.affine))
        return turn


def read_frame(path: Path) -> Frame:
    """Shape and affine of a file, from its header only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a NIfTI file, not 3-D, or with an affine that maps the volume to a plane.
    """
    return _open(path)[1]


def read_nifti(path: Path) -> tuple[npt.NDArray[np.float32], Frame]:
    """An image in RAS+ order, float32 [X, Y, Z] in the file's unit, and the file's frame.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not NIfTI, truncated, not 3-D, with NaN or infinite voxels, or the same value everywhere.
    """
    volume, frame = _read(path)
    if volume.min() == volume.max():
        raise ValueError(f"{path} holds the value {volume.flat[0]:g} in every voxel: it is no image")
    return volume, frame


def read_label(path: Path, classes: int) -> tuple[npt.NDArray[np.uint8], Frame]:
    """A label in RAS+ order, uint8 [X, Y, Z] with values 0..classes-1, and the file's frame.

    Labels stored as floats are rounded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `read_nifti` (a constant label is allowed), or a value that is no class.
    """
    volume, frame = _read(path)
    np.rint(volume, out=volume)
    if volume.min() < 0 or volume.max() >= classes:
        bad = [f"{value:g}" for value in np.unique(volume[(volume < 0) | (volume >= classes)])[:5]]
        raise ValueError(f"{path} has labels {', '.join(bad)} but the classes are 0..{classes - 1}; map or remove them")
    return volume.astype(np.uint8), frame


def write_volume(volume: npt.NDArray[Any], frame: Frame, path: Path) -> None:
    """Write a mask (uint8) or a map (float32) in the file order of `frame` as a NIfTI file that lies on that file.

    Raises:
        ValueError: a volume of another shape, or a path that does not end in .nii or .nii.gz.
    """
    if volume.shape != frame.shape:
        raise ValueError(f"the volume has shape {volume.shape} but the file it belongs to has {frame.shape}")
    write_like(volume, frame.affine, frame.header, path)


def write_like(
    array: npt.NDArray[Any], affine: npt.NDArray[np.float64], header: nib.Nifti1Header | None, path: Path
) -> None:
    """Write an array as NIfTI in the space of another file: its affine, units, qform and sform, but none of its texts.

    Args:
        array: in the order of the file, uint8 or float32.
        affine: of the file.
        header: of the file; None where it is no NIfTI: millimetres, and both forms are the scanner's.
        path: where to write.

    Raises:
        ValueError: a path that does not end in .nii or .nii.gz.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path} must end in .nii or .nii.gz")
    if header is None:
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, "scanner")
        image.set_qform(affine, "scanner")
    else:
        header = header.copy()
        header.extensions.clear()  # as the texts below, they tell of the patient or of the image's grey values
        for text in ("descrip", "aux_file", "intent_name"):
            header[text] = b""
        for number in ("cal_min", "cal_max", "intent_code"):
            header[number] = 0
        header.set_data_dtype(array.dtype)
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(array, affine, header)
    with replacing(path) as temporary:
        nib.save(image, temporary)


def _open(path: Path) -> tuple[nib.Nifti1Image, Frame]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file; expected a NIfTI volume (.nii or .nii.gz)")
    try:
        image = nib.load(path, mmap=False)
    except (*DAMAGE, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        raise ValueError(f"{path} cannot be read as NIfTI ({error}); fetch or convert it again") from error
    if not isinstance(image, nib.Nifti1Image):
        raise ValueError(f"{path} is a {type(image).__name__}, not NIfTI; convert it to .nii.gz")
    if len(image.shape) != 3 or 0 in image.shape:
        raise ValueError(f"{path} has shape {image.shape} but a 3-D volume is needed; split or squeeze it first")
    if not np.isfinite(image.affine).all() or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        raise ValueError(f"{path} has the affine {image.affine.tolist()}, which gives its voxels no volume")
    return image, Frame(image.shape, image.affine, image.header)


def _read(path: Path) -> tuple[npt.NDArray[np.float32], Frame]:
    image, frame = _open(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()  # to its end, where gzip compares the checksum; nibabel stops at the last voxel
        stored = np.asarray(type(image).from_bytes(content).dataobj, dtype=np.float32)
    except DAMAGE as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch it again") from error
    bad = stored.size - np.count_nonzero(np.isfinite(stored))
    if bad:
        raise ValueError(f"{path} has {bad} voxels that are NaN or infinite; clean the file first")
    return frame.to_ras(stored), frame
