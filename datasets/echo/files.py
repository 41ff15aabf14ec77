"""One echocardiogram or mask from a file, as a plane [Y, X]: NIfTI (CAMUS v2, prepared sets) or MetaImage (v1)."""

# nibabel annotates only part of its functions
# mypy: disable-error-code=no-untyped-call

import gzip
import math
import zlib
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from ..nifti import DAMAGE

FloatArray = npt.NDArray[np.float32]
Spacing = tuple[float, float]
"""(y, x) in mm."""

METAIMAGE_TYPES = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def read_image(path: Path, white: float) -> tuple[FloatArray, Spacing]:
    """An image, [Y, X] in [0, 1], and the size of its pixels. white: the stored value that becomes 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is damaged, no single plane, or without spacing; values that are NaN, infinite or
            outside [0, white], or the same everywhere.
    """
    plane, spacing = _read(path)
    low, high = float(plane.min()), float(plane.max())
    if low < 0 or high > white:
        raise ValueError(f"{path} has values {low:g}..{high:g} but must lie in 0..{white:g}; scale it first")
    if low == high:
        raise ValueError(f"{path} holds the value {low:g} in every pixel: it is no image")
    return plane / np.float32(white), spacing


def read_mask(path: Path, classes: int) -> npt.NDArray[np.uint8]:
    """A mask, uint8 [Y, X] with values 0..classes-1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `read_image` (a constant mask is allowed), or a value that is no class: nothing is rounded.
    """
    plane, _ = _read(path)
    bad = plane[(plane < 0) | (plane >= classes) | (plane != np.rint(plane))]
    if bad.size:
        shown = ", ".join(f"{value:g}" for value in np.unique(bad)[:5])
        raise ValueError(f"{path} has labels {shown} but the classes are 0..{classes - 1}; map or remove them")
    return plane.astype(np.uint8)


def stored_in(path: Path) -> list[Path]:
    """The files that hold an image: a .mhd names a second one.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: a .mhd that cannot be understood.
    """
    _check_exists(path)
    if path.suffix != ".mhd":
        return [path]
    name = metaimage_header(path)["ElementDataFile"]
    if name in ("", "LOCAL", "LIST") or name != Path(name).name:
        raise ValueError(f"{path} names the pixels {name!r} but they must be one file beside it; convert it to .nii.gz")
    pixels = path.parent / name
    if not pixels.is_file():
        raise FileNotFoundError(f"{path} names the pixels {pixels}, which do not exist; unpack the archive again")
    return [path, pixels]


def _read(path: Path) -> tuple[FloatArray, Spacing]:
    _check_exists(path)
    plane, spacing = _metaimage(path) if path.suffix == ".mhd" else _nifti(path)
    if not all(math.isfinite(mm) and mm > 0 for mm in spacing):
        raise ValueError(
            f"{path} gives its pixels the size {spacing[0]:g} x {spacing[1]:g} mm (y, x), but distances need both "
            "above 0: write the spacing into its header (pixdim of NIfTI, ElementSpacing of .mhd)"
        )
    if bad := plane.size - np.count_nonzero(np.isfinite(plane)):
        raise ValueError(f"{path} has {bad} pixels that are NaN or infinite; clean the file first")
    return plane, spacing


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist or is no file; unpack the data set again, or leave its case out"
        )


def _nifti(path: Path) -> tuple[FloatArray, Spacing]:
    """NIfTI stores (x, y) and possibly a third axis of length 1."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()  # to its end, where gzip compares the checksum
        # as stored: nibabel's own reading would replace a pixdim of 0 by 1
        header = nib.Nifti1Header.from_fileobj(BytesIO(content), check=False)
        pixdim = [float(mm) for mm in header["pixdim"][1:3]]
        if math.prod(header.get_data_shape()) * int(header["bitpix"]) // 8 > len(content):
            raise ValueError("it is shorter than its header says")
        stored = np.asarray(nib.Nifti1Image.from_bytes(content).dataobj, dtype=np.float32)
    except (*DAMAGE, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        raise ValueError(f"{path} cannot be read as NIfTI ({error}); fetch or convert it again") from error
    return _plane(stored, path).T.copy(), (pixdim[1], pixdim[0])


def _metaimage(path: Path) -> tuple[FloatArray, Spacing]:
    """MetaImage stores x fastest, so that an array of its pixels is [Z, Y, X] with Z = 1."""
    header = metaimage_header(path)
    pixels = stored_in(path)[1]
    try:
        shape = [int(n) for n in header["DimSize"].split()][::-1]
        if min(shape) < 1:
            raise ValueError(f"DimSize is {header['DimSize']}")
        spacing = [float(mm) for mm in header.get("ElementSpacing", header.get("ElementSize", "0 0")).split()]
        order = ">" if header.get("BinaryDataByteOrderMSB", "False").lower() == "true" else "<"
        dtype = np.dtype(order + METAIMAGE_TYPES[header["ElementType"]])
        content = pixels.read_bytes()
        if header.get("CompressedData", "False").lower() == "true":
            expander = zlib.decompressobj()
            content = expander.decompress(content, math.prod(shape) * dtype.itemsize + 1)
            if not expander.eof:
                raise ValueError("its compressed pixels are cut, or more than DimSize says")
        stored = np.frombuffer(content, dtype).reshape(shape).astype(np.float32)
        return _plane(stored, path), (spacing[1], spacing[0])
    except (ValueError, KeyError, IndexError, zlib.error) as error:
        raise ValueError(
            f"{path} or {pixels.name} is truncated or damaged ({error}); fetch it again, or convert it to .nii.gz"
        ) from error


def metaimage_header(path: Path) -> dict[str, str]:
    """The fields of a .mhd.

    Raises:
        ValueError: no text, or a field that must be there is missing.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except ValueError as error:
        raise ValueError(f"{path} is no text, as a .mhd is ({error}); fetch it again") from error
    header = {name.strip(): value.strip() for name, found, value in (line.partition("=") for line in lines) if found}
    if missing := {"DimSize", "ElementType", "ElementDataFile"} - header.keys():
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: it is no complete .mhd; fetch it again")
    return header


def _plane(stored: FloatArray, path: Path) -> FloatArray:
    """`stored` without axes of length 1 before or behind its two."""
    plane = stored.squeeze()
    if plane.ndim != 2:
        raise ValueError(f"{path} has shape {stored.shape} but one plane is needed; take a frame of the sequence")
    return plane
