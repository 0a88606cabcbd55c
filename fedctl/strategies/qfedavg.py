"""`qfedavg`: nodes for which the model is worse count more.

Li, Sanjabi, Beirami, Smith: Fair Resource Allocation in Federated Learning, ICLR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from fedctl.errors import ModelError
from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.options import check_above_zero, check_not_negative

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-10  # as the paper's code adds: a loss of 0 has no power below 0
_MOST = 1e300  # so that a sum of what is not larger is no larger than a double


@dataclass(frozen=True, slots=True, kw_only=True)
class QFedAvg:
    """x' = x - sum(F_i^q d_i) / sum(q F_i^(q-1) |d_i|² + L F_i^q), with d_i = L (x - x_i) and L = 1 / lr.

    F_i is the loss of x on node i's data before it trains, and `lr` should be the learning rate of the nodes. With
    q = 0 it is the plain mean; the larger q, the more alike the nodes' losses become. A node's examples do not count.
    The norm is of all floating values. Integers and booleans take the largest value of any node. Keeps no memory.
    """

    q: float = 0.1
    lr: float = 0.1
    weighted: ClassVar[bool] = False
    needs_losses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_not_negative(q=self.q)
        check_above_zero(lr=self.lr)

    def aggregate(
        self,
        model: Mapping[str, Tensor],
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002 - it keeps none
    ) -> Outcome:
        """As `Strategy.aggregate`.

        Raises ModelError where `model` is empty, and in the name of a node whose loss is not known or not a finite
        number from 0, or whose update lies so far off that its square is beyond a double.
        """
        from fedctl.strategies.distances import distances_to
        from fedctl.strategies.elementwise import each, in_name_order, require_start, shifted

        ordered = in_name_order(updates)
        losses = [_loss(update) + _TINY for update in ordered]
        require_start("qfedavg", model)
        distances = distances_to(lambda chunks: chunks[0], ordered, model).tolist()
        powers = [(loss / max(losses)) ** self.q for loss in losses]  # of ratios, so that none is beyond a double
        pulls = [power / self.lr for power in powers]
        terms = []
        for update, loss, apart, power, pull in zip(ordered, losses, distances, powers, pulls, strict=True):
            moved = apart / self.lr
            terms.append(self.q * power / loss * moved * moved + pull)
            if not terms[-1] <= _MOST:
                raise ModelError(
                    f"qfedavg cannot compute with the update of {update.name}, which lies {apart:.3g} from the model",
                    hint="`limits: {norm: 1000}` in fed.yaml refuses such an update as it comes",
                )
        whole = math.fsum(terms)
        return Outcome(model=each(partial(shifted, shares=[pull / whole for pull in pulls]), ordered, start=model))


def _loss(update: Contribution) -> float:
    needed = "qfedavg needs the loss of each node before it trains, a finite number from 0"
    if update.loss is None:
        raise ModelError(
            f"{needed}, and has none of {update.name}",
            hint="it works over runs whose `monitor` is a loss: `fedctl aggregate RUN --strategy qfedavg`",
        )
    if not 0 <= update.loss < math.inf:
        raise ModelError(
            f"{needed}, and has {update.loss:g} of {update.name}",
            hint=f"where `monitor` is such a loss, look at the data of {update.name}, or take it out of fed.yaml",
        )
    return update.loss
