"""`feddyn`: a training's own pull, as it was measured in earlier rounds, is taken from the loss.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization, ICLR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.node.rules import Local, Session

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FedDyn:
    """A node minimises F_i(y) - <g_i, y> + alpha/2 |y - x|²: each gradient of y has -g_i + alpha (y - x) added.

    x is the round's model and y_i what the training ends at. Then g_i <- g_i - alpha (y_i - x), which the node keeps
    (zero at first): where the training is exact, it is the gradient of F_i at y_i. Node and strategy have one alpha.
    """

    alpha: float = 0.1

    keeps: ClassVar[bool] = True
    is_personal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha should be above 0, not {self.alpha}")

    def train(self, session: Session) -> Local:
        """As `Rule.train`; g_i is kept, by names of parameters."""
        from fedctl.node.rules.gradients import correcting, kept, nearby, travelling

        start, own = nearby(session.start), nearby(session.kept)

        def term(name: str, parameter: Tensor, _gradient: Tensor | None) -> Tensor:
            return (parameter - start(name, parameter)).mul_(self.alpha).sub_(own(name, parameter))

        module = session.fit(correcting(session, term, rule="feddyn"))
        names = travelling(session)
        trained = {name: each for name, each in module.named_parameters() if each.requires_grad and name in names}
        ends = kept(trained, like=session.start)
        pulls = {
            name: session.kept.get(name, 0) - self.alpha * (end - session.start[name]) for name, end in ends.items()
        }
        return Local(module=module, kept={**session.kept, **pulls})
