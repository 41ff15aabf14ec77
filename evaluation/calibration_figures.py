"""The figure of calibration: reliability diagrams and risk-coverage curves of several methods."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .calibration import Calibration, RiskCoverage
from .figures import literal, save_png


def save_reliability_figure(
    path: str | Path,
    methods: Mapping[str, Calibration],
    *,
    title: str,
    risk: Mapping[str, RiskCoverage] | None = None,
    risk_name: str = "risk",
) -> None:
    """Writes a PNG to `path`: reliability of each method with its pixels per bin below, and risk-coverage beside it.

    `risk` holds curves of the same or other methods; a method has one colour in the whole figure.

    Raises:
        ValueError: no methods.
    """
    if not methods:
        raise ValueError("no methods to draw")
    risk = risk or {}
    colour = {name: f"C{number % 10}" for number, name in enumerate(dict.fromkeys([*methods, *risk]))}
    lines = max(len(methods), len(risk))
    figure = Figure(figsize=(11 if risk else 5.8, 5.6 + 0.22 * lines), dpi=150, layout="constrained")
    figure.suptitle(literal(title), fontsize=13)
    grid = figure.add_gridspec(3, 2 if risk else 1, height_ratios=(4, 1, 0.22 * lines + 0.05))
    top = figure.add_subplot(grid[0, 0])
    below = figure.add_subplot(grid[1, 0], sharex=top)
    top.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for name, one in methods.items():
        _draw_reliability(top, below, one, label=f"{literal(name)}, ECE {one.ece:.3f}", colour=colour[name])
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
    top.tick_params(labelbottom=False)
    _legend_below(figure.add_subplot(grid[2, 0]), top)
    below.set(xlabel="confidence", ylabel="share of pixels", yscale="log")
    if risk:
        beside = figure.add_subplot(grid[:2, 1])
        for name, curve in risk.items():
            label = f"{literal(name)}, AURC {curve.aurc:.4f}"
            beside.plot(curve.coverage, curve.risk, color=colour[name], label=label)
        beside.set(
            xlim=(0, 1), ylim=(0, None), xlabel="coverage (share that is kept)", ylabel=f"{risk_name} of the kept"
        )
        _legend_below(figure.add_subplot(grid[2, 1]), beside)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)


def _legend_below(room: Axes, of: Axes) -> None:
    """The legend of `of` in axes of its own, where it covers no curve."""
    room.axis("off")
    room.legend(*of.get_legend_handles_labels(), frameon=False, loc="upper center", fontsize=9)


def _draw_reliability(top: Axes, below: Axes, of: Calibration, *, label: str, colour: str) -> None:
    held = of.count > 0
    top.plot(of.confidence[held], of.accuracy[held], color=colour, marker="o", markersize=4, label=label)
    edges = np.linspace(0, 1, len(of.count) + 1)
    below.stairs(of.count / of.count.sum(), edges, color=colour, linewidth=1.5)
