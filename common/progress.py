"""How far a run is: a bar on a terminal, lines in a log file, and the time that the whole run will take."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

LINES_EVERY_S = 60.0
"""Time between two lines of one stage, where there is no terminal."""
LEAST_DONE = 0.002
"""Share of the work of this process from which the time left is estimated."""


class Progress:
    """The stages of a run, one after the other, and within each a bar.

    Args:
        stages: the work of every stage by its name, in the order in which they are made; the unit is the caller's, such
            as images shown to a network. Empty: the run is one stage without a name.
        out: where it is printed; None: standard error.
        clock: seconds.
    """

    def __init__(
        self,
        stages: Mapping[str, float] | None = None,
        *,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work = dict(stages or {"": 1.0})
        self._finished, self._made = set[str](), 0.0  # made: work of the stages that this process has finished
        self._out, self._clock, self._start = out, clock, clock()
        self._name, self._share, self._bars = "", 0.0, 0
        self._skipped = 0.0  # share of the stage that an earlier process had done

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within the block this stage is made; one within it is a part of it."""
        if self._name or name not in self._work:
            yield
            return
        self._name, self._share, self._bars, self._skipped = name, 0.0, 0, 0.0
        self._line(f"{self._place()}: begins; {self.times()}")
        try:
            yield
            self._made += self._work[name] * (1 - self._skipped)
            self._finished.add(name)
        finally:
            self._name, self._share, self._skipped = "", 0.0, 0.0

    def skip(self, name: str) -> None:
        """This stage was finished before."""
        self._finished.add(name)

    @contextmanager
    def bar(
        self, total: int, *, initial: int = 0, title: str = "", unit: str = "step", silent: bool = False
    ) -> Iterator["Bar"]:
        """Within the block the stage counts from `initial` to `total`.

        silent: print nothing, in all processes of a training but one.
        """
        out = self._out or sys.stderr
        title = " ".join(part for part in (self._place(), title) if part)
        shown: tqdm[Any] = tqdm(
            total=total, initial=initial, desc=title, unit=unit, unit_scale=total >= 10_000, file=out,
            disable=silent or not out.isatty(),
        )  # fmt: skip
        if not self._bars and total:
            self._skipped = initial / total
        bar = Bar(self, shown, title, total, initial, unit, silent=silent or out.isatty())
        try:
            yield bar
        finally:
            bar.close()
        self._bars += 1

    def times(self) -> str:
        """Elapsed time of this process, and what is left of the whole run: "0:12:31 elapsed, about 0:40:00 left"."""
        elapsed = self._clock() - self._start
        here = self._work.get(self._name, 0.0)
        done = self._made + here * max(self._share - self._skipped, 0.0)
        left = sum(work for name, work in self._work.items() if name not in self._finished) - here * self._share
        text = f"{_clock_text(elapsed)} elapsed"
        if done > 0 and done >= LEAST_DONE * (done + left):
            text += f", about {_clock_text(elapsed * left / done)} left"
        return text

    def _place(self) -> str:
        """ "stage 7 of 23: iteration_1/ppo"; nothing where the run is one stage without a name."""
        if not self._name:
            return ""
        return f"stage {[*self._work].index(self._name) + 1} of {len(self._work)}: {self._name}"

    def _line(self, text: str) -> None:
        tqdm.write(text, file=self._out or sys.stderr)
        (self._out or sys.stderr).flush()

    def _reached(self, share: float) -> None:
        """The present bar is at `share`; each bar counts as the last of its stage, since others are not known."""
        self._share = (self._bars + share) / (self._bars + 1)


class Bar:
    """The count of one stage; see `Progress.bar`."""

    def __init__(
        self, progress: Progress, shown: "tqdm[Any]", title: str, total: int, initial: int, unit: str, *, silent: bool
    ) -> None:
        self._progress, self._shown, self._title, self._silent = progress, shown, title, silent
        self._total, self._at, self._unit = total, initial, unit
        self._told = progress._clock()
        self._what = ""

    def reach(self, number: int, scalars: Mapping[str, float] | None = None) -> None:
        """Count up to `number`, and show some scalars beside it."""
        self._at = number
        if number > self._total:  # PPO ends with a whole rollout
            self._total = self._shown.total = number
        self._progress._reached(min(number / self._total, 1.0) if self._total else 1.0)
        if scalars:
            self._what = ", ".join(f"{name}={value:.3g}" for name, value in scalars.items())
        whole = f"run: {self._progress.times()}"
        self._shown.set_postfix_str(f"{self._what}; {whole}" if self._what else whole, refresh=False)
        self._shown.update(number - self._shown.n)
        if self._progress._clock() - self._told >= LINES_EVERY_S:
            self._tell()

    def show(self, rows: Mapping[str, str]) -> None:
        """On a terminal, a table of these rows and of the times above the bar; a log file has the lines of `reach`."""
        if self._shown.disable:
            return
        rows = {**rows, "whole run": self._progress.times()}
        left, right = (max(map(len, texts)) for texts in (rows, rows.values()))
        rule = "-" * (left + right + 7)
        lines = [f"| {name:<{left}} | {text:>{right}} |" for name, text in rows.items()]
        self._progress._line("\n".join([rule, *lines, rule]))

    def say(self, text: str) -> None:
        """One line, above the bar or in the log file."""
        if not self._silent or not self._shown.disable:
            self._progress._line(text)

    def close(self) -> None:
        """Close the bar, so that what follows begins on a line of its own; in a log file, say where it ended."""
        self._shown.close()
        self._tell()

    def _tell(self) -> None:
        if self._silent:
            return
        self._told = self._progress._clock()
        place = f"{self._title}: {self._at} of {self._total} {self._unit}s"
        self._progress._line("; ".join(part for part in (place, self._what, f"run: {self._progress.times()}") if part))


def _clock_text(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
