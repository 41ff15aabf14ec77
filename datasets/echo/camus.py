"""Where echocardiograms lie on disk (docs/rl4seg.md, Method 10): CAMUS v1, CAMUS v2, and the program's own layout.

    CAMUS v1    training/patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}{,_gt}.mhd and their .raw
    CAMUS v2    database_nifti/patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}{,_gt}.nii.gz
                database_split/subgroup_{training,validation,testing}.txt (may be absent)
    prepared    a CSV; img/<study>/<view>/<dicom_uuid>_<ED|ES>.nii.gz, the same below gt/ where there is a mask

Finding reads names and lists only, so that a bad file is met where its image is loaded. Nothing is ever written.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from ..selection import one_split_each
from .phantom import INSTANTS, VIEWS

SUBGROUPS = {"train": "subgroup_training.txt", "val": "subgroup_validation.txt", "test": "subgroup_testing.txt"}
SPLIT_COLUMN = "split_0"
COLUMNS = ("study", "view", "instant", SPLIT_COLUMN)


@dataclass(frozen=True)
class EchoFiles:
    """One image on disk."""

    id: str
    patient: str
    view: str
    instant: str
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
    """Images lie in [0, 1] and have had CLAHE (the program's layout), instead of 0..255 as a scanner gives them."""


def find_echo(data: Path) -> EchoFolder:
    """The images in a folder: CAMUS (itself, or the folder above training or database_nifti), or a prepared set.

    data: the folder, or one of the CSV files of a prepared set that has several.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: a CSV that cannot be used, or a patient in two splits.
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
    for root in (data / "database_nifti", data / "training", data):
        if folders := sorted(path for path in root.glob("patient*") if re.fullmatch(r"patient\d+", path.name)):
            files = [files for folder in folders if folder.is_dir() for files in _camus_patient(folder)]
            return EchoFolder(files, _subgroups(root.parent) or _subgroups(root), prepared=False)
    found = ", ".join(sorted(entry.name for entry in data.iterdir())[:8]) or "an empty folder"
    raise FileNotFoundError(
        f"no echocardiogram in {data}: expected patientXXXX folders in it, in database_nifti or in training (CAMUS), "
        f"or img/ and a CSV; found {found}"
    )


def _camus_patient(folder: Path) -> list[EchoFiles]:
    """The four images that every patient has, whether they are there or not."""
    name = folder.name
    suffixes = [suffix for suffix in (".nii.gz", ".nii", ".mhd") if any(folder.glob(f"{name}_*{suffix}"))]
    suffix = suffixes[0] if suffixes else ".nii.gz"
    return [
        EchoFiles(
            id=f"{name}_{view}_{instant}",
            patient=name,
            view=view,
            instant=instant,
            image=folder / f"{name}_{view}_{instant}{suffix}",
            label=folder / f"{name}_{view}_{instant}_gt{suffix}",
        )
        for view in VIEWS
        for instant in INSTANTS
    ]


def _subgroups(root: Path) -> dict[str, list[str]]:
    """Patients of the lists that CAMUS v2 comes with; none where they are absent."""
    lists = {split: root / "database_split" / name for split, name in SUBGROUPS.items()}
    splits = {split: path.read_text(encoding="utf-8").split() for split, path in lists.items() if path.is_file()}
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
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"line {line} of {table} names {place!r}, which must lie below img/ of its folder")
        name = Path(place).name
        if name in files:
            raise ValueError(f"line {line} of {table} names {name!r} a second time; ids must be unique")
        label = table.parent / "gt" / path
        files[name] = EchoFiles(
            id=name,
            patient=row["study"],
            view=view,
            instant=instant,
            image=table.parent / "img" / path,
            label=label if label.is_file() else None,
        )
        splits.setdefault(row[SPLIT_COLUMN], []).append(row["study"])
    if not files:
        raise FileNotFoundError(f"{table} lists no image")
    splits = {split: list(dict.fromkeys(patients)) for split, patients in splits.items()}
    one_split_each(splits, str(table))
    return EchoFolder(list(files.values()), splits, prepared=True)
