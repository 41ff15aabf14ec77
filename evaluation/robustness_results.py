"""One attack on one model as data: a JSON file that holds the pixel counts of each image, of which every metric, page
and figure is made."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..attacks.named import Kind
from ..common.checks import AT_LEAST_0, AT_LEAST_1, SHARE, check
from ..common.files import write_text
from ..common.names import slug
from ..common.reading import quoted, read_json
from .machine import describe_machine, git_revision
from .robustness_metrics import Counts

Rows = list[list[int]]
"""[N, K]."""
PATTERN = "*__eps_*.json"
"""Of the names that `file_name` gives."""
MOST_PIXELS = 2**40
"""Of a class in one image."""


@dataclass(frozen=True)
class AttackResult:
    """What an attack left of a model's segmentation.

    Raises:
        ValueError: counts that do not fit to each other or to the images, or numbers that no count can be.
    """

    model: str
    """Its name."""
    attack: str
    """Its name, such as pgd_20."""
    title: str
    kind: Kind
    family: str
    """Attacks of one family differ in the number of steps alone."""
    steps: int | None
    eps: str
    """As it was given; "0" of clean images."""
    radius: float
    """Share of the range that eps stands for; 0 of clean images."""
    ids: list[str]
    """Name of each image, [N]."""
    classes: list[str]
    """Name of each class, [K]."""
    both: Rows
    """Pixels that are both predicted and true, of each image and class."""
    predicted: Rows
    true: Rows
    farthest: list[float]
    """Largest change of a value of each image, as a share of the range, [N]."""
    forwards: float
    """Forward passes of the attacked model for each image."""
    backwards: float
    """Backward passes for each image."""
    seconds: float
    """Of the attack on all images."""
    zero_gradient: float | None
    """Share of the values whose first gradient was exactly 0; None where the attack took none."""
    depends: dict[str, Any]
    """What the numbers depend on: digests of weights and data, seed, batch size, bounds, ..."""
    revision: str | None = field(default_factory=git_revision)
    machine: dict[str, Any] = field(default_factory=describe_machine)
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        check(
            self,
            steps=AT_LEAST_1,
            radius=SHARE,
            farthest=AT_LEAST_0,
            forwards=AT_LEAST_0,
            backwards=AT_LEAST_0,
            seconds=AT_LEAST_0,
            zero_gradient=SHARE,
        )
        shape = (len(self.ids), len(self.classes))
        if not self.ids or len({*self.ids}) < len(self.ids) or not self.classes or len(self.farthest) != len(self.ids):
            raise ValueError(
                f"attack {self.attack!r} has {len(self.ids)} ids, {len(self.classes)} classes and {len(self.farthest)} "
                "distances, but needs images of different ids, a distance for each, and classes"
            )
        for name, part in zip(Counts._fields, (self.both, self.predicted, self.true), strict=True):
            if len(part) != shape[0] or any(len(row) != shape[1] for row in part):
                raise ValueError(f"{name} must be {[*shape]} numbers, one for each image and class of the result")
            if not all(0 <= pixels <= MOST_PIXELS for row in part for pixels in row):
                raise ValueError(f"{name} of the result must be numbers of pixels, 0 to {MOST_PIXELS}")
        counts = self.counts
        if (counts.both > np.minimum(counts.predicted, counts.true)).any():
            raise ValueError("more pixels are both predicted and true than are true, or predicted, in the result")
        if (counts.predicted.sum(axis=1) != counts.true.sum(axis=1)).any():
            raise ValueError("as many pixels must be predicted as are true, in each image of the result")

    @cached_property
    def counts(self) -> Counts:
        """Pixels of each image and class."""
        return Counts(*(np.array(part, dtype=np.int64) for part in (self.both, self.predicted, self.true)))

    def write(self, path: str | Path) -> None:
        """Writes the result as JSON, whole or not at all."""
        text = json.dumps(asdict(self), allow_nan=False, ensure_ascii=False)
        write_text(Path(path), text + "\n")


def file_name(model: str, attack: str, eps: str) -> str:
    """Name of the JSON file of an attack."""
    return "__".join(map(slug, (model, attack, f"eps {eps}"))) + ".json"


def read_attack_results(where: str | Path | Iterable[str | Path]) -> list[AttackResult]:
    """The results in a folder (its files that `file_name` names, sorted), in one file, or in the given files in order.

    Raises:
        FileNotFoundError: a file that does not exist, or a folder without results of attacks.
        ValueError: a file that is no result of an attack.
    """
    if not isinstance(where, str | Path):
        return [_read(Path(path)) for path in where]
    folder = Path(where)
    if not folder.is_dir():
        return [_read(folder)]
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        raise FileNotFoundError(f"no result of an attack ({PATTERN}) in the folder {folder}")
    return [_read(path) for path in paths]


def _read(path: Path) -> AttackResult:
    if not path.exists():
        raise FileNotFoundError(f"no result file {path}")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} but a result is a JSON object")
    known = {one.name for one in fields(AttackResult)}
    missing, unknown = sorted(known - content.keys()), sorted(content.keys() - known)
    if missing or unknown:
        raise ValueError(f"{path} is no result of an attack: missing keys {missing}, unknown keys {unknown}")
    try:
        result = AttackResult(**content)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no result of an attack: {quoted(error)}") from error
    return result
