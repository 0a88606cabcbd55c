"""Events as lines of JSON: `dump` gives one, `load` reads it back and refuses anything it does not know."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, get_args

from fedctl import strictjson
from fedctl.events import Event
from fedctl.ledger import Pin
from fedctl.records import Blob, Score, TaskKey
from fedctl.traffic import Traffic

EVENTS: Mapping[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


def dump(event: Event) -> str:
    """One line of JSON, without its newline: `at`, `event`, then the event's own fields."""
    fields = {f.name: _to_json(getattr(event, f.name)) for f in dataclasses.fields(event)}
    head = {"at": fields.pop("at"), "event": type(event).__name__}
    return json.dumps({**head, **fields}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def load(line: str) -> Event:
    """Read a line back; raises ValueError when it is no event of this version."""
    value = strictjson.loads(line)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    name = value.pop("event", None)
    kind = EVENTS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError("unknown event")
    names = {f.name for f in dataclasses.fields(kind)}
    if not set(value) <= names:
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(set(value) - names))}")
    try:
        return kind(**{name: _FROM_JSON.get(name, _same)(field) for name, field in value.items()})
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


def _to_json(value: Any) -> Any:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case TaskKey():
            return str(value)
        case Blob() | Score() | Traffic() | Pin():
            return value.to_json()
        case float():
            return value if value - value == 0 else None
        case Mapping():
            return {str(key): _to_json(item) for key, item in value.items()}
        case tuple():
            return [_to_json(item) for item in value]
        case _:
            return value


def _same(value: Any) -> Any:
    return value


def _metrics_from_json(value: Any) -> dict[str, float]:
    return {name: float("nan") if number is None else float(number) for name, number in value.items()}


_FROM_JSON: Mapping[str, Callable[[Any], Any]] = {
    "at": datetime.fromisoformat,
    "task": TaskKey.parse,
    "model": Blob.from_json,
    "update": Blob.from_json,
    "wire": lambda value: value and Blob.from_json(value),
    "ledger": lambda value: value and Pin.from_json(value),
    "message": Blob.from_json,
    "rest": lambda value: value and Blob.from_json(value),
    "memory": lambda value: value and Blob.from_json(value),
    "difference": lambda value: value and Blob.from_json(value),
    "nodes": tuple,
    "contributors": tuple,
    "metrics": _metrics_from_json,
    "scores": lambda value: {label: Score.from_json(score) for label, score in value.items()},
    "bytes": lambda value: Traffic(**value),
    "forecast": lambda value: value and Traffic(**value),
}
