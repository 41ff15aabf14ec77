"""Dataclasses as small JSON files that a person reads and compares: one field a line."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...common.files import write_text
from ...common.likeness import did_you_mean
from ...common.reading import quoted, read_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Document = TypeVar("Document", bound=DataclassInstance)
else:
    Document = TypeVar("Document")


def save_document(document: "DataclassInstance", path: str | Path) -> None:
    """Write the fields of a dataclass as JSON."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in asdict(document).items()]
    write_text(Path(path), "{\n" + ",\n".join(lines) + "\n}\n")


def load_document(kind: type[Document], path: str | Path) -> Document:
    """What `save_document` wrote, checked by the dataclass itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, a field that is missing or unknown, or a value that the dataclass refuses.
    """
    content = read_json(path)
    names = [field.name for field in fields(kind)]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {quoted(content)} but must be an object with {', '.join(names)}")
    for name in content:
        if name not in names:
            hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
            raise ValueError(f"{path} has the unknown field {quoted(name)}{hint}")
    if missing := [name for name in names if name not in content]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; write it anew, or add what is missing")
    try:
        return kind(**{name: _tuples(value) for name, value in content.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _tuples(value: Any) -> Any:
    """The value with tuples in place of lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
