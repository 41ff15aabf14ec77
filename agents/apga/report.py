"""Metrics of runs on the same radiographs, with intervals and paired differences (docs/apga.md, Method 9)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...evaluation.classification import METRICS, STUDY, metric_intervals, paired_differences
from ...evaluation.report import markdown
from ...evaluation.statistics import Interval
from .config import Way

SHOWN = (*METRICS[:4], *(f"{STUDY}{name}" for name in METRICS))
"""Metrics in the tables: of images the first four, of studies all."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What one run says of the test images."""

    method: str
    ways: Mapping[Way, Tensor]
    """Probabilities [N, K] of each way to predict."""
    labels: Tensor
    ids: Sequence[str]
    studies: Sequence[str]


def classification_page(runs: Sequence[Judged]) -> str:
    """Markdown: each metric of each method and way, and by how much it differs from the first method's.

    Runs of one name are seeds of one method.

    Raises:
        ValueError: runs on different images, or methods with different numbers of seeds.
    """
    first = runs[0]
    for one in runs:
        if list(one.ids) != list(first.ids):
            raise ValueError(
                f"{one.method!r} and {first.method!r} were judged on different images; evaluate them apart"
            )
    if len(torch.unique(first.labels)) < 2:
        return "All images are of one class: nothing tells how well two are told apart.\n"
    methods = dict[str, list[Judged]]()
    for one in runs:
        methods.setdefault(one.method, []).append(one)
    rows, differences = list[list[str]](), list[list[str]]()
    for method, of_seeds in methods.items():
        for way in of_seeds[0].ways:
            p = torch.stack([one.ways[way] for one in of_seeds])
            rows.append([method, way, *_cells(metric_intervals(p, first.labels, first.studies))])
        base = methods[first.method]
        if method != first.method and len(base) == len(of_seeds):
            p, other = (torch.stack([one.ways["plain"] for one in group]) for group in (of_seeds, base))
            differences.append([method, *_cells(paired_differences(p, other, first.labels, first.studies))])
    titles = [name.replace("_", " ") for name in SHOWN]
    parts = [
        f"# Classification of {len(first.ids)} images of {len(set(first.studies))} studies",
        "",
        "Mean over seeds [95 % bootstrap interval over studies and seeds].",
        "",
        *markdown(["Method", "Prediction", *titles], rows),
    ]
    if differences:
        parts += ["", f"Difference from {first.method}, plain predictions, on the same resamples:", ""]
        parts += markdown(["Method", *titles], differences)
    return "\n".join(parts) + "\n"


def _cells(found: Mapping[str, Interval]) -> list[str]:
    def cell(one: Interval) -> str:
        return "–" if one.mean != one.mean else f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]"

    return [cell(found[name]) for name in SHOWN]
