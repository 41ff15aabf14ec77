"""What a finished stage leaves beside its files: the settings that it depends on, and checksums."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import file_digest, write_text
from .reading import quoted, read_json

AFTER = "after/"
"""Before the name of a stage: the setting that holds a digest of it, for those that build on it."""
NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """One finished stage.

    settings: {"ppo.epochs": 5, "after/supervised": digest}: the configuration's keys that it and those before it depend
    on, and digests of these. sums: SHA-256 of its files by their names.
    """

    settings: dict[str, Any]
    sums: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """That of the stage in `folder`; None: it is not finished.

        Raises:
            ValueError: the file is no manifest.
        """
        path = folder / NAME
        try:
            made = read_json(path)
            return cls(dict(made["config"].items()), dict(made["sha256"].items()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            what = quoted(error)
            raise ValueError(f"{path} is no manifest ({what}); delete {folder} to make the stage anew") from error

    def write(self, folder: Path) -> None:
        """Mark the stage in `folder` as finished."""
        write_text(folder / NAME, json.dumps({"config": self.settings, "sha256": self.sums}, indent=1) + "\n")

    @property
    def configuration(self) -> dict[str, Any]:
        """The settings without the digests."""
        return {key: value for key, value in self.settings.items() if not key.startswith(AFTER)}

    def digest(self) -> str:
        """One checksum of all files of this stage and of those before it."""
        before = {key: value for key, value in self.settings.items() if key.startswith(AFTER)}
        return hashlib.sha256(json.dumps([self.sums, before], sort_keys=True).encode()).hexdigest()

    def check_files(self, folder: Path) -> None:
        """Raises ValueError: a file is missing or was changed since."""
        for name, digest in self.sums.items():
            if not (folder / name).is_file() or file_digest(folder / name) != digest:
                raise ValueError(
                    f"{folder / name} is missing or differs from its manifest; delete {folder} to make it anew"
                )


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first key that differs, those of the configuration before the digests of stages; None: all are equal."""
    keys = sorted({*then, *now}, key=lambda key: (key.startswith(AFTER), key))
    return next((key for key in keys if then.get(key) != now.get(key)), None)


def check_settings(then: Mapping[str, Any], now: Mapping[str, Any], where: str, *, delete: Path) -> None:
    """Compare the settings with which `where` was made with those of the run.

    Raises:
        ValueError: they differ; names the key, and the way out. delete: what makes `where` anew.
    """
    key = differing(then, now)
    if key is None:
        return
    if key.startswith(AFTER):
        raise ValueError(
            f"{where} was made from an earlier {key.removeprefix(AFTER)}, which was made anew since; delete {delete} "
            f"to make it anew too"
        )
    raise ValueError(
        f"{where} was made with {difference(key, then, now)}; put it back, or start a new run with another --out"
    )


def difference(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """'ppo.epochs = 2 but the run has 7'."""
    return f"{key} = {then.get(key, 'absent')!r} but the run has {now.get(key, 'absent')!r}"
