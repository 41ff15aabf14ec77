"""The script by which a shell completes commands, options, and the names that they take."""

import argparse
import importlib
from collections.abc import Sequence

import shtab
from jsonargparse import ArgumentParser

from ..common.checks import check_choice
from ..envs import ENVIRONMENTS
from .catalogue import schema
from .commands import COMMANDS
from .packaged import names
from .papers import PAPERS
from .schema import keys


def script(shell: str) -> str:
    """The script for a shell, to be kept where that looks for completions, or read by `eval`.

    Raises:
        ValueError: a shell that is not supported.
    """
    check_choice("print_completion", shell, shtab.SUPPORTED_SHELLS)
    root = argparse.ArgumentParser(prog="segarena-rl")
    commands = root.add_subparsers()
    for name, about in COMMANDS.items():
        known: ArgumentParser = importlib.import_module(f"{__package__}.commands.{name}").parser(None)
        command = commands.add_parser(name, help=about)
        for action in known._actions:
            if "--help" not in action.option_strings and action.help != argparse.SUPPRESS:
                _add(command, action.option_strings, takes_value=action.nargs != 0)
        if name == "train":
            fields = {key for paper in PAPERS if PAPERS.is_own(paper) for key in keys(schema(paper))}
            for key in sorted(fields - {"paper"}):
                _add(command, [f"--{key}"], takes_value=True)
    return str(shtab.complete(root, shell))


def _add(command: argparse.ArgumentParser, options: Sequence[str], *, takes_value: bool) -> None:
    """Add an option with the values that are known and files for the others."""
    if not takes_value:
        command.add_argument(*options, action="store_true")
        return
    configs = names(sweeps=command.prog.endswith("sweep"))
    choices = {"--config": configs, "--paper": list(PAPERS), "--id": list(ENVIRONMENTS)}.get(options[-1])
    added = command.add_argument(*options, choices=choices)
    if choices is None:
        added.complete = shtab.FILE  # type: ignore[attr-defined]
