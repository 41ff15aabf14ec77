"""One echocardiogram or mask from a file, as a plane [Y, X]: NIfTI, MetaImage (.mhd) or PNG."""

import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..nifti import MOST_VOXELS, NIFTI, VOXEL_MM, check_labels, read_header, read_stored
from ..pictures import read_picture

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


MOST_HEADER = 1 << 16
"""Bytes of a .mhd that are read at most; real ones have some hundred."""
LONGEST_NAME = 255
"""Letters of a file name that file systems allow."""
SUFFIXES = (*NIFTI, ".mhd", ".png")
"""Files that are read, in the order of preference where an image lies in several."""


def read_image(path: Path, white: float | None, spacing_mm: Spacing | None = None) -> tuple[FloatArray, Spacing]:
    """An image, [Y, X] in [0, 1], and the size of its pixels.

    Args:
        path: .nii, .nii.gz, .mhd or .png; colours of a .png become grey.
        white: the stored value that becomes 1; None: 1 where no value is above 1, else 255.
        spacing_mm: size of a pixel of a file that does not say it, as no .png does.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is damaged, no single plane, or without spacing; values that are NaN, infinite or
            outside [0, white], or the same everywhere.
    """
    plane, spacing = _read(path, spacing_mm, is_mask=False)
    low, high = float(plane.min()), float(plane.max())
    white = white or (1.0 if high <= 1 else 255.0)
    if low < 0 or high > white:
        raise ValueError(f"{path} has values {low:g}..{high:g} but must lie in 0..{white:g}; scale it first")
    if low == high:
        raise ValueError(f"{path} holds the value {low:g} in every pixel: it is no image; leave it out")
    return plane / np.float32(white), spacing


def read_mask(path: Path, classes: int) -> npt.NDArray[np.uint8]:
    """A mask, uint8 [Y, X] with values 0..classes-1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `read_image` (a constant mask is allowed, and no size of its pixels needed), or a value that is
            no class: nothing is rounded.
    """
    return check_labels(_read(path, (1.0, 1.0), is_mask=True)[0], classes, path)


def stored_in(path: Path) -> list[Path]:
    """The files that hold an image: a .mhd names a second one.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: a .mhd that cannot be understood.
    """
    _check_exists(path)
    if path.suffix.lower() != ".mhd":
        return [path]
    name = metaimage_header(path)["ElementDataFile"]
    if name in ("", "LOCAL", "LIST") or name != Path(name).name or len(name) > LONGEST_NAME:
        raise ValueError(
            f"{path} names the pixels {name[:60]!r} but they must be one file beside it; convert it to .nii.gz"
        )
    pixels = path.parent / name
    if not pixels.is_file():
        raise FileNotFoundError(f"{path} names the pixels {pixels}, which do not exist; unpack the archive again")
    return [path, pixels]


def _read(path: Path, spacing_mm: Spacing | None, *, is_mask: bool) -> tuple[FloatArray, Spacing]:
    """The plane of a file and the size of its pixels, `spacing_mm` where the file does not say it."""
    _check_exists(path)
    if path.suffix.lower() == ".png":
        plane, found = _png(path, is_mask=is_mask), (0.0, 0.0)
    else:
        plane, found = _metaimage(path) if path.suffix.lower() == ".mhd" else _nifti(path)
    if spacing_mm is not None and not all(found):
        found = spacing_mm
    low, high = VOXEL_MM
    if not all(low <= mm <= high for mm in found):
        raise ValueError(
            f"{path} gives its pixels the size {found[0]:g} x {found[1]:g} mm (y, x), but distances need sizes of "
            f"{low:g} to {high:g} mm: write them into its header (pixdim of NIfTI, ElementSpacing of .mhd), or give "
            "spacing_mm"
        )
    if bad := plane.size - np.count_nonzero(np.isfinite(plane)):
        raise ValueError(f"{path} has {bad} pixels that are NaN or infinite; clean the file first")
    return plane, found


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist or is no file; unpack the data set again, or leave its case out"
        )


def _nifti(path: Path) -> tuple[FloatArray, Spacing]:
    """NIfTI stores (x, y) and possibly a third axis of length 1."""
    header = read_header(path)  # as stored: nibabel's own reading would replace a pixdim of 0 by 1
    x, y = (float(mm) for mm in header["pixdim"][1:3])
    return _plane(read_stored(path, header), path).T.copy(), (y, x)


def _png(path: Path, *, is_mask: bool) -> FloatArray:
    """Grey values 0..255 of a picture, or the numbers (of the palette, too) that a mask stores."""

    def change(picture: Image.Image) -> Image.Image:
        return picture if is_mask or picture.mode.startswith("I") else picture.convert("L")

    pixels = read_picture(path, ("PNG",), change)
    deep, stored = pixels.dtype.itemsize > 1, pixels.astype(np.float32)  # deep: 16 bits
    if deep and not is_mask:
        return stored / np.float32(257)
    if stored.ndim == 3 and (stored == stored[..., :1]).all():
        return stored[..., 0].copy()
    if stored.ndim != 2:
        raise ValueError(f"{path} is a mask in colours, but one number each is needed; save it as grey values")
    return stored


def _metaimage(path: Path) -> tuple[FloatArray, Spacing]:
    """MetaImage stores x fastest, so that an array of its pixels is [Z, Y, X] with Z = 1."""
    header = metaimage_header(path)
    pixels = stored_in(path)[1]
    try:
        shape = [int(n) for n in header["DimSize"].split()][::-1]
        if min(shape) < 1 or math.prod(shape) > MOST_VOXELS:
            raise ValueError(f"DimSize is {header['DimSize'][:40]}")
        spacing = [float(mm) for mm in header.get("ElementSpacing", header.get("ElementSize", "0 0")).split()]
        if header.get("BinaryData", "True").lower() != "true":
            raise ValueError("BinaryData is not True: its pixels are text")
        if (channels := header.get("ElementNumberOfChannels", "1")) != "1":
            raise ValueError(f"ElementNumberOfChannels is {channels} but must be 1")
        order = ">" if header.get("BinaryDataByteOrderMSB", "False").lower() == "true" else "<"
        dtype = np.dtype(order + METAIMAGE_TYPES[header["ElementType"]])
        expected = math.prod(shape) * dtype.itemsize
        content = _pixels(pixels, expected, deflated=header.get("CompressedData", "False").lower() == "true")
        stored = np.frombuffer(content, dtype).reshape(shape).astype(np.float32)
        return _plane(stored, path), (spacing[1], spacing[0])
    except (ValueError, KeyError, IndexError, OverflowError, MemoryError, zlib.error) as error:
        raise ValueError(
            f"{path} or {pixels.name} is truncated or damaged ({error}); fetch it again, or convert it to .nii.gz"
        ) from error


def _pixels(path: Path, expected: int, *, deflated: bool) -> bytes:
    """The `expected` bytes that a file holds, plain or deflated; nothing is read of one that holds another number."""
    size = path.stat().st_size
    if not deflated:
        if size != expected:
            raise ValueError(f"{path.name} has {size:,} bytes but DimSize and ElementType say {expected:,}")
        return path.read_bytes()
    if size > 2 * expected + 1024:
        raise ValueError(f"{path.name} has {size:,} bytes, more than the {expected:,} that it should unpack to")
    expander = zlib.decompressobj()
    content = expander.decompress(path.read_bytes(), expected + 1)
    if not expander.eof or len(content) != expected:
        raise ValueError("its compressed pixels are cut, or another number than DimSize says")
    return content


def metaimage_header(path: Path) -> dict[str, str]:
    """The fields of a .mhd.

    Raises:
        ValueError: no text, or a field that must be there is missing.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_HEADER + 1)
        if len(content) > MOST_HEADER:
            raise ValueError(f"it is longer than {MOST_HEADER:,} bytes")
        lines = content.decode("ascii").splitlines()
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
