"""How messages are written in JSON: bytes in base64, of a known size; names of nodes, in order; bytes by name."""

import base64
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from fedctl.secagg.place import a_node
from fedctl.strictjson import a_list, a_mapping

MOST_NODES = 10_000
"""Of one cohort."""


def to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def from_base64(value: Any, size: int) -> bytes:
    """So many bytes from their only base64 form; this and the others raise ValueError for anything else."""
    try:
        found = base64.b64decode(value, validate=True) if _has_length(value, -(-size // 3) * 4) else b""
    except ValueError:
        found = b""
    if len(found) != size or to_base64(found) != value:
        raise ValueError(f"expected {size} bytes in base64")
    return found


def a_names(value: Any) -> tuple[str, ...]:
    """Names of nodes, each once, in order."""
    names = tuple(a_node(each) for each in _bounded(a_list(value, "nodes")))
    if any(one >= next for one, next in pairwise(names)):
        raise ValueError("names of nodes come in order, each once")
    return names


def text_by_name(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: to_base64(value) for name, value in values.items()}


def bytes_by_name(value: Any, size: int) -> dict[str, bytes]:
    return {a_node(name): from_base64(text, size) for name, text in _bounded(a_mapping(value, "an object")).items()}


def _bounded(found: Any) -> Any:
    if len(found) > MOST_NODES:
        raise ValueError(f"a cohort has at most {MOST_NODES} nodes")
    return found


def _has_length(value: Any, length: int) -> bool:
    return isinstance(value, str) and len(value) == length
