"""Tensors that are computed once and kept on disk, keyed by what they were computed from."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..common.files import replacing

log = logging.getLogger(__name__)
ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
"""Names of the cache's own files; nothing else is ever counted or removed."""


def cache_folder(cache_dir: str | None = None) -> Path:
    """The folder of the cache: `cache_dir`, else $SEGARENA_CACHE, else ~/.cache/segarena."""
    root = cache_dir or os.environ.get("SEGARENA_CACHE") or Path.home() / ".cache" / "segarena"
    return Path(root).expanduser()


def cached(
    name: str, key: Mapping[str, object], build: Callable[[], dict[str, Tensor]], cache_dir: str | None = None
) -> dict[str, Tensor]:
    """Tensors of `build()`, from disk if an earlier call with the same name and key has stored it.

    name: the kind of thing, a folder in the cache. key: everything the result depends on, as JSON values: digests of
    contents and parameters, never paths or times. cache_dir: see `cache_folder`. A damaged file is built again: its
    tensors have a checksum; a cache that cannot be written is logged and not used.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_folder(cache_dir) / name / f"{digest}.safetensors"
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, SafetensorError) as error:
        log.warning("cache file %s cannot be read (%s): building it again", path, error)
    tensors = build()
    try:
        with replacing(path) as temporary:
            # written by us, not by safetensors, whose files nobody else may read, whatever the umask is
            temporary.write_bytes(save({name: t.contiguous() for name, t in tensors.items()}, _seal(tensors)))
    except (OSError, ValueError, SafetensorError) as error:
        log.warning("cannot write the cache file %s (%s): going on without it", path, error)
    return tensors


class CacheEntry(NamedTuple):
    """One file of the cache."""

    kind: str
    """What it holds: the folder it lies in."""
    path: Path
    bytes: int


def cache_entries(cache_dir: str | None = None) -> list[CacheEntry]:
    """The files of the cache, by kind; none where there is no cache."""
    root = cache_folder(cache_dir)
    paths = sorted(root.glob("*/*.safetensors")) if root.is_dir() else []
    mine = [path for path in paths if ENTRY.fullmatch(path.name) and path.is_file() and not path.is_symlink()]
    return [CacheEntry(path.parent.name, path, path.stat().st_size) for path in mine]


def clear_cache(kind: str | None = None, cache_dir: str | None = None) -> list[CacheEntry]:
    """Remove the files of the cache, or those of one kind, and folders that are empty then; returns what was removed.

    A program that is reading one of them builds it again. Files that are not the cache's own stay.
    """
    removed = [entry for entry in cache_entries(cache_dir) if kind in (None, entry.kind)]
    for entry in removed:
        entry.path.unlink(missing_ok=True)
    for folder in {entry.path.parent for entry in removed}:
        if not any(folder.iterdir()):
            folder.rmdir()
    return removed


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        ValueError: they are not those that were stored.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        sealed = file.metadata()
    if sealed != _seal(tensors):
        raise ValueError("its checksum is wrong or missing")
    return tensors


def _seal(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Metadata with a checksum of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat = (
            tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        )  # one number may have a stride
        digest.update(flat.view(torch.uint8).numpy().data)
    return {"sha256": digest.hexdigest()}
