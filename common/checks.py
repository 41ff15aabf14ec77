"""Checks of configurations: dataclasses whose fields are numbers, choices and names."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)
else:
    Config = TypeVar("Config")


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """A copy of `config` with the fields that `settings` names set to its values; the copy checks itself as usual.

    Raises:
        ValueError: `settings` names no field of `config`; says which one is like it.
    """
    known = [field.name for field in fields(config)]
    for name in settings:
        if name not in known:
            raise ValueError(f"unknown argument {name!r}{closest(name, known) or f'; there are {known}'}")
    return replace(config, **settings)


def closest(value: object, allowed: Iterable[object]) -> str:
    """ "; did you mean 'x'?" with the string of `allowed` that is most like `value`; "" where none is like it."""
    found = difflib.get_close_matches(str(value), [str(one) for one in allowed], 1) if isinstance(value, str) else []
    return f"; did you mean {found[0]!r}?" if found else ""
