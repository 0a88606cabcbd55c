"""`ditto`: beside the federation's model each node trains one of its own, drawn to the federation's.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.node.rules import Local, Session

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Ditto:
    """The node trains as without a rule, and then minimises F_i(v) + lambda/2 |v - x|² from the v it kept.

    x is the round's model, and v at first the same: each gradient of v has lambda (v - x) added. v stays on the node,
    buffers and all. `epochs` are those of the second training, the task's by default.
    """

    lambda_: float = 0.1
    epochs: int | None = None

    keeps: ClassVar[bool] = True
    is_personal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.lambda_ < 0:
            raise ValueError(f"lambda should be at least 0, not {self.lambda_}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs should be at least 1, not {self.epochs}")

    def train(self, session: Session) -> Local:
        """As `Rule.train`; the whole state of v is kept, by names of the model's tensors."""
        from fedctl.node.rules.gradients import correcting, kept, nearby

        start = nearby(session.start)

        def term(name: str, parameter: Tensor, _gradient: Tensor | None) -> Tensor:
            return (parameter - start(name, parameter)).mul_(self.lambda_)

        module = session.fit()
        own = session.fit(
            correcting(session, term, rule="ditto"),
            start=session.kept or session.start,
            epochs=self.epochs,
            counts=False,
        )
        return Local(module=module, kept=kept(own.state_dict(), like=session.start))
