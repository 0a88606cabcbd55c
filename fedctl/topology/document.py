"""YAML text as plain values, and the place where each of them stands.

Owns the reading of YAML and knows nothing of what the keys mean. Stricter than `yaml.safe_load`: a duplicate key, a key
that is not text, a custom tag and a document that aliases blow up are refused. Kinder in two spots: `1e-3` is a number
(YAML 1.1 reads text) and a date stays the text that it was, so that every value has a JSON form.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from fedctl.errors import ConfigError
from fedctl.topology.wording import describe, quoted, shown

Address = tuple[str | int, ...]
"""The keys and indices that lead to a value: `("nodes", 1, "port")`."""

_MOST_VALUES = 100_000
_MOST_LEVELS = 50
_LARGEST_INT = 2**63
_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + kind for kind in ("null", "bool", "int", "float", "str")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a value was given: `source` is `fed.yaml:14` or `--set rounds`.

    `raw` is a scalar as it was typed. `base` is the address that `source` already tells: a message does not repeat it.
    """

    source: str
    line: int = 0
    raw: str = ""
    base: Address = ()

    def sentence(self, address: Address, text: str) -> str:
        """`fed.yaml:14: nodes/1/prt: unknown key`."""
        inside = address[: len(self.base)] == self.base
        rest = shown(address[len(self.base) :] if inside else address)
        return f"{self.source}: {rest}: {text}" if rest else f"{self.source}: {text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A plain value (mappings, lists and scalars) with the places of everything in it; the root's address is `()`."""

    value: Any
    places: Mapping[Address, Place]

    def place(self, address: Address) -> Place:
        """Where the value stands, or else the nearest section that should have held it."""
        while address not in self.places:
            address = address[:-1]
        return self.places[address]


def read(text: str, *, name: str, lines: bool = True) -> Document:
    """Read YAML; `name` stands for it in messages, followed by the line unless `lines` is false."""
    reader = _Reader(lambda line: f"{name}:{line}" if lines else name)
    try:
        node = _compose(text, reader.source)
        value = None if node is None else reader.value(node, ())
    except RecursionError:
        raise ConfigError(f"{name}: nested too deep") from None
    root = reader.places.get((), Place(source=name))
    return Document(value=value, places={**reader.places, (): replace(root, source=name, line=0)})


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, less its dates and `=`, and with exponents as everybody writes them."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name and the type are PyYAML's
        first: [(tag, pattern) for tag, pattern in resolvers if tag in {*_PLAIN, _TAG + "merge"}]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    _TAG + "float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _compose(text: str, source: Callable[[int], str]) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{source(line)}: not a text file: it has the character {error.character:#x}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source(mark.line + 1)}: column {mark.column + 1}" if mark else source(1)
        what = error.problem or error.context or "it breaks off"
        hint = (
            "indent with spaces: YAML allows no tabs there" if "'\\t'" in what else "quote text that has : # * & or {"
        )
        raise ConfigError(f"{where}: not valid YAML: {what}", hint=hint) from None
    except (ValueError, OverflowError):
        raise ConfigError(f"{source(1)}: not valid YAML: a text has an escape that is no character") from None


class _Reader:
    """One walk over the composed nodes, which collects the places as it goes."""

    def __init__(self, source: Callable[[int], str]) -> None:
        self.source = source
        self.places: dict[Address, Place] = {}
        self._constructor = _Loader("")
        self._count = 0

    def value(self, node: yaml.Node, address: Address, key: yaml.Node | None = None) -> Any:
        self._bound(node, address)
        raw = node.value if isinstance(node, yaml.ScalarNode) else ""
        line = _line(key or node)
        self.places[address] = Place(source=self.source(line), line=line, raw=raw)
        match node:
            case yaml.MappingNode(tag="tag:yaml.org,2002:map"):
                entries = self._entries(node, address)
                return {name: self.value(inner, (*address, name), key) for name, (key, inner) in entries.items()}
            case yaml.SequenceNode(tag="tag:yaml.org,2002:seq"):
                return [self.value(inner, (*address, index)) for index, inner in enumerate(node.value)]
            case yaml.ScalarNode():
                return self._scalar(node, address)
            case _:
                raise self._unsupported(node, address)

    def _entries(self, node: yaml.MappingNode, address: Address) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """A mapping's keys and values by name, those that `<<` merges in standing below its own."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, inner in node.value:
            if key.tag == _TAG + "merge":
                merged = {**self._merged(inner, address), **merged}
                continue
            name = self._name(key, address)
            if name in own:
                text = f"the key is given twice, first in line {_line(own[name][0])}"
                raise self._refusal(key, (*address, name), text, "keep one of the two")
            own[name] = (key, inner)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, address: Address) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        self._bound(node, address)
        if isinstance(node, yaml.MappingNode):
            return self._entries(node, address)
        if isinstance(node, yaml.SequenceNode):
            parts = [self._merged(part, address) for part in reversed(node.value)]
            return {name: entry for part in parts for name, entry in part.items()}
        raise self._refusal(node, address, "`<<` merges mappings only", "give it an alias, as in `<<: *base`")

    def _name(self, key: yaml.Node, address: Address) -> str:
        what = "a list" if isinstance(key, yaml.SequenceNode) else "a mapping"
        if isinstance(key, yaml.ScalarNode):
            value = self._scalar(key, address)
            if isinstance(value, str):
                return value
            what = describe(value)
        raise self._refusal(key, address, f"a key should be text, not {what}", "put the key in quotes")

    def _scalar(self, node: yaml.ScalarNode, address: Address) -> Any:
        if node.tag not in _PLAIN:
            raise self._unsupported(node, address)
        try:
            value = self._constructor.construct_object(node, deep=True)
            str(value).encode()
        except (ValueError, KeyError, OverflowError, yaml.YAMLError):
            raise self._refusal(node, address, f"{quoted(node.value)} cannot be read", "put it in quotes") from None
        if isinstance(value, int) and abs(value) >= _LARGEST_INT:
            raise self._refusal(node, address, "the number is too large", "put it in quotes")
        return value

    def _bound(self, node: yaml.Node, address: Address) -> None:
        self._count += 1
        if self._count > _MOST_VALUES:
            raise self._refusal(node, (), f"more than {_MOST_VALUES} values", "see what its aliases expand to")
        if len(address) > _MOST_LEVELS:
            raise self._refusal(node, (), f"nested deeper than {_MOST_LEVELS} levels", "see what its aliases expand to")

    def _unsupported(self, node: yaml.Node, address: Address) -> ConfigError:
        return self._refusal(node, address, f"the tag {quoted(node.tag)} is not supported", "leave the tag out")

    def _refusal(self, node: yaml.Node, address: Address, text: str, hint: str) -> ConfigError:
        return ConfigError(Place(source=self.source(_line(node))).sentence(address, text), hint=hint)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
