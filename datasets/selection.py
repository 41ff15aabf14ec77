"""Which cases of a data set a configuration means: by split, by name, or by the number of a phantom.

A case has an id and belongs to a group: all images of one patient, all lesion variants of one CT. Splits are lists of
groups, so that no group lies on both sides of a test. Where no list says which groups are in which split, they are
divided by ratio.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple


class SelectionError(ValueError):
    """A choice of cases that cannot be made, and what to write instead."""

    def __init__(self, reason: str, way_out: str) -> None:
        super().__init__(f"{reason}; {way_out}")
        self.reason, self.way_out = reason, way_out


def setting(option: str, field: str, value: object) -> str:
    """A setting as its user has to write it: `--validation.split all` with the option "--validation.", `split="all"` in
    Python, with the option "".
    """
    text = json.dumps(value)
    if not option:
        return f"{field}={text}"
    return f"{option}{field} {value}" if isinstance(value, str) else f"{option}{field} '{text}'"


_PART = re.compile(r"(?P<name>[^\[\]+]+)(?:\[(?P<low>\d{0,9}):(?P<high>\d{0,9})\])?")
"""A split, or a part of it: train, train[:8], train[8:24]."""


@dataclass(frozen=True)
class Catalogue:
    """Ids, groups and splits of a data set, for a choice among them."""

    data: str
    """Its folder, or "phantom"; named in errors."""
    groups: Mapping[str, str]
    """Group of each id, in the order of the data set."""
    splits: Mapping[str, Sequence[str]]
    """Groups of each split, in their order; some may not be there. Split "all" is every case, and stands in none."""
    noun: str = "case"
    """Word for what an id names, for errors."""
    hint: str = ""
    """Other ways to choose, the end of errors about splits."""
    key: str = "the pattern"
    """Where the patterns stand, as their user writes it; the end of errors about them."""

    def named(self, patterns: Sequence[str]) -> list[str]:
        """The ids that fit one of the patterns, or whose group does; once each, in the order of the patterns.

        patterns: ids or groups, in which * and ? stand for any text and any character.

        Raises:
            SelectionError: a pattern that nothing fits.
        """
        chosen: dict[str, None] = {}
        for pattern in patterns:
            found = [i for i, group in self.groups.items() if fnmatchcase(i, pattern) or fnmatchcase(group, pattern)]
            if not found:
                raise SelectionError(
                    f"no {self.noun} in {self.data!r} is called {pattern!r}; it has {self.listed(self.groups)}",
                    f"correct {self.key}",
                )
            chosen |= dict.fromkeys(found)
        return list(chosen)

    def in_split(self, split: str) -> list[str]:
        """The ids of a split, in the order of its groups.

        split: its name; a part of it, "train[:8]" or "train[8:24]", counted in groups as a list of Python is; or
            several, "train[12:]+val[:4]".

        Raises:
            SelectionError: an unknown split, or one of which nothing is there.
        """
        if split == "all":
            return list(self.groups)
        groups = [group for part in split.split("+") for group in self._part(part, split)]
        place = {group: n for n, group in enumerate(groups)}
        chosen = [i for i, group in self.groups.items() if group in place]
        if not chosen:
            raise SelectionError(
                f"split {split!r} of {self.data!r} has no {self.noun} that is there; there are "
                f"{self.listed(self.groups)}",
                self.hint,
            )
        return sorted(chosen, key=lambda i: place[self.groups[i]])

    def _part(self, part: str, split: str) -> Sequence[str]:
        """The groups of one summand of the split."""
        match = _PART.fullmatch(part)
        if match is None or match["name"] not in self.splits:
            known = ", ".join([*self.splits, "all"])
            raise SelectionError(f"split is {split!r} but {self.data!r} has {known}", self.hint)
        low, high = (int(match[end]) if match[end] else None for end in ("low", "high"))
        return self.splits[match["name"]][low:high]

    def listed(self, names: Iterable[str]) -> str:
        """The names, or the first and the last of many."""
        few = list(names)
        return ", ".join(few) if len(few) <= 6 else f"{', '.join(few[:5])}, ... {few[-1]} ({len(few)} {self.noun}s)"


def split_by_ratio(groups: Iterable[str], ratios: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """The groups of each split: at least one, and as near to the ratios as whole groups allow.

    The order is decided by a hash of seed and name, so that it is the same on every machine and does not depend on the
    order in which a folder is listed.

    Args:
        groups: patients, each name counts once.
        ratios: share of each split, in any unit; a split of share 0 gets nobody.
        seed: another seed gives another division.

    Raises:
        ValueError: fewer groups than splits.
    """
    order = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    names = [name for name, share in ratios.items() if share > 0]
    if len(order) < len(names):
        empty = sorted(names, key=lambda name: -ratios[name])[len(order) :]
        raise ValueError(
            f"{len(order)} patients are too few for the {len(names)} splits {', '.join(names)}: "
            f"{' and '.join(empty)} would be empty"
        )
    numbers = dict.fromkeys(names, 1)
    total = sum(ratios[name] for name in names)
    for _ in range(len(order) - len(names)):
        numbers[max(names, key=lambda name: len(order) * ratios[name] / total - numbers[name])] += 1
    ends = [sum(numbers[name] for name in names[: n + 1]) for n in range(len(names))]
    return {name: order[end - numbers[name] : end] for name, end in zip(names, ends, strict=True)}


def check_ratios(ratios: Mapping[str, float] | None, names: Sequence[str]) -> None:
    """Check the field `split_ratios`; `names` stand in the example.

    Raises:
        ValueError: a share that is negative, NaN or infinite, or none above 0, or a split called all.
    """
    if ratios is None:
        return
    if "all" in ratios or not any(ratios.values()) or not all(0 <= ratio < math.inf for ratio in ratios.values()):
        example = ", ".join(f"{name}: 1" for name in names)
        raise ValueError(
            f"split_ratios is {ratios!r} but must give shares of at least 0, one of them above 0, to splits that are "
            f"not called 'all', e.g. {{{example}}}"
        )


def check_pattern(pattern: str | None) -> None:
    """Check the field `patient_pattern`.

    Raises:
        ValueError: no regular expression.
    """
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"patient_pattern is {pattern!r} but must be a regular expression: {error}") from error


def patient_of(name: str, pattern: str | None) -> str:
    """The patient of a file by its name: what the pattern finds (its first group, if it has one); None: the name.

    Raises:
        ValueError: the pattern finds nothing in the name.
    """
    if pattern is None:
        return name
    match = re.search(pattern, name)
    if match is None or not (found := match[1] if match.re.groups else match[0]):
        raise ValueError(f"patient_pattern {pattern!r} finds no patient in the name {name!r}; change one of them")
    return found


def one_split_each(splits: Mapping[str, Sequence[str]], where: str) -> None:
    """Check that no group is in two splits.

    where: what the splits were read from, the begin of the error.

    Raises:
        ValueError: a group in two splits.
    """
    place: dict[str, str] = {}
    for split, groups in splits.items():
        for group in groups:
            if place.setdefault(group, split) != split:
                raise ValueError(
                    f"{where}: {group} is in {place[group]} and in {split}, but images of one patient must not lie on "
                    "both sides of a test; take one of them away"
                )


MOST_PHANTOMS = 10_000
"""Phantoms of a range, at most."""


class PhantomNames(NamedTuple):
    """Names of phantoms: a prefix and their number. There is a phantom of every number, in a split or not."""

    prefix: str
    digits: int

    def name(self, number: int) -> str:
        """phantom_00012 for number 12."""
        return f"{self.prefix}{number:0{self.digits}d}"

    def in_full(self, patterns: Iterable[str]) -> list[str]:
        """The patterns, with all digits where one is the name of a phantom, phantom_00012 for phantom_12, and each name
        where one is a range, phantom_12-20.

        Raises:
            SelectionError: a range that does not ascend, or of more than `MOST_PHANTOMS`.
        """
        full = []
        for pattern in patterns:
            if match := re.fullmatch(rf"{re.escape(self.prefix)}([0-9]+)-([0-9]+)", pattern):
                first, last = int(match[1]), int(match[2])
                if not 0 <= last - first < MOST_PHANTOMS:
                    reason = f"{pattern!r} must ascend and name at most {MOST_PHANTOMS} phantoms"
                    raise SelectionError(reason, f"write {self.prefix}{first}-{first + 9} for ten")
                full += [self.name(number) for number in range(first, last + 1)]
            else:
                full.append(self._pattern.sub(lambda match: self.name(int(match[1])), pattern))
        return full

    def numbers(self, patterns: Iterable[str]) -> dict[str, int]:
        """The numbers of the phantoms that the patterns name, by full name: these exist without being listed."""
        matches = (self._pattern.fullmatch(pattern) for pattern in patterns)
        return {self.name(int(match[1])): int(match[1]) for match in matches if match}

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"^{re.escape(self.prefix)}([0-9]+)$")
