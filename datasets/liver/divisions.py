"""Which CT of a folder belongs to which split (docs/spars.md, Method 11)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from ..folders import log_once
from ..msd import CaseFiles
from ..selection import SelectionError, patient_of, split_by_ratio

if TYPE_CHECKING:
    from .cases import LiverDataConfig

SPLIT_RATIOS = {"classifier_train": 0.3, "classifier_val": 0.1, "rl_pool": 0.4, "test": 0.2}
"""Share of the patients in each split, where no list says who is in which."""


def splits_of(config: LiverDataConfig, files: Sequence[CaseFiles], hint: str) -> dict[str, list[str]]:
    """CTs of a folder in each split: of the Decathlon's list where it knows the cases, else by ratio.

    Raises:
        SelectionError: the patients are too few; `hint` says what else can be done.
    """
    labelled = [case.id for case in files if case.label is not None]
    ids = labelled or [case.id for case in files]
    listed: dict[str, list[str]]
    listed = json.loads((resources.files(__package__) / "splits" / "spars_v1.json").read_text(encoding="utf-8"))
    known = {case for cases in listed.values() for case in cases}
    if config.split_ratios is None and known.issuperset(ids):
        return listed
    if config.split == "all":
        return {}
    patients = {case: patient_of(case, config.patient_pattern) for case in ids}
    try:
        members = split_by_ratio(patients.values(), config.split_ratios or SPLIT_RATIOS, config.split_seed)
    except ValueError as error:
        raise SelectionError(f"{config.data!r}: {error}", hint) from error
    splits = {name: [case for case in ids if patients[case] in set(chosen)] for name, chosen in members.items()}
    numbers = ", ".join(f"{name} {len(cases)}" for name, cases in splits.items())
    left = f"; {len(files) - len(ids)} cases without label are in no split" if len(ids) < len(files) else ""
    log_once(
        f"{config.data}: {len(ids)} cases of {len(set(patients.values()))} patients were divided by ratio (split_seed "
        f"{config.split_seed}): {numbers}{left}"
    )
    return splits
