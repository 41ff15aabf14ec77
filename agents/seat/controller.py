"""How many adversarial iterations K an epoch has: SEAT's controller and its rivals (docs/seat.md, Method 13).

Symbols: K = iterations, 1 .. K_max; M = magnitude of the gradient in an epoch; T = threshold; c = period; gamma = its
factor.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ScheduleName = Literal["constant", "seat", "seat_plus", "m_plus", "deat_d", "amata"]


@dataclass
class Schedule:
    """Iterations of the next epoch, and what follows from how the last one went; here always as many.

    >>> from segarena.agents.seat.controller import SEAT
    >>> seat = SEAT(most_iterations=5)
    >>> for epoch, magnitude in enumerate([9, 9, 9, 10, 10, 12], start=1):
    ...     seat.update(epoch, magnitude)
    >>> seat.iterations, round(seat.threshold, 1)
    (3, 13.2)
    """

    most_iterations: int = 5
    """K_max."""
    iterations: int = field(default=0)
    """K of the next epoch; 0: as many as the schedule begins with."""
    skipped: int = 0
    """Epochs whose magnitude was not finite, which changed nothing."""

    def __post_init__(self) -> None:
        if self.most_iterations < 1:
            raise ValueError(f"most_iterations is {self.most_iterations} but must be at least 1 iteration")
        self.iterations = self.iterations or self._first()

    def _first(self) -> int:
        return self.most_iterations

    def update(self, epoch: int, magnitude: float) -> None:
        """Decide K after epoch 1, 2, ... with magnitude M; one that is not finite is counted and changes nothing."""
        if not math.isfinite(magnitude):
            self.skipped += 1
            return
        self._decide(epoch, magnitude)

    def _decide(self, epoch: int, magnitude: float) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        """Everything that an update changes."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was read."""
        for name in vars(self):
            setattr(self, name, state[name])


@dataclass
class SEAT(Schedule):
    """K rises by one where M has risen above gamma times that at the last change, and falls by one where M has fallen
    below it; looked at every `period` epochs."""

    period: int = 3
    """c: epochs between two decisions; the first K, 1, rises to 2 after the first of them."""
    gamma: float = 1.1
    """Above 1."""
    threshold: float = 0.0
    """T: gamma times the magnitude at the last change of K; 0: none was taken yet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.period < 1 or not self.gamma > 1:
            raise ValueError(f"period is {self.period} and gamma {self.gamma} but must be at least 1, and above 1")

    def _first(self) -> int:
        return 1

    def update(self, epoch: int, magnitude: float) -> None:
        """See `Schedule`. The first rise, after epoch c, asks no magnitude."""
        if epoch == self.period:
            self.iterations = min(2, self.most_iterations)
        else:
            super().update(epoch, magnitude)

    def _decide(self, epoch: int, magnitude: float) -> None:
        if epoch <= self.period:
            return
        if not self.threshold:  # after epoch c + 1, or the first later one whose magnitude was finite
            self.threshold = self.gamma * magnitude
        elif epoch % self.period == 0:
            change = self._change(magnitude)
            if change:
                self.threshold = self.gamma * magnitude
                self.iterations += change

    def _change(self, magnitude: float) -> int:
        if magnitude > self.threshold and self.iterations < self.most_iterations:
            return 1
        return -1 if magnitude < self.threshold / self.gamma and self.iterations > 2 else 0


@dataclass
class SEATPlus(SEAT):
    """As `SEAT`, on a logarithmic scale: K falls where M has fallen by the factor gamma below that at the last change,
    so that a magnitude that only trembles about it changes nothing."""

    def _change(self, magnitude: float) -> int:
        change = super()._change(magnitude)
        return 0 if change < 0 and magnitude >= self.threshold / self.gamma**2 else change


@dataclass
class MPlus(SEAT):
    """As `SEAT`, but K never falls."""

    def _change(self, magnitude: float) -> int:
        return max(super()._change(magnitude), 0)


@dataclass
class DEAT(Schedule):
    """K rises by one every `period` epochs, from 1, whatever the magnitude is."""

    period: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.period < 1:
            raise ValueError(f"period is {self.period} but must be at least 1 epoch")

    def _first(self) -> int:
        return 1

    def update(self, epoch: int, magnitude: float) -> None:
        """See `Schedule`."""
        self.iterations = min(1 + epoch // self.period, self.most_iterations)


@dataclass
class Amata(Schedule):
    """K rises linearly from 1 in the first epoch to K_max in the last of `epochs`."""

    epochs: int = 1

    def _first(self) -> int:
        return 1

    def update(self, epoch: int, magnitude: float) -> None:
        """See `Schedule`."""
        self.iterations = min(
            1 + round((self.most_iterations - 1) * epoch / max(self.epochs - 1, 1)), self.most_iterations
        )


def make_schedule(name: ScheduleName, most_iterations: int, period: int, gamma: float, epochs: int) -> Schedule:
    """A schedule by name.

    Args:
        name: constant, seat, seat_plus, m_plus, deat_d or amata.
        most_iterations: K_max.
        period: epochs between two decisions of seat, seat_plus and m_plus, or two rises of deat_d.
        gamma: factor of the threshold of seat, seat_plus and m_plus.
        epochs: of the whole training, for amata.

    Raises:
        ValueError: a value outside its range.
    """
    made: dict[ScheduleName, Callable[[], Schedule]] = {
        "constant": lambda: Schedule(most_iterations),
        "seat": lambda: SEAT(most_iterations, period=period, gamma=gamma),
        "seat_plus": lambda: SEATPlus(most_iterations, period=period, gamma=gamma),
        "m_plus": lambda: MPlus(most_iterations, period=period, gamma=gamma),
        "deat_d": lambda: DEAT(most_iterations, period=period),
        "amata": lambda: Amata(most_iterations, epochs=epochs),
    }
    return made[name]()
