"""`train`: train as a configuration says, or continue a run."""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from ..configuration import check_given, experiment_from, experiment_parser, find_configs, given_options, paper_of
from ..papers import PAPERS, paper_named
from ..program import PROGRAM, tool, watch
from ..threads import add_threads, threads_of, use_threads

if TYPE_CHECKING:
    from ...common.runs import Run
    from ...common.workers import Workers
    from ..experiment import Paper

log = logging.getLogger(__name__)
ABOUT = "Train as a configuration says, or continue a run."


def prepare(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments with files for the names of configurations, checked; and the paper that they name.

    A run that is resumed is its own first configuration: options that are given beside it change it.

    Raises:
        ValueError: an option, key or value that cannot be; no paper is named, or several are.
        FileNotFoundError: there is no such configuration.
    """
    arguments = find_configs(arguments)
    given = list(given_options(arguments))
    resumed = [value for option, value in given if option == "--resume" and value is not None]
    if resumed:
        from ...common.runs import Run

        config = Run.open(resumed[-1]).folder / "config.yaml"
        if "--out" in dict(given):
            raise ValueError("--resume continues a run in its own folder; leave out --out")
        arguments = ["--config", str(config), *arguments]
    paper = paper_of(arguments)
    options = parser(None)
    if paper is not None:
        check_given(arguments, paper, list(options._option_string_actions))
    elif not {"-h", "--help"} & {option for option, _ in given}:
        raise ValueError(
            f"no configuration is given: --config NAME or FILE (`{PROGRAM} list --configs` prints those that come with "
            f"the package), or --paper with one of {', '.join(map(repr, PAPERS))} for a paper's defaults"
        )
    return arguments, paper


def parser(paper: str | None) -> ArgumentParser:
    """Its options; `paper` decides those of the experiment (None: they are left out)."""
    if paper is None:
        options = ArgumentParser(
            description=f"{ABOUT} A paper decides the other options: `{PROGRAM} train --paper NAME --help` prints "
            f"them; NAME is one of {', '.join(PAPERS)}."
        )
        options.add_argument("--config", type=str, help="YAML file, or name of a packaged one (`list --configs`)")
        options.add_argument("--paper", type=str, help="name of the paper, for its defaults without a configuration")
    else:
        options = experiment_parser(paper_named(paper))
        options.description = ABOUT
    text = str | None
    options.add_argument("--out", type=text, help="new folder of the run (default: runs/<name>-seed<seed>)")
    options.add_argument(
        "--resume",
        type=text,
        help="folder of a run to continue, with the configuration in it; other options change it, where nothing that "
        "was made so far depends on them",
    )
    options.add_argument(
        "--export_sb3", type=text, help="file .zip for the trained policy, for the load of Stable-Baselines3"
    )
    options.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        help="train one run for each of these seeds, one after the other, in <out>/<name>-seed<seed> (out: runs); the "
        "same command again continues what is unfinished and skips what is finished",
    )
    options.add_argument("--print_config", action="store_true", help="print the configuration and do nothing")
    add_threads(options)
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """Train or continue a run."""
    from ...common.names import slug
    from ...common.runs import plain
    from ...common.workers import Workers
    from ...evaluation.machine import describe_machine

    sb3_zip = options.export_sb3
    if sb3_zip is not None and not sb3_zip.endswith(".zip"):
        raise ValueError(f"export_sb3 is {sb3_zip!r} but must end in .zip")
    row = paper_named(paper)
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1" and not row.parallel:
        raise ValueError(
            f"torchrun started {processes} processes but `train` trains in one with paper {paper!r}: start it without "
            f"torchrun, or call a trainer with workers= (common/workers.py)"
        )
    experiment = experiment_from(row, options)
    if options.print_config:
        print(yaml.safe_dump(plain(asdict(experiment)), sort_keys=False, allow_unicode=True), end="")
        return 0
    if sb3_zip is not None:
        row.check_export(experiment)
    kept = threads_of(options.resume) if options.resume else None
    use_threads(options.threads, kept=kept, default=row.threads)
    environment = {**describe_machine(), "command": command}
    with Workers.from_environment(experiment.device) as workers:
        if options.seeds is not None:
            runs = _train_seeds(row, experiment, options, environment, workers)
        elif options.resume:
            runs = [row.resume(experiment, options.resume, environment, workers)]
        else:
            out = options.out or f"runs/{slug(experiment.name.lower())}-seed{experiment.seed}"
            runs = [row.start(experiment, out, environment, workers)]
    if not workers.is_main:
        return 0
    if sb3_zip is not None:
        row.export(experiment, runs[0], sb3_zip)
    _print_ways_on(row, experiment, runs)
    return 0


def _train_seeds(
    row: "Paper[Any]", experiment: Any, options: Namespace, environment: Mapping[str, Any], workers: "Workers"
) -> list["Run"]:
    """A run for each seed, trained to its end; see `--seeds`."""
    from ...common.names import slug

    if excluded := [name for name in ("resume", "export_sb3") if getattr(options, name) is not None]:
        raise ValueError(f"--seeds trains several runs; leave out --{excluded[0]}, which is about one")
    if len(set(options.seeds)) < len(options.seeds):
        raise ValueError(f"seeds is {options.seeds} but must name each seed once")
    runs = []
    for one in [replace(experiment, seed=seed) for seed in options.seeds]:  # all are checked before the first begins
        folder = Path(options.out or "runs") / f"{slug(one.name.lower())}-seed{one.seed}"
        begun = (folder / "config.yaml").is_file()
        use_threads(options.threads, kept=threads_of(folder) if begun else None, default=row.threads)
        log.info("seed %d: %s, in %s", one.seed, "goes on" if begun else "begins", folder)
        train = row.resume if begun else row.start
        runs.append(train(one, folder, environment, workers))
    return runs


def _print_ways_on(row: "Paper[Any]", experiment: Any, runs: Sequence["Run"]) -> None:
    """The runs, and the commands that can follow."""
    program, folders = PROGRAM.replace("python", tool("python")), shlex.join(str(run.folder) for run in runs)
    print()
    for run in runs:
        print(f"run        {run.folder}")
    print(f"evaluate   {program} evaluate --run {folders}")
    if row.lines(experiment, runs[0]):
        print(f"render     {program} render --run {shlex.quote(str(runs[0].folder))}")
        print(f"plot       {program} plot --run {folders}")
    print(f"watch      {watch(runs)}")
