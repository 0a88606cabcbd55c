"""`diloco`: many steps on the nodes between rare rounds, and an outer step with Nesterov momentum.

Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen: DiLoCo: Distributed Low-Communication Training
of Language Models, 2023 (arXiv:2311.08105).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.options import STATISTICS, check_above_zero, check_below_one

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DiLoCo:
    """v' = momentum v + g; x' = x - lr (g + momentum v'), with g = x - mean and v = 0 at first: Nesterov's momentum.

    With `outer` "momentum" it is x' = x - lr v'. The mean counts all nodes alike, as in the paper, or by their examples
    with `by_examples`. The inner optimizer is the user's: in the paper AdamW, which goes on from round to round
    (`task.reset_optimizer: false`) and takes hundreds of steps in each (`task.trainer: {max_steps: 500}`).

    With `fragments` a round shares one of so many parts of the model, in turn, and the others go on where they are: the
    streaming variant (Douillard and others: Streaming DiLoCo with overlapping communication, 2025, arXiv:2501.18512),
    without its overlap. A fragment is of whole modules, and all are about as large.

    Tensors that match a pattern of `buffers` (statistics), integers and booleans are combined as `fedavg` does. The
    memory is v, in single precision for narrower tensors. Model and memory each read every update once.
    """

    outer: str = "nesterov"
    lr: float = 0.7
    momentum: float = 0.9
    fragments: int = 1
    by_examples: bool = False
    buffers: tuple[str, ...] = STATISTICS
    takes_a_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.outer not in ("nesterov", "momentum"):
            raise ValueError(f"outer should be nesterov or momentum, not {self.outer}")
        check_above_zero(lr=self.lr)
        if self.fragments < 1:
            raise ValueError(f"fragments should be 1 or more, not {self.fragments}")
        check_below_one(momentum=self.momentum)
        if self.outer == "nesterov":
            check_above_zero(momentum=self.momentum)

    @property
    def weighted(self) -> bool:
        """Whether examples count."""
        return self.by_examples

    def aggregate(
        self, model: Mapping[str, Tensor], updates: Sequence[Contribution], memory: Mapping[str, Tensor]
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError where `model` is empty."""
        from fedctl.strategies.stepping import MOMENTUM, momentum_step, stepped

        counted = updates if self.by_examples else [replace(update, weight=1.0) for update in updates]
        step = momentum_step(lr=self.lr, momentum=self.momentum, nesterov=self.outer == "nesterov")
        return stepped("diloco", model, counted, memory, step=step, states=MOMENTUM, buffers=self.buffers)
