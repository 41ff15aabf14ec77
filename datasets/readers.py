"""Images that a user names: which files they are, and CT volumes read from them, whatever their kind.

NIfTI is read by nibabel. DICOM, NRRD and MetaImage are read by SimpleITK, which comes with the extra `io`; ITK counts
millimetres to the patient's left and back (LPS+), NIfTI and all of ours to the right and front (RAS+).
"""

import glob
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .folders import suffix_of
from .nifti import MOST_VOXELS, NIFTI, Frame, read_nifti
from .sample import Sample

VOLUMES = (*NIFTI, ".nrrd", ".nhdr", ".mha", ".mhd")
"""Suffixes of the volumes that `read_volume` knows, beside DICOM, which may have any."""
NO_IMAGE = ("_gt", "_mask", "_score", "_doubt", "_overlay", "_slices")
"""Ends of the names that files in a folder have if they are labels or predictions, not images."""
UNEVEN_MM = 0.1
"""Largest distance in mm between where a DICOM slice lies and where it would lie if all were evenly stacked."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class ImageFiles:
    """One image that was found."""

    id: str
    """Made of its file's or folder's name; no two images of a search have the same."""
    path: Path
    """Its file; of a DICOM series the folder."""
    slices: tuple[Path, ...] = ()
    """The files of a DICOM series, in the order of their positions."""
    frame: int | None = None
    """Number of the frame, from 0, of an image in a sequence of several."""
    label: Path | None = None
    """File of its labels, where somebody who uses them has named one."""


Finder = Callable[[Path, list[Path]], list[ImageFiles]]
"""The images in some DICOM files of one folder: (folder, files) -> images."""


# -- which files ---------------------------------------------------------------------------------------------------


def find_images(inputs: Sequence[str | Path], suffixes: Sequence[str], dicom: Finder) -> list[ImageFiles]:
    """The images that the inputs name, each once: those of one input sorted by name, inputs in their order.

    Args:
        inputs: files, folders (their images are taken, but not those of folders inside, nor labels and predictions:
            `NO_IMAGE`), or patterns such as "ct/*/*.nii.gz".
        suffixes: of the files that are images, in lower case. Whatever holds DICOM counts too.
        dicom: makes images of DICOM files.

    Raises:
        FileNotFoundError: a file or folder that is not there, a pattern that fits nothing, a folder without images.
        ValueError: a file that is no image, or two images of one name in one folder.
    """
    found: dict[tuple[Path, tuple[Path, ...], int | None], ImageFiles] = {}
    for text in inputs:
        single: dict[Path, list[Path]] = {}
        images: list[ImageFiles] = []
        for path in named(text):
            if path.is_dir():
                images += _in_folder(path, suffixes, dicom)
            elif suffix := suffix_of(path, suffixes):
                images.append(ImageFiles(path.name[: -len(suffix)], path))
            elif is_dicom(path):
                single.setdefault(path.parent, []).append(path)
            else:
                raise ValueError(
                    f"{path} is no image that is known here; known are {', '.join(suffixes)} and DICOM (by content)"
                )
        for folder, files in single.items():
            images += dicom(folder, files)
        found |= {(image.path.resolve(), image.slices, image.frame): image for image in images}
    return _apart(list(found.values()))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its first bytes, or by its suffix .dcm."""
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM" or path.suffix.lower() == ".dcm"
    except OSError:
        return False


def named(text: str | Path) -> list[Path]:
    """The files and folders that a name or a pattern stands for.

    Raises:
        FileNotFoundError: there are none.
    """
    path = Path(text).expanduser()
    if path.exists():
        return [path]
    if not re.search(r"[*?\[]", str(text)):
        raise FileNotFoundError(f"{text} does not exist; name a file, a folder, or a pattern in quotes ('ct/*.nii.gz')")
    fitting = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not fitting:
        raise FileNotFoundError(f"nothing fits the pattern {str(text)!r}")
    return fitting


def _in_folder(folder: Path, suffixes: Sequence[str], dicom: Finder) -> list[ImageFiles]:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images, slices = list[ImageFiles](), list[Path]()
    for path in (entry for entry in entries if entry.is_file()):
        if suffix := suffix_of(path, suffixes):
            name = path.name[: -len(suffix)]
            if not name.endswith(NO_IMAGE):
                images.append(ImageFiles(name, path))
        elif is_dicom(path):
            slices.append(path)
    if slices:
        images += dicom(folder, slices)
    if not images:
        folders = [entry.name for entry in entries if entry.is_dir()]
        hint = f"; it has folders, {', '.join(folders[:5])}: name one, or '{folder}/*'" if folders else ""
        raise FileNotFoundError(f"no image in {folder}: expected {', '.join(suffixes)} or DICOM files{hint}")
    return images


def _apart(images: list[ImageFiles]) -> list[ImageFiles]:
    """The images with ids that differ: where two are called alike, the name of the folder above comes before."""
    times = Counter(image.id for image in images)
    apart = [
        replace(image, id=f"{_above(image).name}_{image.id}") if times[image.id] > 1 else image for image in images
    ]
    seen: dict[str, Path] = {}
    for image in apart:
        if image.id in seen:
            raise ValueError(f"{seen[image.id]} and {image.path} would both be called {image.id}; predict them apart")
        seen[image.id] = image.path
    return apart


def _above(image: ImageFiles) -> Path:
    return image.path.resolve().parent


# -- SimpleITK -----------------------------------------------------------------------------------------------------


def simpleitk(path: Path) -> Any:
    """SimpleITK, for reading `path`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise ValueError(
            f"{path} can only be read with SimpleITK: pip install 'segarena[io]', or convert it to .nii.gz"
        ) from error
    sitk: Any = SimpleITK
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what matters of its warnings is checked and said here
    return sitk


def itk_array(image: Any) -> npt.NDArray[Any]:
    """The pixels of an image of SimpleITK with x first, as NIfTI has them."""
    import SimpleITK

    array: npt.NDArray[Any] = SimpleITK.GetArrayFromImage(image).T
    return array


def itk_affine(image: Any) -> npt.NDArray[np.float64]:
    """Voxel index to patient coordinates in mm (RAS+) of a 3-D image of SimpleITK."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    ras: npt.NDArray[np.float64] = LPS_TO_RAS @ affine
    return ras


def reason_of(error: Exception) -> str:
    """What ITK says of a failure, without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [
        line.removeprefix("ITK ERROR: ") for line in lines if not re.match(r"(Exception thrown|/|sitk::ERROR)", line)
    ]
    return (said or lines or [type(error).__name__])[-1]


# -- volumes -------------------------------------------------------------------------------------------------------


def find_series(folder: Path, files: list[Path]) -> list[ImageFiles]:
    """The DICOM series among some files of a folder, each in the order of its slices.

    One series is called as its folder; of several each adds its number.
    """
    sitk = simpleitk(folder)
    given, series = {file.resolve() for file in files}, list[tuple[Path, ...]]()
    for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        slices = tuple(Path(name) for name in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
        series.append(tuple(path for path in slices if path.resolve() in given))
    series = [slices for slices in series if slices]
    if not series:
        raise ValueError(f"no DICOM series in {folder}: its files hold no image; copy the series again")
    name = folder.resolve().name
    if len(series) == 1:
        return [ImageFiles(name, folder, series[0])]
    numbers = [_tags(sitk, slices[0]).get("0020|0011", "") for slices in series]
    if len(set(numbers)) < len(numbers) or not all(numbers):
        numbers = [str(number) for number in range(1, len(series) + 1)]
    return [ImageFiles(f"{name}_series{n}", folder, slices) for n, slices in zip(numbers, series, strict=True)]


def _tags(sitk: Any, path: Path) -> dict[str, str]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("GDCMImageIO")
    reader.ReadImageInformation()
    return {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}


def read_volume(files: ImageFiles) -> tuple[Sample, Frame]:
    """A CT in RAS+ order, float32 [1, X, Y, Z] in HU, and the frame of its file, in whose space predictions lie.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a file that is damaged or no single volume of one number per voxel, voxels that are NaN or infinite
            or all equal, DICOM of another modality than CT, slices that are missing or not stacked at right angles.
    """
    if suffix_of(files.path, NIFTI):
        volume, frame = read_nifti(files.path)
    else:
        volume, frame = _by_itk(files)
    image = torch.from_numpy(np.ascontiguousarray(volume))[None]
    return Sample(files.id, image, None, frame.ras_spacing_mm, frame.ras_affine), frame


def _by_itk(files: ImageFiles) -> tuple[npt.NDArray[np.float32], Frame]:
    sitk, where = simpleitk(files.path), f"DICOM series {files.id} in {files.path}" if files.slices else files.path
    if not files.slices and not files.path.is_file():
        raise FileNotFoundError(f"{files.path} does not exist or is no file")
    try:
        image = _series(sitk, files) if files.slices else _file(sitk, files.path)
    except RuntimeError as error:
        raise ValueError(f"{where} cannot be read ({reason_of(error)}); fetch or convert it again") from error
    if (channels := image.GetNumberOfComponentsPerPixel()) != 1:
        raise ValueError(f"{where} has {channels} numbers per voxel (a colour image?) but a CT has one, its HU")
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or min(image.GetSize()) < 2:
        raise ValueError(
            f"{where} has the size {image.GetSize()} but a 3-D volume is needed; of a DICOM series name the folder"
        )
    stored = itk_array(image).astype(np.float32)
    if bad := stored.size - np.count_nonzero(np.isfinite(stored)):
        raise ValueError(f"{where} has {bad} voxels that are NaN or infinite; clean it first")
    if stored.min() == stored.max():
        raise ValueError(f"{where} holds the value {stored.flat[0]:g} in every voxel: it is no image; leave it out")
    frame = Frame(stored.shape, itk_affine(image))
    return frame.to_ras(stored), frame


def _file(sitk: Any, path: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if math.prod(reader.GetSize()) > MOST_VOXELS:
        raise ValueError(f"{path} has the size {reader.GetSize()}, more than {MOST_VOXELS:,} voxels; crop it first")
    return reader.Execute()


def _series(sitk: Any, files: ImageFiles) -> Any:
    tags = _tags(sitk, files.slices[0])
    if (modality := tags.get("0008|0060", "CT")) != "CT":
        raise ValueError(f"DICOM series {files.id} in {files.path} is of modality {modality}, but a CT is needed")
    if len(files.slices) == 1:
        return sitk.ReadImage(str(files.slices[0]), imageIO="GDCMImageIO")
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(path) for path in files.slices])
    image = reader.Execute()
    places = [_tags(sitk, path).get("0020|0032", "") for path in files.slices]
    if all(places):
        positions = np.array([[float(number) for number in place.split("\\")] for place in places])
        steps = [image.TransformIndexToPhysicalPoint((0, 0, k)) for k in range(len(positions))]
        if (off := float(np.abs(positions - steps).max())) > UNEVEN_MM:
            raise ValueError(
                f"the slices of DICOM series {files.id} in {files.path} lie up to {off:.2g} mm beside an even stack at "
                f"right angles: slices are missing, of two series, or the gantry was tilted; resample the series first"
            )
    return image
