"""Cases on disk: the Medical Segmentation Decathlon (dataset.json), images/ and labels/, LiTS (volume-N.nii)."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..common.reading import read_json
from .folders import below, find_pairs
from .nifti import NIFTI, read_channels, read_label
from .sample import Sample


@dataclass(frozen=True)
class CaseFiles:
    """One case on disk."""

    id: str
    image: Path
    label: Path | None
    """None where no truth is known (the Decathlon's test cases)."""


def find_cases(folder: Path, task: str = "Task03_Liver") -> list[CaseFiles]:
    """The cases in a folder, in the order of their numbers.

    folder: a Decathlon task (it holds dataset.json), the folder above it (it holds `task`), one with images/ and
    labels/ (NIfTI files, a label has the name of its image; labels may be missing), or a LiTS folder (volume-N.nii[.gz]
    and segmentation-N.nii[.gz] in it or one level below, whose cases are called liver_N as in the Decathlon). Names
    that start with a dot, which macOS leaves in archives, are skipped.

    Raises:
        FileNotFoundError: no such folder, no case in it, or a file that dataset.json names is missing.
        ValueError: a dataset.json that cannot be understood or leads out of its folder, a case that occurs twice, or a
            label without image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist or is no folder")
    for root in (folder, folder / task):
        if (root / "dataset.json").is_file():
            cases = _from_dataset_json(root / "dataset.json")
            break
    else:
        plain = (folder / "images").is_dir()
        cases = [CaseFiles(*pair) for pair in find_pairs(folder, NIFTI)] if plain else _from_lits_names(folder)
    if not cases:
        found = sorted(entry.name for entry in folder.iterdir())
        shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
        raise FileNotFoundError(
            f"no case in {folder}: expected dataset.json with cases (or {task}/dataset.json), images/ (and labels/) "
            f"with NIfTI files, or LiTS files volume-N.nii[.gz]; found {shown or 'an empty folder'}"
        )
    return sorted(cases, key=lambda case: [int(part) if part.isdigit() else part for part in _digits(case.id)])


def read_sample(files: CaseFiles, classes: int, channels: int = 1) -> Sample:
    """The case in RAS+ order: image float32 [C, X, Y, Z], label uint8 [X, Y, Z] with values 0..classes-1 or None.

    channels: C; more than one are the fourth axis of the file.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a file that `nifti` refuses, or a label whose shape or affine is not the image's.
    """
    image, frame = read_channels(files.image, channels)
    label = None
    if files.label is not None:
        label, label_frame = read_label(files.label, classes)
        if label_frame.shape != frame.shape:
            raise ValueError(f"{files.label} has shape {label_frame.shape} but {files.image} has {frame.shape}")
        if not np.allclose(label_frame.affine, frame.affine, atol=1e-3):
            raise ValueError(
                f"{files.label} has the affine {label_frame.affine.tolist()} but {files.image} has "
                f"{frame.affine.tolist()}: they do not lie on each other; resample the label to the image"
            )
    return Sample(
        id=files.id,
        image=torch.from_numpy(image),
        label=None if label is None else torch.from_numpy(np.ascontiguousarray(label)),
        spacing_mm=frame.ras_spacing_mm,
        affine=frame.ras_affine,
    )


def _from_dataset_json(path: Path) -> list[CaseFiles]:
    try:
        content = read_json(path)
        pairs = [(str(entry["image"]), str(entry["label"])) for entry in content["training"]]
        pairs += [(str(image), "") for image in content.get("test", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is no Decathlon description ({error!r}): expected "training": [{{"image": ..., "label": ...}}]'
        ) from error
    cases: dict[str, CaseFiles] = {}
    for image, label in pairs:
        files = [below(path.parent, name, str(path)) for name in ([image, label] if label else [image])]
        if files[0].name.startswith("."):
            continue
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{path} names {file}, which does not exist; unpack the archive again")
        case = CaseFiles(re.sub(r"\.nii(\.gz)?$", "", files[0].name), files[0], files[1] if label else None)
        if case.id in cases:
            raise ValueError(f"{path} names two cases {case.id!r}, {cases[case.id].image} and {case.image}; keep one")
        cases[case.id] = case
    return list(cases.values())


def _from_lits_names(folder: Path) -> list[CaseFiles]:
    volumes, labels = _by_number(folder, "volume"), _by_number(folder, "segmentation")
    return [CaseFiles(f"liver_{number}", path, labels.get(number)) for number, path in volumes.items()]


def _by_number(folder: Path, prefix: str) -> dict[int, Path]:
    """LiTS files `prefix`-N.nii[.gz] in `folder` or one level below, by N."""
    files: dict[int, Path] = {}
    for path in sorted([*folder.glob(f"{prefix}-*.nii*"), *folder.glob(f"*/{prefix}-*.nii*")]):
        match = re.fullmatch(rf"{prefix}-(\d+)\.nii(\.gz)?", path.name)
        if match is None:
            continue
        if (number := int(match[1])) in files:
            raise ValueError(f"{files[number]} and {path} are both called {prefix} {number}; remove one")
        files[number] = path
    return files


def _digits(name: str) -> list[str]:
    """`name` cut into text and digits by turns, text first."""
    return re.split(r"(\d+)", name)
