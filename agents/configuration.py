"""From options and YAML to an experiment, and back from a run's config.yaml."""

from collections.abc import Sequence
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


def experiment_parser(paper: Paper[Any]) -> ArgumentParser:
    """The fields of a training run, as options and as the keys of its YAML."""
    options = ArgumentParser(description="Train as a configuration says, or continue a run.")
    options.add_argument(
        "--config", action="config", help="YAML file; may be given several times; later files and options win"
    )
    options.add_class_arguments(paper.experiment)
    return options


def read_experiment(run: Run) -> tuple[Paper[Any], Any]:
    """The paper and the experiment of a run, from its config.yaml."""
    paper = paper_named(run.config.get("paper", DEFAULT_PAPER))
    return paper, experiment_from(paper, experiment_parser(paper).parse_object(run.config))


def experiment_from(paper: Paper[Any], given: Namespace) -> Any:
    """The experiment of parsed options.

    Raises:
        ValueError: a value that a field refuses.
    """
    made = experiment_parser(paper).instantiate(given)
    return paper.experiment(**{field.name: made[field.name] for field in fields(paper.experiment)})
