"""Tensors that are computed once and kept on disk, keyed by what they were computed from."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..common.files import replacing

log = logging.getLogger(__name__)


class CacheEntry(NamedTuple):
    """What the cache holds of one kind."""

    kind: str
    """Its folder in the cache."""
    files: int
    bytes: int


def cache_folder(cache_dir: str | None = None) -> Path:
    """The cache: `cache_dir`, else $SEGARENA_CACHE, else ~/.cache/segarena."""
    return Path(cache_dir or os.environ.get("SEGARENA_CACHE") or Path.home() / ".cache" / "segarena").expanduser()


def cache_entries() -> list[CacheEntry]:
    """What the cache holds, by kind."""
    return [_entry(kind, files) for kind, files in _files().items()]


def clear_cache() -> list[CacheEntry]:
    """Delete what `cached` has kept, and nothing else that may lie in its folder; returns what that was."""
    found = _files()
    entries = [_entry(kind, files) for kind, files in found.items()]
    for files in found.values():
        for path in files:
            path.unlink(missing_ok=True)
    return entries


def _files() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(cache_folder().glob("*/*.safetensors")):
        found.setdefault(path.parent.name, []).append(path)
    return found


def _entry(kind: str, files: list[Path]) -> CacheEntry:
    return CacheEntry(kind, len(files), sum(path.stat().st_size for path in files))


def cached(
    name: str, key: Mapping[str, object], build: Callable[[], dict[str, Tensor]], cache_dir: str | None = None
) -> dict[str, Tensor]:
    """Tensors of `build()`, from disk if an earlier call with the same name and key has stored it.

    name: the kind of thing, a folder in the cache. key: everything the result depends on, as JSON values: digests of
    contents and parameters, never paths or times. cache_dir: the cache; default $SEGARENA_CACHE, else
    ~/.cache/segarena. A damaged file is built again; a cache that cannot be written is logged and not used.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_folder(cache_dir) / name / f"{digest}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError) as error:
        log.warning("cache file %s cannot be read (%s): building it again", path, error)
    tensors = build()
    try:
        with replacing(path) as temporary:
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)
    except (OSError, SafetensorError) as error:
        log.warning("cannot write the cache file %s (%s): going on without it", path, error)
    return tensors
