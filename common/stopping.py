"""A training that is asked to stop (Ctrl-C, a batch system's SIGTERM, a terminal that closes) does so where it loses
nothing: at the start of a rollout, after an epoch, between two stages."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_asked: int | None = None
"""The signal that asked this process to stop; signals are a process's, and so is this."""


class Stopped(KeyboardInterrupt):
    """The training has stopped because a signal asked it to.

    number: of the signal; a command that it ends has the exit status 128 + number.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name: "SIGTERM"."""
        return signal.Signals(self.number).name


@contextmanager
def stopping_safely() -> Iterator[None]:
    """Within the block a first signal is noted, for `stop_if_asked`; a second one stops at once.

    Signals that the process ignores (`nohup`) stay ignored. Outside the main thread nothing changes.
    """
    global _asked
    _asked = None
    before = {}
    if threading.current_thread() is threading.main_thread():
        listened = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, _note) for number in listened}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked = None


def stop_asked() -> bool:
    """Whether a signal has asked for a stop: the time to keep what there is."""
    return _asked is not None


def stop_if_asked() -> None:
    """Stop here, if a signal has asked for it.

    Raises:
        Stopped: it has.
    """
    if _asked is not None:
        raise Stopped(_asked)


def _note(number: int, frame: FrameType | None) -> None:
    global _asked
    if _asked is not None:
        raise Stopped(number)
    _asked = number
    name = signal.Signals(number).name
    print(f"\n{name}: stops when the next checkpoint is kept; once more stops at once", file=sys.stderr, flush=True)
