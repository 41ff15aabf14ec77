"""Liver CT on the working grid of SPARS (docs/spars.md, Method 2 and 11): phantoms, Decathlon or LiTS folders.

A case is an 8-bit image over a window of HU, its label (0 background, 1 liver, 2 tumour), and the way back to the file
it came from. Volumes from files are prepared once and cached by content.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...common.checks import AT_LEAST_1, POSITIVE, SHARE, check, check_choice
from ...common.files import file_digest
from ..cache import cached
from ..msd import CaseFiles, find_cases, read_sample
from ..nifti import MOST_VOXELS, Frame, read_frame, read_label, write_volume
from ..sample import BadSample, Origin, Sample, load_each
from ..selection import (
    Catalogue,
    PhantomNames,
    SelectionError,
    check_pattern,
    check_ratios,
    setting,
)
from .divisions import SPLIT_RATIOS, splits_of
from .grid import GridFrame, crop_around_body, resample_to_shape, scale_hu
from .lattice import SIDE, Triple
from .lesions import LesionConfig, implant_lesions
from .phantom import AFFINE, SHAPE, liver_phantom

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
PHANTOMS = PhantomNames("phantom_", digits=5)
PREPARATION = 1
"""Part of every cache key: raise it when the same file and settings shall give other tensors."""
_drawn_phantom = functools.lru_cache(maxsize=64)(liver_phantom)
"""Phantoms, each drawn once per process for all environments; the last 64 are kept, 1 MB each."""


@dataclass(frozen=True)
class LiverDataConfig:
    """Which liver CTs are used, and how they come to the working grid.

    Raises:
        ValueError: a value outside its range.
    """

    data: str = "phantom"
    """"phantom" (procedural, no files) or a folder: Task03_Liver, the folder above it, LiTS, or your own with NIfTI
    files in images/ and, of the same names, in labels/."""
    split: str = "rl_pool"
    """classifier_train, classifier_val, rl_pool or test (disjoint; see split_ratios), or all; a part of one, such as
    classifier_train[:8], or several, such as classifier_train[12:]+classifier_val[:4]."""
    cases: list[str] | None = None
    """Case ids, which win over the split; * and ? stand for any text: '[liver_5, "phantom_0200?", phantom_60-99]'."""
    split_ratios: dict[str, float] | None = None
    """Share of the patients in each split of a folder, e.g. '{classifier_train: 3, classifier_val: 1, rl_pool: 4, test:
    2}', which are also the shares of null; null leaves the Decathlon's cases to splits/spars_v1.json. Cases without
    label are in no split where others have one."""
    split_seed: int = 0
    """Seed of the division by split_ratios, which is the same on every machine."""
    patient_pattern: str | None = None
    """Regular expression that finds the patient in a case id (its first group, if it has one), so that no patient is in
    two splits, e.g. '^P[0-9]+'; null: each case is a patient."""
    grid: Literal["fixed_shape", "spacing"] = "fixed_shape"
    """fixed_shape: the whole volume stretched to grid_shape (paper). spacing: resampled to spacing_mm, then cropped
    around the body, or padded with air, to grid_shape."""
    grid_shape: Triple | None = None
    """Working grid in voxels (x, y, z); null: 64,64,48 for phantoms and 256,256,180 for files."""
    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 2.0)
    """Size of a voxel of the working grid in mm (x, y, z); only with grid=spacing."""
    hu_window: tuple[float, float] | None = HU_WINDOW
    """HU that become the grey values 0 and 255. null: -17 and 201, and the raw HU are kept beside the image for the
    classifier."""
    implant_lesions: LesionConfig | None = None
    """Put lesions into the livers, for CTs without tumour labels; null: none."""
    copies: int = 1
    """Number of versions of each CT with different implanted lesions: liver_0#0, liver_0#1, ...; more than 1 needs
    implant_lesions."""
    tumour_free: float = 0.0
    """Share of the phantoms, evenly among those chosen, whose tumours are left out: phantom_00001#healthy."""
    cache_dir: str | None = None
    """Folder for prepared volumes; null: $SEGARENA_CACHE, else ~/.cache/segarena."""

    def __post_init__(self) -> None:
        check(self, grid_shape=SIDE, spacing_mm=POSITIVE, copies=AT_LEAST_1, tumour_free=SHARE)
        check_ratios(self.split_ratios, list(SPLIT_RATIOS))
        check_pattern(self.patient_pattern)
        if math.prod(self.working_grid) > MOST_VOXELS:
            raise ValueError(f"grid_shape is {self.grid_shape} but must have at most {MOST_VOXELS:,} voxels")
        if self.hu_window is not None and self.hu_window[0] >= self.hu_window[1]:
            raise ValueError(f"hu_window is {self.hu_window} but must ascend, e.g. {HU_WINDOW}")
        if self.copies > 1 and self.implant_lesions is None:
            raise ValueError(f"copies is {self.copies} but needs implant_lesions, by which copies differ")
        if self.data == "phantom" and self.implant_lesions is not None:
            raise ValueError("implant_lesions needs CTs: give data a folder, or leave it out, as phantoms have tumours")
        if self.data != "phantom" and self.tumour_free:
            raise ValueError(f"tumour_free is {self.tumour_free} but data is {self.data!r}, no phantoms; leave it 0")

    @property
    def working_grid(self) -> Triple:
        """Shape of the working grid in voxels (x, y, z): `grid_shape`, or the data's default."""
        return self.grid_shape or (SHAPE if self.data == "phantom" else CT_GRID)


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
    """Size of a voxel of the working grid, (x, y, z)."""
    digest: str
    """SHA-256 of image and hu, not of the label: what is computed from the case is cached under it."""
    frame: GridFrame
    """The way back to the file."""
    native_label: Callable[[], npt.NDArray[np.uint8]] | None = None
    """Reads the label as it is before it is resampled, in the shape and voxel order of the file: 0, 1, 2. None where no
    truth is known, or the case comes from no file."""

    def to_native(self, mask: Tensor) -> npt.NDArray[np.uint8]:
        """A mask on the grid, [X, Y, Z], as uint8 in the shape and voxel order of the file (nearest; 0 outside).

        Raises:
            ValueError: a mask of another shape than the grid.
        """
        if mask.shape != self.image.shape:
            raise ValueError(f"mask has shape {(*mask.shape,)} but the grid of {self.id} has {(*self.image.shape,)}")
        native: npt.NDArray[np.uint8] = self.frame.to_file(mask.to(torch.uint8))
        return native

    def save_mask(self, mask: Tensor, path: Path) -> None:
        """Write a mask on the grid, [X, Y, Z], as a NIfTI file (.nii or .nii.gz) that lies on the case's own file."""
        write_volume(self.to_native(mask), self.frame.file, path)

    def save_map(self, values: Tensor, path: Path) -> None:
        """Write a map on the grid, [X, Y, Z], as float32 like `save_mask`: 0 where the file lies outside of the grid.

        Nearest as well, so that a threshold of the map is the mask of that threshold, voxel for voxel.
        """
        write_volume(self.frame.to_file(values.float()), self.frame.file, path)


def load_liver_cases(config: LiverDataConfig) -> list[LiverCase]:
    """All cases that the configuration names, on the CPU, in the order of `cases` or of the split.

    Args:
        config: data, cases, and the working grid in voxels and mm.

    Raises:
        FileNotFoundError, ValueError: as `iter_liver_cases`, for a bad case too.

    >>> from segarena.datasets.liver.cases import LiverDataConfig, load_liver_cases
    >>> (case,) = load_liver_cases(LiverDataConfig(cases=["phantom_3000"]))
    >>> case.id, case.image.shape, case.image.dtype, case.spacing_mm
    ('phantom_03000', torch.Size([64, 64, 48]), torch.uint8, (4.0, 4.0, 4.0))
    >>> case.label.unique().tolist()
    [0, 1, 2]
    """
    return list(iter_liver_cases(config))


def liver_case_ids(config: LiverDataConfig, option: str = "") -> list[str]:
    """Ids of the cases that the configuration names, in their order, without loading them.

    option: where split and cases stand on the command line, such as "--validation."; errors then say what to write
    there.

    Raises:
        FileNotFoundError: a missing folder.
        ValueError: a folder that cannot be used; a SelectionError: an unknown split or case.
    """
    return [source.id for source in _sources(config, option)]


def iter_liver_cases(
    config: LiverDataConfig, on_bad: Callable[[BadSample], object] | None = None
) -> Iterator[LiverCase]:
    """The cases that the configuration names, one at a time.

    on_bad: by default a bad case raises. Otherwise it is logged, handed to `on_bad` (`bad.append`, say) and left out.
    A folder without the wanted cases raises at once, whatever `on_bad` is.

    Raises:
        FileNotFoundError: a missing folder or file.
        ValueError: an unknown split or case, a bad file, or a liver too small for the lesions asked for.
    """
    read = functools.lru_cache(maxsize=1)(functools.partial(read_sample, classes=CLASSES))  # copies share one reading
    loaded = load_each(_sources(config), lambda source: _load(source, config, read), on_bad)
    return (case for _, case in loaded)


def case_of(sample: Sample, file: Frame, config: LiverDataConfig) -> LiverCase:
    """One CT that is read already, without lesions put in, on the working grid; nothing is cached.

    Args:
        sample: in RAS+ order, HU.
        file: shape and affine of the file that it was read from.
        config: the working grid in voxels and mm.
    """
    return _case(sample.id, sample.origin, _to_grid(sample, file, config), file)


# -- which cases ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where a case comes from: a phantom's number or files, and the seed of the lesions to put in, or "healthy"."""

    base: str
    origin: int | CaseFiles
    version: int | Literal["healthy"] | None

    @property
    def id(self) -> str:
        return self.base if self.version is None else f"{self.base}#{self.version}"


def _sources(config: LiverDataConfig, option: str = "") -> list[_Source]:
    """The wanted cases, in the order of `cases` or of the split."""
    origins: dict[str, int | CaseFiles]
    patterns = config.cases
    if config.data == "phantom":
        origins = {PHANTOMS.name(number): number for split in PHANTOM_SPLITS.values() for number in split}
        if patterns is not None:
            patterns = PHANTOMS.in_full(patterns)
            origins |= PHANTOMS.numbers(patterns)
    else:
        origins = {files.id: files for files in find_cases(Path(config.data))}
    seeds = [None] if config.implant_lesions is None else range(config.copies)
    sources = {s.id: s for s in (_Source(base, origin, seed) for base, origin in origins.items() for seed in seeds)}
    catalogue = Catalogue(
        config.data,
        {i: source.base for i, source in sources.items()},
        {},
        hint=f"name cases, such as {setting(option, 'cases', [next(iter(sources))])}, or take all by "
        f"{setting(option, 'split', 'all')}",
        key=f"{option}cases",
    )
    if patterns is None:
        if config.data == "phantom":
            splits = {name: [PHANTOMS.name(number) for number in split] for name, split in PHANTOM_SPLITS.items()}
        else:
            files = [origin for origin in origins.values() if isinstance(origin, CaseFiles)]
            splits = splits_of(config, files, catalogue.hint)
        chosen = replace(catalogue, splits=splits).in_split(config.split)
    elif not patterns:
        raise SelectionError(
            f"{option}cases is empty; there are {catalogue.listed(sources)}",
            f"name some, such as {setting(option, 'cases', [next(iter(sources))])}, or leave it out to use a split",
        )
    else:
        for part in config.split.split("+"):  # not used, but a slip all the same
            check_choice(f"{option}split", part.partition("[")[0], [*PHANTOM_SPLITS, "all"])
        chosen = catalogue.named(patterns)
    free = [int((n + 1) * config.tumour_free) > int(n * config.tumour_free) for n in range(len(chosen))]
    return [replace(sources[i], version="healthy") if f else sources[i] for i, f in zip(chosen, free, strict=True)]


# -- one case ------------------------------------------------------------------------------------------------------


def _load(source: _Source, config: LiverDataConfig, read: Callable[[CaseFiles], Sample]) -> LiverCase:
    files, native_label = source.origin, None
    origin: Origin
    if isinstance(files, int):
        origin, file = "phantom", Frame(SHAPE, AFFINE)
        tensors = _phantom_on_grid(files, source.version != "healthy", config)
    else:
        origin, file = "real" if source.version is None else "implanted", read_frame(files.image)
        key = {
            "preparation": PREPARATION,
            "id": source.id,  # the lesions depend on it
            "image": file_digest(files.image),
            "label": None if files.label is None else file_digest(files.label),
            "grid": (config.grid, config.working_grid, config.spacing_mm, config.hu_window),
            "lesions": None if config.implant_lesions is None else asdict(config.implant_lesions),
        }

        def build() -> dict[str, Tensor]:
            sample = read(files)
            if config.implant_lesions is not None and isinstance(source.version, int):
                sample = implant_lesions(sample, config.implant_lesions, source.version)
            return _to_grid(sample, file, config)

        tensors = cached("liver_ct", key, build, config.cache_dir)
        if "label" in tensors:
            seed = source.version if isinstance(source.version, int) else None
            native_label = functools.partial(_native_label, files, config.implant_lesions, seed)
    return replace(_case(source.id, origin, tensors, file), native_label=native_label)


def _native_label(files: CaseFiles, lesions: LesionConfig | None, seed: int | None) -> npt.NDArray[np.uint8]:
    """`LiverCase.native_label`; with a seed that of the lesions that are put in."""
    assert files.label is not None
    if lesions is None or seed is None:
        label, file = read_label(files.label, CLASSES)
    else:
        sample, file = implant_lesions(read_sample(files, CLASSES), lesions, seed), read_frame(files.image)
        assert sample.label is not None
        label = sample.label.numpy()
    return np.ascontiguousarray(file.from_ras(label))


def _case(case_id: str, origin: Origin, tensors: dict[str, Tensor], file: Frame) -> LiverCase:
    """The case of what `_to_grid` gives."""
    frame = GridFrame(file, *(_triple(tensors[name]) for name in ("shape", "resampled", "offset")))
    return LiverCase(
        id=case_id,
        origin=origin,
        image=tensors["image"],
        hu=tensors.get("hu"),
        label=tensors.get("label"),
        spacing_mm=frame.spacing_mm,
        digest=_digest(tensors),
        frame=frame,
    )


def _phantom_on_grid(number: int, tumours: bool, config: LiverDataConfig) -> dict[str, Tensor]:
    """`_to_grid` of a phantom; kept in this process where the grid is the phantom's own, of half a megabyte."""
    if config.working_grid != SHAPE:
        return _to_grid(_drawn_phantom(number, tumours), Frame(SHAPE, AFFINE), config)
    own = LiverDataConfig(grid=config.grid, spacing_mm=config.spacing_mm, hu_window=config.hu_window)
    kept = _kept_phantom(number, tumours, own)
    return {name: tensor.clone() for name, tensor in kept.items()}  # each case is its owner's


@functools.lru_cache(maxsize=64)
def _kept_phantom(number: int, tumours: bool, config: LiverDataConfig) -> dict[str, Tensor]:
    return _to_grid(_drawn_phantom(number, tumours), Frame(SHAPE, AFFINE), config)


def _to_grid(sample: Sample, file: Frame, config: LiverDataConfig) -> dict[str, Tensor]:
    """Image, label and hu (where there are any) of a case on the grid, and how they came there."""
    shape = config.working_grid
    if config.grid == "fixed_shape":
        frame = resample_to_shape(file, shape)
    else:
        frame = crop_around_body(sample, file, shape, config.spacing_mm)
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
