"""Trials of a sweep, several at once, in processes of Ray Tune (the extra `sweep`), here or on a cluster.

A process that dies is replaced, and its trial goes on from its run's checkpoint; a trial that raises is not repeated,
because it would raise again. Only what Ray starts is its business: runs, checkpoints and results are files of ours.
"""

import logging
import os
import shutil
import signal
import socket
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ..common.stopping import SIGNALS, Stopped
from .sweep import Trial

log = logging.getLogger(__name__)
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Variables of the environment that Ray reads."""
FOLDER = ".ray"
"""Folder of the sweep for what Tune writes; it is removed at the end."""
WAIT_S = 10.0
"""Seconds in which a cluster must answer."""
OBJECTS = 10**8
"""Bytes of memory that processes share."""


def import_ray(address: str | None) -> Any:
    """Ray, with Tune. address: see `train_trials`.

    Raises:
        ValueError: it is not installed, or nothing answers at the address.
    """
    host, _, port = (address or "").rpartition(":")
    if port.isdecimal():  # Ray itself would wait for minutes
        try:
            socket.create_connection((host, int(port)), WAIT_S).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise ValueError(
                f"ray_address is {address!r}, where no Ray cluster answers ({error}); start one by `ray start --head`, "
                f"or leave it out to train on this machine"
            ) from error
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.tune
    except ImportError as missing:
        raise ValueError("a sweep needs Ray Tune: pip install 'segarena[sweep]'") from missing
    return ray


def train_trials(
    trials: Sequence[Trial], folder: Path, *, at_once: int, threads: int, retries: int, address: str | None
) -> dict[str, str]:
    """Train and evaluate trials; why those failed that did, by the name of their folder.

    Args:
        trials: those that are not finished.
        folder: of the sweep.
        at_once: trials at the same time.
        threads: CPU threads of each.
        retries: times that a trial goes on after its process has died.
        address: of a Ray cluster whose machines share the folder; None: this machine.

    Raises:
        ValueError: as `import_ray`.
        ConnectionError: there is no cluster, with address "auto".
        Stopped: a signal; the processes are ended, and what their runs have kept stays.
    """
    ray = import_ray(address)
    for name in ("ray", "ray.tune", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    local = {"num_cpus": at_once * threads, "include_dashboard": False, "object_store_memory": OBJECTS}
    ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **({} if address else local))
    try:
        with _stopped_by_signals():
            return _tune(ray, trials, folder, at_once, threads, retries)
    finally:
        ray.shutdown()
        shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _tune(ray: Any, trials: Sequence[Trial], folder: Path, at_once: int, threads: int, retries: int) -> dict[str, str]:
    from ray import tune

    failed, shared = dict[str, str](), list(trials)

    class Watch(tune.Callback):  # type: ignore[misc] # not followed, see setup.cfg
        """Says how far the sweep is, and keeps what failed."""

        ended = 0

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._end(trial, (trial.last_result or {}).get("failed"))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._end(trial, f"its process died {retries + 1} times (killed, or out of memory?)")

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            log.warning("%s: its process died; it goes on from its checkpoint", _name(trial))

        def _end(self, trial: Any, reason: str | None) -> None:
            self.ended += 1
            if reason:
                failed[_name(trial)] = reason
            log.info("%d of %d: %s %s", self.ended, len(shared), _name(trial), "failed" if reason else "is finished")

    def _name(trial: Any) -> str:
        return shared[int(trial.config["number"])].folder.name

    gpus = float(ray.cluster_resources().get("GPU", 0.0))
    resources = {"cpu": threads, "gpu": round(min(1.0, gpus / at_once), 4) if gpus else 0}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_run, trials=shared, threads=threads), resources),
        param_space={"number": tune.grid_search(list(range(len(shared))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once, trial_dirname_creator=lambda trial: trial.trial_id),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder.resolve() / FOLDER),
            verbose=0,
            callbacks=[Watch()],
            failure_config=tune.FailureConfig(max_failures=retries),
        ),
    )
    tuner.fit()
    return failed


def _run(config: dict[str, int], trials: Sequence[Trial], threads: int) -> dict[str, str]:
    """A trial, in a process of Ray; what it raises is told and not repeated."""
    try:
        trials[config["number"]].run(threads)
    except (ValueError, OSError) as error:
        return {"failed": str(error)}
    except Exception:
        return {"failed": traceback.format_exc()}
    return {"failed": ""}


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Within the block the first signal ends all trials.

    Raises:
        Stopped: a signal came; what Ray makes of the exception in its loop does not matter.
    """
    came = list[int]()

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    except BaseException as error:
        if came:
            raise Stopped(came[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
