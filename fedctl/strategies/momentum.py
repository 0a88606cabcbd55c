"""`fedavgm`: the mean of the updates, approached with momentum.

Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019
(arXiv:1909.06335).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.options import STATISTICS, check_above_zero, check_below_one

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum:
    """v' = momentum v + (x - mean); x' = x - lr v', with v = 0 at first and `mean` that of `fedavg`.

    A steady direction is followed lr / (1 - momentum) times as far as `fedavg` would: 2 times by default. The paper's
    0.9 goes 10 times as far, which can keep small cohorts with unlike data from converging: it has to be asked for.

    Tensors that match a pattern of `buffers` (statistics: momentum could push a variance below zero), integers and
    booleans are combined as `fedavg` does. The memory is v, in single precision for narrower tensors. Model and memory
    each read every update once.
    """

    momentum: float = 0.5
    lr: float = 1.0
    buffers: tuple[str, ...] = STATISTICS
    weighted: ClassVar[bool] = True
    takes_a_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_below_one(momentum=self.momentum)
        check_above_zero(lr=self.lr)

    def aggregate(
        self, model: Mapping[str, Tensor], updates: Sequence[Contribution], memory: Mapping[str, Tensor]
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError where `model` is empty."""
        from fedctl.strategies.stepping import MOMENTUM, momentum_step, stepped

        step = momentum_step(lr=self.lr, momentum=self.momentum, nesterov=False)
        return stepped("fedavgm", model, updates, memory, step=step, states=MOMENTUM, buffers=self.buffers)
