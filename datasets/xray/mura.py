"""MURA v1.1 on disk, and its splits (docs/apga.md, Method 2 and 5).

MURA-v1.1/train_image_paths.csv        a path in each line, no header: MURA-v1.1/train/XR_ELBOW/patient00001/...
MURA-v1.1/train_labeled_studies.csv    the folder of a study and 0 or 1, no header
MURA-v1.1/valid_image_paths.csv, valid_labeled_studies.csv
MURA-v1.1/{train,valid}/XR_<PART>/patientXXXXX/studyN_{negative,positive}/imageK.png
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from ...common.reading import quoted, read_text
from ..folders import below
from ..selection import one_split_each
from .files import XrayFile
from .parts import PARTS

Protocol = Literal["clean", "paper"]
OFFICIAL = ("train", "valid")
"""Its own splits."""
VAL_SHARE = 10
"""Of so many patients of the official train split one is in val."""
_PART_OF = {folder: part for part, folder in PARTS.items()}
_STUDY = re.compile(r"(?:[^/]+/)?(train|valid)/(XR_[A-Z]+)/(patient\d+)/(study\d+_(negative|positive))")
"""Split, folder of the part, patient, study and class of a study's folder."""


def find_mura(data: Path) -> list[XrayFile]:
    """All radiographs of the lists, in their order; files are not opened, nor looked for.

    data: MURA-v1.1, or the folder that it lies in.

    Raises:
        FileNotFoundError: no such folder, or a list is missing.
        ValueError: a line that is not as the layout has it, a class of a folder that is not the one in the list of
            studies, a study without images, an image of an unknown study, a line twice, or a patient in both splits.
    """
    root = next((one for one in (data, data / "MURA-v1.1") if (one / "train_image_paths.csv").is_file()), None)
    if root is None:
        kind = "has no" if data.is_dir() else "does not exist, or is no folder with"
        raise FileNotFoundError(f"{data} {kind} train_image_paths.csv of MURA v1.1, nor MURA-v1.1 with it; name either")
    files = [one for split in OFFICIAL for one in _listed(root, split)]
    splits = {split: sorted({one.patient for one in files if one.split == split}) for split in OFFICIAL}
    one_split_each(splits, f"the lists of {root}")
    return files


def mura_splits(files: Sequence[XrayFile], protocol: Protocol, seed: int) -> dict[str, list[str]]:
    """Patients of train, val and test.

    clean: one in ten patients of the official train split is in val, and the official valid split is test. Patients
    with and without an abnormal study are divided apart, and each in the order of their parts and classes, so that all
    have about their share; there is at least one of each in val, and one in train. paper: the official valid split is
    both val and test.
    """
    patients = {split: list(dict.fromkeys(one.patient for one in files if one.split == split)) for split in OFFICIAL}
    if protocol == "paper":
        return {"train": patients["train"], "val": patients["valid"], "test": patients["valid"]}
    kinds = dict[str, set[tuple[int, str]]]()
    for one in files:
        if one.split == "train":
            kinds.setdefault(one.patient, set()).add((one.label, one.part))
    val = set[str]()
    for abnormal in (False, True):
        some = [patient for patient, kind in kinds.items() if any(label for label, _ in kind) == abnormal]
        some.sort(key=lambda patient: (sorted(kinds[patient]), _drawn(seed, patient)))
        if len(some) > 1:
            step = min(VAL_SHARE, len(some))
            val |= set(some[int.from_bytes(_drawn(seed, f"first {abnormal}")[:8], "big") % step :: step])
    return {
        "train": [one for one in patients["train"] if one not in val],
        "val": [one for one in patients["train"] if one in val],
        "test": patients["valid"],
    }


def _drawn(seed: int, name: str) -> bytes:
    """The same on every machine."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def _listed(root: Path, split: str) -> list[XrayFile]:
    """The radiographs of one of the official splits."""
    studies = _studies(root / f"{split}_labeled_studies.csv", split)
    table, found, seen = root / f"{split}_image_paths.csv", list[XrayFile](), dict[str, int]()
    filled = set[str]()
    for number, line in _lines(table):
        where = f"line {number} of {table}"
        folder, _, name = line.rpartition("/")
        match = _STUDY.fullmatch(folder)
        if match is None or not name or match[1] != split or match[2] not in _PART_OF:
            raise ValueError(
                f"{where} is {quoted(line)} but must be a path such as MURA-v1.1/{split}/XR_ELBOW/patient00001/"
                "study1_negative/image1.png; the lists of MURA have no header"
            )
        if name.startswith("."):
            continue
        key = f"{match[2]}/{match[3]}/{match[4]}"
        if key not in studies:
            raise ValueError(f"{where} is of a study that {split}_labeled_studies.csv does not list; add it there")
        path, part = below(root, f"{split}/{key}/{name}", where), _PART_OF[match[2]]
        study = f"{part}_{match[3]}_{match[4]}"
        own = f"{study}_{path.stem}"
        if (first := seen.setdefault(own, number)) != number:
            raise ValueError(f"{where} is {quoted(line)}, but line {first} is so, or of that name; take one away")
        found.append(XrayFile(own, studies[key][0], study, match[3], part, split, path, where))
        filled.add(key)
    if lost := studies.keys() - filled:
        key = min(lost, key=lambda key: studies[key][1])
        raise ValueError(
            f"line {studies[key][1]} of {root / f'{split}_labeled_studies.csv'} names the study {key!r}, of which "
            f"{table.name} has no image ({len(lost)} such); take it away, or add its images"
        )
    return found


def _studies(table: Path, split: str) -> dict[str, tuple[int, int]]:
    """Class and line of each study, by the part of its path below the split's folder."""
    found = dict[str, tuple[int, int]]()
    for number, line in _lines(table):
        where = f"line {number} of {table}"
        folder, _, label = line.rpartition(",")
        match = _STUDY.fullmatch(folder.strip().rstrip("/"))
        if match is None or label.strip() not in ("0", "1") or match[1] != split or match[2] not in _PART_OF:
            raise ValueError(
                f"{where} is {quoted(line)} but must be a study and its class, such as "
                f"MURA-v1.1/{split}/XR_ELBOW/patient00001/study1_negative/,0; the lists of MURA have no header"
            )
        key, stated = f"{match[2]}/{match[3]}/{match[4]}", int(label)
        if (match[5] == "positive") != bool(stated):
            raise ValueError(f"{where} gives the class {stated} to a study whose folder is {match[4]!r}; correct one")
        if key in found:
            raise ValueError(f"{where} names the study {key!r}, as line {found[key][1]} does; take one of them away")
        found[key] = (stated, number)
    return found


def _lines(table: Path) -> Iterable[tuple[int, str]]:
    """The lines of a list that are not empty, with their numbers from 1."""
    lines = [(n, line.strip()) for n, line in enumerate(read_text(table).splitlines(), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{table} names nothing; unpack MURA v1.1 again")
    return lines
