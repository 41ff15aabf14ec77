"""Tables whose rows are loaded when they are first asked for, and to which other packages add rows by entry points."""

import importlib
import logging
from collections.abc import Iterator, Mapping, MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

Row = TypeVar("Row")
log = logging.getLogger(__name__)


def load(path: str, what: str) -> Any:
    """The object at "module:name".

    Raises:
        ValueError: it cannot be imported, whatever its module raises; says so of `what`.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # of code that is not ours: nothing of it may end a command that does not need it
        raise ValueError(f"{what} ({path}) cannot be loaded: {type(error).__name__}: {error}") from error


class Table(MutableMapping[str, Row]):
    """Rows by name. A row may be given as "module:name", and is imported when it is first asked for.

    The entry points of a group, of any package that is installed, are rows too: their name is the row's. Names and
    their order are known without importing anything.

        PAPERS["mine"] = Paper(...)                      # from Python, or in the metadata of a package:
        [project.entry-points."segarena.papers"]
        mine = "mine.paper:PAPER"
    """

    def __init__(self, what: str, group: str, rows: Mapping[str, str]) -> None:
        """what: of one row, for messages; group: of entry points; rows: the package's own, as "module:name"."""
        self.what, self.group = what, group
        self._rows: dict[str, Row | str] = dict(rows)
        self._own = set(rows)
        self._packages: dict[str, str] = {}
        self._searched = False

    def _find(self) -> dict[str, Row | str]:
        """All rows, those of entry points included; looks for them once."""
        if not self._searched:
            self._searched = True
            for point in entry_points(group=self.group):
                if point.name in self._rows:
                    taken = package_of(point), self.what, point.name, self._packages.get(point.name, "segarena")
                    log.warning("%s adds %s %r, which %s has: left out", *taken)
                else:
                    self._rows[point.name], self._packages[point.name] = point.value.split()[0], package_of(point)
        return self._rows

    def __getitem__(self, name: str) -> Row:
        """The row.

        Raises:
            KeyError: there is none.
            ValueError: it cannot be imported; names the package.
        """
        row = self._find()[name]
        if isinstance(row, str):
            package = f" of package {self._packages[name]}" if name in self._packages else ""
            row = self._rows[name] = load(row, f"{self.what} {name!r}{package}")
        return row

    def __setitem__(self, name: str, row: Row) -> None:
        self._find()[name] = row
        self._own.discard(name)

    def __delitem__(self, name: str) -> None:
        del self._find()[name]
        self._own.discard(name)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._find()))

    def __len__(self) -> int:
        return len(self._find())

    def __contains__(self, name: object) -> bool:
        return name in self._find()

    def package(self, name: str) -> str | None:
        """Name and version of the package whose entry point gave the row; None: no entry point did."""
        self._find()
        return self._packages.get(name)

    def is_own(self, name: str) -> bool:
        """Whether the row is the package's own, and not one that took its place."""
        return name in self._own

    def is_loaded(self, name: str) -> bool:
        """Whether the row was imported, or given from Python."""
        return not isinstance(self._find()[name], str)


def package_of(point: EntryPoint) -> str:
    """Name and version of the package of an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
