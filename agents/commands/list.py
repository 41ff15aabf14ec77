"""`list`: environments with spaces and reference policies; papers with their baselines; packaged configurations and
sweeps."""

import sys
from collections.abc import Iterable

from jsonargparse import ArgumentParser, Namespace

from ...envs import ENVIRONMENTS
from ..catalogue import baselines_of, policies_of, schema, spaces_of
from ..packaged import packaged
from ..papers import PAPERS


def parser(paper: str | None) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(description="Print every environment and paper.")
    options.add_argument(
        "--configs",
        action="store_true",
        help="print packaged configurations and sweeps, for --config NAME, instead",
    )
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """Print what there is; 1 if a row of another package cannot be loaded."""
    if options.configs:
        configs, sweeps = packaged(), packaged(sweeps=True)
        names, papers = (max(len(config[column]) for config in [*configs, *sweeps]) for column in (0, 1))
        for about, rows in (("", configs), ("\nsweeps, for sweep --config NAME\n", sweeps)):
            print(about + "\n".join(f"{row.name:{names}}  {row.paper:{papers}}  {row.about}" for row in rows))
        return 0
    broken = [*_print_environments(), *_print_papers()]
    for line in broken:
        print(f"left out   {line}", file=sys.stderr)
    return 1 if broken else 0


def _print_environments() -> Iterable[str]:
    for name, entry in list(ENVIRONMENTS.items()):  # making one may import a module that registers more
        print(f"{name}\n  paper         {entry.paper}")
        if entry.package:
            print(f"  package       {entry.package}")
        if entry.config:
            print(f"  config        {entry.config.removeprefix('configs/').removesuffix('.yaml')}")
        try:
            for kind, text in spaces_of(name).items():
                print(f"  {kind:12}  {text}")
            for policy, about in policies_of(name).items():
                print(f"  policy        {policy}: {about}")
        except ValueError as error:
            yield str(error)


def _print_papers() -> Iterable[str]:
    for name in PAPERS:
        print(f"paper {name}")
        if package := PAPERS.package(name):
            print(f"  package       {package}")
        try:
            print(f"  experiment    {schema(name)['description']}")
            for baseline, title in baselines_of(name).items():
                print(f"  baseline      {baseline}: {title}")
        except ValueError as error:
            yield str(error)
