"""Tables of results in Markdown, which a terminal shows as well, and comparisons with a baseline.

Every number is a mean over cases. Cases without a target are left out of Dice and its kin (`metrics.NEEDS_TARGET`) and
get columns of their own: the volume that was painted on them, and the share of them on which nothing was. Where cases
name their `patient`, intervals and p-values are over patients: images of one heart are not independent.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .results import Case, Result, metric_values, tumour_free
from .statistics import Interval, bootstrap_interval, cluster_means, paired_wilcoxon

Floats = npt.NDArray[np.float64]
Spread = Literal["interval", "std"]


class Column(NamedTuple):
    """How a metric is shown: its values times `scale` are in `unit`."""

    title: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3


COLUMNS = {
    "dice": Column("Dice", "%", 100, 1),
    "dice_at_0.5": Column("Dice, θ = 0.5", "%", 100, 1),
    "terminal_hit": Column("Episodes ended on tumour", "%", 100, 1),
    "steps": Column("Steps", "", 1, 1),
    "success": Column("Tumour touched", "%", 100, 1),
    "iou": Column("IoU", "%", 100, 1),
    "precision": Column("Precision", "%", 100, 1),
    "recall": Column("Recall", "%", 100, 1),
    "hd95_mm": Column("HD95", "mm", 1, 1),
    "nsd": Column("NSD", "%", 100, 1),
    "lesion_recall": Column("Lesion recall", "%", 100, 1),
    "lesion_precision": Column("Lesion precision", "%", 100, 1),
    "lesion_recall_iou": Column("Lesion recall, IoU > 0.1", "%", 100, 1),
    "lesion_precision_iou": Column("Lesion precision, IoU > 0.1", "%", 100, 1),
    "false_positive_ml": Column("False positive", "ml", 1, 1),
    "dice_endo": Column("Dice ENDO", "%", 100, 1),
    "dice_myo": Column("Dice MYO", "%", 100, 1),
    "dice_epi": Column("Dice EPI", "%", 100, 1),
    "dice_avg": Column("Dice, ENDO and EPI", "%", 100, 1),
    "hd_endo_mm": Column("HD ENDO", "mm", 1, 1),
    "hd_myo_mm": Column("HD MYO", "mm", 1, 1),
    "hd_epi_mm": Column("HD EPI", "mm", 1, 1),
    "valid": Column("Anatomically valid", "%", 100, 1),
    "empty": Column("LV or MYO missing", "%", 100, 1),
    "error_auroc": Column("Error AUROC"),
    "ece": Column("ECE"),
    "pixel_accuracy": Column("Pixel accuracy", "%", 100, 1),
}
"""Metrics with a unit; any other is shown as it is, with three digits."""


class Comparison(NamedTuple):
    """A method against a baseline on the same cases."""

    difference: Interval
    """Method minus baseline, in the unit of the metric."""
    p_value: float
    """Two-sided paired Wilcoxon test over cases, or over the means of patients where the cases name them; seeds
    averaged, not corrected for several methods."""
    cases: int


def table(
    results: Sequence[Result],
    metrics: Sequence[str] = ("dice", "hd95_mm", "nsd", "lesion_recall", "lesion_precision"),
    *,
    baseline: str | None = None,
    spread: Spread = "interval",
) -> str:
    """A Markdown table with one row per method, in the order in which the results name them.

    Results of one method that differ in the seed become one row. A cell is "mean [low, high]" with the 95 % bootstrap
    interval over cases (or patients) and seeds, or "mean ± std" with the population standard deviation over cases
    (seeds averaged) for `spread` "std"; "–" where the metric is undefined for one of its cases. With a `baseline` the
    last column holds the p-value of the first metric against that method. The lines below the table say what the
    numbers rest on.

    Raises:
        ValueError: no results or no metrics, results of different environments, data sets or splits, methods or seeds
            with different cases, one seed twice, a patient named by some cases only, or a baseline that is not among
            the methods.
    """
    if not metrics:
        raise ValueError("metrics is empty: name at least one")
    methods = _by_method(results)
    cases = results[0].cases
    patient_of = _patient_of(cases)
    meant = {name: list(metric_values(cases, name)) for name in metrics}
    free = [case["case_id"] for case in cases if tumour_free(case)]
    header = ["Method", "Supervision", "Mode", "Seeds", *(_heading(name) for name in metrics)]
    if free:
        header += ["False positive (ml), tumour-free", "Specificity (%)"]
    if baseline is not None:
        header.append(f"p ({_column(metrics[0]).title} vs {baseline})")
        against = compare(results, baseline, metrics[0])
    rows = []
    for method, runs in methods.items():
        row = [method, runs[0].supervision, runs[0].mode, str(len(runs))]
        for name in metrics:
            values, of_cases = _values(runs, name, meant[name]), _patients(patient_of, meant[name])
            row.append(_cell(values, _column(name), spread, of_cases))
        if free:
            painted, volume = _values(runs, "pred_voxels", free), _values(runs, "false_positive_ml", free)
            empty, of_free = np.where(np.isnan(painted), np.nan, painted == 0), _patients(patient_of, free)
            row.append(_cell(volume, COLUMNS["false_positive_ml"], spread, of_free))
            row.append(_cell(empty, Column("", "%", 100, 1), spread, of_free))
        if baseline is not None:
            row.append("–" if method == baseline else f"{against[method].p_value:.2g}")
        rows.append(row)
    return "\n".join([*_markdown(header, rows), "", *_footer(results, len(free), spread)])


def compare(results: Sequence[Result], baseline: str, metric: str = "dice") -> dict[str, Comparison]:
    """Every other method against `baseline` on the same cases, seeds averaged per case; by method.

    Raises:
        ValueError: as `table`; or a metric that a case lacks, or that has a meaning on none of the cases.
    """
    methods = _by_method(results)
    if baseline not in methods:
        raise ValueError(f"baseline is {baseline!r} but the methods are {list(methods)}")
    case_ids = list(metric_values(results[0].cases, metric))  # one order for all methods, or the pairs would not match
    per_case = {method: _values(runs, metric, case_ids).mean(axis=0) for method, runs in methods.items()}
    undefined = [method for method, values in per_case.items() if not values.size or np.isnan(values).any()]
    if undefined:
        raise ValueError(f"metric {metric!r} is missing or undefined for cases of {undefined}")
    reference = per_case.pop(baseline)
    patients = _patients(_patient_of(results[0].cases), case_ids)
    found = {}
    for method, values in per_case.items():
        pairs = (values, reference)
        if patients is not None:
            pairs = (cluster_means(values, patients), cluster_means(reference, patients))
        interval = bootstrap_interval(values - reference, clusters=patients)
        found[method] = Comparison(interval, paired_wilcoxon(*pairs), len(reference))
    return found


def _by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each method, after checking that they may stand in one table."""
    if not results:
        raise ValueError("no results to report")
    places = {(r.env, r.data, r.split) for r in results}
    if len(places) > 1:
        raise ValueError(f"one table needs one environment, data set and split, got {sorted(places)}")
    methods: dict[str, list[Result]] = {}
    for result in results:
        methods.setdefault(result.method, []).append(result)
    expected = {case["case_id"]: (tumour_free(case), case.get("patient")) for case in results[0].cases}
    for method, runs in methods.items():
        seeds = [run.seed for run in runs]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"method {method!r} has a seed more than once: {sorted(seeds)}")
        if len({(run.supervision, run.mode) for run in runs}) > 1:
            raise ValueError(f"method {method!r} mixes kinds of supervision or modes; give them names of their own")
        for run in runs:
            found = {case["case_id"]: (tumour_free(case), case.get("patient")) for case in run.cases}
            if not found or found != expected:
                differ = sorted(dict(found.items() ^ expected.items()))
                raise ValueError(f"result {run.id!r} and {results[0].id!r} differ in the cases {differ}, or have none")
    return methods


def _values(runs: Sequence[Result], metric: str, case_ids: Sequence[str]) -> Floats:
    """The metric [seeds, cases] on these cases, in this order."""
    by_seed = [metric_values(run.cases, metric) for run in runs]
    return np.array([[values[case_id] for case_id in case_ids] for values in by_seed], dtype=np.float64)


def _patient_of(cases: Sequence[Case]) -> dict[str, str] | None:
    """The patient by case_id, or None where no case names one: then every case is its own."""
    named = {case["case_id"]: case["patient"] for case in cases if case.get("patient") is not None}
    if named and len(named) < len(cases):
        unnamed = sorted({case["case_id"] for case in cases} - named.keys())
        raise ValueError(f"the cases {unnamed} name no patient but others do: all of them or none")
    return named or None


def _patients(patient_of: dict[str, str] | None, case_ids: Sequence[str]) -> list[str] | None:
    """The patient of each of these cases, in this order."""
    return None if patient_of is None else [patient_of[case_id] for case_id in case_ids]


def _column(metric: str) -> Column:
    return COLUMNS.get(metric, Column(metric))


def _heading(metric: str) -> str:
    column = _column(metric)
    return f"{column.title} ({column.unit})" if column.unit else column.title


def _cell(values: Floats, column: Column, spread: Spread, patients: Sequence[str] | None) -> str:
    if values.size == 0 or np.isnan(values).any():
        return "–"
    values, digits = values * column.scale, column.digits
    if spread == "std":
        return f"{values.mean():.{digits}f} ± {values.mean(axis=0).std():.{digits}f}"
    mean, low, high = bootstrap_interval(values, clusters=patients)
    return f"{mean:.{digits}f} [–]" if np.isnan(low) else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of the table, padded so that it reads well as plain text too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = (header, rule, *rows)
    return ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]


def _footer(results: Sequence[Result], free: int, spread: Spread) -> list[str]:
    first = results[0]
    cases: Sequence[Case] = first.cases
    seeds = sorted({result.seed for result in results})
    patients = set((_patient_of(cases) or {}).values())
    of_patients, units = (f" of {len(patients)} patients", "patients") if patients else ("", "cases")
    origins = ", ".join(f"{first.origins.get(origin, 0)} {origin}" for origin in ("phantom", "implanted", "real"))
    meaning = {
        "interval": f"mean [95 % bootstrap interval over {units} and, where there are several, seeds]",
        "std": "mean ± population standard deviation over cases, seeds averaged",
    }
    lines = [
        f"{first.env}, {first.data}, split {first.split}: {len(cases)} cases{of_patients} ({origins}); seeds {seeds}.",
        f"Cells: {meaning[spread]}. Supervision: the labels a method learned from. "
        "Transductive: it saw the test images, unlabelled, while learning.",
    ]
    if free:
        lines.append(
            f"{free} tumour-free cases are left out of overlap, surface and lesion metrics; for them the table gives "
            "the volume of the mask and the share of cases with an empty mask (specificity)."
        )
    return lines
