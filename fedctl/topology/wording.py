"""How a value, a list of choices and a suggestion read in a message."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from fedctl.errors import closest

_LONGEST = 40


def describe(value: Any) -> str:
    """What stands there instead, as in "should be a whole number, not true"."""
    match value:
        case None:
            return "empty"
        case bool():
            return "true" if value else "false"
        case str():
            return quoted(value)
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return str(value)


def quoted(text: str) -> str:
    """The text in double quotes, cut where it is long, with nothing in it that a terminal would obey."""
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return json.dumps(cut, ensure_ascii=not cut.isprintable())


def shown(address: Iterable[str | int]) -> str:
    """An address as people write it: `nodes/1/port`."""
    parts = (str(part) for part in address)
    return "/".join(part if part.isprintable() and len(part) <= _LONGEST else quoted(part) for part in parts)


def either(choices: Sequence[str], *, word: str = "or") -> str:
    """`a`, `a or b`, `a, b or c`."""
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} {word} {choices[-1]}"


def nearest(wrong: str, choices: Iterable[str]) -> str | None:
    """The one of the choices that was probably meant."""
    by_folded = {choice.casefold(): choice for choice in choices}
    found = closest(wrong[:200].casefold(), by_folded)
    return by_folded[found] if found else None


def suggestion(wrong: str, choices: Sequence[str], *, otherwise: str) -> str:
    """The hint for a word that is none of the choices; where none is near, `otherwise` followed by all of them."""
    if (near := nearest(wrong, choices)) is not None:
        return f"did you mean `{near}`?"
    return f"{otherwise} {either(choices, word='and')}"
