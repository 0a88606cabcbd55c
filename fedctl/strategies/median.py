"""`median`: the median of the updates, coordinate by coordinate.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.strategies import Contribution, Outcome

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """The middle value of each coordinate, of an even number of updates the mean of the middle two.

    Fewer than half of the nodes cannot move it without bound. Every node counts alike, whatever its examples. Complex
    tensors take the median of real and imaginary parts apart; integers and booleans take the largest value of any node.
    The median of one update is that update, to the bit. Keeps no memory.
    """

    weighted: ClassVar[bool] = False

    def aggregate(
        self,
        model: Mapping[str, Tensor],  # noqa: ARG002 - the median starts from nothing
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Outcome:
        from fedctl.strategies.elementwise import in_name_order, median_of
        from fedctl.weights import Lazy, spec_of

        ordered = in_name_order(updates)

        def median(name: str) -> Tensor:
            return median_of([update.weights[name] for update in ordered])

        return Outcome(model=Lazy(spec_of(ordered[0].weights), median))
