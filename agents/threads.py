"""The number of CPU threads that PyTorch computes with, for every command that computes."""

import logging
import os
from pathlib import Path

from jsonargparse import ArgumentParser

from ..common.reading import read_json

log = logging.getLogger(__name__)

DEFAULT = "default: that of the paper, 1 for the small networks of SPARS and plain PPO, one per core for RL4Seg"


def add_threads(options: ArgumentParser, default: str = DEFAULT) -> None:
    """Add the option `--threads`. default: a sentence on what is taken where it is not given."""
    options.add_argument(
        "--threads",
        type=int | None,
        help=f"CPU threads of PyTorch ({default}; OMP_NUM_THREADS counts before it). On a busy machine more than one "
        f"can be many times slower",
    )


def use_threads(given: int | None, *, kept: int | None = None, default: int = 1) -> int:
    """Let PyTorch compute with this many CPU threads from here on; returns the number.

    Args:
        given: by the user.
        kept: of a run that is continued: another number can change the last bits of its results.
        default: where neither is there, nor OMP_NUM_THREADS in the environment; 0: one per core.

    Raises:
        ValueError: a number below 1.
    """
    import torch

    if given is not None and given < 1:
        raise ValueError(f"threads is {given} but must be at least 1")
    if given is not None and kept is not None and given != kept:
        log.warning("the run computed with %d threads so far; with %d its last bits may be others", kept, given)
    threads = given or kept
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = default or os.cpu_count() or 1
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def threads_of(folder: str | Path) -> int | None:
    """The number of threads that a run has in its environment.json; None: none is written there."""
    try:
        written = read_json(Path(folder) / "environment.json")
    except (OSError, ValueError):
        return None
    threads = written.get("threads") if isinstance(written, dict) else None
    return threads if isinstance(threads, int) and threads > 0 else None
