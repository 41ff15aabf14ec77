"""The command line that the drivers share: train, evaluate, render, play, list."""

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
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
from ..evaluation.report import markdown
from .experiment import EvaluateOptions, Paper
from .papers import DEFAULT_PAPER, PAPERS, paper_named
from .policy import POLICIES, Episodes, make_env, play, reference

set_parsing_settings(
    docstring_parse_attribute_docstrings=True,  # the string under a field is its help
    import_path_denylist=["*"],  # no configuration names code ...
    import_path_allowlist=[f"{LesionConfig.__module__}.{LesionConfig.__qualname__}"],  # ... but this type, which is one
)
PROGRAM = "segarena-rl" if Path(sys.argv[0]).stem == "segarena-rl" else "python run_rl.py"
"""Command that called this, for messages and results."""


def paper_of(arguments: Sequence[str]) -> Paper[Any]:
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
    return paper_named(name)


# -- options -------------------------------------------------------------------------------------------------------


def parser(paper: Paper[Any] = PAPERS[DEFAULT_PAPER]) -> ArgumentParser:
    """The command line; `paper` decides the options of `train`."""
    root = ArgumentParser(prog="run_rl.py", description="Train, evaluate and watch the agents of SegArena.")
    commands = root.add_subcommands(required=True)
    commands.add_subcommand("train", _train_parser(paper), help="train as a configuration says, or continue a run")
    commands.add_subcommand("evaluate", _evaluate_parser(), help="results, table and pictures of trained runs")
    commands.add_subcommand("render", _render_parser(), help="write an episode as a GIF")
    commands.add_subcommand("play", _play_parser(), help="play reference policies, without any trained run")
    everything = ArgumentParser(description="Print every environment and paper.")
    commands.add_subcommand("list", everything, help="environments with spaces and reference policies; papers")
    return root


def experiment_parser(paper: Paper[Any]) -> ArgumentParser:
    """The fields of a training run, as options and as the keys of its YAML."""
    options = ArgumentParser(description="Train as a configuration says, or continue a run.")
    options.add_argument(
        "--config", action="config", help="YAML file; may be given several times; later files and options win"
    )
    options.add_class_arguments(paper.experiment)
    return options


def _train_parser(paper: Paper[Any]) -> ArgumentParser:
    options, text = experiment_parser(paper), str | None
    options.add_argument("--out", type=text, help="new folder of the run (default: runs/<name>-seed<seed>)")
    options.add_argument(
        "--resume", type=text, help="folder of a run to continue, with the configuration in it; excludes other options"
    )
    options.add_argument(
        "--export_sb3", type=text, help="file .zip for the trained policy, for the load of Stable-Baselines3"
    )
    return options


def _evaluate_parser() -> ArgumentParser:
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
    return options


def _render_parser() -> ArgumentParser:
    options = ArgumentParser(description="Play one episode of a trained policy and write it as a GIF.")
    options.add_argument("--run", type=str, required=True, help="run folder")
    options.add_argument(
        "--case", type=str | None, help="id of the case to play (default: the first of the test split)"
    )
    options.add_argument("--out", type=str | None, help="file .gif to write (default: RUN/media/episode.gif)")
    options.add_argument("--seed", type=int, default=0, help="seed of the episode")
    return options


def _play_parser() -> ArgumentParser:
    options = ArgumentParser(description="Play reference policies; prints mean [min, max] over the episodes.")
    options.add_argument("--env", type=str, required=True, help="id of the environment; `list` names them")
    options.add_argument("--policy", type=str, default="all", help="name of a reference policy, or all")
    options.add_argument("--episodes", type=int, default=20, help="number of episodes, all played at once")
    options.add_argument("--seed", type=int, default=0, help="seed of the episodes; every policy plays the same ones")
    options.add_argument(
        "--device", type=str, default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N"
    )
    options.add_argument(
        "--set", nargs="+", type=str, default=[], help="arguments of the environment, as name=value name=value ..."
    )
    return options


def read_experiment(run: Run) -> tuple[Paper[Any], Any]:
    """The paper and the experiment of a run, from its config.yaml."""
    paper = paper_named(run.config.get("paper", DEFAULT_PAPER))
    options = experiment_parser(paper)
    return paper, _experiment(paper, options, options.parse_object(run.config))


def _experiment(paper: Paper[Any], options: ArgumentParser, given: Namespace) -> Any:
    made = options.instantiate(given)
    return paper.experiment(**{field.name: made[field.name] for field in fields(paper.experiment)})


# -- what is printed -----------------------------------------------------------------------------------------------


def tool(name: str) -> str:
    """Shell command for a program of this Python's environment: its name if that finds it, else its path."""
    path = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(path) or not path.exists():
        return name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def watch(run: Run) -> str:
    """The command that shows a run in TensorBoard."""
    return f"{tool('tensorboard')} --logdir {shlex.quote(str(run.folder))}"


def episode_table(played: Mapping[str, Episodes]) -> str:
    """One row per policy: mean [min, max] over its episodes of the return, the steps, and the numbers of their infos.

    Booleans count as 0 and 1; an episode that lacks a number is left out of it.
    """
    columns: dict[str, dict[str, list[float]]] = {"return": {}, "steps": {}, "terminated": {}}
    for policy, episodes in played.items():
        columns["return"][policy] = episodes.returns.tolist()
        columns["steps"][policy] = episodes.lengths.tolist()
        columns["terminated"][policy] = episodes.terminated.tolist()
        for info in episodes.infos:
            for name, value in info.items():
                if isinstance(value, bool | int | float):
                    columns.setdefault(name, {}).setdefault(policy, []).append(value)
    cells = [[policy, *(_mean_and_range(values.get(policy, [])) for values in columns.values())] for policy in played]
    return "\n".join(markdown(["Policy", *columns], cells))


def _mean_and_range(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3g} [{min(values):.3g}, {max(values):.3g}]" if values else "–"


# -- the commands --------------------------------------------------------------------------------------------------


def run_train(options: Namespace, command: str, paper: Paper[Any]) -> int:
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
        given = parser(paper).parse_args(shlex.split(command.removeprefix(PROGRAM)), defaults=False).train
        if ignored := sorted(set(given.keys()) - {"resume", "export_sb3"}):
            raise ValueError(f"--resume continues a run as it was configured; leave out {', '.join(ignored)}")
        paper, experiment = read_experiment(Run.open(options.resume))
    else:
        experiment = _experiment(paper, experiment_parser(paper), options)
    if sb3_zip is not None:
        paper.check_export(experiment)
    if options.resume:
        run = paper.resume(experiment, options.resume)
    else:
        out = options.out or f"runs/{slug(experiment.name.lower())}-seed{experiment.seed}"
        run = paper.start(experiment, out, {**describe_machine(), "command": command})
    if sb3_zip is not None:
        paper.export(experiment, run, sb3_zip)
    print(f"\nrun        {run.folder}")
    print(f"evaluate   {PROGRAM.replace('python', tool('python'))} evaluate --run {shlex.quote(str(run.folder))}")
    print(f"watch      {watch(run)}")
    return 0


def run_evaluate(options: Namespace, command: str, _: Paper[Any]) -> int:
    """Results, table and pictures; 1 if a bad file was skipped."""
    if options.on_error not in ("stop", "skip"):
        raise ValueError(f"on_error is {options.on_error!r} but must be 'stop' or 'skip'")
    runs = [Run.open(folder) for folder in options.run]
    papers, experiments = zip(*map(read_experiment, runs), strict=True)
    if len({id(paper) for paper in papers}) > 1:
        raise ValueError("the runs are of different papers; evaluate them apart")
    paper: Paper[Any] = papers[0]
    chosen = EvaluateOptions(command, options.split, options.cases, options.policies, options.on_error == "skip")
    results, skipped = paper.evaluate(list(zip(runs, experiments, strict=True)), chosen)
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


def run_render(options: Namespace, command: str, _: Paper[Any]) -> int:
    """One episode of a trained policy as a GIF."""
    if options.out is not None and not options.out.endswith(".gif"):
        raise ValueError(f"out is {options.out!r} but must end in .gif")
    run = Run.open(options.run)
    paper, experiment = read_experiment(run)
    frames, summary = paper.render(run, experiment, options.case, options.seed)
    path = Path(options.out) if options.out else run.media / "episode.gif"
    with replacing(path) as unfinished:
        imageio.imwrite(unfinished, np.stack(frames), duration=paper.frame_ms, loop=0)
    print(f"{path}: {summary}")
    return 0


def run_play(options: Namespace, command: str, _: Paper[Any]) -> int:
    """Reference policies on new episodes; 1 if one of them cannot play with these arguments."""
    env = make_env(options.env, _settings(options.set), num_envs=options.episodes, device=options.device)
    table = POLICIES.get(options.env)
    if not table:
        raise ValueError(f"{options.env} has no reference policies to play; add them to POLICIES[{options.env!r}]")
    chosen = dict(table) if options.policy == "all" else {options.policy: reference(table, options.policy)}
    played, refused = dict[str, Episodes](), list[str]()
    for name, row in chosen.items():
        try:
            policy = row.make(env, options.seed)
            env.seed([options.seed * options.episodes + number for number in range(options.episodes)])
            env.reset()
            played[name] = play(env, policy)
        except ValueError as error:
            if options.policy != "all":
                raise
            refused.append(f"{name}: {error}")
    print(f"{episode_table(played)}\n\nCells: mean [min, max] of {options.episodes} episodes, seed {options.seed}.")
    for line in refused:
        print(f"left out   {line}", file=sys.stderr)
    return 1 if refused else 0


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """The arguments of an environment from "name=value" texts; values are YAML."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"set has {text!r} but each must be name=value")
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"set has {text!r}, whose value is not YAML: {error}") from error
    return settings


def run_list(options: Namespace, command: str, _: Paper[Any]) -> int:
    """Every environment with its spaces and reference policies; every paper with its baselines."""
    for name, entry in ENVIRONMENTS.items():
        env = gym.make(name)
        print(f"{name}\n  paper         {entry.paper}\n  config        {Path(__file__).parents[1] / entry.config}")
        print(f"  observations  {env.observation_space}\n  actions       {env.action_space}")
        for policy, row in POLICIES.get(name, {}).items():
            print(f"  policy        {policy}: {row.about}")
        env.close()
    for name, paper in PAPERS.items():
        print(f"paper {name}\n  experiment    {(paper.experiment.__doc__ or '').partition(chr(10))[0]}")
        for baseline, of_paper in paper.baselines.items():
            print(f"  baseline      {baseline}: {of_paper.title}")
    return 0


COMMANDS = {"train": run_train, "evaluate": run_evaluate, "render": run_render, "play": run_play, "list": run_list}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 1 done but something was left out, 2 refused, 130 stopped."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = f"{PROGRAM} {shlex.join(arguments)}"
    try:
        paper = paper_of(arguments)
        options = parser(paper).parse_args(arguments)
        return COMMANDS[options.subcommand](options[options.subcommand], command, paper)
    except (ValueError, OSError, GymnasiumError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; a run that was training continues with {PROGRAM} train --resume RUN", file=sys.stderr)
        return 130
