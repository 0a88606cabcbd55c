"""`fedadagrad`: the mean of the updates, approached as Adagrad would.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization, ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.options import STATISTICS, check_above_zero

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdagrad:
    """v' = v + g²; x' = x - lr g / (sqrt(v') + tau), g = x - mean: torch.optim.Adagrad's, with v = 0 at first.

    A coordinate that moved much moves ever less. `lr` has to be tuned; the paper's best lie between 0.03 and 1.

    Tensors that match a pattern of `buffers` (statistics, not trained), integers and booleans are combined as `fedavg`
    does. The memory is v, in single precision for narrower tensors. Model and memory each read every update once.
    """

    lr: float = 0.1
    tau: float = 1e-3
    buffers: tuple[str, ...] = STATISTICS
    weighted: ClassVar[bool] = True
    takes_a_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_above_zero(lr=self.lr, tau=self.tau)

    def aggregate(
        self, model: Mapping[str, Tensor], updates: Sequence[Contribution], memory: Mapping[str, Tensor]
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError where `model` is empty."""
        import torch
        from torch.optim.adagrad import adagrad

        from fedctl.strategies.stepping import stepped

        def step(values: Tensor, gradient: Tensor, states: Sequence[Tensor], before: float) -> None:
            adagrad(
                [values],
                [gradient],
                [states[0]],
                [torch.tensor(before)],
                foreach=False,
                lr=self.lr,
                weight_decay=0,
                lr_decay=0,
                eps=self.tau,
                maximize=False,
            )

        return stepped("fedadagrad", model, updates, memory, step=step, states=("sum",), buffers=self.buffers)
