"""Which tensors of a model are the federation's, and which stay with each node.

Pure and standard library only: the coordinator splits the first model by it, a node every model that it trains.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What travels: tensors whose names match a pattern of `only` (empty: all), and none of `kept`.

    A pattern is as the shell's, over the whole name: `head.*`, `*lora_*`.
    """

    only: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing stays at home."""
        return not self.only and not self.kept

    def covers(self, name: str) -> bool:
        """Whether the tensor of that name travels."""
        if self.only and not matches(name, self.only):
            return False
        return not matches(name, self.kept)

    def idle(self, names: Iterable[str]) -> list[str]:
        """The patterns that match none of these names."""
        known = list(names)
        return [one for one in (*self.only, *self.kept) if not any(fnmatchcase(name, one) for name in known)]

    def to_json(self) -> dict[str, Any]:
        """As a node is told."""
        return {"only": list(self.only), "except": list(self.kept)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Share":
        """Of what `to_json` gave."""
        return cls(only=tuple(value["only"]), kept=tuple(value["except"]))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor's name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
