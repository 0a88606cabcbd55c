"""`scaffold`: each step of a node is corrected by how its gradients differ from everyone's.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML
2020.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedctl.errors import ConfigError
from fedctl.node.rules import Local, Session

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaffold:
    """Each gradient has c - c_i added: c is everyone's, the strategy's memory, and c_i the node's own; zero at first.

    Then c_i becomes, by `option` 2, the mean over the training's steps of the gradients as they were before anything
    was added to them or clipped. After K steps of plain SGD from x to y_i the paper's c_i - c + (x - y_i) / (K lr) is
    the same; the mean needs no learning rate, so any optimizer and schedule will do. By `option` 1 it becomes the
    gradient at x of the loss over all the node's training data, for one more pass over it.

    The node keeps c_i; what c_i changed by travels.
    """

    option: int = 2

    keeps: ClassVar[bool] = True
    is_personal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.option not in (1, 2):
            raise ValueError(f"option should be 1 or 2, not {self.option}")

    def train(self, session: Session) -> Local:
        """As `Rule.train`; c_i is kept and its change is the controls, each by names of parameters."""
        from fedctl.node.rules.gradients import correcting, kept, nearby

        at_start, on_the_way = _Mean(), _Mean()
        if self.option == 1:
            session.fit(_passing(session, at_start), epochs=1, counts=False)
        away = nearby(_difference(session.memory, session.kept))

        def term(name: str, parameter: Tensor, gradient: Tensor | None) -> Tensor:
            on_the_way.add(name, parameter, gradient)
            return away(name, parameter)

        module = session.fit(correcting(session, term, rule="scaffold"))
        measured = (at_start if self.option == 1 else on_the_way).means()
        own = kept({name: measured[name] for name in on_the_way.sums if name in measured}, like=session.start)
        before = {name: session.kept[name] for name in own if name in session.kept}
        return Local(module=module, kept={**session.kept, **own}, controls=_difference(own, before))


class _Mean:
    """The weighted mean of gradients by names of parameters, summed in single precision at least."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, name: str, parameter: Tensor, gradient: Tensor | None, weight: float = 1.0) -> None:
        """Count a gradient (None: zero)."""
        import torch

        if name not in self.sums:
            self.sums[name] = torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
            self.weights[name] = 0.0
        if gradient is not None:
            self.sums[name].add_(gradient, alpha=weight)
        self.weights[name] += weight

    def means(self) -> dict[str, Tensor]:
        return {name: each / self.weights[name] for name, each in self.sums.items()}


def _passing(session: Session, mean: _Mean) -> Any:
    """A callback that counts the gradient of each batch, by its examples, and has no optimizer step on any."""
    from fedctl.node.rules.gradients import scaler_of, travelling

    names = travelling(session)

    class Passing(session.lightning.Callback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.examples = 0

        def on_train_start(self, trainer: Any, module: Any) -> None:
            if scaler_of(trainer) or not module.automatic_optimization:
                why = "16-mixed" if module.automatic_optimization else "manual optimization"
                raise ConfigError(f"scaffold has no option 1 with {why}: take option 2")

            def only_gradients(_epoch: int, _batch: int, _optimizer: Any, closure: Callable[[], Any]) -> None:
                closure()

            module.optimizer_step = only_gradients

        def on_train_batch_start(self, _trainer: Any, _module: Any, batch: Any, _index: int) -> None:
            self.examples = _examples(session.lightning, batch)

        def on_after_backward(self, trainer: Any, module: Any) -> None:
            share = trainer.accumulate_grad_batches  # Lightning divides the loss of each batch by it
            for name, each in module.named_parameters():
                if each.requires_grad and name in names:
                    gradient = None if each.grad is None else each.grad * share
                    mean.add(name, each, gradient, weight=self.examples)

        def on_train_batch_end(self, _trainer: Any, module: Any, _outputs: Any, _batch: Any, _index: int) -> None:
            module.zero_grad()

    return Passing()


def _examples(lightning: Any, batch: Any) -> int:
    """How many examples a batch has, as Lightning finds it; 1 where it finds none."""
    extract_batch_size = importlib.import_module(f"{lightning.__name__}.utilities.data").extract_batch_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(extract_batch_size(batch))
        except Exception:  # a batch without a tensor; Lightning trains on it all the same
            return 1


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One less the other, by all names of either; what is missing is zero."""
    both = {name: one[name] - other[name] for name in one.keys() & other.keys()}
    alone = {name: each.clone() for name, each in one.items() if name not in other}
    return both | alone | {name: -each for name, each in other.items() if name not in one}
