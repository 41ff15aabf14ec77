"""One process at a time writes into a folder.

The lock is the operating system's, on the open file `.lock`: it ends with the process, however that ends. Where there
is no `fcntl` (Windows) it is `msvcrt.locking`, which ends with the process too. On a file system that has no locks a
warning says so, and then nothing guards the folder. Who only reads takes no lock: files appear under their names when
they are whole.
"""

import errno
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

from .reading import read_json

log = logging.getLogger(__name__)
LOCK = ".lock"
"""File that is locked; it holds who has locked it, as JSON."""
_FAR = 1 << 30
"""The byte that Windows locks: beyond the text, which others can then read."""
_HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)


class LockedError(ValueError):
    """Another process holds the lock."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block no other process (and no other block of this one) writes into `folder`; it is made if missing.

    Raises:
        LockedError: one does; names it.
        ValueError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _opened(folder)
    except OSError as error:
        raise ValueError(
            f"{str(folder)!r} cannot be written ({error}); change that, or choose another with --out"
        ) from error
    try:
        yield
    finally:
        ours = _is_at(file, folder / LOCK)
        if sys.platform == "win32":  # which removes no open file, also none that another process has opened since
            os.close(file)
        with suppress(OSError):
            if ours:
                (folder / LOCK).unlink()  # before the lock ends: who waits for it sees that its file is gone
        if sys.platform != "win32":
            os.close(file)


def _opened(folder: Path) -> int:
    """The lock's file, open and locked, and holding who this process is."""
    path = folder / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
            if not _is_at(file, path):  # its last holder has removed it
                os.close(file)
                continue
        except OSError as error:
            os.close(file)
            if error.errno in _HELD:
                raise LockedError(_refusal(folder)) from None
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            log.warning("%s cannot be locked (%s): see to it that no other process trains in it", folder, error)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        who = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(file, 0)
        os.write(file, json.dumps(who).encode())
        return file


def _lock(file: int) -> None:
    """Lock an open file, or raise at once."""
    if sys.platform == "win32":
        os.lseek(file, _FAR, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _refusal(folder: Path) -> str:
    """The message where another process holds the lock."""
    try:
        who = read_json(folder / LOCK)
        process, host, since = who["process"], who["host"], who["since"]
    except (OSError, ValueError, TypeError, KeyError):  # it has just been locked
        holder, way = "another process", "stop it"
    else:
        holder = f"process {process} on {host}, since {since}"
        there = "" if host == socket.gethostname() else f" on {host}"
        way = f"stop it (kill {process}{there}) and continue with --resume {folder}"
    return f"{str(folder)!r} is being trained in by {holder}; wait until it ends, or {way}; or choose another --out"
