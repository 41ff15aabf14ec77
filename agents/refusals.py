"""The message of a refused command line: one line with the name, the value, the rule and the closest match."""

import re
from collections.abc import Iterable

from ..common.likeness import did_you_mean

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
