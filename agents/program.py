"""How the program and the tools beside it are called, for messages that are commands."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..common.runs import Run


def program_of(argv0: str) -> str:
    """The command that called this, from its sys.argv[0]; "python run_rl.py" if that is no driver."""
    path = Path(argv0)
    if path.stem == "segarena-rl":
        return path.stem
    if path.name == "__main__.py":
        return "python -m segarena" if path.parent == Path(__file__).parents[1] else "python run_rl.py"
    return f"python {shlex.quote(argv0)}" if path.suffix == ".py" else "python run_rl.py"


PROGRAM = program_of(sys.argv[0])
"""Command that called this, for messages and results."""


def tool(name: str) -> str:
    """Shell command for a program of this Python's environment: its name if that finds it, else its path."""
    path = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(path) or not path.exists():
        return name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def watch(runs: Sequence["Run"]) -> str:
    """The command that shows runs in TensorBoard; of several, all that lies in the folder that they share."""
    folders = [run.folder / "tensorboard" for run in runs]
    shared = folders[0] if len(folders) == 1 else Path(os.path.commonpath([run.folder.absolute() for run in runs]))
    relative = os.path.relpath(shared) if shared.is_absolute() and shared.is_relative_to(Path.cwd()) else shared
    return f"{tool('tensorboard')} --logdir {shlex.quote(str(relative))}"
