"""`fedprox`: a training is drawn back to the model that it started from.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.node.rules import Local, Session

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FedProx:
    """A node minimises F_i(y) + mu/2 |y - x|², x being the round's model: each gradient of y has mu (y - x) added."""

    mu: float = 0.01

    keeps: ClassVar[bool] = False
    is_personal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.mu < 0:
            raise ValueError(f"mu should be at least 0, not {self.mu}")

    def train(self, session: Session) -> Local:
        """As `Rule.train`; nothing is kept."""
        from fedctl.node.rules.gradients import correcting, nearby

        start = nearby(session.start)

        def term(name: str, parameter: Tensor, _gradient: Tensor | None) -> Tensor:
            return (parameter - start(name, parameter)).mul_(self.mu)

        return Local(module=session.fit(correcting(session, term, rule="fedprox")))
