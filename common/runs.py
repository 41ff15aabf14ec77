"""A run is a folder.

config.yaml         the configuration, resolved and complete; config_1.yaml, ...: those before it was changed
environment.json    versions, device, revision
metrics.jsonl       one line of scalars per logged step
tensorboard/<run>/  the same scalars, and images; its folders are what TensorBoard calls runs, a stage's lies below it
checkpoints/        step_<n>/, see checkpoints.py
media/              pictures and films
evaluation/         results: a folder for each choice of cases, and what was chosen on validation cases
<stage>/            the same layout again, for a run that has stages (a classifier before its agent, say)
manifest.json       of a finished stage: the settings that it depends on, and the checksums of its files
.lock               while a process trains in it: which one
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from torch import Tensor

from .checkpoints import Checkpoint, latest_checkpoint, remove_checkpoints_below, save_checkpoint
from .event_files import EventFiles, board_of, hparams_rows
from .files import file_digest, named, remove_unfinished, unfinished, write_text
from .finite import NotFiniteError, not_finite
from .locks import LOCK
from .manifests import AFTER, NAME, Manifest, check_settings
from .progress import Progress
from .reading import quoted, read_yaml
from .scalars import read_scalars, whole_lines
from .stopping import stop_if_asked
from .workers import ONE_PROCESS, Workers

log = logging.getLogger(__name__)


class Run:
    """The folder of one training run, or of one stage of it. Nothing is written before something is logged or saved.

    name: of a stage, below the run's folder.
    """

    def __init__(self, folder: str | Path, name: str = "") -> None:
        self.folder, self.name = Path(folder), name
        self.settings: dict[str, bool | int | float | str] = {}
        """Settings that it depends on, see `depend_on`."""
        self.progress = Progress()
        """Shows how far the whole run is; its stages share it."""
        self.workers = ONE_PROCESS
        """The processes that train in it together; its stages share them."""
        self._event_files = EventFiles(board_of(self.folder, name))
        self._to_cut: tuple[int, int] | None = None
        """Bytes of metrics.jsonl and of TensorBoard's files that stay, until they are cut back."""

    @classmethod
    def create(cls, folder: str | Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> "Run":
        """A new run with its configuration written.

        Raises:
            ValueError: the folder is not empty, or cannot be written.
        """
        cls.check_new(folder)
        run = cls(folder)
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(run.folder)
            write_text(
                run.folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False)
            )  # now it can be resumed
            run.describe(environment)
        except OSError as error:
            raise ValueError(
                f"out is {str(folder)!r}, which cannot be written ({error}); choose another with --out"
            ) from error
        return run

    @staticmethod
    def check_new(folder: str | Path) -> None:
        """Raises ValueError: `folder` holds more than what is left of a run that was killed before it had begun."""
        path = Path(folder)
        if path.is_dir() and {one.name for one in path.iterdir()} - {LOCK, *(one.name for one in unfinished(path))}:
            raise ValueError(
                f"out is {str(folder)!r}, which is not empty; choose another, or continue it with --resume {folder}"
            )

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """A run that exists.

        Raises:
            ValueError: the folder is no run.
        """
        run = cls(folder)
        if not (run.folder / "config.yaml").is_file():
            if unfinished(run.folder):
                raise ValueError(
                    f"{str(folder)!r} is no run: its training was killed before config.yaml was written, and nothing "
                    f"is lost; begin it anew with train --out {folder}"
                )
            raise ValueError(f"{str(folder)!r} is no run: it has no config.yaml; name a folder that `train --out` made")
        return run

    def describe(self, environment: Mapping[str, Any]) -> None:
        """Write environment.json, unless it is there."""
        if not (self.folder / "environment.json").exists():
            write_text(self.folder / "environment.json", json.dumps(environment, indent=1) + "\n")

    @property
    def config(self) -> dict[str, Any]:
        """The run's resolved configuration.

        Raises:
            ValueError: the file holds something else.
        """
        path = self.folder / "config.yaml"
        loaded = read_yaml(path)
        if not isinstance(loaded, dict):
            raise ValueError(f"{path} holds no configuration but {quoted(loaded)}")
        return loaded

    def stage(self, name: str) -> "Run":
        """The folder of one stage of this run."""
        stage = Run(self.folder / name, f"{self.name}/{name}" if self.name else name)
        stage.progress, stage.workers = self.progress, self.workers
        return stage

    # -- what is watched -------------------------------------------------------------------------------------------

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add one line to metrics.jsonl and one point to each curve of TensorBoard.

        Raises:
            NotFiniteError: one of them is NaN or infinite; nothing is written.
            OSError: it cannot be written; names the file.
        """
        from torch.utils.tensorboard.summary import scalar

        if wrong := not_finite(scalars):
            raise NotFiniteError(f"{self.folder}, step {step}: {', '.join(wrong)}")
        self._cut_back()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **scalars}, allow_nan=False) + "\n")
        except OSError as error:
            raise named(error, self._metrics) from error
        for name, value in scalars.items():
            self._events.add(scalar(name, value), step)  # type: ignore[no-untyped-call]

    def log_image(self, name: str, picture: npt.NDArray[np.uint8], step: int) -> None:
        """Show `picture`, uint8 [H, W, 3], in TensorBoard."""
        from torch.utils.tensorboard.summary import image

        self._events.add(image(name, picture, dataformats="HWC"), step)  # type: ignore[no-untyped-call]

    def log_text(self, name: str, text: str) -> None:
        """Show a text in TensorBoard, at step 0."""
        from torch.utils.tensorboard.summary import text as summary

        self._events.add(summary(name, text), 0)  # type: ignore[no-untyped-call]

    def log_hparams(self, settings: Mapping[str, Any], outcome: Mapping[str, float]) -> None:
        """Show the settings (a nested mapping) beside what came of them in TensorBoard's table of runs.

        outcome: by the names of its curves. A run without curves of its own, those being its stages', shows these
        numbers only, in place of any that it showed before. A finished run that is resumed shows them already, and its
        files stay as they are.
        """
        from torch.utils.tensorboard.summary import scalar

        rows = hparams_rows(flat(settings), outcome)
        alone = not self._metrics.exists()
        points = [scalar(name, value) for name, value in outcome.items()] if alone else []  # type: ignore[no-untyped-call]
        if self._event_files.hold([*points, *rows], after=self._to_cut[1] if self._to_cut else 0):
            return
        if alone:
            self._events.close()
            self._events.cut_back(0)
        for point in points:
            self._events.add(point, 0)
        for row in rows:
            self._events.add(row)

    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl, oldest first.

        Raises:
            ValueError: names the line that holds no scalars.
        """
        kept = self._to_cut[0] if self._to_cut else None
        return read_scalars(self._metrics, kept) if self._metrics.exists() else []

    @property
    def media(self) -> Path:
        """Folder of pictures, made if missing."""
        (self.folder / "media").mkdir(parents=True, exist_ok=True)
        return self.folder / "media"

    @property
    def _metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    # -- what is kept ----------------------------------------------------------------------------------------------

    def save(self, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep a checkpoint; what was logged so far belongs to it."""
        self._cut_back()
        logged = self._metrics.stat().st_size if self._metrics.exists() else 0
        sizes = {"metrics_bytes": logged, "tensorboard_bytes": self._events.size()}
        save_checkpoint(self.folder / "checkpoints", step, weights, {**state, **sizes, "settings": self.settings})

    def checkpoint(self) -> Checkpoint:
        """The newest whole checkpoint.

        Raises:
            ValueError: there is none.
        """
        checkpoint = latest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            raise ValueError(f"run {str(self.folder)!r} has no whole checkpoint yet; train it further with --resume")
        return checkpoint

    def resume(self) -> Checkpoint | None:
        """The newest whole checkpoint, with the logs cut back to it; None (and empty logs) where there is none yet.

        The files are cut when they are next written, so that one who is refused later has changed nothing.

        Raises:
            ValueError: it was made with other settings, or from a stage that was made anew since: see `finished`; or
                what it or metrics.jsonl holds is malformed.
        """
        folder = self.folder / "checkpoints"
        checkpoint = latest_checkpoint(folder)
        if checkpoint:
            where = f"the checkpoint of {self.folder} at step {checkpoint.step}"
            check_settings(checkpoint.settings, self.settings, where, delete=folder)
        size, events_size = checkpoint.logged if checkpoint else (0, 0)
        there = whole_lines(self._metrics, size) if self._metrics.exists() else 0
        if there < size and checkpoint:  # weights do not need them
            log.warning(
                "%s has lost lines since the checkpoint at step %d was kept: %d of %d bytes are left. The curves have "
                "a gap; the training is whole and goes on",
                *(self._metrics, checkpoint.step, there, size),
            )
        self._event_files = EventFiles(self._event_files.folder, checkpoint.step + 1 if checkpoint else 0)
        self._to_cut = (there, events_size)
        return checkpoint

    def _cut_back(self) -> None:
        """Cut the logs back to the checkpoint from which the run is resumed, once."""
        if self._to_cut:
            (size, events_size), self._to_cut = self._to_cut, None
            if self._metrics.exists():
                os.truncate(self._metrics, size)
            self._event_files.cut_back(events_size)

    @property
    def _events(self) -> EventFiles:
        self._cut_back()
        return self._event_files

    def depend_on(self, settings: Mapping[str, Any], after: Sequence[Path] = ()) -> None:
        """State what this run or stage depends on: kept in its checkpoints and manifest, compared when it goes on.

        Args:
            settings: the part of the configuration that decides it, and nothing else.
            after: folders of the finished stages that it builds on: it depends on all that they depend on, and on
                their files.

        Raises:
            ValueError: a stage that it builds on is not finished.
        """
        here, before, digests = self.folder.absolute(), dict[str, Any](), dict[str, str]()
        for folder in after:
            manifest, there = _made(folder), folder.absolute()
            before |= manifest.configuration
            name = there.relative_to(os.path.commonpath([here, there])).as_posix()
            digests[AFTER + name] = manifest.digest()
        self.settings = before | flat(settings) | digests

    def complete(
        self,
        settings: Mapping[str, Any],
        make: Callable[["Run"], Sequence[str]],
        *,
        after: Sequence[Path] = (),
        workers: Workers = ONE_PROCESS,
    ) -> Path:
        """The folder of this stage, finished: made by `make` now, unless it was finished before.

        Args:
            settings: see `depend_on`.
            make: makes the stage, from its checkpoint where there is one, and returns the names of its files.
            after: see `depend_on`.
            workers: the processes that make it together; rank 0 alone marks it as finished.

        Raises:
            ValueError: as `finished`; or a stage that it builds on is not finished.
        """
        self.depend_on(settings, after)
        if not workers.broadcast(workers.is_main and self.finished()):
            stop_if_asked()
            with self.progress.stage(self.name):
                files = make(self)
            if workers.is_main:
                self.finish(files)
            workers.broadcast(None)  # until the files are there
        else:
            self.progress.skip(self.name)
        return self.folder

    def finish(self, files: Sequence[str]) -> None:
        """Mark this stage as finished: `files` of its folder were made with its settings. Its checkpoints go."""
        Manifest(self.settings, {name: file_digest(self.folder / name) for name in files}).write(self.folder)
        self.close()
        remove_checkpoints_below(self.folder)

    def finished(self) -> bool:
        """Whether this stage is finished.

        Raises:
            ValueError: it was finished with other settings (names the first key that differs), or from a stage that was
                made anew since (names it); or one of its files is missing or was changed since.
        """
        manifest = Manifest.read(self.folder)
        if manifest is None:
            return False
        check_settings(manifest.settings, self.settings, str(self.folder / NAME), delete=self.folder)
        manifest.check_files(self.folder)
        return True

    def close(self) -> None:
        """Close the files that are open."""
        self._event_files.close()


def flat(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """A nested configuration as {"ppo.epochs": 5, ...}; lists, tuples, None and what is empty as text."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{key}": item for key, item in flat(value).items()}
        else:
            found[name] = value if isinstance(value, bool | int | float | str) else str(plain(value))
    return found


def chosen(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, bool | int | float | str]:
    """The part of a configuration below `keys` ("seed", "ppo", "network.norm_mode"), as `flat` gives it.

    Raises:
        KeyError: there is nothing below a key.
    """
    everything, found = flat(settings), dict[str, bool | int | float | str]()
    for key in keys:
        below = {name: value for name, value in everything.items() if name == key or name.startswith(f"{key}.")}
        if not below:
            raise KeyError(key)
        found |= below
    return found


def plain(value: Any) -> Any:
    """The same tree with lists for tuples, for YAML."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _made(folder: Path) -> Manifest:
    """The manifest of a stage.

    Raises:
        ValueError: it is not finished.
    """
    if manifest := Manifest.read(folder):
        return manifest
    raise ValueError(f"stage {str(folder)!r} is not finished, but another one builds on it; make it first")
