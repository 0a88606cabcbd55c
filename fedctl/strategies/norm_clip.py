"""`norm-clip`: any other rule, over updates none of which moved farther than most.

Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?, 2019 (arXiv:1911.07963).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedctl.federation import Named
from fedctl.strategies import (
    Contribution,
    Outcome,
    build,
    fragments_of,
    least_of,
    needs_losses,
    needs_steps,
    rule_of,
    uses_controls,
)
from fedctl.strategies.options import check_above_zero

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class NormClip:
    """`rule` of the updates x + (x_i - x) min(1, c / |x_i - x|), with c = `norm`, by default the median of the norms.

    The norm is of all floating values together. An update within it goes to the rule as it is; its integers and
    booleans always do. The memory is the rule's.
    """

    rule: Named = Named(name="fedavg")
    norm: float | None = None

    def __post_init__(self) -> None:
        if self.norm is not None:
            check_above_zero(norm=self.norm)
        rule = build(self.rule)
        if uses_controls(rule) or rule_of(rule):
            raise ValueError(f"rule should be one that asks nothing of the nodes' training, not {self.rule.name}")

    @property
    def weighted(self) -> bool:
        """As the rule says."""
        return build(self.rule).weighted

    @property
    def needs_steps(self) -> bool:
        """As the rule says."""
        return needs_steps(build(self.rule))

    @property
    def needs_losses(self) -> bool:
        """As the rule says."""
        return needs_losses(build(self.rule))

    @property
    def hostile(self) -> int:
        """As the rule says, where it has such an option."""
        return getattr(build(self.rule), "hostile", 0)

    @property
    def least(self) -> int:
        """As the rule says."""
        return least_of(build(self.rule))

    @property
    def fragments(self) -> int:
        """As the rule says."""
        return fragments_of(build(self.rule))

    def aggregate(
        self, model: Mapping[str, Tensor], updates: Sequence[Contribution], memory: Mapping[str, Tensor]
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError where `model` is empty, and what the rule raises."""
        import numpy as np

        from fedctl.strategies.distances import distances_to
        from fedctl.strategies.elementwise import Moved, in_name_order, require_start

        require_start("norm-clip", model)
        ordered = in_name_order(updates)
        norms = distances_to(lambda chunks: chunks[0], ordered, model)
        most = float(np.median(norms)) if self.norm is None else self.norm
        clipped = [
            replace(update, weights=Moved(model, update.weights, most / norm)) if norm > most else update
            for update, norm in zip(ordered, norms.tolist(), strict=True)
        ]
        return build(self.rule).aggregate(model, clipped, memory)
