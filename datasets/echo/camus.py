"""Where echocardiograms lie on disk (docs/rl4seg.md, Method 10): CAMUS v1 and v2, the program's layout, your own.

    CAMUS v1    training/patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}{,_gt}.mhd and their .raw
    CAMUS v2    database_nifti/patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}{,_gt}.nii.gz
                database_split/subgroup_{training,validation,testing}.txt (may be absent)
    prepared    a CSV; img/<study>/<view>/<dicom_uuid>_<ED|ES>.nii.gz, the same below gt/ where there is a mask
    your own    images/NAME.{png,nii.gz,nii,mhd}, and labels/NAME.* where there is a mask

A patient of CAMUS may lack views, instants and masks. Finding reads names and lists only, so that a bad file is met
where its image is loaded. Nothing is ever written.
"""

import csv
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..folders import below, find_pairs, log_once
from ..selection import one_split_each, patient_of
from .files import SUFFIXES
from .phantom import INSTANTS, VIEWS

SUBGROUPS = {"train": "subgroup_training.txt", "val": "subgroup_validation.txt", "test": "subgroup_testing.txt"}
SPLIT_COLUMN = "split_0"
COLUMNS = ("study", "view", "instant", SPLIT_COLUMN)
UNKNOWN = "unknown"
"""View and instant of an image whose name does not say them."""


@dataclass(frozen=True)
class EchoFiles:
    """One image on disk."""

    id: str
    patient: str
    view: str
    """2CH, 4CH, or unknown."""
    instant: str
    """ED, ES, or unknown."""
    image: Path
    label: Path | None
    """None where no truth is known."""


@dataclass(frozen=True)
class EchoFolder:
    """A data set on disk."""

    files: list[EchoFiles]
    splits: dict[str, list[str]]
    """Patients of each split that the data set itself defines; some may not be in the folder."""
    prepared: bool
    """Images have had CLAHE, and masks have no atrium (the program's layout), instead of being as a scanner gives
    them."""
    white: float | None
    """Stored value that is white; None: 1 where no value of an image is above 1, else 255."""


def find_echo(data: Path, patient_pattern: str | None = None) -> EchoFolder:
    """The images in a folder: CAMUS (itself, or the folder above training or database_nifti), a prepared set, or images
    of one's own in images/ (and labels/).

    Args:
        data: the folder, or one of the CSV files of a prepared set that has several.
        patient_pattern: finds the patient in the name of an image of one's own; None: each image is a patient.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: a CSV or a list that cannot be used, a patient in two splits, two images of one name, a mask without
            image, or a name in which the pattern finds nothing.
    """
    if data.suffix == ".csv" and data.is_file():
        return _prepared(data)
    if not data.is_dir():
        raise FileNotFoundError(f"data folder {data} does not exist or is no folder")
    if (data / "img").is_dir():
        tables = sorted(data.glob("*.csv"))
        if len(tables) != 1:
            found = ", ".join(table.name for table in tables) or "none"
            raise FileNotFoundError(f"{data} has img/ and so needs one CSV, but has {found}; name one: {data}/NAME.csv")
        return _prepared(tables[0])
    if (data / "images").is_dir():
        return _own(data, patient_pattern)
    for root in (data / "database_nifti", data / "training", data):
        if folders := sorted(path for path in root.glob("patient*") if re.fullmatch(r"patient\d+", path.name)):
            files = [files for folder in folders if folder.is_dir() for files in _camus_patient(folder)]
            if not files:
                raise FileNotFoundError(f"no image in the patient folders of {root}, such as {folders[0].name}")
            return EchoFolder(files, _subgroups(root.parent) or _subgroups(root), prepared=False, white=255.0)
    found = ", ".join(sorted(entry.name for entry in data.iterdir())[:8]) or "an empty folder"
    raise FileNotFoundError(
        f"no echocardiogram in {data}: expected patientXXXX folders in it, in database_nifti or in training (CAMUS), "
        f"images/ (and labels/) of your own, or img/ and a CSV; found {found}"
    )


def _camus_patient(folder: Path) -> list[EchoFiles]:
    """The images of a patient: of which there is a file, or only a mask, so that the loss is met where it is loaded."""
    patient, there = folder.name, {path.name for path in folder.iterdir()}
    found = []
    for view in VIEWS:
        for instant in INSTANTS:
            name = f"{patient}_{view}_{instant}"
            image, label = _first(name, there), _first(f"{name}_gt", there)
            if image is None and label is None:
                continue
            image = image or f"{name}{label.removeprefix(f'{name}_gt') if label else ''}"
            place = folder / label if label else None
            found.append(EchoFiles(name, patient, view, instant, folder / image, place))
    if not found:
        log_once(f"{folder} has no image {patient}_<2CH|4CH>_<ED|ES> and is left out")
    return found


def _first(name: str, there: Collection[str]) -> str | None:
    """The file called `name` with the first of the suffixes that is there."""
    return next((file for suffix in SUFFIXES if (file := f"{name}{suffix}") in there), None)


def _own(data: Path, patient_pattern: str | None) -> EchoFolder:
    """Images of one's own."""
    files = [
        EchoFiles(
            id=name,
            patient=patient_of(name, patient_pattern),
            view=_named(VIEWS, name),
            instant=_named(INSTANTS, name),
            image=image,
            label=label,
        )
        for name, image, label in find_pairs(data, SUFFIXES)
    ]
    return EchoFolder(files, {}, prepared=False, white=None)


def _named(words: Collection[str], name: str) -> str:
    """The one of the words that stands in the name, set off from letters and digits."""
    parts = re.split("[^0-9A-Z]+", name.upper())
    found = [word for word in words if word in parts]
    return found[0] if len(found) == 1 else UNKNOWN


def _subgroups(root: Path) -> dict[str, list[str]]:
    """Patients of the lists that CAMUS v2 comes with; none where they are absent."""
    splits = {}
    for split, name in SUBGROUPS.items():
        path = root / "database_split" / name
        if path.is_file():
            try:
                splits[split] = path.read_text(encoding="utf-8").split()
            except ValueError as error:
                raise ValueError(f"{path} is no list of patients in UTF-8 ({error}); fetch it again") from error
    one_split_each(splits, f"the lists in {root / 'database_split'}")
    return splits


def _prepared(table: Path) -> EchoFolder:
    """Images that a CSV lists, one per row."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{table} cannot be read as CSV ({error}); save it as UTF-8 text with commas") from error
    missing = [name for name in COLUMNS if name not in columns]
    if "id" not in columns and "dicom_uuid" not in columns:
        missing.append("dicom_uuid (or id)")
    if missing:
        raise ValueError(f"{table} lacks the columns {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
    files: dict[str, EchoFiles] = {}
    splits: dict[str, list[str]] = {}
    for line, row in enumerate(rows, start=2):
        view, instant = (row["view"] or "").upper(), (row["instant"] or "").upper()
        uuid, known = row.get("dicom_uuid"), view in VIEWS and instant in INSTANTS
        if not (row["study"] and row[SPLIT_COLUMN] and known and (row.get("id") or uuid)):
            raise ValueError(
                f"line {line} of {table} has study {row['study']!r}, view {row['view']!r}, instant {row['instant']!r}, "
                f"{SPLIT_COLUMN} {row[SPLIT_COLUMN]!r}, dicom_uuid {uuid!r}; needed are a study, a split, "
                f"{' or '.join(VIEWS)}, {' or '.join(INSTANTS)}, and an id or a dicom_uuid"
            )
        place = row.get("id") or f"{row['study']}/{view.lower()}/{uuid}_{instant}"
        path = Path(f"{place}.nii.gz")
        image, label = (below(table.parent / part, str(path), f"line {line} of {table}") for part in ("img", "gt"))
        name = Path(place).name
        if name in files:
            raise ValueError(f"line {line} of {table} names {name!r} a second time; ids must be unique")
        files[name] = EchoFiles(
            id=name,
            patient=row["study"],
            view=view,
            instant=instant,
            image=image,
            label=label if label.is_file() else None,
        )
        splits.setdefault(row[SPLIT_COLUMN], []).append(row["study"])
    if not files:
        raise FileNotFoundError(f"{table} lists no image")
    splits = {split: list(dict.fromkeys(patients)) for split, patients in splits.items()}
    one_split_each(splits, str(table))
    return EchoFolder(list(files.values()), splits, prepared=True, white=1.0)
