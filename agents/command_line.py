"""The command line that the drivers share: a command and its options, errors, exit status."""

import argparse
import importlib
import logging
import os
import platform
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

from gymnasium.error import Error as GymnasiumError

from .. import __version__
from ..common.likeness import did_you_mean
from ..common.stopping import Stopped
from .commands import COMMANDS
from .exits import INTERRUPTED, REFUSED, failed, print_on_any_console
from .program import PROGRAM
from .refusals import one_line


class _Root(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(one_line(message, self._option_string_actions))


def _root() -> _Root:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {about}" for name, about in COMMANDS.items())
    root = _Root(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [options]",
        description="Train, evaluate and watch the agents of SegArena.",
        epilog=f"commands:\n{listed}\n\n`{PROGRAM} COMMAND --help` prints the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    root.add_argument("--version", action="store_true", help="print the versions of SegArena, PyTorch and Python")
    root.add_argument(
        "--print_completion", metavar="SHELL", help="print what completes commands and options in bash, zsh, tcsh, fish"
    )
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: see `exits`."""
    print_on_any_console()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    name = arguments[0] if arguments else ""
    try:
        if name in COMMANDS:
            return _run(name, arguments[1:])
        if name and not name.startswith("-"):
            hint = did_you_mean(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
            raise ValueError(f"there is no command {name!r}{hint}")
        return _answer(_root(), arguments)
    except BrokenPipeError:  # the reader of the output has seen enough: `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, GymnasiumError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except Exception as error:
        return failed(error)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:
        again = f"; a run that was training continues with {PROGRAM} train --resume RUN" if name == "train" else ""
        print(f"\nstopped{again}", file=sys.stderr)
        return INTERRUPTED


def _answer(root: _Root, arguments: Sequence[str]) -> int:
    """What is asked without a command."""
    asked = root.parse_args(arguments)
    if asked.version:
        print(f"segarena {__version__}, torch {metadata.version('torch')}, Python {platform.python_version()}")
    elif asked.print_completion:
        from .completion import script  # it needs the options of every command

        print(script(asked.print_completion))
    else:
        raise ValueError(f"no command is given; there are {', '.join(COMMANDS)} ({PROGRAM} --help)")
    return 0


def _run(name: str, arguments: list[str]) -> int:
    """Parse the options of a command and do it."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    command, paper = f"{PROGRAM} {shlex.join([name, *arguments])}", None
    module: Any = importlib.import_module(f"{__package__}.commands.{name}")
    if hasattr(module, "prepare"):
        arguments, paper = module.prepare(arguments)
    options = module.parser(paper)
    options.prog, options.exit_on_error, options.allow_abbrev = f"{PROGRAM} {name}", False, False
    try:
        given = options.parse_args(arguments)
    except ArgumentError as error:
        raise ValueError(one_line(str(error), options._option_string_actions)) from error
    status = int(module.run(given, command, paper))
    sys.stdout.flush()
    return status
