"""The nodes that fed.yaml means: defaults merged in, and `count` written out.

`{i}` counts from 0, and `{i+1}` from 1: in the name, in what says where a node is, and in texts of `data`, where one
that is nothing else becomes the number itself.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from fedctl.federation import Node, When
from fedctl.records import COORDINATOR
from fedctl.topology.document import Address, Document
from fedctl.topology.fields import NAME_RULE, is_name
from fedctl.topology.problems import Problem
from fedctl.topology.schema import DefaultsSection, NodeSection
from fedctl.topology.wording import quoted, shown

MOST_NODES = 100_000
COUNTED = ("name", "host", "user", "key", "jump", "python", "wheelhouse", "home")

_INDEX = re.compile(r"\{i(?:\+([1-9][0-9]{0,5}))?(?::(0?[1-9][0-9]?)d)?\}")


def expand(specs: Sequence[NodeSection], defaults: DefaultsSection | None) -> tuple[Node, ...]:
    """All nodes, in the order of the file."""
    return tuple(node for spec in specs for node in _nodes(spec, defaults))


def node_problems(
    specs: Sequence[NodeSection], defaults: DefaultsSection | None, document: Document
) -> Iterator[Problem]:
    """What is wrong with the nodes taken together, or with one beyond the types of its fields."""
    if sum(spec.count or 1 for spec in specs) > MOST_NODES:
        yield Problem(address=("nodes",), text=f"these are more than {MOST_NODES} nodes")
        return
    for index, spec in enumerate(specs):
        yield from _spec_problems(spec, defaults, ("nodes", index))
    yield from _clashes(specs, document)


def _nodes(spec: NodeSection, defaults: DefaultsSection | None) -> Iterator[Node]:
    fields = {**(defaults.given if defaults else {}), **spec.given, "data": _data(spec, defaults)}
    fields.pop("count", None)
    if fields.get("when"):
        fields["when"] = When(**fields["when"].given)
    if spec.count is None:
        yield Node(**fields)
        return
    texts = {name: fields[name] for name in COUNTED if fields.get(name)}
    for i in range(spec.count):
        filled = {name: _fill_text(text, i) for name, text in texts.items()}
        yield Node(**{**fields, **filled, "data": _fill(fields["data"], i)})


def _data(spec: NodeSection, defaults: DefaultsSection | None) -> dict[str, Any]:
    return {**((defaults and defaults.data) or {}), **(spec.data or {})}


def _fill(value: Any, i: int) -> Any:
    match value:
        case str():
            alone = _INDEX.fullmatch(value)
            return _number(alone, i) if alone and not alone[2] else _fill_text(value, i)
        case list():
            return [_fill(item, i) for item in value]
        case dict():
            return {key: _fill(item, i) for key, item in value.items()}
        case _:
            return value


def _fill_text(text: str, i: int) -> str:
    return _INDEX.sub(lambda match: format(_number(match, i), f"{match[2] or ''}d"), text)


def _number(match: re.Match[str], i: int) -> int:
    return i + int(match[1] or 0)


def _spec_problems(spec: NodeSection, defaults: DefaultsSection | None, address: Address) -> Iterator[Problem]:
    templated = _INDEX.search(spec.name) is not None
    if spec.count is not None and not templated:
        text = f"should have {{i}} in it, because `count` makes {spec.count} nodes of it, not {quoted(spec.name)}"
        yield Problem(address=(*address, "name"), text=text, hint='such as "sim-{i}" or "sim-{i:04d}"')
    elif spec.count is None and templated:
        yield Problem(address=(*address, "name"), text="has {i} but no `count`", hint="add `count:` beside it")
    elif not is_name(longest := _names(spec)[-1]):
        yield Problem(address=(*address, "name"), text=f"{NAME_RULE}, not {quoted(longest)}")
    if spec.count is not None:
        for place in _unquoted(_data(spec, defaults), (*address, "data")):
            yield Problem(address=place, text="{i} without quotes is a mapping", hint='write "{i}"')


def _unquoted(value: Any, address: Address) -> Iterator[Address]:
    """Where YAML made a mapping of an `{i}` that was meant as text."""
    if value == {"i": None}:
        yield address
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _unquoted(item, (*address, key))


def _clashes(specs: Sequence[NodeSection], document: Document) -> Iterator[Problem]:
    """Names that are taken, one a spec; names become folders, and some file systems do not tell case apart."""
    owners: dict[str, tuple[str, Address]] = {}
    for index, spec in enumerate(specs):
        address: Address = ("nodes", index, "name")
        problem = None
        for name in _names(spec):
            owner = owners.setdefault(name.casefold(), (name, address))
            if name.casefold() == COORDINATOR:
                problem = Problem(address=address, text=f"{name} is a reserved name", hint="give it another name")
            elif owner != (name, address):
                problem = _clash(name, address, *owner, document)
        if problem:
            yield problem


def _clash(name: str, address: Address, taken: str, owner: Address, document: Document) -> Problem:
    of = f"{shown(owner[:-1])} ({document.place(owner).source})"
    if name == taken:
        return Problem(address=address, text=f"{name} is already the name of {of}", hint="names are unique")
    text = f"{name} differs only in case from {taken}, the name of {of}"
    return Problem(address=address, text=text, hint="some file systems do not tell them apart")


def _names(spec: NodeSection) -> list[str]:
    return [spec.name] if spec.count is None else [_fill_text(spec.name, i) for i in range(spec.count)]
