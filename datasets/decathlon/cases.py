"""Volumes of a Decathlon task, prepared, in pools by split (docs/seat.md, Method 4): phantoms, or a folder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...common.checks import ABOVE_0, BELOW_1, check
from ...common.reading import quoted, read_json
from ..msd import CaseFiles, find_cases
from ..nifti import Frame, read_label
from ..sample import BadSample, Sample, load_each
from ..selection import Catalogue, PhantomNames, check_pattern, patient_of, setting
from ..volumes import VolumePool
from .fingerprint import Fingerprint, measure_intensities
from .phantom import drawn_phantom
from .plan import Plan
from .preparation import measured_cases, prepare, prepared_case
from .splits import divided, listed
from .tasks import Task, find_task

NAMES = PhantomNames("phantom_", digits=5)
FIRST_TEST = 100_000
"""Number of the first phantom of the test split."""


@dataclass(frozen=True)
class PhantomCases:
    """Number of phantoms.

    Raises:
        ValueError: too few to divide, or more than keep the splits apart.
    """

    labelled: int = 50
    """Phantoms that folds divide into training and validation."""
    test: int = 20
    """Phantoms of the test split."""

    def __post_init__(self) -> None:
        check(self, "phantom_cases.", labelled=(2, FIRST_TEST), test=(0, FIRST_TEST))


@dataclass(frozen=True)
class DecathlonConfig:
    """Which volumes are used, and how they are divided and prepared.

    Raises:
        ValueError: a value outside its range, or one that does not belong to these data.
    """

    data: str = "phantom"
    """"phantom" (procedural, no files; of tasks 1, 4 and "toy"), or a folder: that of the task, such as
    Task04_Hippocampus, or the one above it."""
    task: int | str = 4
    """Task by number or name: 4, Hippocampus, Task04_Hippocampus; or toy, a phantom alone."""
    fold: int = 0
    """Number of the fold, from 0, whose cases are for validation."""
    folds: int = 5
    """Number of folds that the patients are divided into, where splits has no files."""
    splits: str | None = None
    """Folder with train_fold0.csv, val_fold0.csv and test_paths.csv (columns image,label), for each fold; null: folds
    are made of split_seed."""
    select_share: float = 0.6
    """Share of the validation patients by which checkpoints are chosen; results are reported on the others."""
    split_seed: int = 0
    """Seed of all divisions, which are the same on every machine."""
    patient_pattern: str | None = None
    """Regular expression that finds the patient in a case id (its first group, if it has one); null: each case is a
    patient."""
    stats: Literal["table", "corrected"] = "table"
    """Window, mean and deviation of intensities: table: as published; corrected: measured on the training cases of the
    fold, voxels of the foreground alone, each channel by itself."""
    plan: str | None = None
    """JSON file of a plan, for patches of other sizes; null: that of the task."""
    phantom_cases: PhantomCases = field(default_factory=PhantomCases)
    """Number of phantoms."""
    cache_dir: str | None = None
    """Folder for prepared volumes; null: $SEGARENA_CACHE, else ~/.cache/segarena."""

    def __post_init__(self) -> None:
        check(self, folds=(2, 1000), fold=(0, 1000), select_share=(ABOVE_0, BELOW_1))
        check_pattern(self.patient_pattern)
        find_task(self.task, phantom=self.phantom)
        if self.splits is None and self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold} but there are {self.folds} folds, 0 to {self.folds - 1}")
        if self.phantom and self.splits is not None:
            raise ValueError(
                f"splits is {self.splits!r} but phantoms have no files; give data a folder, or leave it out"
            )

    @property
    def phantom(self) -> bool:
        """Whether volumes are procedural."""
        return self.data == "phantom"

    @property
    def resolved_task(self) -> Task:
        """The task, with the constants of its phantoms where these are used."""
        return find_task(self.task, phantom=self.phantom)

    def resolved_plan(self) -> Plan:
        """The plan of the file that `plan` names, or of the task.

        Raises:
            FileNotFoundError, ValueError: as `Plan.load`.
        """
        return self.resolved_task.plan if self.plan is None else Plan.load(self.plan)


@dataclass(frozen=True)
class _Source:
    """Where a case comes from: files, or the number of a phantom."""

    id: str
    origin: CaseFiles | int


@dataclass(frozen=True, eq=False)
class _Cases:
    task: Task
    sources: dict[str, _Source]
    splits: dict[str, list[str]]

    def chosen(self, config: DecathlonConfig, split: str, option: str) -> list[_Source]:
        hint = f"choose one of these, such as {setting(option, 'split', 'train')}"
        groups = {one: one for one in self.sources}
        ids = Catalogue(config.data, groups, self.splits, hint=hint).in_split(split)
        return [self.sources[one] for one in ids]


def decathlon_case_ids(config: DecathlonConfig, split: str, option: str = "") -> list[str]:
    """Ids of the cases of a split, without loading them; as `load_decathlon`."""
    return [source.id for source in _find(config).chosen(config, split, option)]


def constants_of(config: DecathlonConfig) -> Fingerprint:
    """The constants by which volumes are prepared: of the task, with intensities measured if `stats` is corrected.

    Raises:
        FileNotFoundError, ValueError: as `load_decathlon`, of training cases.
    """
    return _constants(config, _find(config))


def load_decathlon(
    config: DecathlonConfig, split: str, option: str = "", on_bad: Callable[[BadSample], object] | None = None
) -> VolumePool:
    """The prepared volumes of one split, on the CPU.

    Args:
        config: data, task and fold.
        split: train, val, select and report (the two parts of val), test, or all; a part of one, such as train[:8], or
            several, such as train+select. Test cases of the Decathlon have no labels.
        option: where the fields of `config` stand on the command line; errors then say what to write there.
        on_bad: by default a bad case raises. Otherwise it is logged, handed to `on_bad` and left out.

    Raises:
        FileNotFoundError: a missing folder, dataset.json or file.
        ValueError: an unknown split, a folder of another task, a fold with an empty side, a bad file; no case is left.

    >>> from segarena.datasets.decathlon.cases import DecathlonConfig, load_decathlon
    >>> pool = load_decathlon(DecathlonConfig(), "select")
    >>> len(pool), pool.classes, pool[0].image.dtype
    (6, ('background', 'anterior', 'posterior'), torch.float32)
    """
    cases = _find(config)
    sources = cases.chosen(config, split, option)
    constants = _constants(config, cases)
    places = {source.id: f"{number} of {len(sources)}" for number, source in enumerate(sources, 1)}

    def load(source: _Source) -> Sample:
        return _load(source, cases.task, constants, config, places[source.id])

    samples = [sample for _, sample in load_each(sources, load, on_bad)]
    if not samples:
        raise ValueError(f"none of the {len(sources)} cases in split {split!r} of {config.data!r} can be used")
    groups = [patient_of(sample.id, config.patient_pattern) for sample in samples]
    return VolumePool.of(samples, groups, cases.task.channels, cases.task.classes)


def recorded_labels(config: DecathlonConfig, ids: Sequence[str]) -> Iterator[tuple[Tensor, Frame]]:
    """The labels of some cases as they were recorded, uint8 [X, Y, Z] in RAS+ order, and their frames, one by one.

    Raises:
        FileNotFoundError, ValueError: as `load_decathlon`; a case without labels.
    """
    cases = _find(config)
    for one in ids:
        origin = cases.sources[one].origin
        if isinstance(origin, int):
            sample = drawn_phantom(cases.task.name, origin)
            assert sample.label is not None
            x, y, z = sample.label.shape
            yield sample.label, Frame((x, y, z), sample.affine)
        elif origin.label is None:
            raise ValueError(f"{one} has no label; choose another split")
        else:
            label, frame = read_label(origin.label, len(cases.task.classes))
            yield torch.from_numpy(np.ascontiguousarray(label)), frame


def _find(config: DecathlonConfig) -> _Cases:
    task = config.resolved_task
    if config.phantom:
        number = config.phantom_cases
        labelled = [NAMES.name(n) for n in range(number.labelled)]
        test = [NAMES.name(n) for n in range(FIRST_TEST, FIRST_TEST + number.test)]
        sources = {name: _Source(name, n) for name, n in NAMES.numbers([*labelled, *test]).items()}
        return _Cases(task, sources, divided(config, labelled, test))
    root = _task_folder(config, task)
    cases = find_cases(root, task.name)
    if config.splits is None:
        labelled = [case.id for case in cases if case.label is not None]
        splits = divided(config, labelled, [case.id for case in cases if case.label is None])
    else:
        splits = listed(config, root, {case.image: case for case in cases})
    return _Cases(task, {case.id: _Source(case.id, case) for case in cases}, splits)


def _task_folder(config: DecathlonConfig, task: Task) -> Path:
    """The folder of the task, whose dataset.json fits it."""
    folder = Path(config.data)
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist or is no folder")
    root = next((one for one in (folder, folder / task.name) if (one / "dataset.json").is_file()), None)
    if root is None:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "an empty folder"
        raise FileNotFoundError(
            f"no dataset.json in {folder} or in {folder / task.name}; unpack {task.name} there; found {found}"
        )
    path = root / "dataset.json"
    content = read_json(path)
    try:
        labels, modality = dict(content["labels"]), dict(content["modality"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} is no description of {task.name} ({error!r}): expected "labels" and "modality" as objects'
        ) from error
    wanted = {str(number): name for number, name in enumerate(task.classes)}
    if labels.keys() != wanted.keys():
        raise ValueError(
            f"{path} has the labels {quoted(labels)} but {task.name} has {wanted}; choose the task of this folder, or "
            "merge labels"
        )
    if len(modality) != len(task.channels) or (modality.get("0") == "CT") != task.ct:
        raise ValueError(
            f"{path} has the modality {quoted(modality)} but {task.name} has {task.modality} with the channels "
            f"{', '.join(task.channels)}; choose the task of this folder"
        )
    return root


def _load(source: _Source, task: Task, constants: Fingerprint, config: DecathlonConfig, place: str) -> Sample:
    if isinstance(source.origin, int):
        return prepare(drawn_phantom(task.name, source.origin), constants, ct=task.ct)
    return prepared_case(source.origin, task, constants, config.cache_dir, place)


def _constants(config: DecathlonConfig, cases: _Cases) -> Fingerprint:
    task = cases.task
    if config.stats == "table":
        return task.fingerprint
    origins = [cases.sources[one].origin for one in cases.splits["train"]]
    files = [one for one in origins if isinstance(one, CaseFiles)]
    phantoms = (drawn_phantom(task.name, one) for one in origins if isinstance(one, int))
    if files:
        measured = measured_cases(files, task, config.cache_dir)
    else:
        measured = measure_intensities(phantoms, len(task.classes), ct=task.ct)
    return replace(task.fingerprint, window=measured.window, mean=measured.mean, std=measured.std)
