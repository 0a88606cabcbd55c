"""`multi-krum`: the mean of the updates that lie nearest to their neighbours.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent,
NeurIPS 2017.
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
class MultiKrum:
    """The mean of the `keep` updates (by default all but `hostile`) that `krum` would choose first.

    Bears `hostile` hostile nodes from 2 hostile + 3 updates on, as long as it keeps no more than the others. Every node
    counts alike, whatever its examples. Integers and booleans take the largest value of those that are kept. Keeps no
    memory.
    """

    hostile: int = 1
    keep: int | None = None
    weighted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_not_negative(hostile=self.hostile)
        if self.keep is not None:
            check_above_zero(keep=self.keep)

    @property
    def least(self) -> int:
        """How many updates it takes to bear the hostile ones, and to keep no more than the others."""
        return max(2 * self.hostile + 3, self.hostile + (self.keep or 0))

    def aggregate(
        self,
        model: Mapping[str, Tensor],  # noqa: ARG002 - distances between updates need none
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError for too few updates."""
        from fedctl.strategies.distances import krum_scores, require, squared_distances
        from fedctl.strategies.elementwise import each, in_name_order, mean, scaled

        require("multi-krum", updates, hostile=self.hostile, least=self.least)
        ordered = in_name_order(updates)
        ranks = krum_scores(squared_distances(ordered), self.hostile).argsort(kind="stable")
        kept = [ordered[rank] for rank in sorted(ranks[: self.keep or len(ordered) - self.hostile])]
        return Outcome(model=each(partial(mean, weights=scaled([1.0] * len(kept))), kept))
