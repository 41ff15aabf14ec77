"""The page of a sweep, made from the result JSON of its runs alone: for each method a table with a row per variant, and
a figure of one metric against what was varied."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..common.files import write_text
from ..common.names import slug
from .figures import literal, save_png
from .report import Column, interval, table
from .results import Result, read_results
from .statistics import Interval

PAGE = "index.md"
TRAINED = "trained policy"
"""Name of the method of the runs where the variants call it differently."""
Axis = tuple[str, Mapping[str, float]]
"""The key that was varied, and its number in each variant."""


def write_page(
    folder: Path,
    title: str,
    variants: Mapping[str, Sequence[Path]],
    *,
    trained: Mapping[str, str],
    columns: Sequence[Column],
    axis: Axis | None = None,
    missing: Sequence[str] = (),
) -> Path:
    """Writes index.md and the figure of the first column into `folder`; returns the path of index.md.

    Args:
        folder: of the sweep.
        title: of the page.
        variants: the folders of results of each variant, one per seed.
        trained: name of the trained policy in the results of each variant.
        columns: of the tables; those that no case of a method has are left out.
        axis: where the variants differ in one number; else they stand side by side.
        missing: trials without results, which the page names.

    Raises:
        ValueError: no results, or such as cannot stand in one table.
    """
    methods = _by_method(variants, trained)
    if not methods:
        raise ValueError("a sweep without results has no page")
    first = columns[0]
    picture = folder / f"{slug(first.name)}.png"
    bands = {
        method: {variant: interval(results, first) for variant, results in of_variants.items()}
        for method, of_variants in methods.items()
        if any(first.name in case for results in of_variants.values() for one in results for case in one.cases)
    }
    lines = [f"# {title}", ""]
    if bands:
        save_sweep_figure(picture, bands, first, axis)
        about = f"{first.title} against {axis[0]}" if axis else f"{first.title} of the variants"
        lines += [f"![{about}]({picture.name})", ""]
    for method, of_variants in methods.items():
        shown = [replace(one, method=name) for name, results in of_variants.items() for one in results]
        there = {name for one in shown for case in one.cases for name in case}
        if of_method := [one for one in columns if one.name in there]:
            lines += [f"## {method}", "", table(shown, of_method, heading="Variant"), ""]
    if missing:
        lines += [f"Without results: {', '.join(missing)}.", ""]
    write_text(folder / PAGE, "\n".join(lines))
    return folder / PAGE


def _by_method(
    variants: Mapping[str, Sequence[Path]], trained: Mapping[str, str]
) -> dict[str, dict[str, list[Result]]]:
    """The results of each method by variant, the trained policy first."""
    own = {trained[variant] for variant in variants}
    common = next(iter(own)) if len(own) == 1 else TRAINED
    found: dict[str, dict[str, list[Result]]] = {}
    for variant, folders in variants.items():
        for result in [one for folder in folders for one in read_results(folder)]:
            method = common if result.method == trained[variant] else result.method
            found.setdefault(method, {}).setdefault(variant, []).append(result)
    return {method: found[method] for method in sorted(found, key=lambda method: method != common)}


def save_sweep_figure(
    path: str | Path, bands: Mapping[str, Mapping[str, Interval]], metric: Column, axis: Axis | None = None
) -> None:
    """Writes a PNG to `path`: mean and interval of each method, by name, in each variant.

    Raises:
        ValueError: no methods.
    """
    if not bands:
        raise ValueError("no methods to draw")
    names = list(dict.fromkeys(name for band in bands.values() for name in band))
    figure = Figure(figsize=(max(4.8, 1.6 + 0.9 * len(names)), 3.4 + 0.2 * len(bands)), dpi=150, layout="constrained")
    ax = figure.subplots()
    places = {name: float(axis[1][name]) if axis else float(number) for number, name in enumerate(names)}
    step = min((b - a for a, b in zip(sorted(places.values()), sorted(places.values())[1:], strict=False)), default=1.0)
    for number, (method, band) in enumerate(bands.items()):
        shift = 0.06 * step * (number - (len(bands) - 1) / 2)  # so that intervals do not hide each other
        _draw(
            ax, method, {places[name] + shift: one for name, one in band.items()}, f"C{number % 10}", joined=bool(axis)
        )
    ax.set_ylabel(literal(f"{metric.title} ({metric.unit})" if metric.unit else metric.title))
    if axis:
        ax.set_xlabel(literal(axis[0]))
        ax.set_xticks(sorted(places.values()))
    else:
        crowded = max(map(len, names)) * len(names) > 60
        ax.set_xticks(list(places.values()), [literal(name) for name in names], rotation=30 if crowded else 0)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(title="mean; bar: 95 % bootstrap interval", loc="outside lower center", frameon=False)
    save_png(figure, path)


def _draw(ax: Axes, method: str, points: Mapping[float, Interval], colour: str, *, joined: bool) -> None:
    known = {at: one for at, one in sorted(points.items()) if not math.isnan(one.mean)}
    means = [one.mean for one in known.values()]
    lengths = [[0.0 if math.isnan(end) else abs(end - one.mean) for end in one[1:]] for one in known.values()]
    ax.errorbar(
        list(known),
        means,
        yerr=[list(side) for side in zip(*lengths, strict=True)] or None,
        color=colour,
        label=literal(method),
        marker="o",
        markersize=4,
        linewidth=1.4,
        linestyle="-" if joined else "none",
        capsize=3,
    )
