"""`krum`: the one update that lies nearest to its neighbours.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent,
NeurIPS 2017.
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
class Krum:
    """Of m updates the one whose m - hostile - 2 nearest others lie nearest, by the sum of squared distances.

    Bears `hostile` hostile nodes from 2 hostile + 3 updates on. Of updates that do equally well, the first by name.
    The outcome is that update, to the bit, integers and booleans included. Keeps no memory.
    """

    hostile: int = 1
    weighted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_not_negative(hostile=self.hostile)

    @property
    def least(self) -> int:
        """How many updates it takes to bear the hostile ones."""
        return 2 * self.hostile + 3

    def aggregate(
        self,
        model: Mapping[str, Tensor],  # noqa: ARG002 - distances between updates need none
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError for too few updates."""
        from fedctl.strategies.distances import krum_scores, require, squared_distances
        from fedctl.strategies.elementwise import in_name_order

        require("krum", updates, hostile=self.hostile, least=self.least)
        ordered = in_name_order(updates)
        best = int(krum_scores(squared_distances(ordered), self.hostile).argmin())
        return Outcome(model=ordered[best].weights)
