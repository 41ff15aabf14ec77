"""The configurations and sweeps that the package brings: their names, what each is, and the file behind a name."""

import re
from pathlib import Path
from typing import NamedTuple

from ..common.likeness import did_you_mean
from ..common.reading import parse_yaml

FOLDER = Path(__file__).parents[1] / "configs"
"""Where they lie, in a checkout as in an installed package."""
SWEEPS = "sweeps"
"""Folder of a paper's sweeps, see `sweep.py`: no configurations, but files of variants of these."""


class Packaged(NamedTuple):
    """One of them."""

    name: str
    """Path below `FOLDER` without ".yaml": spars/demo."""
    paper: str
    """The paper that it names."""
    about: str
    """First sentence of the comment that it begins with."""


def names(*, sweeps: bool = False) -> list[str]:
    """Names of the configurations, or of the sweeps; those of one paper together."""
    paths = (path.relative_to(FOLDER) for path in FOLDER.rglob("*.yaml"))
    found = (path.with_suffix("").as_posix() for path in paths if (SWEEPS in path.parts) is sweeps)
    return sorted(found, key=lambda name: (name.split("/")[0], name.count("/"), name))


def packaged(*, sweeps: bool = False) -> list[Packaged]:
    """All configurations, or all sweeps, read from their files."""
    found = []
    for name in names(sweeps=sweeps):
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        comment = " ".join(line.lstrip("# ") for line in re.match(r"(?:#.*\n)*", text)[0].splitlines())  # type: ignore[index]
        found.append(Packaged(name, str(parse_yaml(text, name).get("paper")), re.split(r"(?<=\.)\s", comment)[0]))
    return found


def config_file(text: str, *, sweep: bool = False) -> str:
    """The file that `--config text` means: `text` itself if it is one, else the packaged configuration of that name.

    sweep: whether a sweep is meant.

    Raises:
        FileNotFoundError: neither; says which name is like it, or that the name is one of the other kind.
    """
    if Path(text).exists():
        return text
    name = text.removesuffix(".yaml").removeprefix("configs/")
    if name in (known := names(sweeps=sweep)):
        return str(FOLDER / f"{name}.yaml")
    if name in names(sweeps=not sweep):
        raise FileNotFoundError(
            f"config is {text!r}, which is a configuration: `train` takes it, or a sweep as its base"
            if sweep
            else f"config is {text!r}, which is a sweep: `sweep --config {text}` trains it"
        )
    kind = "sweep" if sweep else "configuration"
    hint = did_you_mean(name, known) or "; `list --configs` prints the packaged ones"
    raise FileNotFoundError(f"config is {text!r}, which is no file and no packaged {kind}{hint}")
