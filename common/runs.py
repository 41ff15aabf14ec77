"""A run is a folder.

config.yaml         the configuration, resolved and complete
environment.json    versions, device, revision
metrics.jsonl       one line of scalars per logged step
tensorboard/        the same scalars, and images
checkpoints/        step_<n>/, see checkpoints.py
media/              pictures
<stage>/            the same layout again, for a run that has stages (a classifier before its agent, say)
manifest.json       of a finished stage: the settings that it depends on, and the checksums of its files
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from .checkpoints import Checkpoint, latest_checkpoint, save_checkpoint
from .files import file_digest, replacing
from .reading import parse_json, quoted, read_json, read_text, read_yaml
from .workers import ONE_PROCESS, Workers

LARGEST_METRICS = 2**30
"""Bytes of metrics.jsonl."""
AFTER = "after/"
"""Before the name of a stage: the setting that holds a digest of it, for those that build on it."""


class Run:
    """The folder of one training run, or of one stage of it. Nothing is written before something is logged or saved."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.settings: dict[str, bool | int | float | str] = {}
        """Settings that it depends on, see `depend_on`."""
        self._purge_step: int | None = None

    @classmethod
    def create(cls, folder: str | Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> "Run":
        """A new run with its configuration written.

        Raises:
            ValueError: the folder is not empty, or cannot be written.
        """
        run = cls(folder)
        if run.folder.is_dir() and any(run.folder.iterdir()):
            raise ValueError(
                f"out is {str(folder)!r}, which is not empty; choose another, or continue it with --resume {folder}"
            )
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            _write(run.folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))  # now it can be resumed
            _write(run.folder / "environment.json", json.dumps(environment, indent=1) + "\n")
        except OSError as error:
            raise ValueError(
                f"out is {str(folder)!r}, which cannot be written ({error}); choose another with --out"
            ) from error
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """A run that exists.

        Raises:
            ValueError: the folder is no run.
        """
        run = cls(folder)
        if not (run.folder / "config.yaml").is_file():
            raise ValueError(f"{str(folder)!r} is no run: it has no config.yaml; name a folder that `train --out` made")
        return run

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
        return Run(self.folder / name)

    # -- what is watched -------------------------------------------------------------------------------------------

    @cached_property
    def _tensorboard(self) -> SummaryWriter:
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._purge_step)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add one line to metrics.jsonl and one point to each curve of TensorBoard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()

    def log_image(self, name: str, picture: npt.NDArray[np.uint8], step: int) -> None:
        """Show `picture`, uint8 [H, W, 3], in TensorBoard."""
        self._tensorboard.add_image(name, picture, step, dataformats="HWC")

    def log_hparams(self, settings: Mapping[str, Any], outcome: Mapping[str, float]) -> None:
        """Show the settings (a nested mapping) beside what came of them in TensorBoard's table of runs."""
        for summary in hparams(flat(settings), dict(outcome)):  # type: ignore[no-untyped-call]
            self._tensorboard._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]

    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl, oldest first.

        Raises:
            ValueError: names the line that holds no scalars.
        """
        if not self._metrics.exists():
            return []
        lines = []
        for number, line in enumerate(read_text(self._metrics, LARGEST_METRICS).splitlines(), start=1):
            scalars = parse_json(line, f"{self._metrics}, line {number},")
            if not isinstance(scalars, dict) or not all(isinstance(value, int | float) for value in scalars.values()):
                raise ValueError(f"{self._metrics}, line {number}, holds no scalars by name but {quoted(scalars)}")
            lines.append(scalars)
        return lines

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
        logged = self._metrics.stat().st_size if self._metrics.exists() else 0
        kept = {**state, "metrics_bytes": logged, "settings": self.settings}
        save_checkpoint(self.folder / "checkpoints", step, weights, kept)

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

        Raises:
            ValueError: it was made with other settings, or from a stage that was made anew since: see `finished`.
        """
        folder = self.folder / "checkpoints"
        checkpoint = latest_checkpoint(folder)
        if checkpoint:
            where = f"the checkpoint of {self.folder} at step {checkpoint.step}"
            self._compare(checkpoint.state.get("settings", {}), where, delete=folder)
        if self._metrics.exists():
            os.truncate(self._metrics, checkpoint.state["metrics_bytes"] if checkpoint else 0)
        self._purge_step = checkpoint.step + 1 if checkpoint else 0
        return checkpoint

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
            stage, there = Run(folder), folder.absolute()
            before |= stage.made_with
            name = there.relative_to(os.path.commonpath([here, there])).as_posix()
            digests[AFTER + name] = stage._digest()
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
            files = make(self)
            if workers.is_main:
                self.finish(files)
            workers.broadcast(None)  # until the files are there
        return self.folder

    def finish(self, files: Sequence[str]) -> None:
        """Mark this stage as finished: `files` of its folder were made with its settings."""
        made = {"config": self.settings, "sha256": {name: file_digest(self.folder / name) for name in files}}
        _write(self.folder / "manifest.json", json.dumps(made, indent=1) + "\n")
        self.close()

    def finished(self) -> bool:
        """Whether this stage is finished.

        Raises:
            ValueError: it was finished with other settings (names the first key that differs), or from a stage that was
                made anew since (names it); or one of its files is missing or was changed since.
        """
        manifest = self._manifest()
        if manifest is None:
            return False
        then, sums = manifest
        self._compare(then, str(self.folder / "manifest.json"), delete=self.folder)
        for name, digest in sums.items():
            if not (self.folder / name).is_file() or file_digest(self.folder / name) != digest:
                raise ValueError(
                    f"{self.folder / name} is missing or differs from its manifest; delete {self.folder} to make it "
                    f"anew"
                )
        return True

    @property
    def made_with(self) -> dict[str, Any]:
        """The part of the configuration that this finished stage and those before it depend on: {"ppo.epochs": 5}.

        Raises:
            ValueError: the stage is not finished.
        """
        manifest = self._manifest()
        if manifest is None:
            raise ValueError(f"stage {str(self.folder)!r} is not finished, but another one builds on it; make it first")
        return {key: value for key, value in manifest[0].items() if not key.startswith(AFTER)}

    def _digest(self) -> str:
        """One checksum of all files of this finished stage and of those before it."""
        manifest = self._manifest()
        assert manifest is not None
        settings, sums = manifest
        before = {key: value for key, value in settings.items() if key.startswith(AFTER)}
        return hashlib.sha256(json.dumps([sums, before], sort_keys=True).encode()).hexdigest()

    def _compare(self, then: Mapping[str, Any], where: str, *, delete: Path) -> None:
        """Raises where `where` was made with the settings `then`, which are others; delete: what makes it anew."""
        now = self.settings
        for key in sorted({*then, *now}, key=lambda key: (key.startswith(AFTER), key)):
            if then.get(key) == now.get(key):
                continue
            if key.startswith(AFTER):
                raise ValueError(
                    f"{where} was made from an earlier {key.removeprefix(AFTER)}, which was made anew since; delete "
                    f"{delete} to make it anew too"
                )
            raise ValueError(
                f"{where} was made with {key} = {then.get(key, 'absent')!r} but the run has "
                f"{now.get(key, 'absent')!r}; put it back, or start a new run with another --out"
            )

    def _manifest(self) -> tuple[dict[str, Any], dict[str, str]] | None:
        """Settings and checksums of a finished stage."""
        path = self.folder / "manifest.json"
        try:
            made = read_json(path)
            return dict(made["config"].items()), dict(made["sha256"].items())
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is no manifest ({error!r}); delete {self.folder} to make the stage anew"
            ) from error

    def close(self) -> None:
        """Close the files that are open."""
        if "_tensorboard" in self.__dict__:
            self._tensorboard.close()
            del self.__dict__["_tensorboard"]


def flat(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """A nested configuration as {"ppo.epochs": 5, ...}; lists, tuples and None as text."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
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


def _write(path: Path, text: str) -> None:
    """Write a whole text file or none."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
