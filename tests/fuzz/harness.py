"""Hand one malformed input to a forked child with limits on time and memory, and judge what came of it.

What counts as a fault:

    crash      killed by a signal                         traceback  an exception that no reader turns into a message
    hang       longer than allowed                        status     another exit status than 0, 1 or 2
    memory     more resident memory than allowed          accepted   success on an input that has to be refused
    refused    an input that has to be accepted           silent     refused without a message
    unnamed    refused without naming the file or key     written    refused, but files were written or changed
    code       code that came with the input was run

`accepted` is asked only where the input is wrong beyond doubt (`must="refuse"`); random changes may be harmless
(`must="any"`). Needs a POSIX system.
"""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

from segarena import run_rl

from .parts import MARK

Task = list[str] | Callable[[], object]
"""Arguments of the command line, or a reader that no command reaches."""


@dataclass(frozen=True)
class Limits:
    """What one input may cost."""

    seconds: float = 60.0
    rss_mib: float = 1500.0
    """Resident memory, that of the imported modules included."""
    memory_gib: float = 6.0
    """Address space of the child."""


@dataclass(frozen=True)
class Input:
    """One input: `make` writes it into an empty folder and returns what is to be done with it."""

    name: str
    make: Callable[[Path], Task]
    must: Literal["refuse", "accept", "any"] = "any"
    names: tuple[str, ...] = ()
    """One of these must stand in the message of a refusal."""
    may_write: tuple[str, ...] = ()
    """Folders, relative to the input's, that a refused command may write to."""


@dataclass
class Outcome:
    """What came of one input."""

    name: str
    status: int | None
    """Exit status; None: it had to be killed."""
    seconds: float
    cpu_seconds: float
    rss_mib: float
    said: str
    """End of what it printed."""
    faults: list[str] = field(default_factory=list)


def try_one(given: Input, folder: Path, limits: Limits) -> Outcome:
    """Hand one input to a child, and judge what it did."""
    work, printed = folder / "work", folder / "printed.txt"
    work.mkdir(parents=True)
    task = given.make(work)
    before = digests(work)
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(task, work, printed, folder / "cache", limits)
    status, usage = _wait(pid, began + limits.seconds)
    text = printed.read_text(errors="replace") if printed.exists() else ""
    took, cpu = round(time.monotonic() - began, 2), round(usage.ru_utime + usage.ru_stime, 2)
    outcome = Outcome(given.name, status, took, cpu, round(usage.ru_maxrss / 1024, 1), text[-700:])
    after = digests(work)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    ran = _take_marks(work, folder, Path())
    outcome.faults = judge(given, status, text, outcome.rss_mib > limits.rss_mib, changed, ran)
    if "written" in outcome.faults:
        outcome.said += f"\n[written: {changed[:6]}]"
    return outcome


def judge(given: Input, status: int | None, text: str, large: bool, changed: list[str], ran: bool) -> list[str]:
    """The faults of one input.

    Args:
        given: the input.
        status: exit status; negative where a signal killed the child, None where the time was over.
        text: all that was printed.
        large: whether it took more memory than allowed.
        changed: files that were written, changed or removed, relative to the input's folder.
        ran: whether code that came with the input was run.
    """
    faults = {
        "hang": status is None,
        "code": ran,
        "crash": status is not None and status < 0,
        "status": status is not None and status not in (0, 1, 2) and status >= 0,
        "traceback": "Traceback (most recent call last)" in text,
        "memory": large,
        "accepted": given.must == "refuse" and status == 0,
        "refused": given.must == "accept" and status != 0,
    }
    found = [name for name, is_so in faults.items() if is_so]
    if status in (1, 2) and not found:
        if "error" not in text.lower():
            found.append("silent")
        elif given.names and not any(name in text for name in given.names):
            found.append("unnamed")
    kept = (f"{place}/" for place in given.may_write)
    if status and not all(name.startswith(tuple(kept)) or name in given.may_write for name in changed):
        found.append("written")
    return found


def digests(folder: Path) -> dict[str, str]:
    """What lies in a folder: path to digest; of what is no plain file to its kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        plain = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = sha256(path.read_bytes()).hexdigest() if plain else "special"
    return found


def _wait(pid: int, until: float) -> tuple[int | None, resource.struct_rusage]:
    """Exit status (None: killed, because the time was over) and resources of a child."""
    while time.monotonic() < until:
        done, code, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code), usage
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return None, os.wait4(pid, 0)[2]


def _take_marks(*folders: Path) -> bool:
    """Whether one of the folders has the mark of code that was run; removes it."""
    marks = [folder / MARK for folder in folders if (folder / MARK).exists()]
    for mark in marks:
        mark.unlink()
    return bool(marks)


def _child(task: Task, work: Path, printed: Path, cache: Path, limits: Limits) -> None:
    """Do the task and end this process with its exit status."""
    status: object = 70
    try:
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(file, number)
            setattr(sys, name, os.fdopen(number, "w", errors="replace", closefd=False))  # whoever has captured them
        os.environ["SEGARENA_CACHE"] = str(cache)
        os.chdir(work)
        address_space = int(limits.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = _do(task)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status if isinstance(status, int) else 70)


def _do(task: Task) -> object:
    """Exit status of a task."""
    try:
        if not callable(task):
            return run_rl.main(task)
        try:
            task()
        except (ValueError, OSError) as error:  # what `main` turns into a message
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 3
