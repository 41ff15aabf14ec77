"""Folder, device and seeds of one SPARS run, for the stages of the baselines that it trains (docs/spars.md, Method 12).

A stage is a folder of the run. A finished one has a manifest, with the settings that it depends on and checksums of its
files, and is not made again; an unfinished one continues from its checkpoint.
"""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path

from ...common.device import resolve_device
from ...common.runs import Run, chosen
from ...datasets.liver.cases import HU_WINDOW, LiverCase, LiverDataConfig, load_liver_cases
from .config import CaseChoice, SparsExperiment

CHOICE = tuple(field.name for field in fields(CaseChoice))
"""Fields of the environment that each purpose has its own of."""
LABELLED_CASES = (
    *("seed", "classifier_train", "validation"),
    *(f"env.{field.name}" for field in fields(LiverDataConfig) if field.name not in (*CHOICE, "cache_dir")),
)
"""Keys of the configuration that decide the cases whose labels are learned from."""
STEPS_PER_BATCH = 100
"""Steps of the agent's training that take about as long as a batch of the classifier's: for the time left."""


class Context:
    """What the baselines of a run are trained from.

    trains: make the stages that are not finished; otherwise they are an error.
    """

    def __init__(self, experiment: SparsExperiment, run: Run, *, trains: bool) -> None:
        self.experiment, self.run, self.device = experiment, run, resolve_device(experiment.device)
        self.trains = trains
        self.hu_window = experiment.env.hu_window or HU_WINDOW

    def seed(self, purpose: str) -> int:
        """A seed for one purpose, so that no stage depends on what another one has drawn."""
        return zlib.crc32(f"{self.experiment.seed}/{purpose}".encode())

    def labelled_cases(self) -> tuple[list[LiverCase], list[LiverCase]]:
        """The cases that the classifier learns from, and those that validate it."""
        env, choices = self.experiment.env, (self.experiment.classifier_train, self.experiment.validation)
        train, val = (load_liver_cases(choice.of(env)) for choice in choices)
        return train, val

    def stage(self, name: str, make: Callable[[Run], list[str]], *, keys: Iterable[str]) -> Path:
        """The folder of a finished stage; `make` makes it, and returns its files, unless it was made before.

        Args:
            name: of its folder, below the run's.
            make: trains it, from its checkpoint where there is one.
            keys: of the configuration that `make` reads.

        Raises:
            ValueError: it is not finished, and this context does not train; or it was made with other settings.
        """

        def train(stage: Run) -> list[str]:
            if not self.trains:
                folder = str(self.run.folder)
                raise ValueError(f"run {folder!r} is not finished: it lacks {name}; train it further with --resume")
            return make(stage)

        return self.run.stage(name).complete(chosen(asdict(self.experiment), keys), train)
