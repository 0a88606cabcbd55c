"""What an update counts that began from a model which is not the newest any more: s(tau), tau models later.

The functions of FedAsync (Xie, Koyejo, Gupta: Asynchronous Federated Optimization, 2019, arXiv:1903.03934), which
FedBuff takes over. An update that is not late counts in full, by each of them. A new one is a class here and a line in
`STALENESS`. No torch: names and options are checked at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from fedctl.errors import ConfigError, suggestion
from fedctl.federation import Named
from fedctl.strategies.options import check_above_zero, check_not_negative, from_options


class Staleness(Protocol):
    """A function of the number of models by which an update is late."""

    def share(self, late: int) -> float:
        """The share of the update that counts: above 0, and 1 where `late` is 0."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """s(tau) = 1."""

    def share(self, late: int) -> float:  # noqa: ARG002  (it is the same for all)
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Polynomial:
    """s(tau) = (1 + tau)^-exponent."""

    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_not_negative(exponent=self.exponent)

    def share(self, late: int) -> float:
        return float((1 + late) ** -self.exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinge:
    """s(tau) = 1 up to tau = b, and 1 / (a (tau - b) + 1) from there on."""

    a: float = 10.0
    b: float = 4.0

    def __post_init__(self) -> None:
        check_above_zero(a=self.a)
        check_not_negative(b=self.b)

    def share(self, late: int) -> float:
        return 1.0 if late <= self.b else 1 / (self.a * (late - self.b) + 1)


STALENESS: Mapping[str, type[Staleness]] = {"constant": Constant, "polynomial": Polynomial, "hinge": Hinge}


def build(named: Named) -> Staleness:
    """The function of that name with its options; raises ConfigError for what is unknown or out of range."""
    where = "schedule/staleness"
    if named.name not in STALENESS:
        hint = suggestion(named.name, STALENESS, f"there are {', '.join(STALENESS)}")
        raise ConfigError(f"{where}: there is none called {named.name!r}", hint=hint)
    return cast("Staleness", from_options(STALENESS[named.name], named.options, where=where))
