"""From options and YAML to an experiment, and back from a run's config.yaml."""

import functools
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from ..common.checks import check_choice
from ..common.likeness import did_you_mean
from ..common.reading import parse_yaml, quoted, read_yaml
from .catalogue import schema
from .packaged import config_file
from .papers import PAPERS, paper_named
from .refusals import one_line
from .schema import keys, misfit, misfit_at

if TYPE_CHECKING:
    from ..common.runs import Run
    from .experiment import Paper

set_parsing_settings(
    docstring_parse_attribute_docstrings=True,  # the string under a field is its help
    import_path_denylist=["*"],  # no configuration names code, but for the types of fields: see `experiment_parser`
)


def find_configs(arguments: Sequence[str]) -> list[str]:
    """`arguments` with the file of each `--config`, where it is the name of a packaged configuration.

    Raises:
        FileNotFoundError: it is neither.
    """
    found, previous = list[str](), ""
    for text in arguments:
        if previous == "--config" and not text.startswith("-"):
            text = config_file(text)
        elif text.startswith("--config="):
            text = f"--config={config_file(text.removeprefix('--config='))}"
        found.append(text)
        previous = text
    return found


SEVERAL = ("--seeds",)
"""Options of `train` that take several values, separated by spaces."""


def _is_option(text: str) -> bool:
    """Whether a word begins an option, and is no negative number, such as -0.25."""
    return text.startswith("-") and re.fullmatch(r"-(\d+|\d*\.\d+)", text) is None


def given_options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each `--name value` and `--name=value` of a command line; None: no value follows. Other words: the name "".

    Of an option of `SEVERAL` values, the first.
    """
    rest = list(arguments)
    while rest:
        text = rest.pop(0)
        if not _is_option(text):
            yield "", text
        elif "=" in text:
            name, _, value = text.partition("=")
            yield name, value
        else:
            has_value = rest and not _is_option(rest[0])
            yield text, rest.pop(0) if has_value else None
            while text in SEVERAL and rest and not _is_option(rest[0]):
                rest.pop(0)


def paper_of(arguments: Sequence[str]) -> str | None:
    """The paper that the arguments of `train` name: by --paper, in each configuration, or in the run that is resumed.

    None: they name none. Configurations must be files, see `find_configs`.

    Raises:
        ValueError: there is no such paper; a configuration names none; two name different ones.
    """
    named: dict[str, str] = {}
    for option, value in given_options(arguments):
        if value is None or option not in ("--paper", "--config", "--resume"):
            continue
        where, paper = option, value
        if option != "--paper":
            folder = option == "--resume"
            where = f"{value}/config.yaml" if folder else value
            if folder and not Path(where).is_file():
                continue  # the command says that it is no run
            paper = _paper_in(where, _read(where))
        else:
            check_choice("paper", paper, PAPERS)
        for other, before in named.items():
            if before != paper:
                raise ValueError(f"{where} is of paper {paper!r} but {other} of {before!r}; give those of one paper")
        named[where] = paper
    return next(iter(named.values()), None)


def _read(path: str) -> dict[str, Any]:
    """A YAML file of names and values.

    Raises:
        ValueError: it is something else, or a name is no text.
    """
    loaded = read_yaml(path)
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds no configuration (name: value) but {quoted(loaded)}")
    return loaded


def _paper_in(path: str, config: Mapping[str, Any]) -> str:
    if "paper" not in config:
        papers = ", ".join(map(repr, PAPERS))
        raise ValueError(f"{path} names no paper; add a line `paper: NAME` with one of {papers}")
    check_choice(f"{path}: paper", config["paper"], PAPERS)
    return str(config["paper"])


def check_given(arguments: Sequence[str], paper: str, others: Sequence[str]) -> None:
    """Check the arguments of `train` by the schema of the paper's configurations, before anything is imported.

    others: the options of `train` that are no field of a configuration.

    Raises:
        ValueError: an option or key that there is not, or a value of another type; names file, key, value and rule.
    """
    of_paper = schema(paper)
    fields_of_paper = keys(of_paper)
    known = [*(f"--{name}" for name in fields_of_paper), *others]
    for option, value in given_options(arguments):
        if option == "--config" and value is not None:
            if wrong := misfit(of_paper, _read(value)):
                raise ValueError(f"{value}: {wrong}")
        elif not option:
            raise ValueError(f"{value!r} is no option: options are given as --name value")
        elif option.removesuffix("+") not in known:
            hint = did_you_mean(option, known) or f"; `train --paper {paper} --help` prints all of them"
            raise ValueError(f"paper {paper!r} has no option {option}{hint}")
        elif option not in others and not option.endswith("+") and value is not None:
            name = option.removeprefix("--")
            if wrong := misfit_at(of_paper, name, _value(value)):
                raise ValueError(wrong)


def _value(text: str) -> Any:
    try:
        return parse_yaml(text, "option")
    except ValueError:
        return text


def experiment_parser(paper: "Paper[Any]") -> ArgumentParser:
    """The fields of a training run, as options and as the keys of its YAML."""
    allowed = {f"{kind.__module__}.{kind.__qualname__}" for kind in _dataclasses(paper.experiment)}
    set_parsing_settings(import_path_allowlist=sorted(allowed))
    options = ArgumentParser(print_config=None)
    options.add_argument(
        "--config",
        action="config",
        help="YAML file, or name of a packaged configuration (`list --configs`); may be given several times; later "
        "files and options win",
    )
    options.add_class_arguments(paper.experiment)
    return options


_parser_of = functools.cache(experiment_parser)
"""`experiment_parser`, made once for each paper (it takes 0.1 s), for those who add no options."""


def _dataclasses(kind: Any) -> Iterator[type[Any]]:
    """The dataclasses that a type is made of, and those of their fields."""
    if isinstance(kind, type) and is_dataclass(kind):
        yield kind
        for hint in get_type_hints(kind).values():
            yield from _dataclasses(hint)
    for part in get_args(kind):
        yield from _dataclasses(part)


def experiment_of(paper: str, arguments: Sequence[str]) -> Any:
    """The experiment of the paper that options of `train` describe, `--config FILE` among them; the later wins.

    Raises:
        ValueError: as `check_given`; a configuration of another paper, or a value that a field refuses.
    """
    paper_of(["--paper", paper, *arguments])
    check_given(arguments, paper, ["--config"])
    options = _parser_of(paper_named(paper))
    options.exit_on_error = False
    try:
        return experiment_from(paper_named(paper), options.parse_args(list(arguments)))
    except ArgumentError as error:
        raise ValueError(one_line(str(error), options._option_string_actions)) from error


def read_experiment(run: "Run") -> "tuple[Paper[Any], Any]":
    """The paper and the experiment of a run, from its config.yaml.

    Raises:
        ValueError: the file names no paper, or holds what the paper's experiment refuses.
    """
    path, config = str(run.folder / "config.yaml"), run.config
    name = _paper_in(path, config)
    if wrong := misfit(schema(name), config):
        raise ValueError(f"{path}: {wrong}")
    paper = paper_named(name)
    options = _parser_of(paper)
    options.exit_on_error = False
    try:
        return paper, experiment_from(paper, options.parse_object(config))
    except (ValueError, ArgumentError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_experiments(runs: "Sequence[Run]") -> "tuple[Paper[Any], list[Any]]":
    """The paper of several runs, and the experiment of each.

    Raises:
        ValueError: as `read_experiment`, or runs of different papers.
    """
    papers, experiments = zip(*map(read_experiment, runs), strict=True)
    if any(other is not papers[0] for other in papers):
        raise ValueError("the runs are of different papers; give those of one paper")
    return papers[0], list(experiments)


def experiment_from(paper: "Paper[Any]", given: Namespace) -> Any:
    """The experiment of parsed options.

    Raises:
        ValueError: a value that a field refuses.
    """
    made = _parser_of(paper).instantiate(given)
    return paper.experiment(**{field.name: made[field.name] for field in fields(paper.experiment)})
