"""Files that are either complete or absent, and what is left of those whose writing was killed."""

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}")
"""Name of the folder in which `replacing` lets a file be written: the file's own, and what `tempfile` draws."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffixes, that becomes `path` when the block ends without an error.

    The file gets the mode that the process's umask gives to new files, whatever wrote it.

    Raises:
        OSError: the folder cannot be made or written; it names a path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        try:
            yield temporary
        except OSError as error:
            raise named(error, path) from error
        if temporary.is_file():
            ordinary = Path(folder) / "mode"
            ordinary.touch()
            temporary.chmod(ordinary.stat().st_mode)
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file with the line ends that the text has, whole or not at all.

    Raises:
        OSError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def named(error: OSError, path: Path) -> OSError:
    """The same error with the path, where it has none: that of a write to a full disk says "No space left" and no more.

    Its kind follows from its number, as Python's own does.
    """
    if error.filename is not None or error.errno is None:
        return error
    return OSError(error.errno, error.strerror, str(path))


def unfinished(folder: Path) -> list[Path]:
    """The temporary folders that `replacing` left directly in `folder` when its process was killed."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _UNFINISHED.fullmatch(path.name)
        if match and path.is_dir() and {inside.name for inside in path.iterdir()} <= {match["name"], "mode"}:
            found.append(path)
    return found


def remove_unfinished(folder: Path, older_than_s: float = 0.0) -> None:
    """Remove what `unfinished` finds in `folder`, where it was last written so long ago."""
    for path in unfinished(folder):
        if time.time() - path.stat().st_mtime >= older_than_s:
            shutil.rmtree(path, ignore_errors=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
