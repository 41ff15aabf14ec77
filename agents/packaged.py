"""The configurations that the package brings: their names, what each is, and the file behind a name."""

import re
from pathlib import Path
from typing import NamedTuple

from ..common.likeness import did_you_mean
from ..common.reading import parse_yaml

FOLDER = Path(__file__).parents[1] / "configs"
"""Where they lie, in a checkout as in an installed package."""


class Packaged(NamedTuple):
    """One of them."""

    name: str
    """Path below `FOLDER` without ".yaml": spars/demo."""
    paper: str
    """The paper that it names."""
    about: str
    """First sentence of the comment that it begins with."""


def names() -> list[str]:
    """Their names, those of one paper together."""
    found = (path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
    return sorted(found, key=lambda name: (name.split("/")[0], name.count("/"), name))


def packaged() -> list[Packaged]:
    """All of them, read from their files."""
    found = []
    for name in names():
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        comment = " ".join(line.lstrip("# ") for line in re.match(r"(?:#.*\n)*", text)[0].splitlines())  # type: ignore[index]
        found.append(Packaged(name, str(parse_yaml(text, name).get("paper")), re.split(r"(?<=\.)\s", comment)[0]))
    return found


def config_file(text: str) -> str:
    """The file that `--config text` means: `text` itself if it is one, else the packaged configuration of that name.

    Raises:
        FileNotFoundError: neither; says which name is like it.
    """
    if Path(text).exists():
        return text
    name = text.removesuffix(".yaml").removeprefix("configs/")
    if name in (known := names()):
        return str(FOLDER / f"{name}.yaml")
    hint = did_you_mean(name, known) or "; `list --configs` prints the packaged ones"
    raise FileNotFoundError(f"config is {text!r}, which is no file and no packaged configuration{hint}")
