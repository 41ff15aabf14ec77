"""How the program and the tools beside it are called, for messages that are commands."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from ..common.runs import Run

PROGRAM = "segarena-rl" if Path(sys.argv[0]).stem == "segarena-rl" else "python run_rl.py"
"""Command that called this, for messages and results."""


def tool(name: str) -> str:
    """Shell command for a program of this Python's environment: its name if that finds it, else its path."""
    path = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(path) or not path.exists():
        return name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def watch(run: Run) -> str:
    """The command that shows a run in TensorBoard."""
    return f"{tool('tensorboard')} --logdir {shlex.quote(str(run.folder / 'tensorboard'))}"
