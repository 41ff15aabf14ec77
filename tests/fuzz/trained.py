"""Two small runs that are trained once; inputs are spoiled copies of them."""

import os
import shutil
from pathlib import Path

from segarena import run_rl

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


def prepare(folder: Path) -> None:
    """Train the runs, in children, so that this process stays as it is."""
    folder.mkdir()
    Trained.folder = folder
    for name, config in RUNS.items():
        place = write_config(folder, config, f"{name}.yaml")
        pid = os.fork()
        if not pid:
            os.environ["SEGARENA_CACHE"] = str(folder / "cache")
            printed = os.open(folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            status = 70
            try:
                status = run_rl.main(["train", "--config", str(place), "--out", str(folder / name)])
            finally:
                os._exit(status)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            said = (folder / f"{name}.txt").read_text(errors="replace")
            raise SystemExit(f"the run {name}, of which inputs are made, cannot be trained:\n{said}")
