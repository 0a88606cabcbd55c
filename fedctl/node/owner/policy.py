"""Reads `policy.yaml`, and tells all that is wrong in it at once, each with its line."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from fedctl.node.owner.errors import CONFIGURATION, OwnerError
from fedctl.node.owner.strictyaml import LONGEST, Node, YamlError, read
from fedctl.node.owner.terms import MODES, Data, DifferentialPrivacy, Leave, Limits, Policy, SecureAggregation, Tensors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}
LEAST_MEMORY = 2**30
"""Bytes; under less, torch and Lightning cannot be imported."""
LEAST_DISK = 2**28
"""Bytes; a model comes in, and its update is written beside it."""

_SIZE = re.compile(r"([1-9][0-9]{0,6})([MGT])B?\Z")
_SPAN = re.compile(r"([0-9]{1,2}):([0-5][0-9])-([0-9]{1,2}):([0-5][0-9])\Z")

Read = Callable[["_Reader", Node, str], Any]


class PolicyError(OwnerError):
    """A policy that cannot be followed; each of its `mistakes` begins with file and line."""

    def __init__(self, mistakes: List[str]) -> None:
        super().__init__("\n".join(mistakes), "docs/policy.md says what each key means", code=CONFIGURATION)
        self.mistakes = tuple(mistakes)


def load(path: Path) -> Policy:
    """The policy in a file; raises PolicyError with all that is wrong in it, also where it cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            node = read(file.read(LONGEST + 1))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise PolicyError([f"{path}: cannot be read: {reason}"]) from None
    except YamlError as error:
        raise PolicyError([f"{path.name}:{error.line}: {error.message}"]) from None
    reader = _Reader(path.name)
    fields = reader.section(node, "", _POLICY) or {}
    if not reader.mistakes:
        policy = Policy(**fields)
        if policy.environments == "none" and not policy.pythons:
            line = node.value["environments"].line
            reader.wrong(line, "environments", "none leaves no Python to train with: name one in `pythons`")
        if not reader.mistakes:
            return policy
    raise PolicyError(reader.mistakes)


class _Wrong(Exception):
    """A value that cannot be."""


class _Reader:
    """Reads sections, and gathers the mistakes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mistakes: List[str] = []

    def wrong(self, line: int, place: str, text: str) -> None:
        self.mistakes.append(f"{self.name}:{line}: {place}: {text}")

    def section(self, node: Node, place: str, readers: Mapping[str, Read]) -> Optional[Dict[str, Any]]:
        """The values of a mapping by their keys; None where it is no mapping, and for keys whose values are wrong."""
        if node.value is None and not place:
            return {}
        if not isinstance(node.value, dict):
            self.wrong(node.line, place, f"should be a mapping with {_either(list(readers))}, not {_described(node)}")
            return None
        found = {}
        for key, inner in node.value.items():
            where = f"{place}/{key}" if place else key
            if key not in readers:
                import difflib  # a policy that is right does not wait for it

                near = difflib.get_close_matches(key, list(readers), n=1)
                meant = f"did you mean `{near[0]}`?" if near else f"the keys are {', '.join(readers)}"
                self.wrong(inner.line, where, f"unknown key; {meant}")
                continue
            try:
                found[key] = readers[key](self, inner, where)
            except _Wrong as wrong:
                self.wrong(inner.line, where, str(wrong))
        return found

    def items(self, node: Node, place: str, kind: Callable[[Node], Any], what: str) -> Tuple[Any, ...]:
        """The items of a list that is not empty; a wrong one is told with its own line."""
        if not isinstance(node.value, list) or not node.value:
            raise _Wrong(f"should be a list of {what}, not {_described(node)}")
        found = []
        for number, item in enumerate(node.value):
            try:
                found.append(kind(item))
            except _Wrong as wrong:
                self.wrong(item.line, f"{place}/{number}", str(wrong))
        return tuple(found)


def _made(kind: Callable[..., Any], readers: Mapping[str, Read], needed: str = "") -> Read:
    """A section whose keys are the fields of `kind`, one of which may be `needed`; None once something is wrong."""

    def made(reader: _Reader, node: Node, place: str) -> Any:
        found = reader.section(node, place, readers)
        if needed and found is not None and needed not in node.value:
            reader.wrong(node.line, place, f"needs `{needed}`: without, it promises nothing")
        return None if reader.mistakes else kind(**(found or {}))

    return made


def _one_of(*choices: str) -> Read:
    def one_of(_: _Reader, node: Node, __: str) -> str:
        if node.value not in choices or not isinstance(node.value, str):
            raise _Wrong(f"should be {_either(choices)}, not {_described(node)}")
        return node.value

    return one_of


def _flag(_: _Reader, node: Node, __: str) -> bool:
    if not isinstance(node.value, bool):
        raise _Wrong(f"should be true or false, not {_described(node)}")
    return node.value


def _count(least: int, otherwise: str = "") -> Read:
    def count(_: _Reader, node: Node, __: str) -> int:
        if type(node.value) is not int or not least <= node.value < 2**31:
            raise _Wrong(f"should be a whole number from {least}, not {_described(node)}{otherwise}")
        return node.value

    return count


def _number(over: float, below: float, what: str) -> Read:
    def number(_: _Reader, node: Node, __: str) -> float:
        if type(node.value) not in (int, float) or not over < node.value < below:
            raise _Wrong(f"should be {what}, not {_described(node)}")
        return float(node.value)

    return number


def _size(least: int, why: str) -> Read:
    def size(_: _Reader, node: Node, __: str) -> int:
        match = _SIZE.match(node.value) if isinstance(node.value, str) else None
        if match is None:
            raise _Wrong(f"should be a size such as 16G or 500M, not {_described(node)}")
        bytes_ = int(match[1]) * UNITS[match[2]]
        if bytes_ < least:
            raise _Wrong(f"should be {least // 2**20}M or more: {why}")
        return bytes_

    return size


def _texts(kind: Callable[[Node], str], what: str) -> Read:
    def texts(reader: _Reader, node: Node, place: str) -> Tuple[str, ...]:
        return reader.items(node, place, kind, what)

    return texts


def _path(node: Node) -> str:
    value = node.value
    if not isinstance(value, str) or not value.startswith(("/", "~/")) or ".." in value.split("/"):
        raise _Wrong(f"should be a whole path, such as /srv/xrays or ~/xrays, not {_described(node)}")
    return value


def _pattern(node: Node) -> str:
    if not isinstance(node.value, str) or not node.value:
        raise _Wrong(f'should be a name or a pattern of names, such as "head.*", not {_described(node)}')
    return node.value


def _mode(node: Node) -> str:
    return str(_one_of(*MODES)(_Reader(""), node, ""))


def _metrics(reader: _Reader, node: Node, place: str) -> Optional[Tuple[str, ...]]:
    if node.value in ("all", "none"):
        return None if node.value == "all" else ()
    return reader.items(node, place, _pattern, "names of metrics, or all or none")


def _gpus(reader: _Reader, node: Node, place: str) -> Optional[Tuple[int, ...]]:
    def number(item: Node) -> int:
        if type(item.value) is not int or not 0 <= item.value < 1024:
            raise _Wrong(f"should be the number of a GPU, from 0, not {_described(item)}")
        return item.value

    if node.value in ("all", "none"):
        return None if node.value == "all" else ()
    return reader.items(node, place, number, "numbers of GPUs, or all or none")


def _hours(reader: _Reader, node: Node, place: str) -> Tuple[Tuple[int, int], ...]:
    def span(item: Node) -> Tuple[int, int]:
        match = _SPAN.match(item.value) if isinstance(item.value, str) else None
        begin, end = (int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])) if match else (0, 0)
        if begin == end or max(begin, end) > 24 * 60 or begin == 24 * 60:
            raise _Wrong(f'should be a span such as "20:00-06:00", in quotes, not {_described(item)}')
        return begin, end

    return reader.items(node, place, span, 'spans such as "20:00-06:00"')


def _days(reader: _Reader, node: Node, place: str) -> Tuple[int, ...]:
    def days(item: Node) -> List[int]:
        first, dash, last = item.value.partition("-") if isinstance(item.value, str) else ("", "", "")
        if first not in WEEK or (dash and last not in WEEK):
            raise _Wrong(f"should be a day such as mon, or several such as mon-fri, not {_described(item)}")
        begin, end = WEEK.index(first), WEEK.index(last or first)
        return [(begin + step) % 7 for step in range((end - begin) % 7 + 1)]

    listed = Node([node], node.line) if isinstance(node.value, str) else node  # `mon-fri`, as in fed.yaml
    found = reader.items(listed, place, days, "days such as mon, tue or mon-fri")
    return tuple(sorted({day for several in found for day in several}))


def _either(choices: Any) -> str:
    *before, last = choices
    return f"{', '.join(before)} or {last}" if before else last


def _described(node: Node) -> str:
    """What stands there, as in "should be a whole number, not true"."""
    value = node.value
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "a mapping"
    text = str(value)
    return f'"{text[:40]}"' if isinstance(value, str) else text


_PATTERNS = _texts(_pattern, 'names or patterns of names, such as "head.*"')
_TENSORS = {"only": _PATTERNS, "except": _PATTERNS}


def _tensors(reader: _Reader, node: Node, place: str) -> Tensors:
    found = reader.section(node, place, _TENSORS) or {}
    return Tensors(only=found.get("only", ()), kept=found.get("except", ()))


_POLICY: Mapping[str, Read] = {
    "code": _one_of("approve", "any"),
    "environments": _one_of("approve", "any", "none"),
    "pythons": _texts(_path, "paths of Pythons"),
    "data": _made(Data, {"paths": _texts(_path, "paths")}),
    "commands": _texts(_path, "paths of programs"),
    "leave": _made(Leave, {"tensors": _tensors, "metrics": _metrics, "logs": _flag}),
    "secure_aggregation": _made(
        SecureAggregation, {"required": _flag, "least": _count(3, ": of two each learns the other's")}
    ),
    "differential_privacy": _made(
        DifferentialPrivacy,
        {
            "modes": _texts(_mode, _either(MODES)),
            "epsilon": _number(0, 1e6, "a number over 0"),
            "delta": _number(0, 1, "a number between 0 and 1, such as 1.0e-5"),
        },
        needed="epsilon",
    ),
    "rounds": _count(1),
    "hours": _hours,
    "days": _days,
    "limits": _made(
        Limits,
        {
            "cpus": _count(1),
            "memory": _size(LEAST_MEMORY, "torch alone takes most of that"),
            "gpus": _gpus,
            "disk": _size(LEAST_DISK, "a model has to come in, and an update to be written"),
        },
    ),
    "network": _one_of("any", "none"),
    "files": _one_of("any", "own"),
}
"""Every key of policy.yaml, and what reads its value."""
