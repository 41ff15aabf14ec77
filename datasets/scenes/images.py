"""Photographs in one form, whatever they were read from: scenes of their own sizes, or one pool of one size
(docs/rp-pgd.md, Method 14)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ...common.checks import AT_LEAST_1, check
from ..images import ImagePool
from ..sample import BadSample, Origin, load_each
from ..selection import Catalogue, PhantomNames, setting
from . import ade20k, cityscapes, phantom, voc
from .augmentation import centred, long_side_resized
from .files import Scene, SceneFiles, SceneFolder, read_list, read_scene, unique_ids
from .phantom import scene_phantom

T = TypeVar("T")
FIRST_PHANTOM = {"train": 0, "val": 100_000, "test": 200_000}
"""Number of the first phantom scene of each split."""
PHANTOMS = PhantomNames("scene_", digits=6)


@dataclass(frozen=True)
class PhantomScenes:
    """Number of phantom scenes per split.

    Raises:
        ValueError: a negative number, more than keep the splits apart, or none at all.
    """

    train: int = 200
    """Scenes from which networks learn."""
    val: int = 50
    """Scenes that choose checkpoints."""
    test: int = 100
    """Scenes on which results are computed."""

    def __post_init__(self) -> None:
        most = (0, 100_000)  # the numbers of the next split's scenes follow
        check(self, "phantom_scenes.", train=most, val=most, test=most)
        if not any(asdict(self).values()):
            raise ValueError("phantom_scenes has none in any split; give one of them at least 1 scene")


@dataclass(frozen=True)
class SceneDataConfig:
    """Which photographs are used, and at which size.

    Raises:
        ValueError: a value outside its range, or one that does not belong to these data.
    """

    data: str = "phantom"
    """"phantom" (procedural, no files), or the folder of VOC 2012 (VOCdevkit too), Cityscapes or ADE20K."""
    size: int = 129
    """Height and width in pixels of phantoms, and of pools; 8 k + 1 for networks of stride 8."""
    fit: Literal["pad", "crop"] = "pad"
    """How a photograph becomes size x size: pad: its longer side becomes size, the rest is padding; crop: its middle
    as it is, padded where it is smaller."""
    long_side: int | None = None
    """Pixels that the longer side is brought to before anything else (Cityscapes is evaluated at 1024); null: as the
    file has it."""
    lists: dict[str, str] | None = None
    """List file of each split, '{train: my_train.txt}': an image and a label path in each line, below the folder; null:
    the data set's own splits."""
    ade20k_converted: bool = False
    """Annotations of ADE20K are 0..149 and 255, as the released program needs them, instead of 0..150."""
    phantom_scenes: PhantomScenes = field(default_factory=PhantomScenes)
    """Number of phantom scenes per split."""

    def __post_init__(self) -> None:
        check(self, size=(16, math.inf), long_side=AT_LEAST_1)
        if self.data == "phantom" and (self.lists is not None or self.long_side is not None):
            raise ValueError("lists and long_side belong to photographs; phantoms have phantom_scenes and size")


@dataclass(frozen=True, eq=False)
class Scenes:
    """The scenes of one split, read or drawn when they are asked for, so that ten thousands need no memory."""

    ids: list[str]
    groups: list[str]
    """Place of each scene; images of one group show one place."""
    classes: tuple[str, ...]
    """Name of each class."""
    origin: Origin
    load: Callable[[str], Scene]
    """The scene of an id."""
    config: SceneDataConfig
    channels: ClassVar[int] = 3

    @property
    def side(self) -> int | None:
        """Height and width of all of them in pixels; None: they have sizes of their own."""
        return self.config.size if self.origin == "phantom" else None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Scene:
        """One scene of its own size.

        Raises:
            FileNotFoundError, ValueError: a file that is missing or cannot be used.
        """
        return self.load(self.ids[row])

    def __iter__(self) -> Iterator[Scene]:
        return map(self.load, self.ids)

    def pool(self, on_bad: Callable[[BadSample], object] | None = None) -> ImagePool:
        """All scenes at `config.size` x `config.size`, as `config.fit` says, resident as bytes.

        What is padding has the mean colour and is ignored. A pool has labels of all its scenes, or of none.

        on_bad: by default a bad file raises. Otherwise it is logged, handed to `on_bad` and left out.

        Raises:
            FileNotFoundError, ValueError: a file that is missing or cannot be used; or none is left.
        """
        fitted = self._each(lambda name: self._fitted(self.load(name)), on_bad)
        labels = [label for _, label in fitted.values() if label is not None]
        return ImagePool(
            images=torch.stack([image for image, _ in fitted.values()]),
            labels=torch.stack(labels) if len(labels) == len(fitted) else None,
            ids=[one.id for one in fitted],
            groups=[one.group for one in fitted],
            tags={},
            spacing_mm=torch.full((len(fitted), 2), math.nan, dtype=torch.float64),
            classes=self.classes,
            origin=self.origin,
        )

    def whole(self, on_bad: Callable[[BadSample], object] | None = None) -> dict[str, Scene]:
        """All scenes by id, each of its own size; `on_bad` and errors as of `pool`."""
        return {one.id: scene for one, scene in self._each(self.load, on_bad).items()}

    def _each(self, load: Callable[[str], T], on_bad: Callable[[BadSample], object] | None) -> "dict[_Named, T]":
        """What `load` makes of each scene."""
        sources = [_Named(name, group) for name, group in zip(self.ids, self.groups, strict=True)]
        found = dict(load_each(sources, lambda one: load(one.id), on_bad))
        if not found:
            raise ValueError(f"none of the {len(self)} scenes of {self.config.data!r} can be used")
        return found

    def _fitted(self, scene: Scene) -> tuple[Tensor, Tensor | None]:
        """Image uint8 [3, size, size] and label uint8 [size, size]."""
        image, label, size = scene.image.float() / 255, scene.label, self.config.size
        if self.config.fit == "pad":
            image, label = long_side_resized(image, label, size)
        image, label = centred(image, label, size)
        return (255 * image).round().to(torch.uint8), label


@dataclass(frozen=True)
class _Named:
    id: str
    group: str


def load_scenes(config: SceneDataConfig, split: str, option: str = "") -> Scenes:
    """The scenes of one split.

    Phantoms have train, val and test, and a scene of every number: split "scene_000007" or "scene_500-599" names them.
    VOC has train, train_aug (with the masks of SBD), val and trainval, as far as their lists are there; Cityscapes
    train, val and test (without labels); ADE20K train and val; `config.lists` what it names. "val[:100]" is a part.

    Args:
        config: data, sizes and lists.
        split: name of the split.
        option: where the fields of `config` stand on the command line; errors then say what to write there.

    Raises:
        FileNotFoundError: a missing folder, list, or file of a list.
        ValueError: an unknown split, a folder of no known layout, or a list that cannot be used.

    >>> from segarena.datasets.scenes.images import PhantomScenes, SceneDataConfig, load_scenes
    >>> scenes = load_scenes(SceneDataConfig(size=65, phantom_scenes=PhantomScenes(val=2)), "val")
    >>> scenes.ids, scenes[1].image.shape, scenes.classes[:3]
    (['scene_100000', 'scene_100001'], torch.Size([3, 65, 65]), ('background', 'disc', 'square'))
    >>> scenes.pool().labels.shape
    torch.Size([2, 65, 65])
    """
    if config.data == "phantom":
        return _phantoms(config, split, option)
    folder = find_scenes(config)
    files = {one.id: one for listed in folder.splits.values() for one in listed}
    for part in split.split("+")[::-1]:  # where splits have masks of two kinds, those of the split that is named
        files |= {one.id: one for one in folder.splits.get(part.partition("[")[0], [])}
    splits = {name: [one.id for one in listed] for name, listed in folder.splits.items()}
    ids = _chosen(config, split, list(files), splits, option)

    def load(name: str) -> Scene:
        scene = read_scene(files[name])
        if config.long_side is None:
            return scene
        image, label = long_side_resized(scene.image.float() / 255, scene.label, config.long_side)
        return Scene(name, (255 * image).round().to(torch.uint8), label)

    return Scenes(ids, [files[name].group for name in ids], folder.classes, "real", load, config)


def find_scenes(config: SceneDataConfig) -> SceneFolder:
    """The data set in the folder `config.data`, known by its layout.

    Raises:
        FileNotFoundError: no such folder, no image, or a missing list or file of it.
        ValueError: a folder of no known layout, or a list that cannot be used.
    """
    root = Path(config.data)
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {root} does not exist or is no folder")
    root = next((below for below in (root / "VOC2012", root / "VOCdevkit" / "VOC2012") if below.is_dir()), root)
    classes: tuple[str, ...]
    find: Callable[[Path], SceneFolder]
    if (root / "JPEGImages").is_dir():
        classes, table, find = voc.CLASSES, voc.TABLE, voc.find_voc
    elif (root / "leftImg8bit").is_dir():
        classes, table, find = cityscapes.CLASSES, cityscapes.TRAIN_IDS, cityscapes.find_cityscapes
    elif (root / "annotations").is_dir():
        classes, table = ade20k.CLASSES, ade20k.CONVERTED if config.ade20k_converted else ade20k.RAW
        find = partial(ade20k.find_ade20k, converted=config.ade20k_converted)
    else:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "an empty folder"
        raise ValueError(
            f"no scenes in {root}: expected JPEGImages (VOC 2012), leftImg8bit (Cityscapes), or images and annotations "
            f"(ADE20K); found {found}"
        )
    if config.lists is None:
        return find(root)
    splits = {}
    for split, path in config.lists.items():
        pairs = read_list(Path(path), root)
        listed = [SceneFiles(image.stem, image.parent.name, image, label, table) for image, label in pairs]
        splits[split] = unique_ids(listed, path)
    return SceneFolder(classes, splits)


def _phantoms(config: SceneDataConfig, split: str, option: str) -> Scenes:
    splits = {
        name: [PHANTOMS.name(n) for n in range(FIRST_PHANTOM[name], FIRST_PHANTOM[name] + number)]
        for name, number in asdict(config.phantom_scenes).items()
        if number
    }
    named = PHANTOMS.in_full([split])
    if PHANTOMS.numbers(named):
        ids = named
    else:
        ids = _chosen(config, split, [name for names in splits.values() for name in names], splits, option)
    numbers = PHANTOMS.numbers(ids)

    def load(name: str) -> Scene:
        return scene_phantom(numbers[name], config.size)

    return Scenes(ids, ids, phantom.CLASSES, "phantom", load, config)


def _chosen(
    config: SceneDataConfig, split: str, everything: Sequence[str], splits: Mapping[str, Sequence[str]], option: str
) -> list[str]:
    hint = f"choose one of these, such as {setting(option, 'split', next(iter(splits)))}"
    return Catalogue(config.data, {name: name for name in everything}, splits, "scene", hint).in_split(split)
