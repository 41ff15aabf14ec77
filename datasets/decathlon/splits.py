"""Which cases of a task are in which split: CSV files of the published form, or folds (docs/seat.md, Method 4)."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.reading import quoted, read_text
from ..folders import below, log_once
from ..msd import CaseFiles
from ..selection import one_split_each, patient_of, split_by_ratio

if TYPE_CHECKING:
    from .cases import DecathlonConfig


def divided(config: "DecathlonConfig", labelled: Sequence[str], test: Sequence[str]) -> dict[str, list[str]]:
    """Ids in each split of a fold, of cases that no list divides.

    The patients of labelled cases are divided into `folds` parts by a hash of seed and name; the fold's part is `val`,
    the others are `train`. `select` and `report` divide the patients of `val`.

    Raises:
        ValueError: fewer patients than folds, or too few to divide the validation side.
    """
    patients = {one: patient_of(one, config.patient_pattern) for one in labelled}
    names = [f"part {number}" for number in range(config.folds)]
    try:
        parts = split_by_ratio(patients.values(), dict.fromkeys(names, 1.0), config.split_seed)
    except ValueError as error:
        raise ValueError(
            f"{config.data!r} has {len(set(patients.values()))} patients with labels, so that of {config.folds} folds "
            "some would be empty; set folds lower, or give data more cases"
        ) from error
    held = set(parts[names[config.fold]])
    splits = {
        "train": [one for one in labelled if patients[one] not in held],
        "val": [one for one in labelled if patients[one] in held],
    }
    log_once(
        f"{config.data}: {len(labelled)} labelled cases were divided into {config.folds} folds (split_seed "
        f"{config.split_seed}): fold {config.fold} has {len(splits['val'])} for validation"
    )
    return _with_parts_of_val(config, splits, patients) | {"test": list(test)}


def listed(config: "DecathlonConfig", root: Path, cases: Mapping[Path, CaseFiles]) -> dict[str, list[str]]:
    """Ids in each split as the CSV files of `config.splits` have them: train_foldK, val_foldK, test_paths.

    Args:
        config: splits and fold.
        root: folder of the task, which the paths of the files are below of.
        cases: those of dataset.json, by their image.

    Raises:
        FileNotFoundError: no such CSV file (that of test cases may be missing), or a file that one names.
        ValueError: a table without the columns, a row of another case than dataset.json has, or of a case without
            label; a patient in two splits, or an empty split.
    """
    folder = Path(config.splits or "")
    splits = dict[str, list[str]]()
    names = {"train": f"train_fold{config.fold}", "val": f"val_fold{config.fold}", "test": "test_paths"}
    for split, name in names.items():
        path = folder / f"{name}.csv"
        if split == "test" and not path.is_file():
            splits[split] = []
            continue
        splits[split] = _rows(path, root, cases, labelled=split != "test")
        if split != "test" and not splits[split]:
            raise ValueError(f"{path} lists no case, so that fold {config.fold} has no {split} side; fill it")
    patients = {one: patient_of(one, config.patient_pattern) for ids in splits.values() for one in ids}
    one_split_each({split: sorted({patients[one] for one in ids}) for split, ids in splits.items()}, str(folder))
    return _with_parts_of_val(config, splits, patients)


def _rows(path: Path, root: Path, cases: Mapping[Path, CaseFiles], *, labelled: bool) -> list[str]:
    """Ids of the cases that the lines of a CSV file name."""
    needed = ["image", "label"] if labelled else ["image"]
    reader = csv.DictReader(read_text(path).splitlines())
    try:
        columns, rows = list(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file ({error}); its first line must be image,label") from error
    if missing := [column for column in needed if column not in columns]:
        raise ValueError(
            f"{path} has the columns {quoted(columns)} but lacks {', '.join(missing)}; its first line must be "
            "image,label"
        )
    ids = []
    for number, row in enumerate(rows, start=2):
        where = f"{path}, line {number},"
        if empty := [column for column in needed if not row[column]]:
            raise ValueError(f"{where} has no {empty[0]}; fill it, or take the row away")
        files = [below(root, row[column], where) for column in needed]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{where} names {file}, which does not exist; add it, or take the row away")
        if (case := cases.get(files[0])) is None:
            raise ValueError(f"{where} names {files[0]}, which is no case of {root / 'dataset.json'}; add it there")
        if labelled and case.label != files[-1]:
            raise ValueError(
                f"{where} names the label {files[-1]}, but {root / 'dataset.json'} has {case.label} for it"
            )
        ids.append(case.id)
    return ids


def _with_parts_of_val(
    config: "DecathlonConfig", splits: dict[str, list[str]], patients: Mapping[str, str]
) -> dict[str, list[str]]:
    """The splits with `select` and `report`, which divide the patients of `val`: none chooses and reports."""
    ratios = {"select": config.select_share, "report": 1 - config.select_share}
    try:
        parts = split_by_ratio((patients[one] for one in splits["val"]), ratios, config.split_seed)
    except ValueError as error:
        raise ValueError(
            f"fold {config.fold} of {config.data!r} has {len(splits['val'])} validation case(s), but one patient is "
            "needed to choose by and another to report; set folds lower, or give data more cases"
        ) from error
    return splits | {name: [one for one in splits["val"] if patients[one] in set(held)] for name, held in parts.items()}
