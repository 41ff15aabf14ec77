"""Echocardiograms that a user names: NIfTI, MetaImage (.mhd), PNG or DICOM, and masks and maps in their space.

A file of labels or doubt is of the image's kind: NIfTI with its geometry for NIfTI and .mhd, PNG for the others.
"""

# nibabel annotates only part of its functions
# mypy: disable-error-code=no-untyped-call

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import nibabel as nib
import numpy as np
import numpy.typing as npt

from ...common.files import replacing
from ..folders import suffix_of
from ..nifti import read_header, repaired, write_like
from ..readers import LPS_TO_RAS, ImageFiles, find_images, reason_of, simpleitk
from .files import SUFFIXES, FloatArray, Spacing, metaimage_header, read_image

CENTIMETRES = 3
"""Code of the unit in which an ultrasound region of DICOM gives the size of its pixels, if it shows tissue."""
GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


@dataclass(frozen=True, eq=False)
class Space:
    """Where the pixels of a NIfTI or MetaImage file lie, for what is written in their space."""

    shape: tuple[int, ...]
    """(X, Y), and possibly axes of length 1."""
    affine: npt.NDArray[np.float64]
    """Pixel index to coordinates in mm (RAS+)."""
    header: nib.Nifti1Header | None
    """Of a NIfTI file."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One echocardiogram as its file has it."""

    id: str
    pixels: FloatArray
    """[Y, X] in [0, 1]."""
    spacing_mm: Spacing | None
    """(y, x) of a pixel; None where the file does not say."""
    prepared: bool
    """Whether it may have had its sector cut out and its histogram equalised before, as in RL4Seg's prepared layout:
    NIfTI or .mhd with values up to 1."""
    space: Space | None
    """None for kinds of files without geometry: what is predicted becomes a PNG."""

    def save(self, values: npt.NDArray[np.uint8] | FloatArray, folder: Path, name: str) -> Path:
        """Write labels uint8 or a map float32 in [0, 1], [Y, X], in the image's space; the path of the new file.

        folder/name.nii.gz; or folder/name.png, in which labels are grey values and 65,535 stands for a map's 1.
        """
        if self.space is not None:
            path = folder / f"{name}.nii.gz"
            write_like(
                np.ascontiguousarray(values.T).reshape(self.space.shape), self.space.affine, self.space.header, path
            )
            return path
        path = folder / f"{name}.png"
        grey = values if values.dtype == np.uint8 else np.rint(np.clip(values, 0, 1) * 65535).astype(np.uint16)
        with replacing(path) as unfinished:
            imageio.imwrite(unfinished, grey)
        return path


def find_planes(inputs: Sequence[str | Path]) -> list[ImageFiles]:
    """The echocardiograms that the inputs name; each frame of a DICOM sequence is one. See `readers.find_images`."""
    return find_images(inputs, SUFFIXES, _frames)


def read_plane(files: ImageFiles) -> Plane:
    """One echocardiogram; colours become grey.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a file that is damaged or no single plane, values outside 0..255 (0..65,535 of a 16-bit PNG), NaN or
            infinite or all equal, NIfTI or .mhd without spacing, DICOM of another modality than US.
    """
    if suffix_of(files.path, (".png",)):
        pixels, _ = read_image(files.path, 255.0, spacing_mm=(1.0, 1.0))
        return Plane(files.id, pixels, None, False, None)
    if suffix_of(files.path, SUFFIXES):
        pixels, spacing = read_image(files.path, 255.0)
        if prepared := float(pixels.max()) < 1.5 / 255:  # such values never come from a scanner
            pixels, spacing = read_image(files.path, 1.0)
        return Plane(files.id, pixels, spacing, prepared, _space(files.path))
    frames, spacing_mm = _sequence(files.path)
    stored = frames[files.frame or 0].astype(np.float32)
    grey = stored if stored.ndim == 2 else stored[..., :3] @ GREY
    if not (0 <= grey.min() < grey.max() <= 255.5):
        raise ValueError(f"{files.path} has values {grey.min():g}..{grey.max():g} but an image has some of 0..255")
    return Plane(files.id, np.clip(grey / np.float32(255), 0, 1), spacing_mm, False, None)


# -- geometry ------------------------------------------------------------------------------------------------------


def _space(path: Path) -> Space:
    if path.suffix.lower() != ".mhd":
        stored = repaired(read_header(path))
        return Space(stored.get_data_shape(), stored.get_best_affine(), stored)
    header = metaimage_header(path)
    shape = tuple(int(n) for n in header["DimSize"].split())
    n = len(shape)
    try:
        steps = [float(mm) for mm in header.get("ElementSpacing", header.get("ElementSize", "")).split()][:n]
        turn = next((header[key] for key in ("TransformMatrix", "Rotation", "Orientation") if key in header), None)
        place = next((header[key] for key in ("Offset", "Position", "Origin") if key in header), "0 " * n)
        axes = np.eye(n) if turn is None else np.reshape([float(number) for number in turn.split()], (n, n))
        affine = np.eye(4)
        affine[:n, :n] = axes.T * (steps + [1.0] * n)[:n]  # row i of TransformMatrix is the direction of axis i
        affine[:n, 3] = [float(number) for number in place.split()]
    except ValueError as error:
        raise ValueError(f"{path} has a geometry that cannot be read ({error}); convert it to .nii.gz") from error
    return Space(shape, LPS_TO_RAS @ affine, None)


# -- DICOM ---------------------------------------------------------------------------------------------------------


def _frames(folder: Path, files: list[Path]) -> list[ImageFiles]:
    """One image per DICOM file; per frame, where it has several."""
    images = []
    for path in files:
        name, frames = path.stem if path.suffix.lower() == ".dcm" else path.name, _number_of_frames(path)
        if frames == 1:
            images.append(ImageFiles(name, path))
        else:
            images += [ImageFiles(f"{name}_frame{k:03d}", path, frame=k) for k in range(frames)]
    return images


def _number_of_frames(path: Path) -> int:
    """1 too where the file cannot be read, which its reading will say."""
    reader = simpleitk(path).ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.SetImageIO("GDCMImageIO")
        reader.ReadImageInformation()
    except RuntimeError:
        return 1
    size = reader.GetSize()
    return int(size[2]) if len(size) > 2 else 1


@lru_cache(maxsize=1)  # of a sequence every frame is asked for, one after the other
def _sequence(path: Path) -> tuple[npt.NDArray[Any], Spacing | None]:
    """The frames [T, Y, X] or [T, Y, X, channels] of a DICOM file, and the size of their pixels, where it says it."""
    sitk = simpleitk(path)
    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO("GDCMImageIO")
        reader.ReadImageInformation()
        modality = reader.GetMetaData("0008|0060").strip() if reader.HasMetaDataKey("0008|0060") else "US"
        if modality != "US":
            raise ValueError(f"{path} is DICOM of modality {modality}, but an ultrasound image (US) is needed")
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read as DICOM ({reason_of(error)}); export it again") from error
    array = sitk.GetArrayFromImage(image)  # [T, Y, X] and channels
    if array.ndim == 2 + (image.GetNumberOfComponentsPerPixel() > 1):
        array = array[None]
    return array, _region_spacing(path)


def _region_spacing(path: Path) -> Spacing | None:
    """(y, x) of a pixel in mm: of the largest ultrasound region, which SimpleITK does not read, or PixelSpacing."""
    try:
        import pydicom
    except ImportError:
        return None
    tags = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    sizes = dict[float, Spacing]()
    for region in tags.get("SequenceOfUltrasoundRegions", []):
        sides = [abs(float(region.get(f"PhysicalDelta{axis}", 0))) * 10 for axis in "YX"]
        in_cm = region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == CENTIMETRES
        corners = [float(region.get(f"RegionLocation{name}", 0)) for name in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
        if in_cm and min(sides) > 0:
            sizes[(corners[2] - corners[0]) * (corners[3] - corners[1])] = (sides[0], sides[1])
    if sizes:
        return sizes[max(sizes)]
    given = [float(mm) for mm in tags.get("PixelSpacing", [])]
    return (given[0], given[1]) if len(given) == 2 and min(given) > 0 else None
