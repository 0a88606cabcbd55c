"""`fedavg`: the mean of the updates, weighted by their examples.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from fedctl.strategies import Contribution, Outcome

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """x = sum(w_i x_i) / sum(w_i), with w_i the examples of node i; all count alike where no node has any.

    Floating buffers (BatchNorm's running mean and variance) are averaged like parameters; integers and booleans take
    the largest value of any node. The mean of one update is that update, to the bit. Keeps no memory.
    """

    weighted: ClassVar[bool] = True
    takes_a_mean: ClassVar[bool] = True

    def aggregate(
        self,
        model: Mapping[str, Tensor],  # noqa: ARG002 - the mean starts from nothing
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Outcome:
        from fedctl.strategies.elementwise import each, in_name_order, mean, scaled

        ordered = in_name_order(updates)
        weights = scaled([update.weight for update in ordered])
        return Outcome(model=each(partial(mean, weights=weights), ordered))
