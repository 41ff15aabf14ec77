"""The JSON Schema of a paper's configurations, made from its dataclasses, and what in a configuration breaks it.

Editors complete and check a YAML file by it (`segarena-rl schema --paper spars > spars.schema.json`, and in the file
`# yaml-language-server: $schema=spars.schema.json`). The command line reads it too, so that it can name a wrong key
before PyTorch is imported.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..common.checks import closest_choice
from ..common.likeness import did_you_mean
from ..common.reading import quoted

if TYPE_CHECKING:
    from .experiment import Paper

Schema = dict[str, Any]


def schema_of(name: str, paper: "Paper[Any]") -> Schema:
    """The schema of the configurations of a paper: types, defaults, choices and help of every field.

    A configuration is one object; of its fields only `paper` must be there.
    """
    from .configuration import experiment_parser

    made: Schema = json.loads(experiment_parser(paper).get_completion_script("jsonschema"))
    _tidy(made, top=True)
    about = re.sub(r"\s+", " ", (paper.experiment.__doc__ or "").partition("\n")[0])
    made = {"$schema": made.pop("$schema"), "title": f"Configuration of paper {name}", **made, "description": about}
    made["properties"]["paper"] = {**made["properties"]["paper"], "enum": [name]}
    if paper.baselines and "baselines" in made["properties"]:
        made["properties"]["baselines"]["items"]["enum"] = list(paper.baselines)
    return {**made, "required": ["paper"]}


def _tidy(node: Any, *, top: bool = False) -> None:
    """One line for each help text; `$schema` as a key of the whole file alone."""
    if isinstance(node, dict):
        if isinstance(node.get("description"), str):
            node["description"] = re.sub(r"\s+", " ", node["description"])
        if not top and isinstance(node.get("properties"), dict):
            node["properties"].pop("$schema", None)
        for part in node.values():
            _tidy(part)
    elif isinstance(node, list):
        for part in node:
            _tidy(part)


def keys(schema: Schema) -> list[str]:
    """The dotted names of all fields, sections included."""
    return [name for name in _keys(schema, schema, "") if name != "$schema"]


def _keys(node: Schema, root: Schema, prefix: str) -> Iterator[str]:
    for part in _alternatives(node, root):
        for name, field in part.get("properties", {}).items():
            yield prefix + name
            yield from _keys(field, root, f"{prefix}{name}.")


def misfit(schema: Schema, value: Any) -> str | None:
    """What in a configuration breaks the schema, in one line ("env.threshold is 'high' but must be a number").

    It refuses what the dataclasses would refuse: numbers may be whole or written as text ("1e-4"), and a text may be
    any single value. None: nothing.
    """
    return _misfit(value, schema, schema, "")


def misfit_at(schema: Schema, key: str, value: Any) -> str | None:
    """The same of one field, by its dotted name; the name must be one of `keys`."""
    nodes = [schema]
    for name in key.split("."):
        parts = (part for node in nodes for part in _alternatives(node, schema))
        nodes = [part["properties"][name] for part in parts if name in part.get("properties", {})]
    return _misfit(value, nodes[0], schema, key)


def _alternatives(node: Schema, root: Schema) -> list[Schema]:
    """The schemas of which a value must obey one."""
    if "$ref" in node:
        return _alternatives(root["$defs"][node["$ref"].rpartition("/")[2]], root)
    if "anyOf" in node:
        return [one for part in node["anyOf"] for one in _alternatives(part, root)]
    return [node]


def _misfit(value: Any, node: Schema, root: Schema, key: str) -> str | None:
    parts = _alternatives(node, root)
    wrong = [_misfit_of_one(value, part, root, key) for part in parts]
    if None in wrong:
        return None
    deeper = [text for text, part in zip(wrong, parts, strict=True) if text and _is_like(value, part)]
    if deeper:
        return deeper[0]
    choices = [str(choice) for part in parts for choice in part.get("enum", [])]
    ordered = sorted(parts, key=lambda part: part.get("type") == "null")
    kinds = " or ".join(dict.fromkeys(map(_text, ordered)))
    return f"{key or 'it'} is {quoted(value)} but must be {kinds}{closest_choice(value, choices)}"


def _is_like(value: Any, part: Schema) -> bool:
    """Whether a part of the value is wrong rather than the kind of the whole."""
    return (isinstance(value, dict) and "properties" in part) or (
        isinstance(value, list) and part.get("type") == "array" and "prefixItems" not in part
    )


def _misfit_of_one(value: Any, part: Schema, root: Schema, key: str) -> str | None:
    kind, wrong = part.get("type"), key or "it"
    if "enum" in part:
        return None if value in part["enum"] else wrong
    if kind == "object":
        if not isinstance(value, Mapping):
            return wrong
        known = part.get("properties")
        for name, item in value.items():
            inner = f"{key}.{name}" if key else str(name)
            if known is None or (name == "$schema" and not key):
                continue
            if name not in known:
                return f"there is no {quoted(inner)[1:-1]}" + did_you_mean(inner, keys(root))
            if text := _misfit(item, known[name], root, inner):
                return text
        return None
    if kind == "array":
        if not isinstance(value, list | tuple):
            return wrong
        prefix = part.get("prefixItems")
        if prefix is not None and len(value) != len(prefix):
            return wrong
        kinds = prefix or [part.get("items", {})] * len(value)
        texts = (_misfit(item, one, root, f"each of {key}") for item, one in zip(value, kinds, strict=True))
        return next((text for text in texts if text), None)
    if kind == "null":
        return None if value is None else wrong
    if kind == "boolean":
        return None if isinstance(value, bool) else wrong
    if kind in ("integer", "number"):
        return None if _is_number(value, whole=kind == "integer") else wrong
    if kind == "string":
        return None if isinstance(value, str | int | float) else wrong
    return None


def _is_number(value: Any, *, whole: bool) -> bool:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or not whole or (math.isfinite(value) and value == int(value))


def _text(part: Schema) -> str:
    """A type in words."""
    if "enum" in part:
        return f"one of {', '.join(map(repr, part['enum']))}"
    if part.get("type") == "array":
        return f"a list of {len(part['prefixItems'])}" if "prefixItems" in part else "a list"
    names = {"object": "a section (name: value)", "integer": "a whole number", "number": "a number"}
    names |= {"boolean": "true or false", "string": "a text", "null": "null"}
    return names.get(str(part.get("type")), "another value")
