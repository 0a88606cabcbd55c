"""Which run, which round, which node: bound into every key, seal and signature, so that none is good anywhere else."""

import re
from dataclasses import dataclass
from typing import Any

from fedctl.records import NODE_NAME
from fedctl.strictjson import a_count, fields_of

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a secret belongs: one node in one round of one run."""

    run: str
    round: int
    node: str

    def to_json(self) -> dict[str, Any]:
        return {"run": self.run, "round": self.round, "node": self.node}

    @classmethod
    def from_json(cls, value: Any) -> "Place":
        fields = fields_of(value, cls)
        return cls(run=a_run(fields["run"]), round=a_round(fields["round"]), node=a_node(fields["node"]))

    def bound(self, purpose: str, *parts: str | bytes) -> bytes:
        """Bytes that say a purpose, this place and these parts, and nothing else could say."""
        return bound(purpose, self.run, str(self.round), self.node, *parts)


def bound(*parts: str | bytes) -> bytes:
    """The parts in a row, each behind its length (8 bytes, big-endian)."""
    encoded = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(8, "big") + part for part in encoded)


def a_run(value: Any) -> str:
    """The name of a run; this and the others raise ValueError for anything else."""
    if not isinstance(value, str) or not _RUN.fullmatch(value):
        raise ValueError("expected the name of a run")
    return value


def a_round(value: Any) -> int:
    return a_count(value, "round")


def a_node(value: Any) -> str:
    if not isinstance(value, str) or not NODE_NAME.fullmatch(value):
        raise ValueError("expected the name of a node")
    return value
