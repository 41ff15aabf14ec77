"""Means, p-values and Markdown tables of results.

Every number is a mean over cases. Cases with an empty target (nothing to find in the truth) are left out of overlap and
distance metrics (`Column.needs_target`) and get columns of their own: the volume that was painted on them, and the
share of them on which nothing was. Where only some cases have labels, what needs labels is the mean over these. Where
cases name their `patient`, intervals and p-values are over patients: images
of one patient are not independent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from types import NoneType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .metrics import NEEDS_TARGET
from .results import Case, Result, empty_target, unlabelled
from .statistics import Interval, bootstrap_interval, cluster_means, holm, paired_wilcoxon

Floats = npt.NDArray[np.float64]


class Column(NamedTuple):
    """A metric and how a table shows it: its values times `scale` are in `unit`."""

    name: str
    """Name of the metric, as in the cases of a result."""
    title: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3
    needs_target: bool = False
    """Whether its mean leaves out the cases with an empty target."""


STANDARD = {
    one.name: one._replace(needs_target=one.name in NEEDS_TARGET)
    for one in (
        Column("dice", "Dice", "%", 100, 1),
        Column("iou", "IoU", "%", 100, 1),
        Column("precision", "Precision", "%", 100, 1),
        Column("recall", "Recall", "%", 100, 1),
        Column("hd95_mm", "HD95", "mm", 1, 1),
        Column("nsd", "NSD", "%", 100, 1),
        Column("lesion_recall", "Lesion recall", "%", 100, 1),
        Column("lesion_precision", "Lesion precision", "%", 100, 1),
        Column("lesion_recall_iou", "Lesion recall, IoU > 0.1", "%", 100, 1),
        Column("lesion_precision_iou", "Lesion precision, IoU > 0.1", "%", 100, 1),
        Column("false_positive_ml", "False positive", "ml", 1, 1),
        Column("pixel_accuracy", "Pixel accuracy", "%", 100, 1),
        Column("auroc", "AUROC"),
        Column("error_auroc", "Error AUROC"),
        Column("ece", "ECE"),
    )
}
"""Columns of the metrics that all papers share, by name. Any other metric is shown as it is, with three digits, unless
the caller hands over its `Column`."""


def column(metric: Column | str) -> Column:
    """The column of a metric that is named, or `metric` itself."""
    return metric if isinstance(metric, Column) else STANDARD.get(metric, Column(metric, metric))


def mean_metrics(cases: Sequence[Case], columns: Iterable[Column] = ()) -> dict[str, float]:
    """Mean of each metric over the cases, by name; NaN where it is undefined.

    A metric that one of its cases lacks is undefined, not averaged over the others. columns: those of metrics that are
    not in `STANDARD`, which say whether they need a target.

    Raises:
        ValueError: no cases.
    """
    if not cases:
        raise ValueError("no cases to average")
    known = {one.name: one for one in columns}
    names = dict.fromkeys(name for case in cases for name, value in case.items() if not isinstance(value, str))
    values = {name: _by_case(cases, known.get(name, column(name))).values() for name in names}
    return {name: sum(found) / len(found) if found else math.nan for name, found in values.items()}


def table(
    results: Sequence[Result],
    columns: Sequence[Column | str],
    *,
    baseline: str | None = None,
    heading: str = "Method",
    settings: Sequence[Column] = (),
) -> str:
    """A Markdown table with one row per method, in the order in which the results name them.

    columns: what is shown; a name stands for a column of `STANDARD`. Results of one method that differ in the seed
    become one row. A cell is "mean [low, high]" with the 95 % bootstrap interval over cases (or patients) and seeds;
    "–" where the metric is undefined for one of its cases. With a `baseline` the last column holds the p-value of the
    first metric against that method. heading: of the first column. settings: numbers in the settings of the results, as
    means over the seeds; left out where no result has one. The lines below the table say what the numbers rest on.

    Raises:
        ValueError: no results or no columns, results of different environments, data sets or splits, methods or seeds
            with different cases, one seed twice, a patient named by some cases only, or a baseline that is not among
            the methods.
    """
    if not columns:
        raise ValueError("columns is empty: name at least one metric")
    shown = [column(metric) for metric in columns]
    methods = _by_method(results)
    cases = results[0].cases
    patient_of = _patient_of(cases)
    meant = [_meant(results, one) for one in shown]
    empty = [case["case_id"] for case in cases if empty_target(case)]
    told = [one for one in settings if any(isinstance(r.settings.get(one.name), int | float) for r in results)]
    header = [heading, "Supervision", "Mode", "Seeds", *map(_heading, [*told, *shown])]
    if empty:
        header += ["False positive (ml), empty target", "Specificity (%)"]
    if baseline is not None:
        p_value = p_values(results, baseline, shown[0])
        holm = ", Holm" if len(p_value) > 1 else ""
        header.append(f"p ({shown[0].title} vs {baseline}{holm})")
    rows = []
    for method, runs in methods.items():
        row = [method, runs[0].supervision, runs[0].mode, str(len(runs)), *(_told(runs, one) for one in told)]
        for one, case_ids in zip(shown, meant, strict=True):
            row.append(_cell(_values(runs, one, case_ids), one, _patients(patient_of, case_ids)))
        if empty:
            of_empty = _patients(patient_of, empty)
            volume = column("false_positive_ml")
            row.append(_cell(_values(runs, volume, empty), volume, of_empty))
            painted = _values(runs, column("pred_voxels"), empty)
            specific = np.where(np.isnan(painted), np.nan, painted == 0)
            row.append(_cell(specific, Column("specificity", "Specificity", "%", 100, 1), of_empty))
        if baseline is not None:
            row.append("–" if method == baseline else f"{p_value[method]:.2g}")
        rows.append(row)
    return "\n".join([*markdown(header, rows), "", *_footer(results, len(empty))])


def interval(results: Sequence[Result], metric: Column | str) -> Interval:
    """Mean of one method's metric over cases and seeds with its 95 % bootstrap interval, in the column's unit.

    NaN where the metric is undefined for one of its cases. results: one per seed, on the same cases.

    Raises:
        ValueError: as `table`.
    """
    _by_method(results)
    one, cases = column(metric), results[0].cases
    case_ids = list(_by_case(cases, one))
    return _interval(_values(results, one, case_ids), one, _patients(_patient_of(cases), case_ids))


def p_values(results: Sequence[Result], baseline: str, metric: Column | str) -> dict[str, float]:
    """p-value of every other method against `baseline` on the same cases, by method.

    Two-sided paired Wilcoxon test over cases, or over the means of patients where the cases name them; seeds are
    averaged per case. Corrected for the number of methods after Holm.

    Raises:
        ValueError: as `table`; or a metric that a case lacks, or that has a meaning on none of the cases.
    """
    values, patients = _paired(results, column(metric))
    if baseline not in values:
        raise ValueError(f"baseline is {baseline!r} but the methods are {list(values)}")
    of_units = {method: _units(of_method, patients) for method, of_method in values.items()}
    reference = of_units.pop(baseline)
    return holm({method: paired_wilcoxon(of_method, reference) for method, of_method in of_units.items()})


def pairs(results: Sequence[Result], metric: Column | str) -> str:
    """A Markdown table that compares every method with every other, on the same cases: a row for each pair.

    The difference is that of the means, with the 95 % bootstrap interval of the paired differences, over cases (or
    patients) and, where both methods have the same ones, seeds. p as in `p_values`, alone and corrected for the number
    of pairs.

    Raises:
        ValueError: as `p_values`; or fewer than two methods.
    """
    one = column(metric)
    values, patients = _paired(results, one)
    if len(values) < 2:
        raise ValueError(f"there are no pairs: the only method is {next(iter(values))!r}")
    seeds = _seeds(results)
    of_units = {method: _units(of_method, patients) for method, of_method in values.items()}
    found = {(a, b): paired_wilcoxon(of_units[a], of_units[b]) for a, b in combinations(values, 2)}
    corrected = holm(found)
    rows = []
    for (a, b), p_value in found.items():
        cell = _cell(_less(values, seeds, a, b), one, patients)
        rows.append([a, b, cell, f"{p_value:.2g}", f"{corrected[a, b]:.2g}"])
    units = "patients" if patients else "cases"
    lines = [
        f"Difference: {one.title} of the method less that of the other, mean [95 % bootstrap interval over {units} "
        "and, where both have the same ones, seeds].",
        f"p: paired Wilcoxon test over {units}, two-sided, seeds averaged; Holm: corrected for the {len(rows)} pairs.",
    ]
    difference = one._replace(title=f"Difference of {one.title}")
    return "\n".join([*markdown(["Method", "Other", _heading(difference), "p", "p, Holm"], rows), "", *lines])


def differences(results: Sequence[Result], reference: str, columns: Sequence[Column | str]) -> str:
    """A Markdown table of the difference of every other method from `reference`, on the same cases, for each column.

    A cell is as in `pairs`: the difference of the means with the 95 % bootstrap interval of the paired differences; "–"
    where a metric is undefined for one of the cases of either.

    Raises:
        ValueError: as `table`; or a reference that is not among the methods.
    """
    seeds = _seeds(results)
    if reference not in seeds:
        raise ValueError(f"reference is {reference!r} but the methods are {list(seeds)}")
    shown, rows = [column(metric) for metric in columns], {name: [name] for name in seeds if name != reference}
    for one in shown:
        values, patients = _aligned(results, one)
        for method, row in rows.items():
            row.append(_cell(_less(values, seeds, method, reference), one, patients))
    units = "patients" if _patient_of(results[0].cases) else "cases"
    line = (
        f"Cells: mean of the method less that of {reference} [95 % bootstrap interval of the paired differences over "
        f"{units} and, where both have the same ones, seeds]."
    )
    header = [f"Difference from {reference}", *map(_heading, shown)]
    return "\n".join([*markdown(header, list(rows.values())), "", line])


def _seeds(results: Sequence[Result]) -> dict[str, list[int]]:
    """The seeds of each method, ascending."""
    return {method: sorted(run.seed for run in runs) for method, runs in _by_method(results).items()}


def _less(values: Mapping[str, Floats], seeds: Mapping[str, list[int]], a: str, b: str) -> Floats:
    """Method a less method b: [seeds, cases] where both have the same seeds, else [1, cases]."""
    first, second = (of if seeds[a] == seeds[b] else of.mean(axis=0, keepdims=True) for of in (values[a], values[b]))
    apart: Floats = first - second
    return apart


def _told(runs: Sequence[Result], one: Column) -> str:
    """Mean over seeds of a number in the settings; "–" where a result lacks it."""
    values = [run.settings.get(one.name) for run in runs]
    known = [value * one.scale for value in values if isinstance(value, int | float)]
    return f"{sum(known) / len(known):.{one.digits}f}" if len(known) == len(values) else "–"


def _paired(results: Sequence[Result], one: Column) -> tuple[dict[str, Floats], list[str] | None]:
    """`_aligned` values, all of which are defined."""
    values, patients = _aligned(results, one)
    undefined = [method for method, found in values.items() if not found.size or np.isnan(found).any()]
    if undefined:
        raise ValueError(f"metric {one.name!r} is missing or undefined for cases of {undefined}")
    return values, patients


def _aligned(results: Sequence[Result], one: Column) -> tuple[dict[str, Floats], list[str] | None]:
    """The metric [seeds, cases] by method, cases in one order and seeds ascending; the patient of each case."""
    methods = _by_method(results)
    case_ids = _meant(results, one)  # one order for all methods, or the pairs would not match
    ascending = {method: sorted(runs, key=lambda run: run.seed) for method, runs in methods.items()}
    values = {method: _values(runs, one, case_ids) for method, runs in ascending.items()}
    return values, _patients(_patient_of(results[0].cases), case_ids)


def _units(values: Floats, patients: Sequence[str] | None) -> Floats:
    """The values [seeds, cases] averaged over seeds and, where there are, over the cases of each patient."""
    means: Floats = values.mean(axis=0)
    return means if patients is None else cluster_means(means, patients)


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
    expected = {case["case_id"]: (empty_target(case), case.get("patient")) for case in results[0].cases}
    for method, runs in methods.items():
        seeds = [run.seed for run in runs]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"method {method!r} has a seed more than once: {sorted(seeds)}")
        if len({(run.supervision, run.mode) for run in runs}) > 1:
            raise ValueError(f"method {method!r} mixes kinds of supervision or modes; give them names of their own")
        for run in runs:
            found = {case["case_id"]: (empty_target(case), case.get("patient")) for case in run.cases}
            if not found or found != expected:
                differ = sorted(dict(found.items() ^ expected.items()))
                raise ValueError(f"result {run.id!r} and {results[0].id!r} differ in the cases {differ}, or have none")
    return methods


def _by_case(cases: Sequence[Case], metric: Column) -> dict[str, float]:
    """The metric by case_id, without the cases on which it has no meaning; NaN where it is missing or undefined."""
    judged = (case for case in cases if metric.name in case or not unlabelled(case))
    relevant = (case for case in judged if not (metric.needs_target and empty_target(case)))
    values = {case["case_id"]: case.get(metric.name) for case in relevant}
    if wrong := {case_id: value for case_id, value in values.items() if not isinstance(value, int | float | NoneType)}:
        case_id, value = next(iter(wrong.items()))
        raise ValueError(f"metric {metric.name!r} of case {case_id!r} is {value!r} but must be a number or None")
    return {case_id: math.nan if value is None else float(value) for case_id, value in values.items()}


def _meant(results: Sequence[Result], metric: Column) -> list[str]:
    """The cases that the metric is averaged over, of the first result that has it: others may know nothing of it."""
    having = (one.cases for one in results if any(metric.name in case for case in one.cases))
    return list(_by_case(next(having, results[0].cases), metric))


def _values(runs: Sequence[Result], metric: Column, case_ids: Sequence[str]) -> Floats:
    """The metric [seeds, cases] on these cases, in this order."""
    by_seed = [_by_case(run.cases, metric) for run in runs]
    return np.array([[values.get(case_id, math.nan) for case_id in case_ids] for values in by_seed], dtype=np.float64)


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


def _heading(one: Column) -> str:
    return f"{one.title} ({one.unit})" if one.unit else one.title


def _interval(values: Floats, one: Column, patients: Sequence[str] | None) -> Interval:
    """Mean and interval of the values [seeds, cases]; NaN where one is, or there are none."""
    if values.size == 0 or np.isnan(values).any():
        return Interval(math.nan, math.nan, math.nan)
    return bootstrap_interval(values * one.scale, clusters=patients)


def _cell(values: Floats, one: Column, patients: Sequence[str] | None) -> str:
    """ "mean [low, high]" of the values [seeds, cases]; "–" where one is NaN, or there are none."""
    mean, low, high = _interval(values, one, patients)
    if math.isnan(mean):
        return "–"
    digits = one.digits
    return f"{mean:.{digits}f} [–]" if np.isnan(low) else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of the table, padded so that it reads well as plain text too; see `escaped`."""
    header, rows = [escaped(cell) for cell in header], [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = (header, rule, *rows)
    return ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]


def escaped(cell: str) -> str:
    """The text of a cell, in which a | or a line break would end it, and $ begin a formula."""
    return " ".join(cell.replace("|", r"\|").replace("$", r"\$").split())


def _footer(results: Sequence[Result], empty: int) -> list[str]:
    first = results[0]
    cases: Sequence[Case] = first.cases
    seeds = sorted({result.seed for result in results})
    patients = set((_patient_of(cases) or {}).values())
    of_patients, units = (f" of {len(patients)} patients", "patients") if patients else ("", "cases")
    origins = ", ".join(f"{first.origins.get(origin, 0)} {origin}" for origin in ("phantom", "implanted", "real"))
    lines = [
        f"{first.env}, {first.data}, split {first.split}: {len(cases)} cases{of_patients} ({origins}); seeds {seeds}.",
        f"Cells: mean [95 % bootstrap interval over {units} and, where there are several, seeds]. "
        "Supervision: the labels a method learned from. "
        "Transductive: it saw the test images, unlabelled, while learning.",
    ]
    if without := sum(map(unlabelled, cases)):
        lines.append(
            f"{len(cases) - without} of the {len(cases)} cases have labels: what needs labels is the mean over these."
        )
    if empty:
        lines.append(
            f"{empty} cases with an empty target are left out of overlap, surface and lesion metrics; for them the "
            "table gives the volume of the mask and the share of cases with an empty mask (specificity)."
        )
    return lines
