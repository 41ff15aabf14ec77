"""What attacks left of a model: metrics, worst case, checks, as a table, a page and figures, made of results alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..attacks.named import FAMILIES
from .report import markdown
from .robustness_checks import Check, checks
from .robustness_metrics import Absent, Metrics, image_miou, metrics, mixed, worst_by_image, worst_by_search
from .robustness_results import AttackResult, read_attack_results
from .statistics import Interval, bootstrap_interval

MINIMAL = ("dag_free",)
"""Families that look for the smallest radius themselves."""
COLUMNS = {
    "miou": "mIoU",
    "macc": "mAcc",
    "aacc": "aAcc",
    "nmiou": "NmIoU",
    "dice": "Dice",
    "iou_small": "IoU small",
    "iou_medium": "IoU medium",
    "iou_large": "IoU large",
}
"""Metrics of the table, in percent, and their titles."""


@dataclass(frozen=True)
class WorstCase:
    """The lowest metrics that the attacks of one radius reach together, each image under one of them."""

    model: str
    eps: str
    aacc: float
    """Each image under the attack that leaves it the fewest right pixels."""
    miou: float
    """Each image under the attack that the search chose."""
    chosen: dict[str, int]
    """Images of each attack in that search."""


@dataclass(frozen=True)
class Radius:
    """What an attack without a bound needed to turn 99 % of the pixels of an image wrong."""

    model: str
    attack: str
    median: float
    """Of the largest changes of all images, as a share of the range; infinite where fewer than half were broken."""
    broken: int
    """Images that it did so with."""
    images: int
    """Images with valid pixels."""


@dataclass(frozen=True)
class RobustnessReport:
    """Results of attacks on one or several models on the same images, and all that is made of them.

    Raises:
        ValueError: no results, results of other images, or one attack, model and radius twice.
    """

    results: list[AttackResult]
    absent: Absent = "skip"
    """How mIoU and mAcc take a class that is in no image: left out, or as 0."""
    left_out: list[str] = field(default_factory=list)
    """Attacks of the preset that could not be made."""
    seed: int = 0
    """Of the search for the worst case."""

    def __post_init__(self) -> None:
        keys = [(one.model, one.attack, one.eps) for one in self.results]
        if not keys or len({*keys}) < len(keys):
            raise ValueError("a report needs results, each of another model, attack or eps")
        first = self.results[0]
        for one in self.results:
            if (one.ids, one.classes, one.depends.get("data")) != (first.ids, first.classes, first.depends.get("data")):
                raise ValueError(
                    f"{one.attack} on {one.model} has other images or classes than {first.attack} on {first.model}; "
                    "a report is about the same ones"
                )

    @classmethod
    def read(cls, folder: str | Path, absent: Absent = "skip") -> "RobustnessReport":
        """The report of the JSON files in a folder.

        Raises:
            FileNotFoundError: there are none.
            ValueError: a file that is no result, or results that do not belong together.
        """
        return cls(read_attack_results(folder), absent)

    def of(self, attack: str, eps: str | None = None, model: str | None = None) -> AttackResult:
        """The result of an attack; eps and model may be left out where there is one alone.

        Raises:
            ValueError: none, or several.
        """
        found = [
            one
            for one in self.results
            if one.attack == attack and eps in (None, one.eps) and model in (None, one.model)
        ]
        if len(found) != 1:
            there = sorted({(one.model, one.attack, one.eps) for one in self.results})
            raise ValueError(
                f"attack {attack!r} with eps {eps!r} on model {model!r} has {len(found)} results; (model, attack, eps) "
                f"are {there}"
            )
        return found[0]

    def metrics(self, attack: str, eps: str | None = None, model: str | None = None) -> Metrics:
        """Metrics under an attack, in [0, 1]; arguments and errors as those of `of`."""
        return metrics(self.of(attack, eps, model).counts, self.absent)

    @cached_property
    def ordered(self) -> list[AttackResult]:
        """The results by model, radius, and the order of the families."""
        families = [*FAMILIES]

        def place(one: AttackResult) -> tuple[str, float, int, int]:
            known = families.index(one.family) if one.family in families else len(families)
            return one.model, one.radius, known, one.steps or 0

        return sorted(self.results, key=place)

    @cached_property
    def worst(self) -> list[WorstCase]:
        """The worst case of each model and radius, over all white-box and black-box attacks."""
        groups: dict[tuple[str, str], list[AttackResult]] = {}
        for one in self.ordered:
            if one.kind in ("white", "black"):
                groups.setdefault((one.model, one.eps), []).append(one)
        return [self._worst(model, eps, rivals) for (model, eps), rivals in groups.items()]

    @cached_property
    def radii(self) -> list[Radius]:
        """The radius that each attack without a bound needed."""
        found = []
        for one in self.ordered:
            if one.family in MINIMAL:
                accuracy, farthest = one.counts.accuracy, np.array(one.farthest)
                valid, broken = ~np.isnan(accuracy), accuracy <= 0.01
                median = float(np.median(np.where(broken, farthest, np.inf)[valid])) if valid.any() else math.nan
                found.append(Radius(one.model, one.attack, median, int(broken.sum()), int(valid.sum())))
        return found

    @cached_property
    def checks(self) -> list[Check]:
        """Whether the evaluation can be believed: each check that its attacks allow, those that fail first."""
        return checks(self.results, self.absent)

    def table(self) -> str:
        """A Markdown table: a row for each model, attack and radius, and one for each worst case."""
        header = ["Model", "Attack", "ε", *COLUMNS.values(), "Forward", "Backward", "Seconds"]
        rows = []
        for one in self.ordered:
            values = metrics(one.counts, self.absent)
            cells = {name: percent(getattr(values, name)) for name in COLUMNS}
            cells["nmiou"] = _with_interval(one)
            cost = [f"{one.forwards:.4g}", f"{one.backwards:.4g}", f"{one.seconds:.3g}"]
            rows.append([one.model, one.attack, one.eps, *cells.values(), *cost])
        for worst in self.worst:
            cells = dict.fromkeys(COLUMNS, "–") | {"miou": percent(worst.miou), "aacc": percent(worst.aacc)}
            rows.append([worst.model, "worst case", worst.eps, *cells.values(), "–", "–", "–"])
        return "\n".join(markdown(header, rows))

    def write(self, folder: str | Path) -> Path:
        """Writes index.md and its figures; returns the path of index.md."""
        from .robustness_page import write_page  # here: figures need matplotlib

        return write_page(self, Path(folder))

    def __str__(self) -> str:
        """The table, and the checks that did not pass."""
        failed = [f"{one.model}: not so: {one.name}. {one.text}" for one in self.checks if not one.passed]
        return "\n".join([self.table(), *failed])

    def _worst(self, model: str, eps: str, rivals: Sequence[AttackResult]) -> WorstCase:
        counts = [one.counts for one in rivals]
        searched = worst_by_search(counts, self.absent, self.seed)
        return WorstCase(
            model,
            eps,
            metrics(mixed(counts, worst_by_image(counts)), self.absent).aacc,
            metrics(mixed(counts, searched), self.absent).miou,
            {one.attack: int((searched == number).sum()) for number, one in enumerate(rivals)},
        )


def percent(value: float) -> str:
    """The share in percent with one digit; "–" where it is NaN."""
    return "–" if value != value else f"{100 * value:.1f}"


def nmiou_interval(one: AttackResult) -> Interval:
    """Mean over images of their mIoU, and its 95 % bootstrap interval; NaN without a valid pixel."""
    values = image_miou(one.counts)
    known = values[values == values]
    return bootstrap_interval(known, resamples=2000) if known.size else Interval(*[float("nan")] * 3)


def _with_interval(one: AttackResult) -> str:
    mean, low, high = nmiou_interval(one)
    return percent(mean) if low != low else f"{percent(mean)} [{percent(low)}, {percent(high)}]"
