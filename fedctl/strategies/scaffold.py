"""`scaffold`: the mean of the updates, and of how each node's gradients differ from everyone's.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML
2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from fedctl.errors import ModelError
from fedctl.federation import Named
from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.options import STATISTICS, check_above_zero

if TYPE_CHECKING:
    from torch import Tensor

    from fedctl.header import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaffold:
    """x' = x + lr mean(x_i - x); c' = c + m/N mean(d_i), with c = 0 at first, over m updates.

    d_i is how far node i's control c_i moved, which its local rule sends: `option` 1 or 2 says how that rule finds c_i.
    N is `nodes`, all that there are, but no fewer than there are in this round, so that c is the mean of all c_i. All
    nodes count alike, as in the paper; with `by_examples` both means are weighted as that of `fedavg`, so that what is
    added to the nodes' gradients still cancels out in the mean.

    Tensors that match a pattern of `buffers` (statistics: a variance could come out below zero) have `lr` 1; integers
    and booleans take the largest value of any node. A node that sends no control of a tensor did not move its own. With
    `lr` 1 the outcome of one update is that update, to the bit. The memory is c, by the names of the model's tensors,
    in single precision where theirs is narrower: a narrow c would not move by the N-th part of a control. It goes to
    the nodes, in whose types it has to be finite.
    """

    lr: float = 1.0
    option: int = 2
    by_examples: bool = False
    nodes: int | None = None
    buffers: tuple[str, ...] = STATISTICS
    controls: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_above_zero(lr=self.lr)
        if self.option not in (1, 2):
            raise ValueError(f"option should be 1 or 2, not {self.option}")
        if self.nodes is not None:
            check_above_zero(nodes=self.nodes)

    @property
    def weighted(self) -> bool:
        """Whether examples count."""
        return self.by_examples

    @property
    def rule_at_nodes(self) -> Named:
        """The rule that makes the controls."""
        return Named(name="scaffold", options={"option": self.option})

    def aggregate(
        self, model: Mapping[str, Tensor], updates: Sequence[Contribution], memory: Mapping[str, Tensor]
    ) -> Outcome:
        """As `Strategy.aggregate`.

        Raises ModelError where there are no controls at all, and for an empty `model` unless `lr` is 1.
        """
        from fedctl.strategies.elementwise import (
            combined,
            each,
            in_name_order,
            is_averaged,
            length,
            mean,
            remembered,
            require_start,
            scaled,
            values_of,
            wide,
        )
        from fedctl.weights import Lazy, spec_of

        ordered = in_name_order(updates)
        spec = spec_of(ordered[0].weights)
        sent = {name for update in ordered for name in update.controls}
        kept = {
            name: _at_least_single(tensor)
            for name, tensor in spec.items()
            if name in sent or (name in memory and is_averaged(tensor))
        }
        if not kept:
            raise ModelError(
                "scaffold needs the controls that its local rule sends beside each update, and there are none",
                hint="it works over the updates of runs with `strategy: scaffold`",
            )

        def is_buffer(name: str) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in self.buffers)

        weights = scaled([update.weight if self.by_examples else 1.0 for update in ordered])
        average = partial(mean, weights=weights)
        averaged = each(average, ordered)

        def further(chunks: Sequence[Tensor]) -> Tensor:
            end = average(chunks[1:])
            return end.add_(end - chunks[0].to(end.dtype), alpha=self.lr - 1)

        def added(chunks: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
            total = chunks[0].to(wide(chunks[0].dtype), copy=True)
            for chunk, share in zip(chunks[1:], shares, strict=True):
                total.add_(chunk.to(total.dtype), alpha=share)
            narrow = total.to(chunks[-1].dtype).to(total.dtype)  # as the nodes will take it
            return total.masked_fill_(~narrow.isfinite(), math.inf)

        def control(name: str) -> Tensor:
            senders = [number for number, update in enumerate(ordered) if name in update.controls]
            rows = [values_of(ordered[number].controls, name) for number in senders]
            rule = partial(added, shares=[shares[number] for number in senders])
            return combined(rule, [remembered(memory, name, length(spec[name])), *rows], kept[name])

        here = len(ordered) / max(self.nodes or 0, len(ordered))
        shares = [here * weight / math.fsum(weights) for weight in weights]
        moved = averaged
        if self.lr != 1:
            require_start("scaffold", model)
            moved = each(further, ordered, start=model)
        return Outcome(
            model=Lazy(spec, lambda name: (averaged if is_buffer(name) else moved)[name]),
            memory=Lazy(kept, control),
        )


def _at_least_single(spec: TensorSpec) -> TensorSpec:
    return spec if spec.dtype in ("float64", "complex64") else replace(spec, dtype="float32")
