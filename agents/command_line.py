"""The command line that the drivers share: a command and its options, errors, exit status."""

import importlib
import logging
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from gymnasium.error import Error as GymnasiumError
from jsonargparse import ArgumentParser

from ..common.stopping import Stopped
from .commands import COMMANDS
from .configuration import paper_of
from .experiment import Paper
from .papers import DEFAULT_PAPER, PAPERS
from .program import PROGRAM


def parser(paper: Paper[Any] = PAPERS[DEFAULT_PAPER]) -> ArgumentParser:
    """The command line; `paper` decides the options of `train`."""
    root = ArgumentParser(prog="run_rl.py", description="Train, evaluate and watch the agents of SegArena.")
    commands = root.add_subcommands(required=True)
    for name, help_text in COMMANDS.items():
        commands.add_subcommand(name, _module(name).parser(paper), help=help_text)
    return root


def _module(name: str) -> Any:
    return importlib.import_module(f"{__package__}.commands.{name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status: 0 done, 1 something was left out, 2 refused, 128 + n stopped by signal n."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = f"{PROGRAM} {shlex.join(arguments)}"
    try:
        paper = paper_of(arguments)
        options = parser(paper).parse_args(arguments)
        return int(_module(options.subcommand).run(options[options.subcommand], command, paper))
    except (ValueError, OSError, GymnasiumError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:
        print(f"\nstopped; a run that was training continues with {PROGRAM} train --resume RUN", file=sys.stderr)
        return 130
