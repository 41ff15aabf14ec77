"""The page of a robustness report: its table, worst case, checks and figures, made of the results alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ..common.files import write_text
from .figures import literal, save_png
from .report import escaped, markdown
from .robustness_metrics import SIZES, metrics
from .robustness_results import AttackResult

if TYPE_CHECKING:
    from .robustness_report import RobustnessReport

PAGE = "index.md"
STEPS_FIGURE, EPS_FIGURE, SIZES_FIGURE = "miou_steps.png", "miou_eps.png", "iou_sizes.png"
STYLES = ("-", "--", ":", "-.")
"""Of the lines of each model."""


def write_page(report: "RobustnessReport", folder: Path) -> Path:
    """Writes index.md and its figures into the folder; returns the path of index.md."""
    figures = {
        STEPS_FIGURE: ("mIoU against steps", steps_figure(report)),
        EPS_FIGURE: ("mIoU against ε", eps_figure(report)),
        SIZES_FIGURE: ("IoU by size of the object", sizes_figure(report)),
    }
    lines = ["# Robustness", "", report.table(), ""]
    for name, (title, figure) in figures.items():
        if figure is not None:
            save_png(figure, folder / name)
            lines += [f"![{title}]({name})", ""]
    lines += [*_worst(report), *_radii(report), *_checks(report), *_footer(report)]
    write_text(folder / PAGE, "\n".join(lines) + "\n")
    return folder / PAGE


def steps_figure(report: "RobustnessReport") -> Figure | None:
    """mIoU against the number of steps, a panel for each radius; None where no family has two numbers."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for one in report.ordered:
        if one.kind in ("white", "black") and one.steps is not None:
            key = _line(report, one.model, _family_title(one))
            lines.setdefault(one.eps, {}).setdefault(key, []).append((one.steps, _miou(report, one)))
    lines = {eps: {key: points for key, points in of.items() if len(points) > 1} for eps, of in lines.items()}
    panels = {f"ε = {eps}": of for eps, of in lines.items() if of}
    return _line_figure(panels, "steps", log=True) if panels else None


def eps_figure(report: "RobustnessReport") -> Figure | None:
    """mIoU against the radius, clean images at 0; None where no attack has two radii."""
    lines: dict[str, list[tuple[float, float]]] = {}
    clean = {one.model: _miou(report, one) for one in report.results if one.kind == "none"}
    for one in report.ordered:
        if one.kind not in ("none", "free"):
            points = lines.setdefault(_line(report, one.model, one.attack), [])
            if not points and one.model in clean:
                points.append((0.0, clean[one.model]))
            points.append((255 * one.radius, _miou(report, one)))
    known = {key: points for key, points in lines.items() if len({at for at, _ in points} - {0.0}) > 1}
    return _line_figure({"": known}, "ε in grey levels (1/255)") if known else None


def sizes_figure(report: "RobustnessReport") -> Figure | None:
    """IoU of small, medium and large objects under each attack; None where there are none."""
    shown = [one for one in report.ordered if one.kind != "free"]
    found = {size: [getattr(metrics(one.counts), f"iou_{size}") for one in shown] for size in SIZES}
    found = {size: values for size, values in found.items() if any(value == value for value in values)}
    if not found:
        return None
    figure = Figure(figsize=(max(4.8, 1.6 + 0.45 * len(shown)), 4.2), dpi=150, layout="constrained")
    ax = figure.subplots()
    width = 0.8 / len(found)
    for number, (size, values) in enumerate(found.items()):
        places = [at + width * (number - (len(found) - 1) / 2) for at in range(len(shown))]
        heights = [0.0 if value != value else 100 * value for value in values]
        ax.bar(places, heights, width, color=f"C{number}", label=_size_title(size))
    names = [
        literal(_line(report, one.model, one.attack if one.kind == "none" else f"{one.attack}, {one.eps}"))
        for one in shown
    ]
    ax.set_xticks(range(len(shown)), names, rotation=60, ha="right", fontsize=8)
    ax.set(ylabel="IoU (%)", ylim=(0, 100))
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(found), frameon=False)
    return figure


def _line_figure(panels: dict[str, dict[str, list[tuple[float, float]]]], label: str, *, log: bool = False) -> Figure:
    keys = list(dict.fromkeys(key for panel in panels.values() for key in panel))
    style = {key: (f"C{number % 10}", STYLES[number // 10 % len(STYLES)]) for number, key in enumerate(keys)}
    figure = Figure(figsize=(4.6 * len(panels) + 2.2, 3.8), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        for key, points in panel.items():
            at, values = zip(*points, strict=True)
            colour, line = style[key]
            ax.plot(at, [100 * value for value in values], color=colour, linestyle=line, marker="o", markersize=3)
        top = 100 * max(value for points in panel.values() for _, value in points if value == value)
        ax.set(xlabel=label, ylabel="mIoU (%)", ylim=(0, 1.05 * top), title=literal(title))
        ax.spines[["top", "right"]].set_visible(False)
        if log:
            ticks = sorted({at for points in panel.values() for at, _ in points})
            ax.set_xscale("log")
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
    handles = [axes[0].plot([], [], color=c, linestyle=line, label=literal(key))[0] for key, (c, line) in style.items()]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
    return figure


def _worst(report: "RobustnessReport") -> list[str]:
    if not report.worst:
        return []
    lines = ["## Worst case", "", "Images by the attack under which the search for the lowest mIoU put them:", ""]
    for one in report.worst:
        chosen = ", ".join(f"{attack} {number}" for attack, number in one.chosen.items() if number)
        lines.append(f"- {escaped(one.model)}, ε = {one.eps}: {escaped(chosen)}.")
    return [*lines, ""]


def _radii(report: "RobustnessReport") -> list[str]:
    return [
        f"{escaped(one.model)}: to turn 99 % of the pixels wrong, {one.attack} needs a radius of {one.median:.4g} of "
        f"the range, or {255 * one.median:.3g}/255 (median; {one.broken} of {one.images} images were).\n"
        for one in report.radii
    ]


def _checks(report: "RobustnessReport") -> list[str]:
    rows = [[one.model, one.name, "yes" if one.passed else "**no**", one.text] for one in report.checks]
    table = markdown(["Model", "Check", "Holds", "Found"], rows)
    return ["## Can it be believed?", "", *table, ""] if rows else []


def _footer(report: "RobustnessReport") -> list[str]:
    first = report.results[0]
    absent = "left out" if report.absent == "skip" else "counted as 0"
    sizes = ", ".join(_size_title(size) for size in SIZES)
    lines = [
        f"{len(first.ids)} images, {len(first.classes)} classes. Percent; NmIoU with its 95 % bootstrap interval over "
        f"images. Classes that are in no image are {absent} in mIoU and mAcc. Dice: all classes but the first. An "
        f"object is all pixels of one class in one image: {sizes}.",
        "Forward, Backward: passes of the model for each image. Worst case: each image under the attack that leaves it "
        "the fewest right pixels (aAcc), or that lowers the mIoU of all images most (mIoU, by a greedy search).",
    ]
    if report.left_out:
        lines.append(f"Left out, as they need what was not given: {', '.join(report.left_out)}.")
    return lines


def _size_title(size: str) -> str:
    low, high = SIZES[size]
    share = (
        f"below {100 * high:g} %"
        if low == 0
        else f"from {100 * low:g} %" + ("" if high > 1 else f" to {100 * high:g} %")
    )
    return f"{size} ({share} of the image)"


def _miou(report: "RobustnessReport", one: AttackResult) -> float:
    return metrics(one.counts, report.absent).miou


def _family_title(one: AttackResult) -> str:
    return one.title.partition(",")[0]


def _line(report: "RobustnessReport", model: str, text: str) -> str:
    models: Sequence[str] = [*dict.fromkeys(one.model for one in report.results)]
    return text if len(models) == 1 else f"{model}: {text}"
