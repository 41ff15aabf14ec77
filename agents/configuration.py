"""From options and YAML to an experiment, and back from a run's config.yaml."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from ..common.runs import Run
from ..datasets.liver.lesions import LesionConfig
from .experiment import Paper
from .papers import DEFAULT_PAPER, paper_named

set_parsing_settings(
    docstring_parse_attribute_docstrings=True,  # the string under a field is its help
    import_path_denylist=["*"],  # no configuration names code ...
    import_path_allowlist=[f"{LesionConfig.__module__}.{LesionConfig.__qualname__}"],  # ... but this type, which is one
)


def paper_of(arguments: Sequence[str]) -> Paper[Any]:
    """The paper that a command line of `train` names, itself, in its configurations or in its run; the last one counts.

    Raises:
        ValueError: there is no such paper.
    """
    given = [argument for text in arguments for argument in (text.split("=", 1) if text[:2] == "--" else [text])]
    name = DEFAULT_PAPER
    for option, value in pairwise(given):
        if option == "--paper":
            name = value
            continue
        path = Path(value, "config.yaml") if option == "--resume" else Path(value)
        if option in ("--config", "--resume") and path.is_file():
            with suppress(yaml.YAMLError, UnicodeDecodeError):  # the parser says what is wrong with it
                config = yaml.safe_load(path.read_text(encoding="utf-8"))
                name = config.get("paper", name) if isinstance(config, dict) else name
    return paper_named(name)


def experiment_parser(paper: Paper[Any]) -> ArgumentParser:
    """The fields of a training run, as options and as the keys of its YAML."""
    options = ArgumentParser(description="Train as a configuration says, or continue a run.")
    options.add_argument(
        "--config", action="config", help="YAML file; may be given several times; later files and options win"
    )
    options.add_class_arguments(paper.experiment)
    return options


def read_experiment(run: Run, changes: Mapping[str, Any] | None = None) -> tuple[Paper[Any], Any]:
    """The paper and the experiment of a run, from its config.yaml; `changes`, nested as it is, win over it.

    Raises:
        ValueError: a value that a field refuses, or a change of the paper.
    """
    name = run.config.get("paper", DEFAULT_PAPER)
    if (other := (changes or {}).get("paper", name)) != name:
        raise ValueError(f"paper is {other!r} but the run {str(run.folder)!r} is of {name!r}; leave it out")
    paper = paper_named(name)
    options = experiment_parser(paper)
    given = options.parse_object(run.config)
    return paper, experiment_from(paper, options.parse_object(dict(changes), namespace=given) if changes else given)


def experiment_from(paper: Paper[Any], given: Namespace) -> Any:
    """The experiment of parsed options.

    Raises:
        ValueError: a value that a field refuses.
    """
    made = experiment_parser(paper).instantiate(given)
    return paper.experiment(**{field.name: made[field.name] for field in fields(paper.experiment)})
