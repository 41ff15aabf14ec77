"""`sweep`: variants of an experiment, trained and evaluated several at once, and compared on one page."""

import logging
import os
import shlex
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ...common.checks import AT_LEAST_0, AT_LEAST_1, check_range
from ..packaged import config_file
from ..program import PROGRAM
from .play import settings_of

log = logging.getLogger(__name__)


def parser(paper: str | None) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(
        description="Train and evaluate every variant of a sweep file with every seed, several at once, and compare "
        "them on one page. The same command again skips what is finished and continues what was killed. Needs "
        "pip install 'segarena[sweep]' (Ray Tune)."
    )
    options.add_argument("--config", type=str | None, help="YAML file of a sweep, or name of a packaged one")
    options.add_argument("--out", type=str | None, help="folder of the sweep (default: runs/<name of the sweep>)")
    options.add_argument("--resume", type=str | None, help="folder of a sweep to continue, as it was begun")
    options.add_argument(
        "--set", nargs="+", type=str, default=[], help="keys of the configuration for all variants, as key=value ..."
    )
    options.add_argument(
        "--at_once", type=int | None, help="trials at the same time (default: as many as there are cores for them)"
    )
    options.add_argument("--threads", type=int, default=1, help="CPU threads of each trial")
    options.add_argument(
        "--retries", type=int, default=3, help="times that a trial goes on from its checkpoint after its process died"
    )
    options.add_argument(
        "--ray_address",
        type=str | None,
        help="address of a Ray cluster, as host:port or auto, on whose machines the package is installed and the "
        "folder can be reached (default: this machine)",
    )
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """Every trial, and the page; 1 if one of them failed."""
    check_range("at_once", options.at_once, AT_LEAST_1)
    check_range("threads", options.threads, AT_LEAST_1)
    check_range("retries", options.retries, AT_LEAST_0)
    if (options.config is None) == (options.resume is None):
        raise ValueError("a sweep needs either --config NAME or FILE, or --resume FOLDER of a sweep that was begun")
    if options.resume is not None and (options.out is not None or options.set):
        raise ValueError("--resume continues a sweep in its folder as it was begun; leave out --out and --set")
    if options.resume is not None and not (Path(options.resume) / "sweep.yaml").is_file():
        raise ValueError(f"{options.resume!r} is no sweep: it has no sweep.yaml; name a folder that `sweep` made")

    from ...common.locks import locked
    from ...common.names import slug
    from ...common.stopping import Stopped
    from ..sweep import FILE, read_sweep
    from ..sweep_engine import import_ray, train_trials

    path = f"{options.resume}/{FILE}" if options.resume else config_file(options.config, sweep=True)
    sweep = read_sweep(path, settings_of(options.set))
    folder = Path(options.resume or options.out or f"runs/{slug(sweep.file.name)}")
    trials = sweep.trials(folder.absolute(), command)
    sweep.check_folder(folder)
    if todo := [trial for trial in trials if not trial.finished]:
        import_ray(options.ray_address)
        sweep.check()
    cores = max(1, (os.cpu_count() or 1) // options.threads)
    failed = dict[str, str]()
    with locked(folder):
        sweep.keep(folder)
        log.info("%s: %d trials, %d of them finished", folder, len(trials), len(trials) - len(todo))
        try:
            if todo:
                at_once = min(options.at_once or (len(todo) if options.ray_address else cores), len(todo))
                failed = train_trials(
                    todo,
                    folder,
                    at_once=at_once,
                    threads=options.threads,
                    retries=options.retries,
                    address=options.ray_address,
                )
        except Stopped as stop:
            kept = sum(trial.finished for trial in trials)
            raise Stopped(
                stop.number,
                f"{stop.name}: stopped; {kept} of {len(trials)} trials are finished, and of the "
                f"others the last checkpoints are kept; continue with {PROGRAM} sweep --resume "
                f"{shlex.quote(str(folder))}",
            ) from None
        if any(trial.finished for trial in trials):
            print(f"page       {sweep.write_page(folder)}")
    for name, reason in failed.items():
        print(f"failed     {name}: {reason}", file=sys.stderr)
    if failed:
        print(f"continue   {PROGRAM} sweep --resume {shlex.quote(str(folder))}")
    return 1 if failed else 0
