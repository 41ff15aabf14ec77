"""Learning curves of several runs: the mean over seeds with its interval, as a figure and as a table."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy import stats

from ..common.files import write_text
from .figures import literal, save_png

Floats = npt.NDArray[np.float64]
LEVEL = 0.95
COLUMNS = ("metric", "name", "step", "mean", "low", "high", "seeds")
"""Of the table: low and high bound the interval, and are empty with one seed."""


class Curve(NamedTuple):
    """A logged scalar that is worth a curve."""

    name: str
    """Its name in metrics.jsonl."""
    title: str
    unit: str = ""

    @property
    def label(self) -> str:
        """Title and unit, for an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True)
class Band:
    """The mean of one curve over the seeds of a method, at each step, and its 95 % t-interval; float64 [S]."""

    steps: Floats
    mean: Floats
    low: Floats
    """NaN with one seed."""
    high: Floats
    seeds: int


def band(curves: Sequence[Mapping[float, float]]) -> Band:
    """The band of one curve per seed, each value by step.

    It spans the steps that all seeds have reached. Where another seed has no value, it is interpolated linearly.

    Raises:
        ValueError: no curve, one without values, or none that reaches where another begins.
    """
    if not curves or not all(curves):
        raise ValueError("a band needs a curve of at least one value for each seed")
    first, last = max(map(min, curves)), min(map(max, curves))
    steps = np.array(sorted({step for curve in curves for step in curve if first <= step <= last}), dtype=np.float64)
    if not len(steps):
        raise ValueError(f"the seeds have no common step: one begins at {first:.0f}, another ends at {last:.0f}")
    points = [np.array(sorted(curve.items()), dtype=np.float64) for curve in curves]  # each [values, 2]
    values = np.stack([np.interp(steps, at[:, 0], at[:, 1]) for at in points])  # [seeds, S]
    mean = values.mean(axis=0)
    half = np.full_like(mean, np.nan)
    if (seeds := len(values)) > 1:
        half = stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * values.std(axis=0, ddof=1) / np.sqrt(seeds)
    return Band(steps, mean, mean - half, mean + half, seeds)


def save_curve_figure(path: str | Path, bands: Mapping[Curve, Mapping[str, Band]]) -> None:
    """Writes a PNG to `path`: one panel per curve, in it the band of each method by name.

    Raises:
        ValueError: no bands.
    """
    if not bands or not all(bands.values()):
        raise ValueError("no curves to draw")
    names = list(dict.fromkeys(name for panel in bands.values() for name in panel))
    colour = {name: f"C{number % 10}" for number, name in enumerate(names)}
    columns = min(len(bands), 3)
    rows = -(-len(bands) // columns)
    size = (4.6 * columns + 0.4, 3.3 * rows + 0.6 + 0.22 * len(names))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, (curve, panel) in zip(axes, bands.items(), strict=False):
        for name, one in panel.items():
            _draw(ax, one, colour[name])
        ax.set(xlabel="environment steps", ylabel=literal(curve.label))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(bands) :]:
        ax.axis("off")
    several = any(one.seeds > 1 for panel in bands.values() for one in panel.values())
    figure.legend(
        handles=[axes[0].plot([], [], color=colour[name], label=_label(name, bands))[0] for name in names],
        title="mean over seeds; band: 95 % t-interval" if several else None,
        loc="outside lower center",
        ncols=1 if len(names) < 4 else 2,
        frameon=False,
    )
    save_png(figure, path)


def _label(name: str, bands: Mapping[Curve, Mapping[str, Band]]) -> str:
    seeds = {panel[name].seeds for panel in bands.values() if name in panel}
    text = " or ".join(map(str, sorted(seeds)))
    return f"{literal(name)}, {text} {'seed' if seeds == {1} else 'seeds'}"


def _draw(ax: Axes, one: Band, colour: str) -> None:
    ax.plot(one.steps, one.mean, color=colour, linewidth=1.6, marker="o" if len(one.steps) == 1 else None)
    if one.seeds > 1:
        ax.fill_between(one.steps, one.low, one.high, color=colour, alpha=0.2, linewidth=0)


def write_curves(path: str | Path, bands: Mapping[Curve, Mapping[str, Band]]) -> None:
    """Writes what `save_curve_figure` draws to `path` as CSV (RFC 4180), whole or not at all; see `COLUMNS`."""
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(COLUMNS)
    for curve, panel in bands.items():
        for name, one in panel.items():
            for step, *numbers in zip(one.steps, one.mean, one.low, one.high, strict=True):
                cells = ["" if np.isnan(number) else repr(float(number)) for number in numbers]
                lines.writerow([curve.name, name, int(step), *cells, one.seeds])
    write_text(Path(path), text.getvalue())
