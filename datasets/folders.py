"""Files in a user's folder: pairs of `images/` and `labels/`, and names that a list of the folder gives."""

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)
PIXELS = (".raw", ".zraw", ".raw.gz")
"""Suffixes of the files that hold the pixels of a header beside them (.mhd, .nhdr)."""


class Pair(NamedTuple):
    """An image, and the label of the same name."""

    name: str
    """File name without its suffix."""
    image: Path
    label: Path | None
    """None where there is none."""


def find_pairs(folder: Path, suffixes: Sequence[str]) -> list[Pair]:
    """The images of `folder/images` by name, each with the file of the same name in `folder/labels` if there is one.

    suffixes: of the files that can be read, in small letters; the others are named in a warning. Names that begin with
    a dot are skipped.

    Raises:
        FileNotFoundError: no image that can be read.
        ValueError: two files of one name, or a label without its image.
    """
    images = _by_name(folder / "images", suffixes)
    labels = _by_name(folder / "labels", suffixes) if (folder / "labels").is_dir() else {}
    if not images:
        raise FileNotFoundError(f"no image in {folder / 'images'}: expected files that end in {', '.join(suffixes)}")
    if lost := [labels[name] for name in labels if name not in images]:
        raise ValueError(f"{lost[0]} has no image of its name in {folder / 'images'}; rename it, or take it away")
    return [Pair(name, image, labels.get(name)) for name, image in images.items()]


def suffix_of(path: Path, suffixes: Iterable[str]) -> str:
    """The first of `suffixes` that the file's name ends in, whatever its case; "" where none fits."""
    return next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), "")


def _by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not (suffix := suffix_of(path, suffixes)):
            others += [] if suffix_of(path, PIXELS) else [path.name]
            continue
        name = path.name[: -len(suffix)]
        if name in files:
            raise ValueError(f"{files[name]} and {path} have one name; take one of them away")
        files[name] = path
    if others:
        ends = ", ".join(suffixes)
        log_once(f"{len(others)} files in {folder} are not read ({others[0]}): no {ends}", logging.WARNING)
    return files


def below(folder: Path, name: str, where: str) -> Path:
    """The file `name` of the folder.

    where: what names it, the begin of the error.

    A link is followed wherever it leads: its owner made it, and data sets are often linked from another disk.

    Raises:
        ValueError: a name that leads out of the folder, or is none.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where} names {name!r}, which must lie below {folder}")
    if "\0" in name:
        raise ValueError(f"{where} names {name!r}, which is no file name")
    return folder / path


@lru_cache(maxsize=1000)
def log_once(text: str, level: int = logging.INFO) -> None:
    """Log a text once per process, however often a folder is looked into or images of one size come."""
    log.log(level, "%s", text)
