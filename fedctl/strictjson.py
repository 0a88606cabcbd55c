"""JSON that may come from anybody: each text means one thing, or nothing, and each value is of the type it should be.

Standard library only, and nothing of ours: the nodes run this module too, under Python 3.10 or newer.
"""

import dataclasses
import json
import re
from collections import Counter
from typing import Any, NoReturn

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def loads(text: str) -> Any:
    """The value of a JSON text; raises ValueError also for a name given twice, for NaN, and for depth without end."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"JSON that has {twice[:50]!r} twice")
    return fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"JSON that holds {constant}")


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_refuse)


def a_mapping(value: Any, name: str) -> dict[str, Any]:
    """The value where it is an object; this and the others raise ValueError, with the value's name in it."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object")
    return value


def a_list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list")
    return value


def a_flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false")
    return value


def a_count(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{name} must be a whole number from 0")
    return value


def a_number(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 2**1023:
        raise ValueError(f"{name} must be a finite number")
    return float(value)


def a_text(value: Any, longest: int) -> str:
    """The text, printable, where it is one of at most so many characters."""
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"expected a text of at most {longest} characters")
    return printable(value)


def fields_of(value: Any, kind: type) -> dict[str, Any]:
    """The value where it is an object with the fields of a dataclass, all of them and no other."""
    names = [each.name for each in dataclasses.fields(kind)]
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"expected an object with exactly {', '.join(names)}")
    return dict(value)


def printable(text: str) -> str:
    """A node's words as they may be shown and written down: no control characters, which a terminal would obey."""
    return _UNPRINTABLE.sub("\ufffd", text)
