"""Two small runs that are trained once; inputs are spoiled copies of them."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from segarena import run_rl
from tqdm import tqdm

from .parts import ECHO, PHANTOM, merged, write_config

NUMBER_OF_PATIENTS = {"train": 1, "val": 1, "test": 1, "pred": 1}
RUNS = {
    "spars": PHANTOM,
    "rl4seg": merged(
        {name: value for name, value in ECHO.items() if name != "source"},
        {
            "source": {"size": 32, "clahe": False, "phantom_patients": {**NUMBER_OF_PATIENTS, "test": 0, "pred": 0}},
            "target": {"size": 32, "clahe": False, "phantom_patients": NUMBER_OF_PATIENTS, "vendor": "b"},
        },
    ),
}
"""Configurations by name."""


class Trained:
    """The runs that `prepare` trained."""

    folder: Path

    @classmethod
    def copy(cls, name: str, to: Path) -> Path:
        """A copy of a run in the folder `to`."""
        return Path(shutil.copytree(cls.folder / name, to / "run"))


def prepare(folder: Path, *, evaluate: bool) -> None:
    """Train the runs.

    evaluate: whether copies of them are evaluated too, so that children inherit what that imports, draws and parses: it
    pays where many inputs are evaluated.
    """
    folder.mkdir()
    Trained.folder = folder
    tqdm.monitor_interval = 0  # no thread of its own: this process forks
    os.environ["SEGARENA_CACHE"] = str(folder / "cache")
    for name, config in RUNS.items():
        place, run, copied = write_config(folder, config, f"{name}.yaml"), folder / name, folder / f"{name}_evaluated"
        _call("train", "--config", str(place), "--out", str(run))
        if evaluate:
            shutil.copytree(run, copied)
            _call("evaluate", "--run", str(copied))


def _call(*arguments: str) -> None:
    """Call the command line with what it prints hidden, that of handlers too that are still open afterwards."""
    sys.stdout.flush()
    sys.stderr.flush()
    own = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as printed:
        try:
            for number in (1, 2):
                os.dup2(printed.fileno(), number)
            status = run_rl.main(list(arguments))
        finally:
            sys.stdout.flush()
            for number, file in zip((1, 2), own, strict=True):
                os.dup2(file, number)
                os.close(file)
        if status:
            printed.seek(0)
            said = printed.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(arguments)} fails, so that no input can be made of it:\n{said}")
