"""`fedyogi`: the mean of the updates, approached as Yogi would.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization, ICLR 2021.
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
class FedYogi:
    """v' = v - (1 - beta2) g² sign(v - g²); x' = x - lr m' / (sqrt(v') + tau), with g and m' as in `fedadam`.

    Where g becomes small, v forgets more slowly than there; m and v begin at 0 and are not corrected for it, as in
    the paper's algorithm. `lr` has to be tuned; the paper's best lie between 0.003 and 1.

    Tensors that match a pattern of `buffers` (statistics, not trained), integers and booleans are combined as `fedavg`
    does. The memory is m and v, in single precision for narrower tensors. Model and memory each read every update once.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    buffers: tuple[str, ...] = STATISTICS
    weighted: ClassVar[bool] = True
    takes_a_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_below_one(beta1=self.beta1, beta2=self.beta2)
        check_above_zero(lr=self.lr, tau=self.tau)

    def aggregate(
        self, model: Mapping[str, Tensor], updates: Sequence[Contribution], memory: Mapping[str, Tensor]
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError where `model` is empty."""
        from fedctl.strategies.stepping import stepped

        def step(values: Tensor, gradient: Tensor, states: Sequence[Tensor], _: float) -> None:
            mean, square = states
            mean.lerp_(gradient, 1 - self.beta1)
            now = gradient.square()
            square.sub_((square - now).sign_().mul_(now), alpha=1 - self.beta2)
            values.addcdiv_(mean, square.sqrt().add_(self.tau), value=-self.lr)

        kept = ("exp_avg", "exp_avg_sq")
        return stepped("fedyogi", model, updates, memory, step=step, states=kept, buffers=self.buffers)
