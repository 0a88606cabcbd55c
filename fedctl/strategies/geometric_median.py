"""`geometric-median`: the point whose summed distance to the updates is the smallest (RFA).

Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.options import check_above_zero, check_not_negative

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometricMedian:
    """z = sum(b_i x_i) / sum(b_i), with b_i = w_i / max(nu, |x_i - z|), `iterations` times (smoothed Weiszfeld).

    It starts from the median of each coordinate: from the mean, a hostile update far away would take more iterations
    the farther it lies. The nodes count by their examples, which they claim themselves; hostile ones with less than
    half of the weight cannot move it without bound. With `hostile` it needs 2 hostile + 1 updates. Integers and
    booleans take the largest value of any node. Reads the updates once more than there are iterations. Keeps no memory.
    """

    hostile: int = 0
    iterations: int = 4
    nu: float = 1e-6
    weighted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_not_negative(hostile=self.hostile)
        check_above_zero(iterations=self.iterations, nu=self.nu)

    @property
    def least(self) -> int:
        """How many updates it takes to bear the hostile ones."""
        return 2 * self.hostile + 1

    def aggregate(
        self,
        model: Mapping[str, Tensor],  # noqa: ARG002 - distances between updates need none
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError for too few updates."""
        from fedctl.strategies.distances import distances_to, require
        from fedctl.strategies.elementwise import each, in_name_order, mean, median, scaled

        require("geometric-median", updates, hostile=self.hostile, least=self.least)
        ordered = in_name_order(updates)
        weights = scaled([update.weight for update in ordered])
        center = median
        for _ in range(self.iterations):
            distances = distances_to(center, ordered)
            pulls = [weight / max(self.nu, apart) for weight, apart in zip(weights, distances, strict=True)]
            center = partial(mean, weights=scaled(pulls))
        return Outcome(model=each(center, ordered))
