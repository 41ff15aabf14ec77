"""Tensors that are computed once and kept on disk, keyed by what they were computed from."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..common.files import replacing

log = logging.getLogger(__name__)


def cached(
    name: str, key: Mapping[str, object], build: Callable[[], dict[str, Tensor]], cache_dir: str | None = None
) -> dict[str, Tensor]:
    """Tensors of `build()`, from disk if an earlier call with the same name and key has stored it.

    name: the kind of thing, a folder in the cache. key: everything the result depends on, as JSON values: digests of
    contents and parameters, never paths or times. cache_dir: the cache; default $SEGARENA_CACHE, else
    ~/.cache/segarena. A damaged file is built again; a cache that cannot be written is logged and not used.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    root = cache_dir or os.environ.get("SEGARENA_CACHE") or Path.home() / ".cache" / "segarena"
    path = Path(root).expanduser() / name / f"{digest}.safetensors"
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
