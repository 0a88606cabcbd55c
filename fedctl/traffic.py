"""What a line has carried: `Traffic`, in bytes, as tasks and rounds are booked. Pure."""

import dataclasses
from dataclasses import dataclass
from typing import Any

_AS_IT_IS: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes of bodies on the line, seen from the coordinator, and what they would have been without any codec.

    The raw ones are those that travelled where they are not given, as in journals that have none.
    """

    sent: int = 0
    received: int = 0
    raw_sent: int = _AS_IT_IS
    raw_received: int = _AS_IT_IS

    def __post_init__(self) -> None:
        if self.raw_sent is _AS_IT_IS:
            object.__setattr__(self, "raw_sent", self.sent)
        if self.raw_received is _AS_IT_IS:
            object.__setattr__(self, "raw_received", self.received)

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(**{name: number + getattr(other, name) for name, number in self.to_json().items()})

    def to_json(self) -> dict[str, int]:
        return dataclasses.asdict(self)
