"""`feddyn`: the mean of the updates, and beyond it by what the nodes' losses still pull it back.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization, ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedctl.federation import Named
from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.options import STATISTICS, check_above_zero

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FedDyn:
    """h' = h - alpha sum(x_i - x) / N; x' = mean(x_i) - h' / alpha, with h = 0 at first.

    N is `nodes`, all that there are, but no fewer than there are in this round. All nodes count alike, whatever their
    examples. The local rule of the same name has the same `alpha`.

    Tensors that match a pattern of `buffers` (statistics: a variance could come out below zero), integers and booleans
    are combined as `fedavg` does where all nodes count alike. The memory is h, in single precision for narrower
    tensors. Model and memory each read every update once.
    """

    alpha: float = 0.1
    nodes: int | None = None
    buffers: tuple[str, ...] = STATISTICS
    weighted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_above_zero(alpha=self.alpha)
        if self.nodes is not None:
            check_above_zero(nodes=self.nodes)

    @property
    def rule_at_nodes(self) -> Named:
        """The rule that makes the updates."""
        return Named(name="feddyn", options={"alpha": self.alpha})

    def aggregate(
        self, model: Mapping[str, Tensor], updates: Sequence[Contribution], memory: Mapping[str, Tensor]
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError where `model` is empty."""
        from fedctl.strategies.stepping import stepped

        share = len(updates) / max(self.nodes or 0, len(updates))

        def step(values: Tensor, gradient: Tensor, states: Sequence[Tensor], _: float) -> None:
            states[0].add_(gradient, alpha=self.alpha * share)
            values.sub_(gradient).sub_(states[0] / self.alpha)

        alike = [replace(update, weight=1.0) for update in updates]
        return stepped("feddyn", model, alike, memory, step=step, states=("h",), buffers=self.buffers)
