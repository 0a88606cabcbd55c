"""`moon`: the representation that a node learns is drawn to the federation's model's, away from its own former one's.

Li, He, Song: Model-Contrastive Federated Learning, CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedctl.errors import ConfigError
from fedctl.node.rules import Local, Session

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Moon:
    """A batch's loss has mu times the mean over its rows of -log(A / (A + B)) added.

    A = exp(cos(z, x) / tau) and B = exp(cos(z, y) / tau): z is what the submodule called `features` makes of a row,
    flattened, x is what it makes of it in the round's model, and y in the node's own model as its last training left
    it, both in evaluation mode. That submodule is what the node keeps; before there is one there is no term. What it
    is given has to come from the batch through nothing that is trained.
    """

    mu: float = 1.0
    tau: float = 0.5
    features: str = ""

    keeps: ClassVar[bool] = True
    is_personal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.mu < 0:
            raise ValueError(f"mu should be at least 0, not {self.mu}")
        if not self.tau > 0:
            raise ValueError(f"tau should be above 0, not {self.tau}")
        if not self.features:
            raise ValueError("features should name the submodule that makes the representation")

    def train(self, session: Session) -> Local:
        """As `Rule.train`; the submodule's tensors are kept, by names of the model's."""
        from fedctl.node.rules.gradients import kept

        module = session.fit(self._callback(session))
        own = {f"{self.features}.{name}": each for name, each in _part(module, self.features).state_dict().items()}
        return Local(module=module, kept=kept(own, like=session.start))

    def check(self, module: Any) -> None:
        """Raises ConfigError where the module has no submodule `features`, or nothing to train in it."""
        _part(module, self.features)

    def _callback(self, session: Session) -> Any:
        import torch
        from torch.nn.functional import cosine_similarity, cross_entropy

        from fedctl.node.rules.gradients import refuse_lbfgs, scaler_of

        rule = self

        class Contrasting(session.lightning.Callback):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                self.similar: list[Tensor] = []
                """Of each call in a batch, the two similarities of each row."""
                self.was_called = False
                self.hook: Any = None

            def on_train_start(self, trainer: Any, module: Any) -> None:
                part = _part(module, rule.features)
                if not module.automatic_optimization:
                    raise ConfigError("moon adds to the loss, and with manual optimization there may be many")
                for optimizer in trainer.optimizers:
                    refuse_lbfgs(optimizer, rule="moon")
                others = [self.copy(part, session.start), self.copy(part, session.kept)] if session.kept else []

                def compare(_part: Any, given: tuple[Any, ...], named: Mapping[str, Any], made: Any) -> None:
                    if not part.training or not torch.is_grad_enabled():
                        return
                    if any(getattr(each, "requires_grad", False) for each in (*given, *named.values())):
                        raise ConfigError(
                            f"moon: what {rule.features} is given comes from what is trained: name the submodule that "
                            "makes the representation from the batch"
                        )
                    if not isinstance(made, torch.Tensor):
                        raise ConfigError(f"moon: {rule.features} gives a {type(made).__name__} and not one tensor")
                    self.was_called = True
                    if not others or not made.requires_grad:
                        return
                    with torch.no_grad():
                        theirs = [other(*given, **named).flatten(1) for other in others]
                    rows = made.flatten(1).clone()  # what follows may change it in place
                    self.similar.append(torch.stack([cosine_similarity(rows, each) for each in theirs], dim=1))

                self.hook = part.register_forward_hook(compare, with_kwargs=True)

            def copy(self, part: Any, tensors: Mapping[str, Tensor]) -> Any:
                copy = deepcopy(part).eval().requires_grad_(False)
                copy.load_state_dict({name: tensors[f"{rule.features}.{name}"] for name in copy.state_dict()})
                return copy

            def on_train_batch_start(self, *_: Any) -> None:
                self.similar.clear()

            def on_before_backward(self, trainer: Any, _module: Any, _loss: Tensor) -> None:
                if not self.similar:
                    return
                rows = torch.cat(self.similar)
                rows = rows.to(torch.promote_types(rows.dtype, torch.float32)) / rule.tau
                term = rule.mu * cross_entropy(rows, rows.new_zeros(len(rows), dtype=torch.long))
                # Lightning has divided the loss of the module so, and scaled it.
                term = term / trainer.accumulate_grad_batches
                scaler = scaler_of(trainer)
                (scaler.scale(term) if scaler else term).backward(retain_graph=True)
                self.similar.clear()

            def on_train_end(self, _trainer: Any, _module: Any) -> None:
                self.hook.remove()
                if not self.was_called:
                    raise ConfigError(f"moon: {rule.features} was not called in the training")

            def on_exception(self, _trainer: Any, _module: Any, _error: BaseException) -> None:
                if self.hook:
                    self.hook.remove()

        return Contrasting()


def _part(module: Any, name: str) -> Any:
    """The submodule of that name; raises ConfigError where there is none, or nothing in it to train."""
    try:
        part = module.get_submodule(name)
    except AttributeError:
        names = ", ".join(name for name, _ in module.named_children())
        raise ConfigError(f"local/features: the model has no submodule {name!r}", hint=f"it has {names}") from None
    if not any(True for _ in part.parameters()):
        raise ConfigError(f"local/features: there are no parameters in {name!r}")
    return part
