"""Which known name a wrong one was meant to be, for messages."""

from collections.abc import Iterable
from difflib import SequenceMatcher


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Those of `known` that are most like `name`, at most three; [] where none is like it.

    Of dotted names the last part counts most, then the parts before it; an abbreviation ("lr" of "learning_rate") and
    a part of a name ("timesteps" of "total_timesteps") are like the whole.
    """
    scored = [(_likeness(name, one), one) for one in known]
    best = max((score for score, _ in scored), default=0.0)
    return [one for score, one in scored if score == best][:3] if best > 0.6 else []


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' with the closest of `known`; "" where none is like `name`."""
    found = closest(name, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _likeness(name: str, other: str) -> float:
    """0 to 1."""
    *head, last = name.lower().lstrip("-").split(".")
    *other_head, other_last = other.lower().lstrip("-").split(".")
    words = other_last.split("_")
    if last in ("".join(word[0] for word in words if word), *words[1:]) or (len(last) > 3 and last in other_last):
        of_last = 0.9
    else:
        of_last = SequenceMatcher(None, last, other_last).ratio()
    if last == other_last and head != other_head:
        return 0.95 if not head else 0.9
    of_head = SequenceMatcher(None, ".".join(head), ".".join(other_head)).ratio()
    return of_last * (0.8 + 0.2 * of_head) if of_last > 0.6 else 0.0
