"""`bulyan`: of the updates that `krum` chooses one after the other, the mean of the values nearest to the median.

El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018.
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
class Bulyan:
    """Of m updates, t = m - 2 hostile are chosen; of each coordinate the mean of the t - 2 hostile nearest its median.

    They are chosen one by one, each by `krum` among those that are left. Of values that lie equally near the median,
    the smaller ones count. Bears `hostile` hostile nodes from 4 hostile + 3 updates on. Every node counts alike,
    whatever its examples. Integers and booleans take the largest value of those chosen. Keeps no memory.
    """

    hostile: int = 1
    weighted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_not_negative(hostile=self.hostile)

    @property
    def least(self) -> int:
        """How many updates it takes to bear the hostile ones."""
        return 4 * self.hostile + 3

    def aggregate(
        self,
        model: Mapping[str, Tensor],  # noqa: ARG002 - distances between updates need none
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError for too few updates."""
        import numpy as np

        from fedctl.strategies.distances import krum_scores, require, squared_distances
        from fedctl.strategies.elementwise import (
            ascending,
            columns_at_once,
            each,
            in_name_order,
            mean_of_columns,
            middle,
        )

        require("bulyan", updates, hostile=self.hostile, least=self.least)
        ordered = in_name_order(updates)
        matrix, left, chosen = squared_distances(ordered), list(range(len(ordered))), []
        for _ in range(len(ordered) - 2 * self.hostile):
            best = int(krum_scores(matrix[np.ix_(left, left)], self.hostile).argmin())
            chosen.append(left.pop(best))
        count = len(chosen) - 2 * self.hostile

        def nearest(chunks: Sequence[Tensor]) -> Tensor:
            """In a row in ascending order, the values nearest to the median stand side by side."""
            table = ascending(chunks)
            center = middle(table)
            first = np.zeros((len(table), 1), dtype=np.int64)
            for column in range(len(chunks) - count):
                first[:, 0] += center - table[:, column] > table[:, column + count] - center
            return mean_of_columns(np.take_along_axis(table, first + np.arange(count), axis=1))

        kept = [ordered[index] for index in sorted(chosen)]
        return Outcome(model=each(nearest, kept, chunk=columns_at_once(len(kept))))
