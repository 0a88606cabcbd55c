"""`trimmed-mean`: the mean of each coordinate without its largest and smallest values.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.options import check_not_negative

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedMean:
    """Of each coordinate, the `hostile` largest and smallest values are left out; the mean of the rest.

    Bears `hostile` hostile nodes from 2 hostile + 1 updates on. Every node counts alike, whatever its examples.
    Integers and booleans take the largest value of any node. Keeps no memory.
    """

    hostile: int = 1
    weighted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_not_negative(hostile=self.hostile)

    @property
    def least(self) -> int:
        """How many updates it takes to bear the hostile ones."""
        return 2 * self.hostile + 1

    def aggregate(
        self,
        model: Mapping[str, Tensor],  # noqa: ARG002 - the mean starts from nothing
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError for too few updates."""
        from fedctl.strategies.distances import require
        from fedctl.strategies.elementwise import ascending, columns_at_once, each, in_name_order, mean_of_columns

        require("trimmed-mean", updates, hostile=self.hostile, least=self.least)
        rest = slice(self.hostile, len(updates) - self.hostile)

        def trimmed(chunks: Sequence[Tensor]) -> Tensor:
            return mean_of_columns(ascending(chunks)[:, rest])

        return Outcome(model=each(trimmed, in_name_order(updates), chunk=columns_at_once(len(updates))))
