"""Which cases of a data set a configuration means: by split, by name, or by the number of a phantom.

A case has an id and belongs to a group: all images of one patient, all lesion variants of one CT. Splits are lists of
groups, so that no group lies on both sides of a test.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple


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

    def named(self, patterns: Sequence[str]) -> list[str]:
        """The ids that fit one of the patterns, or whose group does; once each, in the order of the patterns.

        patterns: ids or groups, in which * and ? stand for any text and any character.

        Raises:
            ValueError: a pattern that nothing fits.
        """
        chosen: dict[str, None] = {}
        for pattern in patterns:
            found = [i for i, group in self.groups.items() if fnmatchcase(i, pattern) or fnmatchcase(group, pattern)]
            if not found:
                raise ValueError(
                    f"no {self.noun} in {self.data!r} is called {pattern!r}; it has {self.listed(self.groups)}"
                )
            chosen |= dict.fromkeys(found)
        return list(chosen)

    def in_split(self, split: str) -> list[str]:
        """The ids of a split, in the order of its groups.

        Raises:
            ValueError: an unknown split, or one of which nothing is there.
        """
        if split == "all":
            return list(self.groups)
        if split not in self.splits:
            known = ", ".join([*self.splits, "all"])
            raise ValueError(f"split is {split!r} but {self.data!r} has {known}; {self.hint}")
        place = {group: n for n, group in enumerate(self.splits[split])}
        chosen = [i for i, group in self.groups.items() if group in place]
        if not chosen:
            raise ValueError(
                f"split {split!r} of {self.data!r} has no {self.noun} that is there; there are "
                f"{self.listed(self.groups)}; {self.hint}"
            )
        return sorted(chosen, key=lambda i: place[self.groups[i]])

    def listed(self, names: Iterable[str]) -> str:
        """The names, or the first and the last of many."""
        few = list(names)
        return ", ".join(few) if len(few) <= 6 else f"{', '.join(few[:5])}, ... {few[-1]} ({len(few)} {self.noun}s)"


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


class PhantomNames(NamedTuple):
    """Names of phantoms: a prefix and their number. There is a phantom of every number, in a split or not."""

    prefix: str
    digits: int

    def name(self, number: int) -> str:
        """phantom_00012 for number 12."""
        return f"{self.prefix}{number:0{self.digits}d}"

    def in_full(self, patterns: Iterable[str]) -> list[str]:
        """The patterns, with all digits where one is the name of a phantom: phantom_00012 for phantom_12."""
        return [self._pattern.sub(lambda match: self.name(int(match[1])), pattern) for pattern in patterns]

    def numbers(self, patterns: Iterable[str]) -> dict[str, int]:
        """The numbers of the phantoms that the patterns name, by full name: these exist without being listed."""
        matches = (self._pattern.fullmatch(pattern) for pattern in patterns)
        return {self.name(int(match[1])): int(match[1]) for match in matches if match}

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"^{re.escape(self.prefix)}([0-9]+)$")
