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

    def __post_init__(self) -> None:
        check_not_negative(q=self.q)
        check_above_zero(lr=self.lr)

    def aggregate(
        self,
        model: Mapping[str, Tensor],
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002 - it keeps none
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError where `model` is empty, or a node's loss not known or below 0."""
        from fedctl.strategies.distances import distances_to
        from fedctl.strategies.elementwise import each, in_name_order, require_start, shifted

        require_start("qfedavg", model)
        ordered = in_name_order(updates)
        for update in ordered:
            if update.loss is None or update.loss < 0:
                found = "has none" if update.loss is None else f"has {update.loss:g}"
                raise ModelError(
                    f"qfedavg needs the loss of each node before it trains, from 0, and {found} of {update.name}"
                )
        distances = distances_to(lambda chunks: chunks[0], ordered, model).tolist()
        losses = [(update.loss or 0.0) + _TINY for update in ordered]
        pulls = [loss**self.q / self.lr for loss in losses]
        whole = math.fsum(
            self.q * loss ** (self.q - 1) * (apart / self.lr) ** 2 + pull
            for loss, apart, pull in zip(losses, distances, pulls, strict=True)
        )
        return Outcome(model=each(partial(shifted, shares=[pull / whole for pull in pulls]), ordered, start=model))
