"""`plot`: learning curves of runs, with intervals over their seeds."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from ...common.checks import check_choice

if TYPE_CHECKING:
    from ...evaluation.curve_figures import Band, Curve
    from ..experiment import Paper


def parser(paper: str | None) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(
        description="Draw learning curves of runs: runs of one name become one curve, the mean over their seeds with "
        "its 95 %% t-interval. What is drawn is written as CSV beside it."
    )
    options.add_argument("--run", nargs="+", type=str, required=True, help="run folders, space-separated; of one paper")
    options.add_argument(
        "--metric",
        nargs="+",
        type=str,
        help="names of scalars in metrics.jsonl, space-separated (default: those that the paper shows)",
    )
    options.add_argument(
        "--out", type=str | None, help="file .png to write (default: media/curves.png in the first run)"
    )
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """Learning curves as a figure and a table."""
    from ...common.runs import Run
    from ...evaluation.curve_figures import save_curve_figure, write_curves
    from ..configuration import read_experiments

    if options.out is not None and not options.out.endswith(".png"):
        raise ValueError(f"out is {options.out!r} but must end in .png")

    runs = [Run.open(folder) for folder in options.run]
    row, experiments = read_experiments(runs)
    twice = [key for key, number in Counter((one.name, one.seed) for one in experiments).items() if number > 1]
    if twice:
        raise ValueError(
            f"two runs are called {twice[0][0]!r} with seed {twice[0][1]}; train one with another --name, or plot them "
            f"apart"
        )
    lines = [row.lines(experiment, run) for run, experiment in zip(runs, experiments, strict=True)]
    if empty := [str(run.folder) for run, logged in zip(runs, lines, strict=True) if not logged]:
        raise ValueError(f"run {empty[0]!r} has no curves yet; train it further with --resume")
    bands = _bands(_curves(row, options.metric, lines), [one.name for one in experiments], lines)
    path = Path(options.out) if options.out else runs[0].media / "curves.png"
    save_curve_figure(path, bands)
    write_curves(path.with_suffix(".csv"), bands)
    print(f"picture    {path}\ntable      {path.with_suffix('.csv')}")
    return 0


def _curves(paper: "Paper[Any]", names: list[str] | None, lines: list[list[dict[str, float]]]) -> "list[Curve]":
    from ...evaluation.curve_figures import Curve

    known = sorted({name for logged in lines for line in logged for name in line} - {"step"})
    titled = {curve.name: curve for curve in paper.curves}
    if names is None:
        if found := [curve for curve in paper.curves if curve.name in known]:
            return found
        raise ValueError(f"the runs have none of the curves {', '.join(titled)} yet; name some of {', '.join(known)}")
    for name in names:
        check_choice("metric", name, known)
    return [titled.get(name, Curve(name, name)) for name in dict.fromkeys(names)]


def _bands(
    curves: "list[Curve]", names: list[str], lines: list[list[dict[str, float]]]
) -> "dict[Curve, dict[str, Band]]":
    """The band of each curve and name; runs that have not logged it yet are left out."""
    from ...evaluation.curve_figures import band

    bands: dict[Curve, dict[str, Band]] = {}
    for curve in curves:
        seeds = dict[str, list[dict[float, float]]]()
        for name, logged in zip(names, lines, strict=True):
            if values := {line["step"]: line[curve.name] for line in logged if curve.name in line}:
                seeds.setdefault(name, []).append(values)
        bands[curve] = {name: band(of_seeds) for name, of_seeds in seeds.items()}
    return bands
