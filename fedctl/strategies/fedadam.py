"""`fedadam`: the mean of the updates, approached as Adam would.

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
class FedAdam:
    """m' = beta1 m + (1 - beta1) g; v' = beta2 v + (1 - beta2) g²; x' = x - lr m^ / (sqrt(v^) + tau), g = x - mean.

    m^ = m' / (1 - beta1^t) and v^ = v' / (1 - beta2^t) in round t, since m and v begin at 0: torch.optim.Adam's, and
    what the paper's experiments ran. How far a model moves depends on `lr` and hardly on how far the nodes went, so
    `lr` has to be tuned; the paper's best lie between 0.003 and 1.

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
        import torch
        from torch.optim.adam import adam

        from fedctl.strategies.stepping import stepped

        def step(values: Tensor, gradient: Tensor, states: Sequence[Tensor], before: float) -> None:
            adam(
                [values],
                [gradient],
                [states[0]],
                [states[1]],
                [],
                [torch.tensor(before)],
                foreach=False,
                amsgrad=False,
                beta1=self.beta1,
                beta2=self.beta2,
                lr=self.lr,
                weight_decay=0,
                eps=self.tau,
                maximize=False,
            )

        kept = ("exp_avg", "exp_avg_sq")
        return stepped("fedadam", model, updates, memory, step=step, states=kept, buffers=self.buffers)
