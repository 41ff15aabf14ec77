"""Before and around a training in the folder of a run: one process at a time, tidied, and configured as it was.

Symbols: a stage is a folder of the run that has a manifest (finished) or checkpoints (begun).
"""

import errno
import logging
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from .checkpoints import checkpoints_in, latest_checkpoint, remove_checkpoints_below, remove_old_checkpoints
from .files import remove_unfinished, write_text
from .locks import locked
from .manifests import AFTER, NAME, Manifest, difference, differing
from .runs import Run, flat
from .stopping import Stopped, stopping_safely

log = logging.getLogger(__name__)
FOR_READERS = {"evaluation", "media"}
"""Folders of a run into which other processes may write while one trains."""
SURELY_LEFT_S = 3600.0
"""Age of an unfinished file in one of them that nobody writes any more."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, None)
"""Numbers of the errors of a disk; libraries that write their files themselves leave it out."""


@contextmanager
def training_in(folder: str | Path) -> Iterator[None]:
    """Within the block this process alone trains in `folder`, and a signal stops it where nothing is lost.

    Raises:
        ValueError: another process trains in it, or it cannot be written.
        Stopped: a signal asked for it; says what is kept, and how it goes on.
        OSError: as within; where the disk is full it says how it goes on.
    """
    on = f"continue with train --resume {shlex.quote(str(folder))}"
    with locked(Path(folder)), stopping_safely():
        try:
            yield
        except KeyboardInterrupt as stop:
            number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
            name = signal.Signals(number).name
            raise Stopped(number, f"{name}: stopped; {_kept(Path(folder))}; {on}") from None
        except OSError as error:
            if type(error) is not OSError or error.errno not in _FULL:
                raise
            raise OSError(f"{error}; {_kept(Path(folder))}; make room, then {on}") from error


def _kept(folder: Path) -> str:
    """What a stopped training leaves: "the checkpoint of iteration_1/ppo at step 1200 is kept"."""
    found = [path for below in folder.rglob("checkpoints") for path in checkpoints_in(below)]
    if found:
        last = max(found, key=lambda path: (path.stat().st_mtime, path.name))
        stage = last.parent.parent
        of = "" if stage == folder else f" of {stage.relative_to(folder).as_posix()}"
        return f"the checkpoint{of} at step {int(last.name.removeprefix('step_'))} is kept"
    if any(path.parent.parent.name != "checkpoints" for path in folder.rglob(NAME)):
        return "finished stages are kept"
    return "no checkpoint was kept yet, so that it begins anew"


def tidy(run: Run) -> None:
    """Remove what killed processes left in the run and its stages; only for the process that trains in it.

    That are files that are half written, checkpoints that were to be removed, and those of finished stages. Files of
    other names, and checkpoints that somebody renamed or copied, stay.
    """
    for folder in [run.folder, *sorted(path for path in run.folder.rglob("*") if path.is_dir())]:
        if folder.is_dir():
            inside = folder.relative_to(run.folder).parts
            remove_unfinished(folder, SURELY_LEFT_S if FOR_READERS.intersection(inside) else 0.0)
        if folder.name == "checkpoints":
            remove_old_checkpoints(folder)
        if (folder / NAME).is_file() and folder.parent.name != "checkpoints":
            remove_checkpoints_below(folder)


def reconfigure(run: Run, config: Mapping[str, Any]) -> None:
    """Go on with this configuration, resolved and complete, where nothing that was made so far depends on a change.

    config.yaml is replaced; the one before stays beside it as config_1.yaml, config_2.yaml, ...

    Raises:
        ValueError: something does: names the first key, the stages, and the ways out; nothing is changed then.
    """
    now, outdated = flat(config), list[tuple[Path, str]]()
    for folder, where, then in _made_so_far(run):
        if key := differing(then, {key: now[key] for key in then if key in now}):
            outdated.append((folder, f"{where} was made with {difference(key, then, now)}"))
    if outdated:
        folders = [one for one, _ in outdated if not any(other in one.parents for other, _ in outdated)]
        raise ValueError(
            f"{outdated[0][1]}; put it back; or remove what depends on it and resume, which makes it again: "
            f"rm -r {shlex.join(map(str, folders))}; or start a new run with another --out"
        )
    text = yaml.safe_dump(dict(config), sort_keys=False)
    if (before := run.config) == yaml.safe_load(text):
        return
    path = run.folder / "config.yaml"
    number = next(n for n in range(1, 10**6) if not (run.folder / f"config_{n}.yaml").exists())
    write_text(run.folder / f"config_{number}.yaml", path.read_text(encoding="utf-8"))
    write_text(path, text)
    then = flat(before)
    changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
    log.info("%s: %s", path, ", ".join(f"{key} = {now.get(key, 'absent')!r}" for key in changed))


def _made_so_far(run: Run) -> list[tuple[Path, str, dict[str, Any]]]:
    """What resuming would build on, in the order in which it was made: what to remove to make it again, its name in
    messages, and the keys of the configuration that it depends on."""
    finished, begun = list[tuple[float, Path, str, dict[str, Any]]](), list[tuple[Path, str, dict[str, Any]]]()
    for folder in sorted({path.parent for name in (NAME, "checkpoints") for path in run.folder.rglob(name)}):
        if folder.parent.name == "checkpoints":
            continue
        if manifest := Manifest.read(folder):
            when = (folder / NAME).stat().st_mtime
            finished.append((when, folder, str(folder / NAME), manifest.configuration))
        elif checkpoint := latest_checkpoint(folder / "checkpoints"):
            settings = {key: value for key, value in checkpoint.settings.items() if not key.startswith(AFTER)}
            where = f"the checkpoint of {folder} at step {checkpoint.step}"
            begun.append((folder if folder != run.folder else folder / "checkpoints", where, settings))
    return [
        (folder, where, settings) for _, folder, where, settings in sorted(finished, key=lambda one: one[0])
    ] + begun
