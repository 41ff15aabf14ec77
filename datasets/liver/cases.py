"""Liver CT on the working grid of SPARS (paper: SPARS, sections 2.1, 5.1, 6): phantoms, Decathlon or LiTS folders.

A case is an 8-bit image over a window of HU, its label (0 background, 1 liver, 2 tumour), and the way back to the file
it came from. Volumes from files are prepared once and cached by content.
"""

import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...common.checks import AT_LEAST_1, POSITIVE, check, check_choice
from ...common.files import file_digest
from ..cache import cached
from ..msd import CaseFiles, find_cases, read_sample
from ..nifti import Frame, read_frame, write_mask
from ..sample import Origin, Sample
from .grid import GridFrame, around_body, scale_hu, stretched
from .lattice import Triple
from .lesions import LesionConfig, implant_lesions
from .phantom import AFFINE, SHAPE, liver_phantom

log = logging.getLogger(__name__)

CLASSES = 3
HU_WINDOW = (-17.0, 201.0)
"""About the 0.5 and 99.5 percentiles of liver and tumour in the Decathlon's training set."""
CT_GRID: Triple = (256, 256, 180)
PHANTOM_SPLITS = {
    "classifier_train": range(200),
    "classifier_val": range(1000, 1016),
    "rl_pool": range(2000, 2016),
    "test": range(3000, 3040),
}
PHANTOM_NAME = re.compile(r"^phantom_(\d+)$")
PREPARATION = 1
"""Part of every cache key: raise it when the same file and settings shall give other tensors."""


@dataclass(frozen=True)
class LiverDataConfig:
    """Which liver CTs are used, and how they come to the working grid.

    Raises:
        ValueError: a value outside its range.
    """

    data: str = "phantom"
    """"phantom" (procedural, no files) or a folder: Task03_Liver, the folder above it, or LiTS."""
    split: str = "rl_pool"
    """classifier_train, classifier_val, rl_pool or test (disjoint; for files see splits/spars_v1.json), or all."""
    cases: list[str] | None = None
    """Case ids, which win over the split; * and ? stand for any text, e.g. '[liver_5, "phantom_0200?"]'."""
    grid: Literal["fixed_shape", "spacing"] = "fixed_shape"
    """fixed_shape: the whole volume stretched to grid_shape (paper). spacing: resampled to spacing_mm, then cropped
    around the body, or padded with air, to grid_shape."""
    grid_shape: Triple | None = None
    """Working grid in voxels (x, y, z); default 64,64,48 for phantoms and 256,256,180 for files."""
    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 2.0)
    """Voxel of the working grid in mm (x, y, z); only with grid=spacing."""
    hu_window: tuple[float, float] | None = HU_WINDOW
    """HU that become 0 and 255. null: -17 and 201, and the raw HU are kept beside the image for the classifier."""
    implant_lesions: LesionConfig | None = None
    """Put lesions into the livers, for CTs without tumour labels; null: none."""
    copies: int = 1
    """Versions of each CT with different implanted lesions: liver_0#0, liver_0#1, ...; more than 1 needs
    implant_lesions."""
    cache_dir: str | None = None
    """Folder for prepared volumes; default $SEGARENA_CACHE, else ~/.cache/segarena."""

    def __post_init__(self) -> None:
        check(self, grid_shape=AT_LEAST_1, spacing_mm=POSITIVE)
        if self.hu_window is not None and self.hu_window[0] >= self.hu_window[1]:
            raise ValueError(f"hu_window is {self.hu_window} but must ascend, e.g. {HU_WINDOW}")
        if self.copies < 1 or (self.copies > 1 and self.implant_lesions is None):
            raise ValueError(f"copies is {self.copies} but must be 1, or more than 1 together with implant_lesions")
        if self.data == "phantom" and self.implant_lesions is not None:
            raise ValueError("implant_lesions needs CTs: give data a folder, or leave it out, as phantoms have tumours")


@dataclass(frozen=True, eq=False)
class LiverCase:
    """One CT on the working grid, in RAS+ order."""

    id: str
    origin: Origin
    image: Tensor
    """uint8 [X, Y, Z]: HU scaled from the window to 0..255."""
    hu: Tensor | None
    """int16 [X, Y, Z] in HU; only when the configured hu_window is None."""
    label: Tensor | None
    """uint8 [X, Y, Z]: 0 background, 1 liver, 2 tumour; None where no truth is known."""
    spacing_mm: tuple[float, float, float]
    """Voxel of the working grid."""
    digest: str
    """SHA-256 of image and hu, not of the label: what is computed from the case is cached under it."""
    frame: GridFrame
    """The way back to the file."""

    def to_native(self, mask: Tensor) -> npt.NDArray[np.uint8]:
        """A mask on the grid, [X, Y, Z], as uint8 in the shape and voxel order of the file (nearest; 0 outside).

        Raises:
            ValueError: a mask of another shape than the grid.
        """
        if mask.shape != self.image.shape:
            raise ValueError(f"mask has shape {(*mask.shape,)} but the grid of {self.id} has {(*self.image.shape,)}")
        return self.frame.to_file(mask)

    def save_mask(self, mask: Tensor, path: Path) -> None:
        """Write a mask on the grid, [X, Y, Z], as a NIfTI file (.nii or .nii.gz) that lies on the case's own file."""
        write_mask(self.to_native(mask), self.frame.file, path)


@dataclass(frozen=True)
class BadCase:
    """A case that could not be loaded, and why."""

    id: str
    reason: str


def load_liver_cases(config: LiverDataConfig) -> list[LiverCase]:
    """All cases that the configuration names; a bad one raises (see `iter_liver_cases`)."""
    return list(iter_liver_cases(config))


def liver_case_ids(config: LiverDataConfig) -> list[str]:
    """Ids of the cases that the configuration names, in their order, without loading them.

    Raises:
        FileNotFoundError: a missing folder.
        ValueError: an unknown split or case.
    """
    return [source.id for source in _sources(config)]


def iter_liver_cases(config: LiverDataConfig, on_bad: Callable[[BadCase], object] | None = None) -> Iterator[LiverCase]:
    """The cases that the configuration names, one at a time.

    on_bad: by default a bad case raises. Otherwise it is logged, handed to `on_bad` (`bad.append`, say) and left out.
    A folder without the wanted cases raises at once, whatever `on_bad` is.

    Raises:
        FileNotFoundError: a missing folder or file.
        ValueError: an unknown split or case, a bad file, or a liver too small for the lesions asked for.
    """
    return _load_each(_sources(config), config, on_bad)


# -- which cases ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where a case comes from: a phantom's number or files, and the seed of the lesions to put in."""

    base: str
    origin: int | CaseFiles
    seed: int | None

    @property
    def id(self) -> str:
        return self.base if self.seed is None else f"{self.base}#{self.seed}"


def _sources(config: LiverDataConfig) -> list[_Source]:
    """The wanted cases, in the order of `cases` or of the split."""
    origins: dict[str, int | CaseFiles]
    patterns = config.cases
    if config.data == "phantom":
        numbers = [number for split in PHANTOM_SPLITS.values() for number in split]
        if patterns is not None:  # any number may be named, with or without leading zeros
            numbers += [int(match[1]) for pattern in patterns if (match := PHANTOM_NAME.fullmatch(pattern))]
            patterns = [PHANTOM_NAME.sub(lambda match: _phantom_id(int(match[1])), pattern) for pattern in patterns]
        origins = {_phantom_id(number): number for number in numbers}
        splits = {name: [_phantom_id(number) for number in split] for name, split in PHANTOM_SPLITS.items()}
    else:
        origins = {files.id: files for files in find_cases(Path(config.data))}
        splits = json.loads((resources.files(__package__) / "splits" / "spars_v1.json").read_text(encoding="utf-8"))
    seeds = [None] if config.implant_lesions is None else range(config.copies)
    sources = [_Source(base, origin, seed) for base, origin in origins.items() for seed in seeds]
    return _in_split(sources, splits, config) if patterns is None else _named(sources, patterns, config.data)


def _phantom_id(number: int) -> str:
    return f"phantom_{number:05d}"


def _named(sources: Sequence[_Source], patterns: Sequence[str], data: str) -> list[_Source]:
    chosen: dict[str, _Source] = {}
    for pattern in patterns:
        found = [s for s in sources if fnmatchcase(s.id, pattern) or fnmatchcase(s.base, pattern)]
        if not found:
            raise ValueError(f"no case in {data!r} is called {pattern!r}; it has {_listed(sources)}")
        chosen.update((source.id, source) for source in found)
    if not chosen:
        raise ValueError(f"cases is empty; name some of {_listed(sources)}, or leave it out to use a split")
    return list(chosen.values())


def _in_split(sources: list[_Source], splits: dict[str, list[str]], config: LiverDataConfig) -> list[_Source]:
    if config.split == "all":
        return sources
    check_choice("split", config.split, [*splits, "all"])
    place = {name: number for number, name in enumerate(splits[config.split])}
    known = {name for names in splits.values() for name in names}
    strangers = [s for s in sources if s.base not in known and not _is_unlabelled(s)]
    chosen = [s for s in sources if s.base in place]
    if strangers or not chosen:
        problem = f"no split knows its {_listed(strangers)}" if strangers else "it holds no case of this split"
        raise ValueError(
            f"split {config.split!r} cannot be taken from {config.data!r}: {problem}; splits are "
            f"{', '.join(splits)} and all, cases are {_listed(sources)}. Name cases "
            f"(--env.cases '[{sources[0].base}]') or take all (--env.split all)"
        )
    return sorted(chosen, key=lambda source: place[source.base])


def _is_unlabelled(source: _Source) -> bool:
    """The Decathlon's own test cases, which belong to no split."""
    return isinstance(source.origin, CaseFiles) and source.origin.label is None


def _listed(sources: Sequence[_Source]) -> str:
    ids = [source.id for source in sources]
    return ", ".join(ids) if len(ids) <= 6 else f"{', '.join(ids[:5])}, ... {ids[-1]} ({len(ids)} cases)"


# -- one case ------------------------------------------------------------------------------------------------------


def _load_each(
    sources: list[_Source], config: LiverDataConfig, on_bad: Callable[[BadCase], object] | None
) -> Iterator[LiverCase]:
    read = functools.lru_cache(maxsize=1)(functools.partial(read_sample, classes=CLASSES))  # copies share one reading
    for source in sources:
        try:
            case = _load(source, config, read)
        except (FileNotFoundError, ValueError) as error:
            if on_bad is None:
                raise
            log.warning("skipping %s: %s", source.id, error)
            on_bad(BadCase(source.id, str(error)))
        else:
            yield case


def _load(source: _Source, config: LiverDataConfig, read: Callable[[CaseFiles], Sample]) -> LiverCase:
    files = source.origin
    origin: Origin
    if isinstance(files, int):
        origin, file = "phantom", Frame(SHAPE, AFFINE)
        tensors = _to_grid(liver_phantom(files), file, config)
    else:
        origin, file = "real" if source.seed is None else "implanted", read_frame(files.image)
        selection = {"data": "", "split": "", "cases": None, "copies": 1, "cache_dir": None}  # what changes no voxel
        key = {
            "preparation": PREPARATION,
            "id": source.id,  # the lesions depend on it
            "image": file_digest(files.image),
            "label": None if files.label is None else file_digest(files.label),
            "config": asdict(config) | selection,
        }

        def build() -> dict[str, Tensor]:
            sample = read(files)
            if config.implant_lesions is not None and source.seed is not None:
                sample = implant_lesions(sample, config.implant_lesions, source.seed)
            return _to_grid(sample, file, config)

        tensors = cached("liver_ct", key, build, config.cache_dir)
    frame = GridFrame(file, *(_triple(tensors[name]) for name in ("shape", "resampled", "offset")))
    return LiverCase(
        id=source.id,
        origin=origin,
        image=tensors["image"],
        hu=tensors.get("hu"),
        label=tensors.get("label"),
        spacing_mm=frame.spacing_mm,
        digest=_digest(tensors),
        frame=frame,
    )


def _to_grid(sample: Sample, file: Frame, config: LiverDataConfig) -> dict[str, Tensor]:
    """Image, label and hu (where there are any) of a case on the grid, and how they came there."""
    shape = config.grid_shape or (SHAPE if config.data == "phantom" else CT_GRID)
    if config.grid == "fixed_shape":
        frame = stretched(file, shape)
    else:
        frame = around_body(sample, file, shape, config.spacing_mm)
    hu = frame.image(sample.image[0])
    tensors = {"image": scale_hu(hu, config.hu_window or HU_WINDOW)}
    if config.hu_window is None:
        tensors["hu"] = hu.round().to(torch.int16)
    if sample.label is not None:
        tensors["label"] = frame.label(sample.label)
    way = {"shape": frame.shape, "resampled": frame.resampled, "offset": frame.offset}
    return tensors | {name: torch.tensor(value) for name, value in way.items()}


def _triple(tensor: Tensor) -> Triple:
    x, y, z = tensor.tolist()
    return x, y, z


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("image", "hu"):
        if name in tensors:
            digest.update(f"{name} {tuple(tensors[name].shape)} ".encode())
            digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
