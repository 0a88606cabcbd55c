"""JSON that may come from anybody: each text means one thing, or nothing.

Standard library only, and nothing of ours: the nodes run this module too, under Python 3.10 or newer.
"""

import json
from collections import Counter
from typing import Any, NoReturn


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
