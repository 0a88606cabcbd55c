"""The names of things: of a task, `r0003/alice/a1`, of a node, and of bytes.

Standard library only: the node imports this module too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedctl.strictjson import a_count, fields_of

Kind = Literal["train", "evaluate", "alone", "compare", "finetune", "initialize", "keys", "shares", "agree", "unmask"]

_LETTERS: Mapping[str, Kind] = {
    "a": "train",
    "e": "evaluate",
    "s": "alone",
    "c": "compare",
    "f": "finetune",
    "i": "initialize",
    "k": "keys",
    "h": "shares",
    "g": "agree",
    "u": "unmask",
}
_LETTER_OF = {kind: letter for letter, kind in _LETTERS.items()}
_KEY = re.compile(r"r([0-9]{4,9})/([A-Za-z0-9][A-Za-z0-9._-]{0,63})/([aescfikhgu])([0-9]{1,4})")

_DIGEST = re.compile(r"[0-9a-f]{64}")

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
COORDINATOR = "coordinator"
"""The name under which the coordinator asks its own machine to build the first model; no node may take it."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TaskKey:
    """The idempotency key of a task: `r0003/alice/a1`.

    The letter says the kind: a train, e evaluate, s alone, c compare, f finetune, i initialize; and of the steps of
    secure aggregation: k keys, h shares, g agree, u unmask.
    """

    round: int
    node: str
    kind: Kind = "train"
    attempt: int = 1

    def __str__(self) -> str:
        return f"r{self.round:04d}/{self.node}/{_LETTER_OF[self.kind]}{self.attempt}"

    @property
    def folder(self) -> str:
        """The task's folder on its node: `r0003-alice-a1`."""
        return str(self).replace("/", "-")

    @classmethod
    def parse(cls, text: str) -> "TaskKey":
        """Read a key back; raises ValueError when the text is not one, to the letter."""
        match = _KEY.fullmatch(text) if isinstance(text, str) else None
        if match is None or ".." in match[2]:
            raise ValueError(f"not a task key: {text!r}")
        key = cls(round=int(match[1]), node=match[2], kind=_LETTERS[match[3]], attempt=int(match[4]))
        if str(key) != text:
            raise ValueError(f"not a task key: {text!r}, but {key} is one")
        return key


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Bytes named by their SHA-256: a model, an update or a bundle. `size` is in bytes."""

    digest: str
    size: int

    def to_json(self) -> dict[str, Any]:
        return {"digest": self.digest, "size": self.size}

    @classmethod
    def from_json(cls, value: Any) -> "Blob":
        fields = fields_of(value, cls)
        digest, size = fields["digest"], fields["size"]
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"not a SHA-256 digest: {digest!r}")
        return cls(digest=digest, size=a_count(size, "size"))
