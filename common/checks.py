"""Checks of configurations: dataclasses whose fields are numbers, choices and names."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass, replace
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .likeness import closest
from .reading import quoted

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)
else:
    Config = TypeVar("Config")

Range = tuple[float, float]
"""The lowest and the highest allowed number."""
ABOVE_0, BELOW_1 = math.nextafter(0, 1), math.nextafter(1, 0)
"""Ends of open ranges: the numbers next to 0 and 1."""
AT_LEAST_0: Range = (0, math.inf)
AT_LEAST_1: Range = (1, math.inf)
POSITIVE: Range = (ABOVE_0, math.inf)
NEGATIVE: Range = (-math.inf, -ABOVE_0)
SHARE: Range = (0, 1)


def check(config: Any, section: str = "", **ranges: Range) -> None:
    """Check the fields of a dataclass by their types, and the numbers in the fields that `ranges` names.

    A field of a Literal type must have one of its values; numbers must be finite, and True is none. What is None, where
    the type allows it, has no range. A range of a tuple holds for each of its numbers.

    Args:
        config: an instance of a dataclass.
        section: where the fields stand in an experiment, with a dot at its end: "ppo.".
        ranges: of a field, by name.

    Raises:
        ValueError: names section, field, value and what is allowed.
    """
    for name, kind in _types(config.__class__).items():
        wrong = _misfit(getattr(config, name), kind)
        if wrong is not None:
            raise ValueError(f"{section}{name} is {getattr(config, name)!r} but {wrong}")
    for name, allowed in ranges.items():
        check_range(f"{section}{name}", getattr(config, name), allowed)


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check the arguments of a function, or of a class's constructor, by their annotated types, as `check` does.

    Raises:
        ValueError: names argument, value and what is allowed.
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    for name, value in values.items():
        kind = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        wrong = _misfit(value, kind) if kind is not inspect.Parameter.empty else None
        if wrong is not None:
            raise ValueError(f"{name} is {value!r} but {wrong}")


def check_range(name: str, value: Any, allowed: Range) -> None:
    """Check that `value`, a number, None or a tuple or list of numbers, has no number outside `allowed`.

    Raises:
        ValueError: names `name`, value and what is allowed.
    """
    low, high = allowed
    numbers = value if isinstance(value, tuple | list) else [] if value is None else [value]
    if not all(low <= number <= high for number in numbers):
        each = "each " if numbers is value else ""
        raise ValueError(f"{name} is {value!r} but {each}must {_range_text(low, high)}")


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Check that `value` is one of `allowed`.

    Raises:
        ValueError: names `name`, value and what is allowed.
    """
    if value not in (known := list(allowed)):
        raise ValueError(f"{name} is {value!r} but must be one of {_listed(known)}{closest_choice(value, known)}")


def whole_path(name: str, path: str) -> str:
    """The whole path of a file or folder, which need not exist, so that a run can be continued from anywhere.

    Raises:
        ValueError: no file can be called so; `name` says in which field it stands.
    """
    try:
        whole = Path(path).resolve()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            whole.lstat()
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is {quoted(path)}, but no file can be called so ({quoted(error, 60)})") from error
    return str(whole)


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """A copy of `config` with the fields that `settings` names set to its values; the copy checks itself as usual.

    As on the command line and in YAML, a list does where a field is a tuple, and a mapping where it is a dataclass: it
    sets the fields that it names.

    Raises:
        ValueError: `settings` names no field of `config`; says which one is like it.
    """
    kinds, given = _types(type(config)), dict(settings)
    for name, value in settings.items():
        if name not in kinds:
            raise ValueError(f"unknown argument {name!r}{closest_choice(name, kinds) or f'; there are {[*kinds]}'}")
        if isinstance(value, list) and any(get_origin(one) is tuple for one in _options(kinds[name])):
            given[name] = tuple(value)
        elif isinstance(value, Mapping) and is_dataclass(part := getattr(config, name)) and not isinstance(part, type):
            given[name] = with_settings(part, value)
    return replace(config, **given)


def signature_with_fields(
    function: Callable[..., Any], base: Callable[..., Any], config_class: type[Any]
) -> inspect.Signature:
    """Signature of a constructor whose **settings are the arguments of `base` and the fields of `config_class`.

    Its own arguments come first, then those of `base` and the fields, by keyword; unchanged without **settings.
    """
    own = dict(inspect.signature(function).parameters)
    rest = next((name for name, one in own.items() if one.kind is one.VAR_KEYWORD), None)
    if rest is None:
        return inspect.signature(function)
    del own[rest]
    by_name = inspect.Parameter.KEYWORD_ONLY
    for name, one in inspect.signature(base).parameters.items():
        if name not in own and one.kind is not one.VAR_KEYWORD:
            own[name] = one.replace(kind=by_name)
    for field in fields(config_class):
        made, kind = field.default_factory, _types(config_class)[field.name]
        default = field.default if made is MISSING else made()
        default = inspect.Parameter.empty if default is MISSING else default
        own.setdefault(field.name, inspect.Parameter(field.name, by_name, default=default, annotation=kind))
    return inspect.Signature(list(own.values()), return_annotation=None)


def closest_choice(value: object, allowed: Iterable[object]) -> str:
    """'; did you mean ...?' with the string of `allowed` that is most like `value`; "" where none is like it."""
    strings = [one for one in allowed if isinstance(one, str)]
    found = closest(value, strings) if isinstance(value, str) else []
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def _types(config: Any) -> dict[str, Any]:
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config)}


def _misfit(value: Any, kind: Any) -> str | None:
    """Rule that `value` breaks, as a value of this type ("must be ..."); None: it fits.

    A list that the type allows is judged by its first wrong item.
    """
    if _fits(value, kind):
        return None
    for one in _options(kind):
        if get_origin(one) is list:
            (item,) = get_args(one)
            if isinstance(value, list):
                wrong = next(part for part in value if not _fits(part, item))
                return f"each must be {_text(item)}{closest_choice(wrong, _choices(item))}"
            if _fits(value, item):
                return f"must be {_text(kind)}; put it into a list: [{value!r}]"
    return f"must be {_text(kind)}{closest_choice(value, _choices(kind))}"


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str | int) and value in parts and not isinstance(value, bool)
    if origin is tuple:
        kinds = [parts[0]] * len(value) if isinstance(value, tuple) and Ellipsis in parts else parts
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if kind is Any:
        return True
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if kind is str:
        return isinstance(value, str | PathLike)  # a path does where a text names a file
    return isinstance(value, kind) if isinstance(kind, type) else True


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _choices(kind: Any) -> list[object]:
    """The values of the Literal types in a type."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [value for part in get_args(kind) for value in _choices(part)]


def _text(kind: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        lists = [part for part in parts if get_origin(part) is list and get_args(part)[0] in parts]
        return " or ".join("a list of them" if part in lists else _text(part) for part in parts)
    if origin is Literal:
        return f"one of {_listed(parts)}"
    if origin is tuple:
        number = "" if Ellipsis in parts else f"{len(parts)} "
        return f"a tuple of {number}{_text(parts[0]).removeprefix('a ')}s"
    if origin is list:
        return f"a list, each {_text(parts[0])}"
    names = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a string", NoneType: "None"}
    return names.get(kind, f"of type {getattr(kind, '__name__', kind)}")


def _range_text(low: float, high: float) -> str:
    if (low, high) == NEGATIVE:
        return "be negative"
    if high == math.inf:
        return "be positive" if low == ABOVE_0 else f"be at least {low:.12g}"
    left = "(0" if low == ABOVE_0 else f"[{low:.12g}"
    return f"lie in {left}, 1)" if high == BELOW_1 else f"lie in {left}, {high:.12g}]"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(repr, values))
