"""What a refused command line says: one line with the name, the value, the rule and the closest match."""

import re
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


TYPES = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "a text",
    "<class 'NoneType'>": "null",
    "<class 'tuple'>": "a list",
    "<class 'list'>": "a list in brackets, '[a, b]'",
}


def one_line(message: str, options: Iterable[str]) -> str:
    """What argparse or jsonargparse says, in one line, with the closest of `options` where one was not known."""
    text = re.sub(r"\s+", " ", message).strip()
    if unknown := re.match(r"unrecognized arguments: (\S+)", text):
        name = unknown[1].split("=")[0]
        if not name.startswith("-"):
            return f"{name!r} is no option: options are given as --name value"
        return f"there is no option {name}" + (did_you_mean(name, options) or "; --help prints all of them")
    if missing := re.match(r"the following arguments are required: (.+)", text):
        return f"missing: {', '.join('--' + name.removeprefix('--') for name in missing[1].split(', '))}"
    if key := re.match(r'Parser key "([^"]+)": (.*)', text):
        rule = re.sub(r"Given value type: \S+ '[^']*'> ", "", key[2])
        if union := re.match(r"Does not validate .*? Errors: (.*) Given value: (.*)", rule):
            kinds = [_words(one) for one in re.findall(r"- Expected (?:an? )?(.+?)(?= - Expected|$)", union[1])]
            return f"{key[1]} is {union[2]} but must be {' or '.join(kinds) or union[1]}"
        if single := re.match(r"Expected (?:an? )?(.+?)\. Got value: (.*)", rule):
            return f"{key[1]} is {single[2]} but must be {_words(single[1])}"
        return f"{key[1]}: {rule}"
    return text


def _words(kind: str) -> str:
    """A type as jsonargparse names it, in words."""
    if choices := re.match(r"typing\.Literal\[(.*)\]", kind):
        return f"one of {choices[1]}"
    for name, words in TYPES.items():
        kind = kind.replace(name, words)
    return kind.replace("typing.", "")
