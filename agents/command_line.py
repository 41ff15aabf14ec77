"""The command line that the drivers share: train, evaluate, render, list."""

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import yaml
from gymnasium.error import Error as GymnasiumError
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from ..common.files import replacing
from ..common.runs import Run, slug
from ..datasets.liver.lesions import LesionConfig
from ..envs import ENVIRONMENTS
from ..evaluation.machine import describe_machine
from .papers import PAPERS, Paper

set_parsing_settings(
    docstring_parse_attribute_docstrings=True,  # the string under a field is its help
    import_path_denylist=["*"],  # no configuration names code ...
    import_path_allowlist=[f"{LesionConfig.__module__}.{LesionConfig.__qualname__}"],  # ... but this type, which is one
)
PROGRAM = "segarena-rl" if Path(sys.argv[0]).stem == "segarena-rl" else "python run_rl.py"
"""How the user called this."""
DEFAULT_PAPER = "spars"
"""Of a configuration that names none."""


def paper_of(arguments: Sequence[str]) -> Paper:
    """The paper that a command line of `train` names, itself or in its configurations; the last one counts.

    Raises:
        ValueError: there is no such paper.
    """
    given = [argument for text in arguments for argument in (text.split("=", 1) if text[:2] == "--" else [text])]
    name = DEFAULT_PAPER
    for option, value in pairwise(given):
        if option == "--paper":
            name = value
        elif option == "--config" and Path(value).is_file():
            with suppress(yaml.YAMLError, UnicodeDecodeError):  # the parser says what is wrong with it
                config = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
                name = config.get("paper", name) if isinstance(config, dict) else name
    return _paper(name)


def _paper(name: object) -> Paper:
    if not isinstance(name, str) or name not in PAPERS:
        raise ValueError(f"paper is {name!r} but must be one of {', '.join(PAPERS)}")
    return PAPERS[name]


def parser(paper: Paper = PAPERS[DEFAULT_PAPER]) -> ArgumentParser:
    """The command line; `paper` decides the options of `train`."""
    root = ArgumentParser(prog="run_rl.py", description="Train, evaluate and watch the agents of SegArena.")
    commands = root.add_subcommands(required=True)

    one = experiment_parser(paper)
    one.add_argument(
        "--out", type=str | None, default=None, help="new folder of the run (default: runs/<name>-seed<seed>)"
    )
    one.add_argument("--resume", type=str | None, default=None, help="continue this run; other options are not needed")
    one.add_argument("--export_sb3", type=str | None, default=None, help="also write the policy as a zip of SB3")
    commands.add_subcommand("train", one, help="train as a configuration says, or continue a run")

    two = ArgumentParser(description="Judge what a run trained, and what it is compared with, on test cases.")
    two.add_argument("--run", nargs="+", type=str, required=True, help="one run folder or several, space-separated")
    two.add_argument("--split", type=str | None, default=None, help="another split than the run's test split")
    two.add_argument("--cases", type=list[str] | None, default=None, help="other cases than the run's test cases")
    two.add_argument("--on_error", type=str, default="stop", help="what a bad file does: stop or skip")
    commands.add_subcommand("evaluate", two, help="results, table and pictures of trained runs")

    three = ArgumentParser(description="Play one episode and write it as an animated picture.")
    three.add_argument("--run", type=str, required=True, help="run folder")
    three.add_argument("--case", type=str | None, default=None, help="case id (default: the first of the test split)")
    three.add_argument("--out", type=str | None, default=None, help="file to write, .gif (default: in the run's media)")
    three.add_argument("--seed", type=int, default=0, help="of the episode")
    commands.add_subcommand("render", three, help="write an episode as a GIF")

    commands.add_subcommand("list", ArgumentParser(description="All environments."), help="ids, papers and spaces")
    return root


def experiment_parser(paper: Paper) -> ArgumentParser:
    """The fields of a training run, as options and as the keys of its YAML."""
    one = ArgumentParser(description="Train as a configuration says, or continue a run.")
    one.add_argument("--config", action="config", help="YAML file; options after it win")
    one.add_class_arguments(paper.experiment)
    return one


def read_experiment(run: Run) -> tuple[Paper, Any]:
    """The paper and the experiment of a run, from its config.yaml."""
    paper = _paper(run.config.get("paper", DEFAULT_PAPER))
    one = experiment_parser(paper)
    return paper, _experiment(paper, one, one.parse_object(run.config))


def _experiment(paper: Paper, one: ArgumentParser, options: Namespace) -> Any:
    made = one.instantiate(options)
    return paper.experiment(**{field.name: made[field.name] for field in fields(paper.experiment)})


def tool(name: str) -> str:
    """How to call a program of this Python's environment from here: by its name where that finds it."""
    path = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(path) or not path.exists():
        return name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def watch(run: Run) -> str:
    """The command that shows a run in TensorBoard."""
    return f"{tool('tensorboard')} --logdir {shlex.quote(str(run.folder))}"


def run_train(options: Namespace, command: str, paper: Paper) -> int:
    """Train or continue a run."""
    sb3_zip = options.export_sb3
    if sb3_zip is not None and not sb3_zip.endswith(".zip"):
        raise ValueError(f"export_sb3 is {sb3_zip!r} but must end in .zip")
    if options.resume:
        given = parser(paper).parse_args(shlex.split(command.removeprefix(PROGRAM)), defaults=False).train
        if ignored := sorted(set(given.keys()) - {"resume", "export_sb3"}):
            raise ValueError(f"--resume continues a run as it was configured; leave out {', '.join(ignored)}")
        run = Run.open(options.resume)
        paper, experiment = read_experiment(run)
        run = paper.resume(experiment, run.folder, sb3_zip=sb3_zip)
    else:
        experiment = _experiment(paper, experiment_parser(paper), options)
        out = options.out or f"runs/{slug(experiment.name.lower())}-seed{experiment.seed}"
        run = paper.train(experiment, out, {**describe_machine(), "command": command}, sb3_zip=sb3_zip)
    print(f"\nrun        {run.folder}")
    print(f"evaluate   {PROGRAM.replace('python', tool('python'))} evaluate --run {shlex.quote(str(run.folder))}")
    print(f"watch      {watch(run)}")
    return 0


def run_evaluate(options: Namespace, command: str, _: Paper) -> int:
    """Results, table and pictures; 1 if a bad file was skipped."""
    if options.on_error not in ("stop", "skip"):
        raise ValueError(f"on_error is {options.on_error!r} but must be 'stop' or 'skip'")
    runs = [Run.open(folder) for folder in options.run]
    papers, experiments = zip(*map(read_experiment, runs), strict=True)
    if len({id(paper) for paper in papers}) > 1:
        raise ValueError("the runs are of different papers; evaluate them apart")
    paper: Paper = papers[0]
    results, skipped = paper.evaluate(
        list(zip(runs, experiments, strict=True)),
        command=command,
        split=options.split,
        cases=options.cases,
        skip_bad=options.on_error == "skip",
    )
    text = "\n\n".join(paper.tables(results))
    folders = [run.folder for run in runs]
    with replacing(folders[0] / "evaluation" / "table.md") as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n")
    for folder in folders:
        for picture in sorted((folder / "media").glob("*.png")):
            print(f"picture    {picture}")
    print(f"results    {folders[0] / 'evaluation'}")
    print(f"watch      {watch(runs[0])}")
    for line in skipped:
        print(f"skipped    {line}", file=sys.stderr)
    return 1 if skipped else 0


def run_render(options: Namespace, command: str, _: Paper) -> int:
    """One episode of a trained policy as a GIF."""
    if options.out is not None and not options.out.endswith(".gif"):
        raise ValueError(f"out is {options.out!r} but must end in .gif")
    run = Run.open(options.run)
    paper, experiment = read_experiment(run)
    frames, said = paper.render(run, experiment, case=options.case, seed=options.seed)
    path = Path(options.out) if options.out else run.media / "episode.gif"
    with replacing(path) as unfinished:
        imageio.imwrite(unfinished, np.stack(frames), duration=paper.frame_ms, loop=0)
    print(f"{path}: {said}")
    return 0


def run_list(options: Namespace, command: str, _: Paper) -> int:
    """Every environment with its paper, configuration and spaces."""
    for name, entry in ENVIRONMENTS.items():
        env = gym.make(name)
        print(f"{name}\n  paper         {entry.paper}\n  config        {Path(__file__).parents[1] / entry.config}")
        print(f"  observations  {env.observation_space}\n  actions       {env.action_space}")
        env.close()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 1 done but some files were skipped, 2 refused, 130 stopped."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = f"{PROGRAM} {shlex.join(arguments)}"
    commands: dict[str, Any] = {"train": run_train, "evaluate": run_evaluate, "render": run_render, "list": run_list}
    try:
        paper = paper_of(arguments)
        options = parser(paper).parse_args(arguments)
        return int(commands[options.subcommand](options[options.subcommand], command, paper))
    except (ValueError, OSError, GymnasiumError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; a run that was training continues with {PROGRAM} train --resume RUN", file=sys.stderr)
        return 130
