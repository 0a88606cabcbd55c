"""`median`: the median of the updates, coordinate by coordinate.

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
class Median:
    """The middle value of each coordinate, of an even number of updates the mean of the middle two.

    Fewer than half of the nodes cannot move it without bound; with `hostile` it needs 2 hostile + 1 updates. Every node
    counts alike, whatever its examples. Complex tensors take the median of real and imaginary parts apart; integers and
    booleans take the largest value of any node. The median of one update is that update, to the bit. Keeps no memory.
    """

    hostile: int = 0
    weighted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_not_negative(hostile=self.hostile)

    @property
    def least(self) -> int:
        """How many updates it takes to bear the hostile ones."""
        return 2 * self.hostile + 1

    def aggregate(
        self,
        model: Mapping[str, Tensor],  # noqa: ARG002 - the median starts from nothing
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError for too few updates."""
        from fedctl.strategies.distances import require
        from fedctl.strategies.elementwise import columns_at_once, each, in_name_order, median

        require("median", updates, hostile=self.hostile, least=self.least)
        return Outcome(model=each(median, in_name_order(updates), chunk=columns_at_once(len(updates))))
