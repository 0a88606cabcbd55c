"""`--set a.b=c`: one value of a document replaced before it is validated.

A path goes by keys, by indices of lists and by the names of nodes. What it sets keeps `--set a.b` as its place, so that
an error in it is told where it was made.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedctl.errors import ConfigError, UsageError
from fedctl.topology.document import Address, Document, read
from fedctl.topology.wording import describe, shown, suggestion

_EXAMPLE = "write it as `--set rounds=3` or `--set nodes.alice.slots=2`"


def override(document: Document, assignment: str) -> Document:
    """The document with one assignment `path=value` made in it; the value is YAML."""
    path, separator, text = assignment.partition("=")
    parts = path.strip().split(".")
    if not separator or not all(parts):
        raise UsageError(f"--set {assignment}: should be a path, `=` and a value", hint=_EXAMPLE)
    name = f"--set {path.strip()}"
    given = read(text, name=name, lines=False)
    address = _resolve(document.value, parts, name)
    kept = {known: place for known, place in document.places.items() if known[: len(address)] != address}
    made = {address[:end] for end in range(len(address)) if address[:end] not in kept}
    new = {(*address, *inner): replace(place, line=0, base=address) for inner, place in given.places.items()}
    places = {**kept, **dict.fromkeys(made, new[address]), **new}
    return Document(value=_put(document.value, address, given.value), places=places)


def _resolve(value: Any, parts: Sequence[str], name: str) -> Address:
    """The address that a path of text means in this value; keys that are not there yet are taken as they stand."""
    address: Address = ()
    while parts:
        if isinstance(value, list):
            index, used = _index(value, address, parts, name)
            value, address, parts = value[index], (*address, index), parts[used:]
        elif isinstance(value, dict) or value is None or value is True or _is_short(address, value):
            value = value.get(parts[0]) if isinstance(value, dict) else None
            address, parts = (*address, parts[0]), parts[1:]
        else:
            raise ConfigError(f"{name}: {shown(address)} is {describe(value)} and has no keys", hint=_EXAMPLE)
    return address


def _index(items: list[Any], address: Address, parts: Sequence[str], name: str) -> tuple[int, int]:
    """An item's index, and how many parts of the path it took (a node's name may have dots in it)."""
    names = [item["name"] for item in items if isinstance(item, dict) and isinstance(item.get("name"), str)]
    for used in range(len(parts), 0, -1):
        if (wanted := ".".join(parts[:used])) in names:
            return next(
                i for i, item in enumerate(items) if isinstance(item, dict) and item.get("name") == wanted
            ), used
    if parts[0].isdecimal() and parts[0].isascii() and len(parts[0]) < 10:
        if int(parts[0]) < len(items):
            return int(parts[0]), 1
        raise ConfigError(f"{name}: {shown(address)} has only {len(items)} items", hint="the first one is 0")
    hint = suggestion(parts[0], names, otherwise="the names there are") if names else "the first item is 0"
    raise ConfigError(f"{name}: nothing in {shown(address)} is named {parts[0]}", hint=hint)


def _put(value: Any, address: Address, new: Any) -> Any:
    """A copy of the value with `new` at the address, sections being made where there are none."""
    if not address:
        return new
    first, rest = address[0], address[1:]
    if isinstance(value, list):
        return [_put(item, rest, new) if index == first else item for index, item in enumerate(value)]
    section = value if isinstance(value, dict) else {} if value is None or value is True else {"name": value}
    return {**section, first: _put(section.get(first), rest, new)}


def _is_short(address: Address, value: Any) -> bool:
    """`strategy: fedavg` is short for `strategy: {name: fedavg}`, which options may join; so it is for `local`."""
    return address in (("strategy",), ("local",)) and isinstance(value, str)
