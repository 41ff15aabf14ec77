"""Radiographs in one form, whatever they were read from: images of one size with a class each, resident as bytes
(docs/apga.md, Method 5 and 6)."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...common.checks import AT_LEAST_1, SHARE, check
from ...common.files import file_digest
from ...common.reading import quoted
from ..cache import cached
from ..folders import log_once
from ..images import ImagePool
from ..sample import Origin
from ..selection import Catalogue, PhantomNames, SelectionError, setting
from . import phantom, table
from .files import Fit, Interpolation, XrayFile, read_xray
from .mura import Protocol, find_mura, mura_splits
from .parts import BodyPart, differences
from .phantom import IMAGES, limb_phantoms

FIRST_PHANTOM = {"train": 0, "val": 100_000, "test": 200_000}
"""Number of the first phantom study of each split."""
PHANTOMS = PhantomNames("limb_", digits=6)
PHANTOM_PART = "limb"
PREPARATION = 1
"""Part of every cache key: raise it when the same files and settings shall give other images."""


@dataclass(frozen=True)
class PhantomStudies:
    """Number of phantom studies per split; a study has two images, and every other one is abnormal.

    Raises:
        ValueError: a negative number, more than keep the splits apart, or none at all.
    """

    train: int = 500
    """Studies from which networks learn."""
    val: int = 100
    """Studies that choose checkpoints."""
    test: int = 250
    """Studies on which results are computed."""

    def __post_init__(self) -> None:
        most = (0, 100_000)  # the numbers of the next split's studies follow
        check(self, "phantom_studies.", train=most, val=most, test=most)
        if not any(asdict(self).values()):
            raise ValueError("phantom_studies has none in any split; give one of them at least 2 studies")


@dataclass(frozen=True)
class XrayConfig:
    """Which radiographs are used, and at which size.

    Raises:
        ValueError: a value outside its range, or one that does not belong to these data.
    """

    data: str = "phantom"
    """"phantom" (procedural, no files), or the folder of MURA v1.1 (MURA-v1.1, or where it lies)."""
    csv: str | None = None
    """Table of radiographs of your own, such as hips, instead of `data`: path,label,group,split, with paths from its
    folder, labels 0..5, and splits train, val and test."""
    n_classes: Literal[2, 6] = 2
    """Classes of a table: its labels, or 2, of which 1 joins the fractures 1, 2 and 3, and 0 the rest."""
    body_part: BodyPart | None = None
    """Part of the body in MURA; null: all seven."""
    protocol: Protocol = "clean"
    """Splits of MURA. clean: one in ten patients of its train split is val, its valid split is test; paper: its valid
    split is val and test."""
    split_seed: int = 0
    """Seed of the division into train and val of protocol clean, which is the same on every machine."""
    size: int = 64
    """Height and width in pixels; 224 in the paper."""
    fit: Fit = "stretch"
    """How a radiograph becomes size x size. stretch: both sides, so that bones change their shape, as in the paper;
    pad: the longer side, and black beside the rest."""
    interpolation: Interpolation = "bilinear"
    """bilinear: over all pixels that become one; nearest: one of them."""
    n_shot: int | None = None
    """Images, or studies, of each class that are drawn of split train; null: all. Other splits stay whole."""
    shot_unit: Literal["image", "study"] = "image"
    """What n_shot counts; the images of a study that is drawn all belong to it."""
    shot_seed: int = 0
    """Seed of that draw, which no other random number depends on."""
    artefact: float | None = None
    """Phantoms of train with a marker in the corner if abnormal, and none if normal, as a share; 0.5 of val and test.
    null: no markers."""
    phantom_studies: PhantomStudies = field(default_factory=PhantomStudies)
    """Number of phantom studies per split."""
    cache_dir: str | None = None
    """Folder for prepared images; null: $SEGARENA_CACHE, else ~/.cache/segarena."""

    def __post_init__(self) -> None:
        check(self, size=(phantom.SMALLEST, math.inf), n_shot=AT_LEAST_1, artefact=SHARE, shot_seed=(0, math.inf))
        is_phantom, is_mura = self.data == "phantom" and self.csv is None, self.data != "phantom"
        if self.csv is not None and is_mura:
            raise ValueError(f"csv is {self.csv!r} and data {self.data!r}; give the one that holds the radiographs")
        if self.csv is None and self.n_classes != 2:
            raise ValueError(f"n_classes is {self.n_classes} but only a table (csv) has so many; others have 2")
        if not is_mura and (self.body_part is not None or self.protocol != "clean"):
            raise ValueError(
                f"body_part {self.body_part!r} and protocol {self.protocol!r} belong to MURA; name its folder by data"
            )
        if not is_phantom and self.artefact is not None:
            raise ValueError(f"artefact is {self.artefact} but markers are drawn into phantoms alone; leave it null")

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class."""
        if self.csv is None:
            return phantom.CLASSES
        return table.CLASSES if self.n_classes == len(table.CLASSES) else table.TWO_CLASSES


@dataclass(frozen=True, eq=False)
class XrayPool:
    """N radiographs with a class each: a pool of images, and what is known of them as wholes.

    Raises:
        ValueError: labels or `marked` of another type or shape than stated.
    """

    pool: ImagePool
    """The images; where lesions are known, label 1 is the region of one. Groups are patients; tags study and part."""
    labels: Tensor
    """int64 [N]: class of each image, on the device of the images."""
    classes: tuple[str, ...]
    """Name of each class; 0 is normal."""
    marked: Tensor | None = None
    """bool [N]: phantoms with a marker in the corner, on the device of the images; None of files."""

    def __post_init__(self) -> None:
        for name, values, kind in (("labels", self.labels, torch.int64), ("marked", self.marked, torch.bool)):
            if values is not None and (values.dtype != kind or values.shape != (len(self.pool),)):
                given = f"{values.dtype} {tuple(values.shape)}"
                raise ValueError(f"{name} is {given} but must be {kind} {(len(self.pool),)}, one of each image")

    def __len__(self) -> int:
        return len(self.pool)

    @property
    def images(self) -> Tensor:
        """uint8 [N, 1, size, size]; 255 stands for 1.0."""
        return self.pool.images

    @property
    def ids(self) -> list[str]:
        """Name of each image."""
        return self.pool.ids

    @property
    def patients(self) -> list[str]:
        """Patient of each image; no patient is in two splits."""
        return self.pool.groups

    @property
    def studies(self) -> list[str]:
        """Study of each image; a study has one class."""
        return self.pool.tags["study"]

    @property
    def parts(self) -> list[str]:
        """Body part of each image."""
        return self.pool.tags["part"]

    @property
    def origin(self) -> Origin:
        """real or phantom."""
        return self.pool.origin

    @cached_property
    def roi(self) -> Tensor | None:
        """bool [N, size, size]: the box around each lesion, none in normal images; None where it is not known."""
        return None if self.pool.labels is None else self.pool.labels == 1

    @cached_property
    def study_rows(self) -> Tensor:
        """int64 [N], on the device of the images: number of each image's study, counted from 0 in their order."""
        numbers = {study: n for n, study in enumerate(dict.fromkeys(self.studies))}
        return torch.tensor([numbers[study] for study in self.studies], device=self.labels.device)

    def at(self, rows: Tensor) -> Tensor:
        """Images float32 [K, 1, size, size] in [0, 1] of the rows int64 [K], on the device of `images`."""
        return self.pool.at(rows)

    def take(self, rows: Sequence[int]) -> "XrayPool":
        """These rows only, in this order."""
        there = torch.tensor(rows, dtype=torch.int64, device=self.labels.device)
        marked = None if self.marked is None else self.marked[there]
        return replace(self, pool=self.pool.take(rows), labels=self.labels[there], marked=marked)

    def to(self, device: torch.device) -> "XrayPool":
        """All tensors on `device`."""
        marked = None if self.marked is None else self.marked.to(device)
        return replace(self, pool=self.pool.to(device), labels=self.labels.to(device), marked=marked)


def load_xrays(config: XrayConfig, split: str, option: str = "") -> XrayPool:
    """The radiographs of one split on the CPU.

    Splits are train, val and test, or those that a table names; "train[:8]" is the part of the first eight patients,
    "all" is everybody. Phantoms of any number can be named, "limb_000012" or "limb_500-599". `n_shot` acts on "train"
    alone. A split is read from its files once, and from the cache from then on.

    Args:
        config: data, splits and size.
        split: name of the split.
        option: where the fields of `config` stand on the command line, such as "--data."; errors then say what to write
            there.

    Raises:
        FileNotFoundError: a missing folder, list, table, or radiograph of the split; with its line.
        ValueError: an unknown split, a list or table that cannot be used, a file that is no radiograph, a split of one
            class only, or fewer images or studies of a class than n_shot.

    >>> from segarena.datasets.xray.images import PhantomStudies, XrayConfig, load_xrays
    >>> pool = load_xrays(XrayConfig(size=32, phantom_studies=PhantomStudies(test=2)), "test")
    >>> pool.ids, pool.labels.tolist(), pool.images.shape
    (['limb_200000_1', 'limb_200000_2', 'limb_200001_1', 'limb_200001_2'], [0, 0, 1, 1], torch.Size([4, 1, 32, 32]))
    >>> load_xrays(XrayConfig(size=32, n_shot=5), "train").labels.bincount().tolist()
    [5, 5]
    """
    return (
        _phantoms(config, split, option)
        if config.data == "phantom" and config.csv is None
        else _files(config, split, option)
    )


def _phantoms(config: XrayConfig, split: str, option: str) -> XrayPool:
    splits = {
        name: [PHANTOMS.name(n) for n in range(FIRST_PHANTOM[name], FIRST_PHANTOM[name] + number)]
        for name, number in asdict(config.phantom_studies).items()
        if number
    }
    names = PHANTOMS.in_full([split])
    if not PHANTOMS.numbers(names):
        names = _chosen(config, split, {name: name for names in splits.values() for name in names}, splits, option)
    studies = torch.tensor(list(PHANTOMS.numbers(names).values())).repeat_interleave(IMAGES)
    number = torch.arange(len(studies)) % IMAGES  # of each image in its study
    names = [name for name in names for _ in range(IMAGES)]
    rows = _drawn(config, split, (studies % 2).tolist(), names, option)
    studies, number, names = studies[rows], number[rows], [names[row] for row in rows]
    artefact = config.artefact
    shares = None if artefact is None else torch.where(studies < FIRST_PHANTOM["val"], artefact, 0.5)
    limbs = limb_phantoms(studies * IMAGES + number, config.size, shares)
    return XrayPool(
        pool=ImagePool(
            images=limbs.images[:, None],
            labels=limbs.roi.to(torch.uint8),
            ids=[f"{name}_{of + 1}" for name, of in zip(names, number.tolist(), strict=True)],
            groups=names,
            tags={"study": names, "part": [PHANTOM_PART] * len(names)},
            spacing_mm=torch.full((len(names), 2), math.nan, dtype=torch.float64),
            classes=("background", "lesion"),
            origin="phantom",
        ),
        labels=limbs.labels,
        classes=config.classes,
        marked=limbs.marked,
    )


def _files(config: XrayConfig, split: str, option: str) -> XrayPool:
    if config.csv is not None:
        files, splits = table.find_table(Path(config.csv), config.n_classes), dict[str, list[str]]()
        for one in files:
            splits.setdefault(one.split, []).append(one.patient)
    else:
        files = find_mura(Path(config.data))
        if wrong := differences(files):
            log_once(f"{config.data} is not all of MURA v1.1: {wrong[0]}; {len(wrong)} such numbers differ")
        splits = mura_splits(files, config.protocol, config.split_seed)
        files = [one for one in files if config.body_part in (None, one.part)]
    patients = {one.patient for one in files}
    splits = {name: [one for one in dict.fromkeys(listed) if one in patients] for name, listed in splits.items()}
    by_id = {one.id: one for one in files}
    chosen = _chosen(config, split, {one.id: one.patient for one in files}, splits, option)
    files = [by_id[name] for name in chosen]
    if lost := [one for one in files if not _exists(one.path)]:
        raise FileNotFoundError(
            f"{lost[0].where} names {quoted(str(lost[0].path))}, which does not exist ({len(lost)} such, the last in "
            f"{lost[-1].where}); unpack the data set again, or take the lines away"
        )
    rows = _drawn(config, split, [one.label for one in files], [one.study for one in files], option)
    files = [files[row] for row in rows]
    return XrayPool(
        pool=ImagePool(
            images=_read(config, files)[:, None],
            labels=None,
            ids=[one.id for one in files],
            groups=[one.patient for one in files],
            tags={"study": [one.study for one in files], "part": [one.part for one in files]},
            spacing_mm=torch.full((len(files), 2), math.nan, dtype=torch.float64),
            classes=("background",),
            origin="real",
        ),
        labels=torch.tensor([one.label for one in files]),
        classes=config.classes,
    )


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _chosen(
    config: XrayConfig, split: str, groups: Mapping[str, str], splits: Mapping[str, Sequence[str]], option: str
) -> list[str]:
    """The ids of the split."""
    data = config.csv or config.data
    if not groups:
        raise ValueError(
            f"{data!r} has no radiograph of body_part {config.body_part!r}; choose another, or all by null"
        )
    hint = f"choose one of these, such as {setting(option, 'split', next(iter(splits)))}"
    return Catalogue(data, groups, splits, "radiograph", hint).in_split(split)


def _drawn(config: XrayConfig, split: str, labels: Sequence[int], studies: Sequence[str], option: str) -> list[int]:
    """Rows of the images that are used: all, or `n_shot` of each class, in their order.

    Raises:
        ValueError: one class only, or fewer than `n_shot` of one.
    """
    data, classes = config.csv or config.data, config.classes
    if len(there := set(labels)) < 2:
        raise SelectionError(
            f"split {split!r} of {data!r} has {len(labels)} images of class {classes[there.pop()]!r} alone",
            "two are needed to learn or to judge: choose another split, protocol or split_seed, or add cases",
        )
    if config.n_shot is None or split != "train":
        return list(range(len(labels)))
    units = [str(row) for row in range(len(labels))] if config.shot_unit == "image" else studies
    generator, drawn = np.random.default_rng(config.shot_seed), set[str]()
    for k, name in enumerate(classes):
        mine = list(dict.fromkeys(unit for unit, label in zip(units, labels, strict=True) if label == k))
        if len(mine) < config.n_shot:
            noun = "images" if config.shot_unit == "image" else "studies"
            raise SelectionError(
                f"n_shot is {config.n_shot} but split {split!r} of {data!r} has {len(mine)} {noun} of class {name!r}",
                f"choose at most so many, {setting(option, 'n_shot', max(1, len(mine)))}",
            )
        drawn |= {mine[n] for n in generator.choice(len(mine), config.n_shot, replace=False)}
    return [row for row, unit in enumerate(units) if unit in drawn]


def _read(config: XrayConfig, files: Sequence[XrayFile]) -> Tensor:
    """uint8 [N, size, size] of the files, from the cache or from the files themselves."""

    def named(one: XrayFile) -> Tensor:
        try:
            return read_xray(one.path, config.size, config.fit, config.interpolation)
        except ValueError as error:
            raise ValueError(f"{one.where}: {error}") from error

    with ThreadPoolExecutor() as threads:  # hashing and decoding leave Python's lock
        key = {
            "preparation": PREPARATION,
            "files": list(threads.map(file_digest, [one.path for one in files])),
            "size": config.size,
            "fit": config.fit,
            "interpolation": config.interpolation,
        }
        return cached("xray", key, lambda: {"images": torch.stack(list(threads.map(named, files)))}, config.cache_dir)[
            "images"
        ]
