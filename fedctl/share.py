"""Which tensors of a model are the federation's, when they travel, and which stay with each node.

Pure and standard library only: the coordinator splits the first model by it, a node every model that it trains.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What travels: tensors whose names match a pattern of `only` (empty: all), and none of `kept`.

    A pattern is as the shell's, over the whole name: `head.*`, `*lora_*`. Of those that travel, what matches a pattern
    of `every` does so in rounds that its number divides, the first pattern that matches counting; with `fragments` a
    round takes one of so many parts of the model, in turn, and `every` counts the turns of a part. Between, each node
    goes on with its own. A tensor whose change is less than `change` times its norm waits on its node until that, with
    what came before it, is more.
    """

    only: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    every: tuple[tuple[str, int], ...] = ()
    fragments: int = 1
    change: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether nothing stays at home for good."""
        return not self.only and not self.kept

    @property
    def is_scheduled(self) -> bool:
        """Whether there are rounds in which not all that is shared travels."""
        return bool(self.every) or self.fragments > 1

    def covers(self, name: str) -> bool:
        """Whether the tensor of that name is shared."""
        if self.only and not matches(name, self.only):
            return False
        return not matches(name, self.kept)

    def due(self, sizes: Mapping[str, int], round: int) -> set[str]:
        """Of the shared tensors, whose sizes in bytes these are, the names of those that a round shares."""
        parts = self.parts(sizes)
        before, now = divmod(round - 1, self.fragments)
        return {
            name for name in sizes if self.covers(name) and parts[name] == now and (before + 1) % self.period(name) == 0
        }

    def parts(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The fragment of each tensor: those of one module in the same, the largest first, each to the lightest."""
        modules: dict[str, int] = {}
        for name, size in sizes.items():
            module = name.rpartition(".")[0]
            modules[module] = modules.get(module, 0) + size
        loads = [0] * self.fragments
        found: dict[str, int] = {}
        for module, size in sorted(modules.items(), key=lambda item: (-item[1], item[0])):
            found[module] = loads.index(min(loads))
            loads[found[module]] += size
        return {name: found[name.rpartition(".")[0]] for name in sizes}

    def idle(self, names: Iterable[str]) -> list[str]:
        """The patterns that match none of these names."""
        known = list(names)
        patterns = (*self.only, *self.kept, *(pattern for pattern, _ in self.every))
        return [one for one in patterns if not any(fnmatchcase(name, one) for name in known)]

    def to_json(self) -> dict[str, Any]:
        """As a node is told."""
        return {
            "only": list(self.only),
            "except": list(self.kept),
            "every": [[pattern, period] for pattern, period in self.every],
            "fragments": self.fragments,
            "change": self.change,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Share":
        """Of what `to_json` gave."""
        return cls(
            only=tuple(value["only"]),
            kept=tuple(value["except"]),
            every=tuple((pattern, period) for pattern, period in value["every"]),
            fragments=value["fragments"],
            change=value["change"],
        )

    def period(self, name: str) -> int:
        """In how many rounds the tensor of that name travels once, by the patterns of `every`."""
        return next((period for pattern, period in self.every if fnmatchcase(name, pattern)), 1)


EVERYTHING = Share()
"""All of a model travels in every round."""


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor's name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
