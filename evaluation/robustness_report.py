"""What attacks left of a model: metrics, worst case, checks, as a table, a page and figures, made of results alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .report import markdown
from .robustness_metrics import Absent, Counts, Metrics, metrics, mixed, worst_by_image, worst_by_search
from .robustness_results import AttackResult

COLUMNS = (
    ("miou", "mIoU"),
    ("macc", "mAcc"),
    ("aacc", "aAcc"),
    ("nmiou", "NmIoU"),
    ("dice", "Dice"),
    ("iou_small", "IoU small"),
    ("iou_medium", "IoU medium"),
    ("iou_large", "IoU large"),
)
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
class RobustnessReport:
    """Results of attacks on one or several models, and all that is made of them.

    Raises:
        ValueError: no results, or one attack, model and radius twice.
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

    def of(self, attack: str, eps: str | None = None, model: str | None = None) -> AttackResult:
        """The result of an attack; eps and model may be left out where there is one alone.

        Raises:
            KeyError: none, or several.
        """
        found = [
            one
            for one in self.results
            if one.attack == attack and eps in (None, one.eps) and model in (None, one.model)
        ]
        if len(found) != 1:
            there = sorted({(one.model, one.attack, one.eps) for one in self.results})
            raise KeyError(f"{len(found)} results of attack {attack!r}, eps {eps}, model {model}; there are {there}")
        return found[0]

    def metrics(self, attack: str, eps: str | None = None, model: str | None = None) -> Metrics:
        """Metrics under an attack, in [0, 1]; see `of`."""
        return metrics(self.of(attack, eps, model).counts, self.absent)

    @cached_property
    def worst(self) -> list[WorstCase]:
        """The worst case of each model and radius, over its attacks with knowledge of the model."""
        found = []
        for model, eps in dict.fromkeys((one.model, one.eps) for one in self.results if one.kind in ("white", "black")):
            rivals = [one for one in self.results if (one.model, one.eps) == (model, eps) and one.family != "unbounded"]
            rivals = [one for one in rivals if one.kind in ("white", "black")]
            if not rivals:
                continue
            counts: Sequence[Counts] = [one.counts for one in rivals]
            searched = worst_by_search(counts, self.absent, self.seed)
            found.append(
                WorstCase(
                    model,
                    eps,
                    metrics(mixed(counts, worst_by_image(counts)), self.absent).aacc,
                    metrics(mixed(counts, searched), self.absent).miou,
                    {one.attack: int((searched == number).sum()) for number, one in enumerate(rivals)},
                )
            )
        return found

    def table(self) -> str:
        """A Markdown table: a row for each model, attack and radius, and one for each worst case."""
        header = ["Model", "Attack", "ε", *(title for _, title in COLUMNS), "Forward", "Backward", "Seconds"]
        rows = []
        for one in self.results:
            values = metrics(one.counts, self.absent)
            cells = [_percent(getattr(values, name)) for name, _ in COLUMNS]
            cost = [f"{one.forwards:.4g}", f"{one.backwards:.4g}", f"{one.seconds:.3g}"]
            rows.append([one.model, one.attack, one.eps, *cells, *cost])
        for worst in self.worst:
            known = {"miou": _percent(worst.miou), "aacc": _percent(worst.aacc)}
            cells = [known.get(name, "–") for name, _ in COLUMNS]
            rows.append([worst.model, "worst case", worst.eps, *cells, "–", "–", "–"])
        return "\n".join(markdown(header, rows))

    def write(self, folder: str | Path) -> Path:
        """Writes index.md and its figures; returns the path of index.md."""
        from .robustness_page import write_page  # here: figures need matplotlib

        return write_page(self, Path(folder))

    def __str__(self) -> str:
        return self.table()


def _percent(value: float) -> str:
    return "–" if value != value else f"{100 * value:.1f}"
