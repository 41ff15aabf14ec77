"""Device, seeds and stages of one run, shared by what trains in it, for every paper.

A stage is a folder of the run. A finished one has a manifest, with the settings that it depends on and checksums of its
files, and is not made again; an unfinished one continues from its checkpoint.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Generic, TypeVar

from ..common.device import resolve_device
from ..common.runs import Run, chosen
from .experiment import Experiment

E = TypeVar("E", bound=Experiment)


class StageContext(Generic[E]):
    """What the stages of a run have in common.

    trains: make the stages that are not finished; otherwise they are an error.
    """

    def __init__(self, experiment: E, run: Run, *, trains: bool) -> None:
        self.experiment, self.run, self.device = experiment, run, resolve_device(experiment.device)
        self.trains = trains
        self.settings = asdict(experiment)

    def seed(self, purpose: str) -> int:
        """A seed for one purpose, so that no stage depends on what another one has drawn."""
        return zlib.crc32(f"{self.experiment.seed}/{purpose}".encode())

    def complete(
        self, name: str, make: Callable[[Run], list[str]], keys: Iterable[str], after: Sequence[Path] = ()
    ) -> Path:
        """The folder of a finished stage; `make` makes it, and returns its files, unless it was made before.

        Args:
            name: of its folder, below the run's.
            make: trains it, from its checkpoint where there is one.
            keys: of the configuration that `make` reads itself: "seed", "ppo", "network.norm_mode".
            after: folders of the stages whose files `make` reads: it depends on these files, and on what decided them.

        Raises:
            ValueError: it is not finished, and this context does not train; or it was made with other settings.
        """

        def train(stage: Run) -> list[str]:
            if not self.trains:
                folder = str(self.run.folder)
                raise ValueError(f"run {folder!r} is not finished: it lacks {name}; train it further with --resume")
            return make(stage)

        stage = self.run.stage(name)
        return stage.complete(chosen(self.settings, keys), train, after=after, workers=self.run.workers)
