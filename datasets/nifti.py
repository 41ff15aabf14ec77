"""NIfTI volumes in RAS+ order, and masks back into a file's own order.

A file stores its voxels in any of 48 axis orders. We read every volume into RAS+ (index rises to the patient's right,
front, head) and keep the file's own `Frame`, so that a mask found in RAS+ can be written to lie on the file it is for.
"""

# nibabel annotates only part of its functions
# mypy: disable-error-code=no-untyped-call

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import affines, orientations

from ..common.files import replacing

Dtype = TypeVar("Dtype", bound=np.generic)
DAMAGE = (OSError, EOFError, ValueError, OverflowError, zlib.error, nib.spatialimages.HeaderDataError)
"""Errors of nibabel, gzip and zlib on a truncated or corrupted file."""
NIFTI = (".nii.gz", ".nii")
"""Suffixes of NIfTI files."""
MOST_VOXELS = 1 << 29
"""Largest image that is read: 512 x 512 x 2048 voxels, 2 GB as float32. A larger number is a damaged header."""
MOST_UNPACKED = 1032
"""Bytes that a byte of a gzip file can unpack to, at most: the limit of the format."""
VOXEL_MM = (0.001, 100.0)
"""Sizes of a voxel or pixel that are taken for real. Others are another unit (metres), or a damaged header."""
LABEL_TOLERANCE = 1e-3
"""Distance to a whole number within which a stored label is that number: what scaling in float32 may cost."""


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
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along the axes of the file."""
        i, j, k = affines.voxel_sizes(self.affine)
        return float(i), float(j), float(k)

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
        ValueError: not a NIfTI file, not 3-D, voxels that are no numbers, or an affine that gives them no size.
    """
    return _frame(path, read_header(path))


def read_nifti(path: Path) -> tuple[npt.NDArray[np.float32], Frame]:
    """An image in RAS+ order, float32 [X, Y, Z] in the file's unit, and the file's frame.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not NIfTI, truncated, longer or larger than a volume can be, not 3-D, with NaN or infinite voxels,
            or the same value everywhere.
    """
    volume, frame = _read(path)
    if volume.min() == volume.max():
        raise ValueError(f"{path} holds the value {volume.flat[0]:g} in every voxel: it is no image; leave it out")
    return volume, frame


def read_channels(path: Path, channels: int) -> tuple[npt.NDArray[np.float32], Frame]:
    """An image of several channels, or of one, in RAS+ order, float32 [C, X, Y, Z] in the file's unit, and its frame.

    Channels are the fourth axis of the file, which a file of one channel may lack. A channel may be constant, if
    another is not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `read_nifti`, or another number of channels.
    """
    header = read_header(path)
    shape = tuple(int(n) for n in header.get_data_shape())
    frame = _frame(path, header, shape[:3] if len(shape) == 4 else shape)
    if (found := math.prod(shape[3:])) != channels:
        raise ValueError(
            f"{path} has shape {shape}, {found} channel(s), but {channels} are needed; split or join it first"
        )
    stored = read_stored(path, header)
    volume = frame.to_ras(stored.reshape(*frame.shape, channels))
    if volume.min() == volume.max():
        raise ValueError(f"{path} holds the value {volume.flat[0]:g} in every voxel: it is no image; leave it out")
    return np.ascontiguousarray(np.moveaxis(volume, 3, 0)), frame


def read_label(path: Path, classes: int) -> tuple[npt.NDArray[np.uint8], Frame]:
    """A label in RAS+ order, uint8 [X, Y, Z] with values 0..classes-1, and the file's frame.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `read_nifti` (a constant label is allowed), or a value that is no class.
    """
    volume, frame = _read(path)
    return check_labels(volume, classes, path), frame


def check_labels(stored: npt.NDArray[np.float32], classes: int, path: Path) -> npt.NDArray[np.uint8]:
    """Labels read from `path` as uint8, of the same shape.

    Raises:
        ValueError: a value that is none of 0..classes-1: fractions are not rounded.
    """
    labels, bad = np.empty(stored.shape, np.uint8), set[float]()
    for place, part in enumerate(stored):  # by parts: a whole CT several times over is gigabytes
        whole = np.rint(part)
        wrong = (whole < 0) | (whole >= classes) | (np.abs(part - whole) > LABEL_TOLERANCE)
        bad.update(part[wrong][:1000].tolist())
        labels[place] = np.where(wrong, 0, whole)
    if bad:
        shown = ", ".join(f"{value:g}" for value in sorted(bad)[:5])
        raise ValueError(f"{path} has labels {shown} but the classes are 0..{classes - 1}; map or remove them")
    return labels


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


def read_header(path: Path) -> nib.Nifti1Header:
    """Header of a NIfTI file (NIfTI-1 or -2, plain or .gz), as it is stored; voxels of it can be read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not NIfTI, no positive dimensions, more voxels than a volume can have, or voxels that are no real
            numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file; expected NIfTI (.nii or .nii.gz)")
    try:
        with _opened(path) as file:
            head = file.read(nib.Nifti2Header.sizeof_hdr)
        short, long = nib.Nifti1Header.sizeof_hdr, nib.Nifti2Header.sizeof_hdr
        if head[344:347] == b"n+1" and len(head) >= short:
            header = nib.Nifti1Header(head[:short], check=False)
        elif head[4:7] == b"n+2" and len(head) == long:
            header = nib.Nifti2Header(head, check=False)
        else:
            raise ValueError(f"its first {len(head)} bytes are no header of it")
        problem = _objection(header)
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read as NIfTI ({error}); fetch or convert it again") from error
    if problem:
        raise ValueError(f"{path} {problem}")
    return header


def read_stored(path: Path, header: nib.Nifti1Header) -> npt.NDArray[np.float32]:
    """Voxels of the file with this header, float32, scaled, in the shape and order of the file.

    Never more is read than the header says, and a byte.

    Raises:
        ValueError: a file that is shorter or longer than its header says, or damaged; values that are NaN or infinite.
    """
    size, dtype = path.stat().st_size, header.get_data_dtype()
    needed = header.get_data_offset() + math.prod(header.get_data_shape()) * dtype.itemsize
    try:
        if needed > size * (MOST_UNPACKED if path.suffix.lower() == ".gz" else 1):
            raise ValueError(f"its header says {needed:,} bytes but it has {size:,}")
        with _opened(path) as file:
            content = file.read(needed + 1)  # to its end, where gzip compares the checksum
        if len(content) != needed:
            found = f"{len(content):,}" if len(content) < needed else "more"
            raise ValueError(f"its header says {needed:,} bytes but it has {found}")
        stored = np.asarray(nib.arrayproxy.ArrayProxy(BytesIO(content), repaired(header)), dtype=np.float32)
    except DAMAGE as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch it again") from error
    except MemoryError as error:
        raise ValueError(f"{path} needs {needed / 1e9:.1f} GB and as much again, more memory than there is") from error
    if not np.isfinite((stored.min(), stored.max())).all():  # NaN passes through both
        bad = stored.size - np.count_nonzero(np.isfinite(stored))
        raise ValueError(f"{path} has {bad} voxels that are NaN or infinite; clean the file first")
    return stored


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _objection(header: nib.Nifti1Header) -> str | None:
    """Why the voxels of a file with this header cannot be read, as the rest of a sentence; None: they can."""
    number = int(header["dim"][0])
    shape = [int(n) for n in header["dim"][1 : number + 1]] if 1 <= number <= 7 else []
    if not shape or min(shape) < 1:
        return f"has the dimensions {header['dim'].tolist()}, which are none; fetch it again"
    if math.prod(shape) > MOST_VOXELS:
        return f"has {' x '.join(map(str, shape))} voxels, more than {MOST_VOXELS:,}; crop or resample it first"
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        return f"has voxels of the unknown type {int(header['datatype'])}; fetch it again"
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        return f"has voxels of the type {dtype}, but one number each is needed (integer or float); convert it first"
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        return f"has voxels of {int(header['bitpix'])} bits, but those of the type {dtype} have {8 * dtype.itemsize}"
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and offset >= header.single_vox_offset):
        return f"has its voxels at byte {offset:g}, which lies in its header; fetch it again"
    return None


def _frame(path: Path, header: nib.Nifti1Header, spatial: tuple[int, ...] | None = None) -> Frame:
    """Shape and affine of a 3-D volume; `spatial`: its shape where the file has channels too."""
    shape = spatial or tuple(int(n) for n in header.get_data_shape())
    if len(shape) != 3:
        raise ValueError(f"{path} has shape {shape} but a 3-D volume is needed; split or squeeze it first")
    try:
        header = repaired(header)
        affine = header.get_best_affine()
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read as NIfTI ({error}); fetch or convert it again") from error
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError(f"{path} has the affine {affine.tolist()}, which gives its voxels no volume")
    check_voxel_size(affines.voxel_sizes(affine).tolist(), path)
    return Frame(shape, affine, header)


def repaired(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """The header with nibabel's own repairs, as when it loads the file."""
    return type(header)(header.binaryblock, header.endianness, check=True)


def check_voxel_size(sizes_mm: Sequence[float], path: Path) -> None:
    """Check that `path` gives its voxels or pixels a size that can be real.

    Raises:
        ValueError: a size outside `VOXEL_MM`.
    """
    low, high = VOXEL_MM
    if not all(low <= size <= high for size in sizes_mm):
        raise ValueError(
            f"{path} gives its voxels the size {' x '.join(f'{size:g}' for size in sizes_mm)} mm, but distances need "
            f"sizes of {low:g} to {high:g} mm: write them into its header, in mm"
        )


def _read(path: Path) -> tuple[npt.NDArray[np.float32], Frame]:
    header = read_header(path)
    frame = _frame(path, header)
    return frame.to_ras(read_stored(path, header)), frame
