"""A node's egress ledger as its coordinator knows it: `Pin`, an entry that it was shown, and `Statement`. Pure."""

from dataclasses import dataclass
from typing import Any

from fedctl.records import Blob
from fedctl.strictjson import a_count, fields_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """An entry of a node's ledger: its number, and the hash that stands for it and for all before it.

    What was pinned cannot be changed later without being found out.
    """

    n: int
    hash: str

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, "hash": self.hash}

    @classmethod
    def from_json(cls, value: Any) -> "Pin":
        fields = fields_of(value, cls)
        digest = Blob.from_json({"digest": fields["hash"], "size": 0}).digest
        return cls(n=a_count(fields["n"], "n"), hash=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a node's ledger says of a run: the lines of it, in their order, and the whole chain's `head`.

    `trouble` is what the node itself finds wrong with its chain. Of a whole chain others' entries are there as their
    digests.
    """

    lines: tuple[bytes, ...]
    head: Pin | None
    trouble: str | None
    is_whole: bool = False
