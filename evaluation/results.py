"""Results are data: one JSON file per method, seed and data set, written by the program and never by hand."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from ..common.checks import check, check_choice
from ..common.files import write_text
from ..common.reading import quoted, read_json
from ..datasets.sample import Origin
from .machine import describe_machine, git_revision

Case = dict[str, Any]
"""`case_id` and `origin`, and by name whatever else is known of the case: text is a tag (the view, say), a number is a
metric, None a metric that is undefined.

Where several cases may be of one patient they name their `patient`.
"""
Mode = Literal["transductive", "inductive"]
"""Whether the method saw the evaluated images, without their labels, while it learned."""


@dataclass(frozen=True)
class Result:
    """Result of one method with one seed on one data set.

    Raises:
        ValueError: an unknown mode or origin, a case without id or origin, a case twice, origins that do not count the
            cases.
    """

    id: str
    paper: str
    env: str
    method: str
    seed: int
    data: str
    """Name of the data set, not its folder."""
    split: str
    supervision: str
    """Labels that the method learned from, such as "window", "patient", "voxel" or "none"."""
    mode: Mode
    origins: dict[str, int]
    """Number of phantom, implanted and real cases; see `count_origins`."""
    metrics: dict[str, float | None]
    """Means over the cases (see `report.mean_metrics`), and what is counted over all of them at once."""
    cases: list[Case]
    settings: dict[str, Any]
    """Settings of the evaluation: rollouts, mask_threshold and how it was chosen, tolerance_mm, ..."""
    command: str
    revision: str | None = field(default_factory=git_revision)
    machine: dict[str, Any] = field(default_factory=describe_machine)
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, get_args(Mode))
        if unknown := set(self.origins) - set(get_args(Origin)):
            raise ValueError(f"origins has {sorted(unknown)} but allowed are {get_args(Origin)}")
        for case in self.cases:
            if "case_id" not in case or case.get("origin") not in get_args(Origin):
                raise ValueError(f"a case needs a case_id and an origin of {get_args(Origin)}, got {case}")
        twice = [case_id for case_id, n in Counter(case["case_id"] for case in self.cases).items() if n > 1]
        if twice:
            raise ValueError(f"case_id {twice} stands more than once in the result {self.id!r}")
        if self.cases and {k: n for k, n in self.origins.items() if n} != dict(count_origins(self.cases)):
            raise ValueError(f"origins is {self.origins} but the cases are {count_origins(self.cases)}")

    def write(self, path: str | Path) -> None:
        """Writes the result to `path` as JSON, whole or not at all; NaN and infinity become null."""
        text = json.dumps(_finite(asdict(self)), indent=1, allow_nan=False, ensure_ascii=False)
        write_text(Path(path), text + "\n")

    def write_cases(self, path: str | Path) -> None:
        """Writes the cases to `path` as CSV (RFC 4180), whole or not at all: a line each, in the order of the result.

        Columns: case_id, origin, patient where there is one, then all others in the order in which the cases first have
        them. Lengths and volumes have their unit in their name (hd95_mm, false_positive_ml); shares lie in 0..1. A
        number that is undefined or infinite is an empty cell.
        """
        first = [name for name in ("case_id", "origin", "patient") if any(name in case for case in self.cases)]
        columns = list(dict.fromkeys([*first, *(name for case in self.cases for name in case)]))
        text = io.StringIO(newline="")
        lines = csv.DictWriter(text, columns, restval="")
        lines.writeheader()
        lines.writerows(_finite(case) for case in self.cases)
        write_text(Path(path), text.getvalue())


def read_results(where: str | Path | Iterable[str | Path]) -> list[Result]:
    """The results in a folder (its *.json, sorted by name), in one file, or in the given files in their order.

    Raises:
        FileNotFoundError: a file that does not exist, or a folder without JSON files.
        ValueError: a file that is no result: no JSON, keys that miss or are unknown, values that contradict.
    """
    if not isinstance(where, str | Path):
        return [_read(Path(path)) for path in where]
    folder = Path(where)
    if not folder.is_dir():
        return [_read(folder)]
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no *.json in the folder {folder}")
    return [_read(path) for path in paths]


def empty_target(case: Mapping[str, Any]) -> bool:
    """Whether the case is known to have nothing to find in its truth, so that no overlap can be measured."""
    return case.get("label_voxels") == 0


def unlabelled(case: Mapping[str, Any]) -> bool:
    """Whether the case is known to have no labels, where others of its result have some."""
    return case.get("labelled") == 0


def count_origins(cases: Sequence[Case]) -> dict[str, int]:
    """Number of cases of each origin that occurs."""
    return dict(Counter(str(case["origin"]) for case in cases))


def _finite(value: Any) -> Any:
    """The same JSON tree with null for every NaN and infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> Result:
    if not path.exists():
        raise FileNotFoundError(f"no result file {path}")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} but a result is a JSON object")
    known = {f.name for f in fields(Result)}
    missing, unknown = sorted(known - content.keys()), sorted(content.keys() - known)
    if missing or unknown:
        raise ValueError(f"{path} is not a result: missing keys {missing}, unknown keys {unknown}")
    try:
        result = Result(**content)
        check(result)
        for case in result.cases:
            _check_case(case)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a result: {quoted(error)}") from error
    return result


def _check_case(case: Case) -> None:
    """Raises ValueError: what is known of a case is no text, no finite number and not undefined (None)."""
    for name, value in case.items():
        fits = math.isfinite(value) if isinstance(value, float) else isinstance(value, str | int | NoneType)
        if not fits:
            raise ValueError(f"{name} of case {case['case_id']!r} is {value!r} but must be text, a number or null")
