"""`fednova`: the mean of what the nodes moved a step, so that nodes which take more steps do not count more.

Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from fedctl.errors import ModelError
from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.options import check_below_one

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FedNova:
    """x' = x + t sum(w_i (x_i - x) / a_i), with t = sum(w_i a_i), and w_i node i's share of the examples.

    a_i is what k_i steps of the node's optimizer add up to: k_i for plain SGD; (k_i - rho (1 - rho^k_i) / (1 - rho)) /
    (1 - rho) with `momentum` rho; (1 - (1 - p)^k_i) / p with `proximal` p, the learning rate times FedProx's mu. Where
    all take the same number of steps it is `fedavg`. Integers and booleans take the largest value of any node. Keeps no
    memory.
    """

    momentum: float = 0.0
    proximal: float = 0.0
    weighted: ClassVar[bool] = True
    needs_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_below_one(momentum=self.momentum, proximal=self.proximal)
        if self.momentum and self.proximal:
            raise ValueError("proximal should be 0 with momentum: the paper has no rule for both")

    def aggregate(
        self,
        model: Mapping[str, Tensor],
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002 - it keeps none
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError where an update's number of steps is not known, or `model` empty.

        An update of no steps and no examples has no share.
        """
        from fedctl.strategies.elementwise import each, in_name_order, require_start, scaled, shifted

        ordered = in_name_order(updates)
        weights = scaled([update.weight for update in ordered])
        for update, weight in zip(ordered, weights, strict=True):
            if weight and update.steps < 1:
                raise ModelError(
                    f"fednova needs the number of steps behind each update, and has none of {update.name}",
                    hint="it works over runs: `fedctl aggregate RUN --strategy fednova`",
                )
        require_start("fednova", model)
        total = math.fsum(weights)
        lengths = [self._length(update.steps) for update in ordered]
        effective = math.fsum(weight / total * length for weight, length in zip(weights, lengths, strict=True))
        shares = [
            weight / total * effective / length if weight else 0.0
            for weight, length in zip(weights, lengths, strict=True)
        ]
        return Outcome(model=each(partial(shifted, shares=shares), ordered, start=model))

    def _length(self, steps: int) -> float:
        if self.proximal:
            return (1 - (1 - self.proximal) ** steps) / self.proximal
        rho = self.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
