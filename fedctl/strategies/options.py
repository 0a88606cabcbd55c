"""Options as the fields of a frozen dataclass: names, types and ranges checked before anything starts.

A field's type says what the option may be: bool, int, float (finite), str, None, a `Mapping`, a `tuple[kind, ...]` of
these, a union of them, or another `Named` member of the family. A field `lambda_` is the option `lambda`.
`__post_init__` says its range by raising a ValueError that begins with the option's name ("lr should be above 0, not
-1.0"). Standard library only.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from fedctl.errors import ConfigError, suggestion
from fedctl.federation import Named

STATISTICS = ("*running_mean", "*running_var")
"""What BatchNorm's statistics are called: buffers, which are averaged and never stepped."""

_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "nothing",
    Mapping: "a mapping",
    Named: "a name, or a mapping with a name and options",
}
_SHOWN = {"True": "true", "False": "false", "None": "nothing"}


def from_options(kind: type[Any], options: Mapping[str, Any], *, where: str) -> Any:
    """An instance of the dataclass `kind` with these options; raises ConfigError naming `where/option`."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ConfigError(f"{where}: {getattr(kind, '__name__', kind)} is no dataclass")
    fields = {field.name.removesuffix("_"): field for field in dataclasses.fields(kind) if field.init}
    hints = get_type_hints(kind)
    types = {name: hints[field.name] for name, field in fields.items()}
    for name in options:
        if name not in fields:
            raise ConfigError(f"{where}/{name}: unknown option", hint=_suggestion(str(name), fields))
    for name, field in fields.items():
        if name not in options and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}/{name}: is missing", hint=f"give {_words(types[name])}")
    values = {fields[name].name: _fitted(value, types[name], f"{where}/{name}") for name, value in options.items()}
    try:
        return kind(**values)
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise ConfigError(f"{where}/{name}: {rest}" if name in fields else f"{where}: {error}") from error


def _fitted(value: Any, wanted: Any, where: str) -> Any:
    """The value as the field holds it: a whole number becomes a float and a list a tuple where those are wanted."""
    for choice in _choices(wanted):
        if choice is float and type(value) in (int, float) and math.isfinite(value):
            return float(value)
        if choice in (bool, int, str, NoneType) and type(value) is choice:
            return value
        if choice is Named and isinstance(value, str):
            return Named(name=value)
        if choice is Named and isinstance(value, Mapping) and isinstance(value.get("name"), str):
            return Named(name=value["name"], options={key: item for key, item in value.items() if key != "name"})
        if get_origin(choice) is Mapping and isinstance(value, Mapping):
            return value
        if get_origin(choice) is tuple and isinstance(value, list | tuple):
            return tuple(_fitted(item, get_args(choice)[0], where) for item in value)
    raise ConfigError(f"{where}: should be {_words(wanted)}, not {_SHOWN.get(repr(value), repr(value)[:60])}")


def _choices(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)


def _words(wanted: Any) -> str:
    return " or ".join(
        f"a list, each {_words(get_args(choice)[0])}"
        if get_origin(choice) is tuple
        else _WORDS.get(get_origin(choice) or choice, str(choice))
        for choice in _choices(wanted)
    )


def _suggestion(wrong: str, fields: Mapping[str, Any]) -> str:
    return suggestion(wrong, fields, f"its options are {', '.join(fields)}" if fields else "it has no options")


def check_above_zero(**values: float) -> None:
    """Refuse, with the ValueError that `from_options` takes, a value of 0 or less."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} should be above 0, not {value}")


def check_below_one(**values: float) -> None:
    """Refuse, with the ValueError that `from_options` takes, a value below 0, or of 1 or more."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} should be at least 0 and below 1, not {value}")


def check_not_negative(**values: float) -> None:
    """Refuse, with the ValueError that `from_options` takes, a value below 0."""
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} should be at least 0, not {value}")
