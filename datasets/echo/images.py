"""Echocardiography in one form, whatever it was read from: images of one size, resident as bytes
(docs/rl4seg.md, Method 10).

Axes are (y, x) everywhere: rows grow with depth, columns to the right of the picture.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...common.checks import check
from ...common.files import file_digest
from ..cache import cached
from ..folders import log_once
from ..images import ImagePool, KnownLabels
from ..nifti import VOXEL_MM
from ..sample import BadSample, load_each
from ..selection import (
    Catalogue,
    PhantomNames,
    SelectionError,
    check_pattern,
    check_ratios,
    one_split_each,
    setting,
    split_by_ratio,
)
from . import phantom as echo_phantom
from .camus import EchoFiles, EchoFolder, find_echo
from .files import read_image, read_mask, stored_in
from .planes import Plane
from .preparation import Acquisition, resize, resize_mask, simulate_acquisition, to_bytes, without_surroundings

log = logging.getLogger(__name__)

CLASSES = ("background", "lv", "myo")
"""Label values 0, 1, 2: background, cavity of the left ventricle (LV), myocardium (MYO)."""
BACKGROUND, LV, MYO = range(3)
ATRIUM = 3
"""Left atrium in the files of CAMUS; background here."""
SPLIT_RATIOS = {"train": 0.7, "val": 0.1, "test": 0.2}
"""Share of the patients in each split of a folder that defines none."""
FIRST_PHANTOM = {"train": 0, "val": 100_000, "test": 200_000, "pred": 300_000}
"""Number of the first phantom patient of each split."""
PREPARATION = 1
"""Part of every cache key: raise it when the same files and settings shall give other images."""


@dataclass(frozen=True)
class PhantomPatients:
    """Number of phantom patients per split; a patient has four images.

    Raises:
        ValueError: a negative number, more than keep the splits apart, or nobody at all.
    """

    train: int = 50
    """Patients with labels from whose images the supervised network learns."""
    val: int = 10
    """Patients whose images choose checkpoints."""
    test: int = 50
    """Patients on whose images results are computed."""
    pred: int = 200
    """Patients to whose images, without labels, reinforcement learning adapts."""

    def __post_init__(self) -> None:
        most = (0, 100_000)  # the numbers of the next split's patients follow
        check(self, "phantom_patients.", train=most, val=most, test=most, pred=most)
        if not any(asdict(self).values()):
            raise ValueError("phantom_patients has nobody in any split; give one of them at least 1 patient")


@dataclass(frozen=True)
class EchoDataConfig:
    """Which echocardiograms are used, and how they are prepared.

    Raises:
        ValueError: a value outside its range, or one that does not belong to these data.
    """

    data: str = "phantom"
    """"phantom" (procedural, no files), or a folder: CAMUS v1 or v2, your own (images/ and, of the same names, labels/
    with PNG, NIfTI or .mhd), or a prepared set (img/, gt/ and a CSV; of several CSVs, name one: FOLDER/NAME.csv)."""
    vendor: Literal["a", "b"] | None = None
    """Scanner of the phantoms, a or b; null: a, but b for the target of an experiment."""
    size: int = 64
    """Height and width in pixels; 256 in the paper. The aspect is not kept, the spacing follows."""
    clahe: bool | None = None
    """Equalise the histogram locally (clip limit 0.01, 8 x 8 tiles); null: yes, but no for a prepared set, whose
    images have had it."""
    acquisition: Acquisition = field(default_factory=Acquisition)
    """Simulated change of recorded images; default: none. For phantoms set `vendor` instead."""
    patients: dict[str, list[str]] | None = None
    """Patients of each split, * and ? stand for any text, e.g. '{train: ["patient000?"]}'; null: the data set's own
    lists, without lists split_ratios. Split "all" is everybody. Any phantom can be named in full, phantom_b_200077."""
    split_ratios: dict[str, float] | None = None
    """Share of the patients in each split of a folder without lists; null: '{train: 7, val: 1, test: 2}'."""
    split_seed: int = 0
    """Seed of the division by split_ratios, which is the same on every machine."""
    patient_pattern: str | None = None
    """Of images of your own: regular expression that finds the patient in a file name (its first group, if it has one),
    so that no patient is in two splits, e.g. '^P[0-9]+'; null: each image is a patient."""
    spacing_mm: tuple[float, float] | None = None
    """Size of a pixel (y, x) in mm, of files that do not say it: PNG. 1, 1 makes distances pixels."""
    phantom_patients: PhantomPatients = field(default_factory=PhantomPatients)
    """Number of phantom patients per split."""
    cache_dir: str | None = None
    """Folder for prepared images; null: $SEGARENA_CACHE, else ~/.cache/segarena."""

    def __post_init__(self) -> None:
        check(self, size=(16, math.inf), spacing_mm=VOXEL_MM)
        check_ratios(self.split_ratios, list(SPLIT_RATIOS))
        check_pattern(self.patient_pattern)
        if self.data == "phantom" and self.acquisition != Acquisition():
            raise ValueError("acquisition changes recorded images; for phantoms of another scanner set vendor to b")
        if self.data != "phantom" and self.vendor is not None:
            raise ValueError(f"vendor {self.vendor!r} belongs to phantoms; to change recorded images set acquisition")

    @property
    def scanner(self) -> str:
        """Vendor of the phantoms."""
        return self.vendor or "a"


def load_echo(
    config: EchoDataConfig,
    split: str,
    on_bad: Callable[[BadSample], object] | None = None,
    option: str = "",
) -> ImagePool:
    """The images of one split on the CPU, in the order of its patients.

    Phantoms have train, val, test and pred; a folder has what `config.patients` says, or its lists name (CAMUS: train,
    val, test), or the ratios divide; "all" is everybody. A patient is in one split only. Labels may be missing.

    Args:
        config: data, patients, and the side of the images in pixels.
        split: name of the split.
        on_bad: by default a bad file raises. Otherwise it is logged, handed to `on_bad` (`bad.append`, say) and left
            out. A missing folder or split raises at once, whatever `on_bad` is.
        option: where the fields of `config` stand on the command line, such as "--target."; errors then say what to
            write there.

    Raises:
        FileNotFoundError: a missing folder or file.
        ValueError: an unknown split, a pattern that fits nobody, a patient in two splits, a bad file, or no image left.

    >>> from segarena.datasets.echo.images import EchoDataConfig, PhantomPatients, load_echo
    >>> pool = load_echo(EchoDataConfig(size=32, phantom_patients=PhantomPatients(test=1)), "test")
    >>> pool.ids
    ['phantom_a_200000_2CH_ED', 'phantom_a_200000_2CH_ES', 'phantom_a_200000_4CH_ED', 'phantom_a_200000_4CH_ES']
    >>> pool.images.shape, pool.labels.shape, pool.classes
    (torch.Size([4, 1, 32, 32]), torch.Size([4, 32, 32]), ('background', 'lv', 'myo'))
    """
    if config.data == "phantom":
        return _phantoms(config, split, option)
    folder = find_echo(Path(config.data), config.patient_pattern)
    patients = _chosen(config, split, [files.patient for files in folder.files], folder.splits, option)
    place = {patient: n for n, patient in enumerate(patients)}
    wanted = sorted((f for f in folder.files if f.patient in place), key=lambda files: place[files.patient])
    if config.spacing_mm is None and (silent := [f.image for f in wanted if f.image.suffix.lower() == ".png"]):
        raise ValueError(
            f"{silent[0]} does not say how large its pixels are; give it in mm (y, x), such as "
            f"{setting(option, 'spacing_mm', [0.3, 0.3])}; 1 and 1 make distances pixels"
        )
    loaded = dict(load_each(wanted, lambda files: _load(files, config, folder), on_bad))
    if not loaded:
        raise ValueError(f"none of the {len(wanted)} images of split {split!r} in {config.data!r} can be used")
    rows = [row for row, tensors in enumerate(loaded.values()) if "label" in tensors]
    labels = torch.stack([tensors["label"] for tensors in loaded.values() if "label" in tensors]) if rows else None
    if some := 0 < len(rows) < len(loaded):
        log_once(f"{config.data}: {len(rows)} of {len(loaded)} images of split {split!r} have labels")
    return ImagePool(
        images=torch.stack([tensors["image"] for tensors in loaded.values()])[:, None],
        labels=None if some else labels,
        some_labels=KnownLabels(rows, labels) if some and labels is not None else None,
        ids=[files.id for files in loaded],
        groups=[files.patient for files in loaded],
        tags={"view": [files.view for files in loaded], "instant": [files.instant for files in loaded]},
        spacing_mm=torch.stack([tensors["spacing_mm"] for tensors in loaded.values()]),
        classes=CLASSES,
        origin="real",
    )


def echo_splits(config: EchoDataConfig) -> list[str]:
    """Names of the splits that `load_echo` can load, without "all".

    Raises:
        FileNotFoundError: a missing folder.
    """
    if config.patients is not None:
        return list(config.patients)
    if config.data == "phantom":
        return [name for name, number in asdict(config.phantom_patients).items() if number]
    folder = find_echo(Path(config.data))
    there = {files.patient for files in folder.files}
    listed = [name for name, patients in folder.splits.items() if there & set(patients)]
    return listed or [name for name, share in (config.split_ratios or SPLIT_RATIOS).items() if share > 0]


def _chosen(
    config: EchoDataConfig, split: str, everybody: Sequence[str], own: Mapping[str, Sequence[str]], option: str
) -> list[str]:
    """The patients of a split: by the configuration, by the data set's own lists if they name any, or by ratio."""
    example = {
        name: [patient] for name, patient in zip(dict.fromkeys(["train", "val", split]), everybody, strict=False)
    }
    hint = f"or list the patients of each split, such as {setting(option, 'patients', example)}"
    noun, key = "patient", f"{option}patients"
    catalogue = Catalogue(config.data, {patient: patient for patient in everybody}, own, noun, hint, key)
    if split == "all":
        return catalogue.in_split(split)
    if config.patients is not None:
        splits = {name: catalogue.named(patterns) for name, patterns in config.patients.items()}
        one_split_each(splits, key)
    elif config.data == "phantom" or any(patient in catalogue.groups for listed in own.values() for patient in listed):
        if config.data != "phantom" and config.split_ratios is not None:
            log_once(f"{config.data} has lists of its own: split_ratios is not used", logging.WARNING)
        return catalogue.in_split(split)
    else:
        splits = _divided(config, catalogue, hint, option)
    return replace(catalogue, splits=splits).in_split(split)


def _divided(config: EchoDataConfig, catalogue: Catalogue, hint: str, option: str) -> dict[str, list[str]]:
    """The patients of each split by ratio."""
    try:
        splits = split_by_ratio(catalogue.groups, config.split_ratios or SPLIT_RATIOS, config.split_seed)
    except ValueError as error:
        fewer = setting(option, "split_ratios", {"train": 1, "val": 1})
        raise SelectionError(f"{config.data!r}: {error}", f"divide them among fewer, {fewer}, {hint}") from error
    numbers = ", ".join(f"{name} {len(patients)}" for name, patients in splits.items())
    log_once(
        f"{config.data}: {len(catalogue.groups)} patients were divided by ratio (split_seed {config.split_seed}): "
        f"{numbers}"
    )
    return splits


def _load(files: EchoFiles, config: EchoDataConfig, folder: EchoFolder) -> dict[str, Tensor]:
    """image, label (where there is one) and spacing_mm of one image, from the cache or its files."""
    prepared = folder.prepared
    clahe = not prepared if config.clahe is None else config.clahe
    paths = [path for path in (files.image, files.label) if path is not None]
    key = {
        "preparation": PREPARATION,
        "id": files.id,  # the changed acquisition depends on it
        "files": [[file_digest(file) for file in stored_in(path)] for path in paths],
        "size": config.size,
        "clahe": clahe,
        "acquisition": asdict(config.acquisition),
        "prepared": prepared,
        "white": folder.white,
        "spacing_mm": config.spacing_mm,
    }

    def build() -> dict[str, Tensor]:
        image, spacing_mm = read_image(files.image, folder.white, config.spacing_mm)
        tensors = {}
        if files.label is not None:
            label = read_mask(files.label, len(CLASSES) if prepared else ATRIUM + 1)
            if label.shape != image.shape:
                raise ValueError(
                    f"{files.label} has shape {label.shape} (y, x) but {files.image} has {image.shape}: they do not "
                    "lie on each other; resample the mask to the image"
                )
            label[label == ATRIUM] = BACKGROUND
            tensors["label"] = torch.from_numpy(resize_mask(label, config.size))
        if not prepared:
            image = without_surroundings(image)
        if config.acquisition != Acquisition():
            image = simulate_acquisition(image, spacing_mm, config.acquisition, files.id)
        tensors["image"] = torch.from_numpy(to_bytes(resize(image, config.size), clahe))
        steps = [mm * n / config.size for mm, n in zip(spacing_mm, image.shape, strict=True)]
        return tensors | {"spacing_mm": torch.tensor(steps, dtype=torch.float64)}

    return cached("echo", key, build, config.cache_dir)


def pool_of(plane: Plane, config: EchoDataConfig) -> ImagePool:
    """One image that a user names as a pool, prepared as `load_echo` does, but never changed by `acquisition`.

    Its spacing is NaN where the file does not say it.
    """
    clahe = not plane.prepared if config.clahe is None else config.clahe
    image = plane.pixels if plane.prepared else without_surroundings(plane.pixels)
    pixel_mm = plane.spacing_mm or (math.nan, math.nan)
    steps = [mm * n / config.size for mm, n in zip(pixel_mm, image.shape, strict=True)]
    return ImagePool(
        images=torch.from_numpy(to_bytes(resize(image, config.size), clahe))[None, None],
        labels=None,
        ids=[plane.id],
        groups=[plane.id],
        tags={"view": ["unknown"], "instant": ["unknown"]},
        spacing_mm=torch.tensor([steps], dtype=torch.float64),
        classes=CLASSES,
        origin="real",
    )


def is_prepared(config: EchoDataConfig) -> bool:
    """Whether the images of these data had their sector cut out and their histogram equalised before; phantoms did not.

    Of data that are out of reach it is taken for granted, so that images with values up to 1 are left as they are.
    """
    if config.data == "phantom":
        return False
    try:
        return find_echo(Path(config.data)).prepared
    except FileNotFoundError:
        return True


def files_of(config: EchoDataConfig) -> dict[str, Path]:
    """The file of each image of a folder, by the image's id; none of phantoms."""
    return {} if config.data == "phantom" else {files.id: files.image for files in find_echo(Path(config.data)).files}


def _phantoms(config: EchoDataConfig, split: str, option: str) -> ImagePool:
    phantoms = PhantomNames(f"phantom_{config.scanner}_", digits=6)
    numbers, splits = dict[str, int](), dict[str, list[str]]()
    for name, number in asdict(config.phantom_patients).items():
        of_split = {phantoms.name(n): n for n in range(FIRST_PHANTOM[name], FIRST_PHANTOM[name] + number)}
        splits[name] = list(of_split)
        numbers |= of_split
    if config.patients is not None:
        named = {name: phantoms.in_full(patterns) for name, patterns in config.patients.items()}
        numbers |= phantoms.numbers(pattern for patterns in named.values() for pattern in patterns)
        config = replace(config, patients=named)
    patients = _chosen(config, split, list(numbers), splits, option)
    kinds = [(view, instant) for view in echo_phantom.VIEWS for instant in echo_phantom.INSTANTS]
    rows = [(patient, view, instant) for patient in patients for view, instant in kinds]
    clahe = config.clahe is not False

    def build() -> dict[str, Tensor]:
        drawn = [
            echo_phantom.echo_phantom(config.scanner, numbers[patient], view, instant, config.size)
            for patient, view, instant in rows
        ]
        return {
            "image": torch.from_numpy(np.stack([to_bytes(phantom.image, clahe) for phantom in drawn])),
            "label": torch.from_numpy(np.stack([phantom.label for phantom in drawn])),
            "spacing_mm": torch.tensor([phantom.spacing_mm for phantom in drawn], dtype=torch.float64),
        }

    key = {
        "preparation": PREPARATION,
        "phantom": file_digest(Path(echo_phantom.__file__)),  # other code draws other hearts
        "patients": patients,
        "size": config.size,
        "clahe": clahe,
    }
    tensors = cached("echo_phantom", key, build, config.cache_dir)
    return ImagePool(
        images=tensors["image"][:, None],
        labels=tensors["label"],
        ids=["_".join(row) for row in rows],
        groups=[patient for patient, _, _ in rows],
        tags={"view": [view for _, view, _ in rows], "instant": [instant for _, _, instant in rows]},
        spacing_mm=tensors["spacing_mm"],
        classes=CLASSES,
        origin="phantom",
    )
