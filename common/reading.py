"""Text, JSON and YAML that anybody may have written: bounded in size and depth, and named in every error."""

import json
from pathlib import Path
from typing import Any

import yaml

LARGEST_TEXT = 2**26
"""Bytes of a text or JSON file: 64 MiB."""
LARGEST_CONFIGURATION = 2**20
"""Bytes of a YAML file: 1 MiB."""
MOST_VALUES = 20_000
"""Keys and values of a YAML file, those that its aliases repeat included."""
DEEPEST = 50
"""Lists and mappings within each other."""
LONGEST_QUOTE = 200
"""Characters of a value that a message quotes."""


def read_text(path: str | Path, limit: int = LARGEST_TEXT) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, a pipe or a device; it has more than `limit` bytes, or is not UTF-8.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"{quoted(str(path))} does not exist")
    if not place.is_file():
        raise ValueError(f"{quoted(str(path))} is a folder, a pipe or a device but must be a file")
    with place.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(
            f"{place} has more than {limit} bytes, which no such file needs: it is another one, or damaged"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is no text in UTF-8 ({error})") from error


def read_json(path: str | Path, limit: int = LARGEST_TEXT) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, limit), str(path))


def parse_json(text: str, source: str) -> Any:
    """What a JSON text holds; `source` names it in errors.

    Raises:
        ValueError: it is not JSON, or nested more than `DEEPEST` times.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{source} is nested too deeply: more than {DEEPEST} times") from error
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}") from error
    level = [value]
    for _ in range(DEEPEST):
        inside = [part for part in level if isinstance(part, dict | list)]
        level = [one for part in inside for one in (part.values() if isinstance(part, dict) else part)]
        if not level:
            return value
    raise ValueError(f"{source} is nested too deeply: more than {DEEPEST} times")


def read_yaml(path: str | Path, limit: int = LARGEST_CONFIGURATION) -> Any:
    """What a YAML file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, limit), str(path))


def parse_yaml(text: str, source: str) -> Any:
    """What a YAML text holds; `source` names it in errors. Its tags make nothing but plain values.

    Raises:
        ValueError: it is not YAML (says the line and the column), has a key twice or more than `MOST_VALUES` keys and
            values, is nested more than `DEEPEST` times, or has an alias within what it stands for.
    """
    try:
        loader = _BoundedLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{source}{where}: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        raise ValueError(f"{source}, character {error.position + 1}: {error.reason}") from error
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:  # of PyYAML's constructors
        raise ValueError(f"{source} has a value that is not what it claims to be: {quoted(error)}") from error


def quoted(value: object, length: int = LONGEST_QUOTE) -> str:
    """`repr` of a value, or the text of an error, shortened in its middle to `length` characters, for messages."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 4 :]}"


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which gives up before a small file becomes a large tree."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._inside: dict[int, int] = {}
        """Keys and values that stand in each node, by its id."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node; counts it, or what its alias stands for."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias, before = self.check_event(yaml.AliasEvent), self._values
        self._depth, self._values = self._depth + 1, self._values + 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested too deeply: more than {DEEPEST} times", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._inside:
                raise yaml.composer.ComposerError(None, None, "an alias within what it stands for", mark)
            self._values += self._inside[id(node)]
        if self._values > MOST_VALUES:
            raise yaml.composer.ComposerError(
                None, None, f"more than {MOST_VALUES} keys and values, those that aliases repeat included", mark
            )
        if not is_alias:
            self._inside[id(node)] = self._values - before
            _refuse_keys_that_stand_twice(node)
        return node


def _refuse_keys_that_stand_twice(node: yaml.Node | None) -> None:
    """Raises ComposerError: a key stands twice in a mapping, so that one of its values would be lost."""
    seen = set[str]()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                problem = f"key {quoted(key.value)} stands twice"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add(key.value)
