"""`evaluate`: results, table and pictures of trained runs."""

import sys

from jsonargparse import ArgumentParser, Namespace

from ..program import watch
from ..threads import add_threads, use_threads


def parser(paper: str | None) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(
        description="Evaluate trained runs, with their baselines and reference policies, on test cases."
    )
    options.add_argument(
        "--run", nargs="+", type=str, required=True, help="run folders, space-separated; of one paper and one data set"
    )
    options.add_argument("--split", type=str | None, help="split to evaluate on (default: the run's test split)")
    options.add_argument(
        "--cases",
        type=list[str] | None,
        help="cases to evaluate on, ids or patterns such as '[liver_*]' (default: the test split)",
    )
    options.add_argument(
        "--policies",
        nargs="*",
        type=str,
        help="reference policies to play, space-separated (default: those that the paper compares with)",
    )
    options.add_argument(
        "--on_error",
        type=str,
        default="stop",
        help="stop or skip: end at an unreadable file, or leave it out (exit status 1)",
    )
    options.add_argument(
        "--out",
        type=str | None,
        help="folder for results and pictures (default: RUN/evaluation/<choice of cases>, of each run its own)",
    )
    options.add_argument(
        "--unfinished",
        action="store_true",
        help="evaluate the last checkpoint of a run that is not trained to its end, and say so in its results "
        "(default: refuse it)",
    )
    options.add_argument(
        "--save_masks",
        action="store_true",
        help="write masks, maps and pictures of every case too, the files of `predict`, into masks/ beside the results",
    )
    options.add_argument(
        "--html",
        action="store_true",
        help="write label and mask of each figure's cases in 3-D too, as an HTML file of 5 to 8 MB for each method "
        "beside it; of volumes (SPARS); needs pip install 'segarena[viz]'",
    )
    add_threads(options)
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """Results, table and pictures; 1 if a bad file was skipped."""
    from ...common.checks import check_choice
    from ...common.files import write_text
    from ...common.runs import Run
    from ..configuration import read_experiments
    from ..experiment import EvaluateOptions

    check_choice("on_error", options.on_error, ("stop", "skip"))
    runs = [Run.open(folder) for folder in options.run]
    row, experiments = read_experiments(runs)
    if options.html:
        from ...evaluation.volume_html import import_plotly

        if not row.volumes:
            raise ValueError(f"--html draws volumes, but paper {experiments[0].paper!r} has none; leave it out")
        import_plotly()
    use_threads(options.threads, default=row.threads)
    chosen = EvaluateOptions(
        command=command,
        split=options.split,
        cases=options.cases,
        policies=options.policies,
        skip_bad=options.on_error == "skip",
        out=options.out,
        unfinished=options.unfinished,
        save_masks=options.save_masks,
        html=options.html,
    )
    results, skipped = row.evaluate(list(zip(runs, experiments, strict=True)), chosen)
    text = "\n\n".join(row.tables(results))
    folders = list(dict.fromkeys(chosen.folder(run) for run in runs))
    write_text(folders[0] / "table.md", text + "\n")
    if compared := row.pairs(results):
        write_text(folders[0] / "pairs.md", compared + "\n")
    print(f"\n{text}\n")
    for folder in folders:
        for picture in sorted([*folder.glob("*.png"), *(folder.glob("*.html") if options.html else [])]):
            print(f"picture    {picture}")
        print(f"results    {folder}")
    if compared:
        print(f"pairs      {folders[0] / 'pairs.md'}")
    print(f"watch      {watch(runs)}")
    for line in skipped:
        print(f"skipped    {line}", file=sys.stderr)
    return 1 if skipped else 0
