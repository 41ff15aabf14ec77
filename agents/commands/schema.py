"""`schema`: the JSON Schema of a paper's configurations, by which editors complete and check YAML files."""

import json

from jsonargparse import ArgumentParser, Namespace

from ...common.checks import check_choice
from ..catalogue import schema
from ..papers import PAPERS


def parser(paper: str | None) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(
        description="Print the JSON Schema of a paper's configurations. Kept in a file, it lets an editor complete and "
        "check a YAML file that begins with `# yaml-language-server: $schema=FILE`."
    )
    options.add_argument("--paper", type=str, required=True, help="name of the paper; `list` names them")
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """Print it."""
    check_choice("paper", options.paper, PAPERS)
    print(json.dumps(schema(options.paper), indent=1, ensure_ascii=False))
    return 0
