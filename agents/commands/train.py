"""`train`: train as a configuration says, or continue a run."""

import os
import shlex
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ...common.runs import Run, slug
from ...evaluation.machine import describe_machine
from ..configuration import experiment_from, experiment_parser, read_experiment
from ..experiment import Paper
from ..program import PROGRAM, tool, watch


def parser(paper: Paper[Any]) -> ArgumentParser:
    """Its options; `paper` decides those of the experiment."""
    options, text = experiment_parser(paper), str | None
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
    return options


def run(options: Namespace, command: str, paper: Paper[Any]) -> int:
    """Train or continue a run."""
    sb3_zip = options.export_sb3
    if sb3_zip is not None and not sb3_zip.endswith(".zip"):
        raise ValueError(f"export_sb3 is {sb3_zip!r} but must end in .zip")
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(
            f"torchrun started {processes} processes but `train` trains in one: start it without torchrun, or call a "
            f"trainer with workers= (common/workers.py)"
        )
    if options.resume:
        given = parser(paper).parse_args(shlex.split(command.removeprefix(PROGRAM))[1:], defaults=False)
        changes = {
            name: value for name, value in given.as_dict().items() if name not in ("resume", "export_sb3", "config")
        }
        if changes.pop("out", None):
            raise ValueError("--resume continues a run where it is; leave out --out")
        paper, experiment = read_experiment(Run.open(options.resume), changes)
    else:
        experiment = experiment_from(paper, options)
    if sb3_zip is not None:
        paper.check_export(experiment)
    environment = {**describe_machine(), "command": command}
    if options.resume:
        run = paper.resume(experiment, options.resume, environment)
    else:
        out = options.out or f"runs/{slug(experiment.name.lower())}-seed{experiment.seed}"
        run = paper.start(experiment, out, environment)
    if sb3_zip is not None:
        paper.export(experiment, run, sb3_zip)
    print(f"\nrun        {run.folder}")
    print(f"evaluate   {PROGRAM.replace('python', tool('python'))} evaluate --run {shlex.quote(str(run.folder))}")
    print(f"watch      {watch(run)}")
    return 0
