"""TensorBoard's files of one run: curves and pictures that a resumed run continues where its checkpoint left them.

A process that logs begins a file of its own, since a TensorBoard server that is running would lose its place in one
that is cut and grows again. The files are read in the order of their names, so each is named after all before it, even
where the clock was set back; together they are one long file, which is cut back like metrics.jsonl. (TensorBoard's own
writer names a file by the clock, and writes in a thread, whose errors have no path.)
"""

import os
import re
import socket
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .files import named

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)(\..*)?")


class EventFiles:
    """The event files in one folder, and the one that this process adds to; it is begun with the first event.

    first_step: servers that are running forget the points from this step on; None: they keep all.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        self.folder, self._first_step = folder, first_step
        self._path: Path | None = None

    def add(self, summary: Any, step: int | None = None) -> None:
        """Add a summary as `torch.utils.tensorboard.summary` makes them; its bytes go to the system at once.

        Raises:
            OSError: it cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import Event

        self._write(Event(summary=summary, step=step, wall_time=time.time()))

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self._files())

    def hold(self, summaries: Iterable[Any], after: int = 0) -> bool:
        """Whether each of the summaries stands in the files, beyond their first `after` bytes together."""
        written = b"".join(path.read_bytes() for path in self._files())[after:]
        return all(summary.SerializeToString(deterministic=True) in written for summary in summaries)

    def cut_back(self, size: int) -> None:
        """Keep the first `size` bytes of all files together."""
        for path in self._files():
            here = path.stat().st_size
            if size <= 0:
                path.unlink()
            elif here > size:
                os.truncate(path, size)
            size -= here

    def close(self) -> None:
        """The next event begins a new file."""
        if self._path:
            self._close()
            self._path = None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("events.out.tfevents.*"))

    def _write(self, event: Any) -> None:
        try:
            if not self._path:
                self._begin()
            self._writer.write(event.SerializeToString(deterministic=True))  # `hold` finds summaries by their bytes
            self._writer.flush()
        except OSError as error:
            raise named(error, self._path or self.folder) from error

    def _begin(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(found[1]) for path in self._files() if (found := _NAME.fullmatch(path.name))]
        number = max([int(time.time()), *(number + 1 for number in numbers)])
        self._path = self.folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}"
        self._writer = RecordWriter(self._path.open("wb"))
        self._close = weakref.finalize(self, self._writer.close)  # at the latest when nobody logs any more
        self._write(Event(file_version="brain.Event:2", wall_time=time.time()))
        if self._first_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=self._first_step, session_log=start, wall_time=time.time()))


def hparams_rows(settings: Mapping[str, Any], outcome: Mapping[str, float]) -> list[Any]:
    """The summaries of a run's row in TensorBoard's table of runs: the same bytes for the same row, see `hold`."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    rows = list(hparams(dict(settings), dict(outcome)))  # type: ignore[no-untyped-call]
    for row in rows:
        for value in row.value:
            packed = value.metadata.plugin_data  # the settings are in it as a map, whose order is left open
            packed.content = HParamsPluginData.FromString(packed.content).SerializeToString(deterministic=True)
    return rows


def board_of(folder: Path, stage: str) -> Path:
    """Folder of the event files of a run, or of its stage.

    TensorBoard calls a run by its path below --logdir: here the name of the run's folder, so that two runs can be told
    apart, then the stage. The name stays where the folder is moved.
    """
    whole = folder.parents[len(Path(stage).parts) - 1] if stage else folder
    board = whole / "tensorboard"
    begun = sorted(path.name for path in board.iterdir() if path.is_dir()) if board.is_dir() else []
    return board / (begun[0] if begun else whole.absolute().name or "run") / stage
