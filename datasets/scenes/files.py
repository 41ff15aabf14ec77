"""One photograph and its labels from files, and lists of such files (docs/rp-pgd.md, Method 14)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...common.reading import quoted, read_text
from ..folders import below
from ..images import IGNORED
from ..pictures import read_picture

UNKNOWN = -1
"""In a table: no such value may be stored."""
Table = npt.NDArray[np.int16]
"""Class number, `IGNORED` or `UNKNOWN` for each of the 256 values that a file of labels may store."""
MOST_NAMED = 8
"""Lines, values or files that an error names."""


@dataclass(frozen=True)
class Scene:
    """One photograph, of a size of its own."""

    id: str
    image: Tensor
    """uint8 [3, H, W], RGB; of other images than photographs [C, H, W]."""
    label: Tensor | None
    """uint8 [H, W], class numbers and `IGNORED`; None where no truth is known."""


@dataclass(frozen=True, eq=False)
class SceneFiles:
    """One photograph on disk."""

    id: str
    group: str
    """Images of one group show one place: the city of a street."""
    image: Path
    label: Path | None
    """None where no truth is known."""
    table: Table
    """What the values in `label` mean."""


@dataclass(frozen=True)
class SceneFolder:
    """A data set on disk."""

    classes: tuple[str, ...]
    """Name of each class, K of them."""
    splits: Mapping[str, Sequence[SceneFiles]]
    """Files of each split, each at least one; an image may be in several (train and trainval)."""


def value_table(classes: Mapping[int, int]) -> Table:
    """The table that gives the stored values their classes; all others are unknown."""
    table = np.full(256, UNKNOWN, np.int16)
    table[list(classes)] = list(classes.values())
    return table


def class_table(classes: int) -> Table:
    """The table of files that store the class numbers themselves, and `IGNORED`."""
    return value_table({k: k for k in range(classes)} | {IGNORED: IGNORED})


def read_scene(files: SceneFiles) -> Scene:
    """The photograph and its labels.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a damaged or truncated file, labels in colours, a stored value that has no meaning, or labels of
            another size than the photograph.
    """
    pixels = read_picture(_existing(files.image), ("JPEG", "PNG"), lambda picture: picture.convert("RGB"))
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    if files.label is None:
        return Scene(files.id, image, None)
    return Scene(
        files.id, image, read_labels(files.label, files.table, files.image, (pixels.shape[0], pixels.shape[1]))
    )


def read_labels(path: Path, table: Table, image: Path, size: tuple[int, int]) -> Tensor:
    """Class numbers and `IGNORED`, uint8 [H, W], of the photograph in the file `image`, which has H x W pixels.

    Raises:
        FileNotFoundError, ValueError: as `read_scene`.
    """
    stored = read_picture(_existing(path), ("PNG",))
    if stored.ndim == 3 and (stored == stored[..., :1]).all():
        stored = stored[..., 0]
    if stored.ndim != 2:
        raise ValueError(f"{path} holds labels in colours, but needs one number in each pixel; save it as grey")
    if stored.shape != size:
        raise ValueError(
            f"{path} has {stored.shape[0]} x {stored.shape[1]} pixels (y, x) but {image} has "
            f"{size[0]} x {size[1]}: they do not lie on each other; fetch both again"
        )
    return torch.from_numpy(_classes_of(stored, table, path))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file; unpack the data set again")
    return path


def _classes_of(stored: npt.NDArray[np.generic], table: Table, path: Path) -> npt.NDArray[np.uint8]:
    """What the stored values [Y, X] mean, uint8 [Y, X]."""
    values = stored.astype(np.int64)
    meant = np.where((values >= 0) & (values < len(table)), table[np.clip(values, 0, len(table) - 1)], UNKNOWN)
    if (meant == UNKNOWN).any():
        wrong = np.unique(values[meant == UNKNOWN])
        few = ", ".join(map(str, wrong[:MOST_NAMED])) + (", ..." if len(wrong) > MOST_NAMED else "")
        known = np.flatnonzero(table != UNKNOWN)
        raise ValueError(
            f"{path} has the label values {few} in {np.count_nonzero(meant == UNKNOWN):,} pixels but must have "
            f"{_ranges(known.tolist())}; map the others to these, or to {IGNORED} where that is allowed"
        )
    return meant.astype(np.uint8)


def _ranges(numbers: Sequence[int]) -> str:
    """The ascending numbers in words: 0..20, 255."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("..".join(map(str, part)) for part in parts)


# -- lists ---------------------------------------------------------------------------------------------------------


def read_list(path: Path, root: Path) -> list[tuple[Path, Path | None]]:
    """Image and label of each line of a list: two paths below `root`, with one space or more between them.

    A path may begin with a slash, as the released program needs it, or not. Without a second path the image has no
    label. Empty lines are skipped.

    Raises:
        FileNotFoundError: no such list, or paths in it that do not exist; each with its line, the first ones of many.
        ValueError: no text, no line, a line of more than two paths, an image that stands twice, a path that leads out
            of `root`, or some lines with a label and some without.
    """
    found, place = list[tuple[Path, Path | None]](), dict[Path, int]()
    bare, missing = list[int](), list[tuple[int, str]]()
    for number, line in list_lines(path):
        names = line.split()
        if len(names) > 2:
            raise ValueError(f"line {number} of {path} is {quoted(line)} but must be an image and a label path")
        image, *label = (below(root, name.lstrip("/"), f"line {number} of {path}") for name in names)
        if (first := place.setdefault(image, number)) != number:
            raise ValueError(f"line {number} of {path} names {names[0]!r}, as line {first} does; take one away")
        missing += [(number, name) for name, file in zip(names, (image, *label), strict=True) if not file.is_file()]
        bare += [] if label else [number]
        found.append((image, label[0] if label else None))
    if 0 < len(bare) < len(found):
        raise ValueError(
            f"{path} has no label path in {_lines(bare)}, but {len(found) - len(bare)} other lines have one; add them, "
            "or make a list of the images without labels"
        )
    if missing:
        lines = list(dict.fromkeys(number for number, _ in missing))
        raise FileNotFoundError(
            f"{path} names files that are not below {root}: {quoted(missing[0][1])} in line {missing[0][0]}; in all "
            f"{len(missing)}, in {_lines(lines)}; correct the list, or the folder"
        )
    return found


def list_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, with their numbers from 1.

    Raises:
        FileNotFoundError: no such list.
        ValueError: no text, or no line.
    """
    lines = [(n, line.strip()) for n, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} names no image; fill it, or take it away")
    return lines


def unique_ids(files: Iterable[SceneFiles], where: str) -> list[SceneFiles]:
    """The files, if no id stands twice.

    Raises:
        ValueError: two files of one id.
    """
    found: dict[str, SceneFiles] = {}
    for one in files:
        if (other := found.setdefault(one.id, one)) is not one:
            raise ValueError(f"{where}: {other.image} and {one.image} have one name; rename one of them")
    return list(found.values())


def _lines(numbers: Sequence[int]) -> str:
    few = ", ".join(map(str, numbers[:MOST_NAMED])) + (", ..." if len(numbers) > MOST_NAMED else "")
    return f"line{'s' if len(numbers) > 1 else ''} {few}"
