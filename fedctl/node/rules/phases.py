"""`phases`: parts of a model are trained one after the other, such as a node's own head before the shared body.

So is FedRep: Collins, Hassani, Mokhtari, Shakkottai: Exploiting Shared Representations for Personalized Federated
Learning, ICML 2021.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from fedctl.errors import ConfigError
from fedctl.node.rules import Local, Session
from fedctl.share import matches

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """One training of as many epochs as the phases have together; each trains the parameters that it names.

    A phase is `{"train": patterns, "epochs": number}`, or with `except` for the parameters that it leaves as they are.
    Those have no gradient meanwhile, so no optimizer moves them, by momentum or weight decay neither; what optimizers
    remember goes on from phase to phase. What the user's module does not train at first is trained in no phase.
    """

    phases: tuple[Mapping[str, Any], ...] = ()

    keeps: ClassVar[bool] = False
    is_personal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("phases should have at least one phase, such as {train: ['head.*'], epochs: 1}")
        for phase in self.phases:
            if flaw := _flaw(phase):
                raise ValueError(f"phases should each {flaw}, not {phase}")

    def train(self, session: Session) -> Local:
        """As `Rule.train`; nothing is kept. ConfigError where a phase names parameters that are not there to train."""
        epochs = sum(phase["epochs"] for phase in self.phases)
        return Local(module=session.fit(self._callback(session.lightning), epochs=epochs))

    def check(self, module: Any) -> None:
        """Raises ConfigError for a pattern that matches no parameter that is trained, or a phase that trains none."""
        trainable = [name for name, each in module.named_parameters() if each.requires_grad]
        for phase in self.phases:
            _check(phase, trainable)

    def _callback(self, lightning: Any) -> Any:
        begins = accumulate((phase["epochs"] for phase in self.phases), initial=0)
        phase_at, check = dict(zip(begins, self.phases, strict=False)), self.check

        class Phasing(lightning.Callback):  # type: ignore[misc]
            def __init__(self) -> None:
                self.trainable: dict[str, Tensor] = {}

            def on_train_start(self, _trainer: Any, module: Any) -> None:
                check(module)
                self.trainable = {name: each for name, each in module.named_parameters() if each.requires_grad}

            def on_train_epoch_start(self, trainer: Any, _module: Any) -> None:
                if phase := phase_at.get(trainer.current_epoch):
                    for name, each in self.trainable.items():
                        each.requires_grad_(_trains(phase, name))
                        if not each.requires_grad:
                            each.grad = None

            def on_train_end(self, _trainer: Any, _module: Any) -> None:
                for each in self.trainable.values():
                    each.requires_grad_(True)

            def on_exception(self, trainer: Any, module: Any, _error: BaseException) -> None:
                self.on_train_end(trainer, module)

        return Phasing()


def _trains(phase: Mapping[str, Any], name: str) -> bool:
    """Whether the parameter of that name is trained in the phase."""
    return matches(name, phase["train"]) if "train" in phase else not matches(name, phase["except"])


def _check(phase: Mapping[str, Any], trainable: Collection[str]) -> None:
    """Raises ConfigError for a pattern that matches nothing, and for a phase in which nothing is trained."""
    known = f"those that are trained are {', '.join(list(trainable)[:8])}{', ...' * (len(trainable) > 8)}"
    for pattern in phase.get("train") or phase["except"]:
        if not any(matches(name, [pattern]) for name in trainable):
            raise ConfigError(f"local/phases: no parameter that is trained matches {pattern!r}", hint=known)
    if not any(_trains(phase, name) for name in trainable):
        raise ConfigError(f"local/phases: nothing is left to train except {', '.join(phase['except'])}", hint=known)


def _flaw(phase: Any) -> str | None:
    """What a phase should do and does not; None where it is right."""
    if not isinstance(phase, Mapping) or not {*phase} <= {"train", "except", "epochs"}:
        return "be a mapping of `epochs` and of `train` or `except`"
    if ("train" in phase) == ("except" in phase):
        return "have one of `train` and `except`"
    patterns, epochs = phase.get("train", phase.get("except")), phase.get("epochs")
    if not isinstance(patterns, list | tuple) or not patterns or not all(isinstance(one, str) for one in patterns):
        return "name parameters by a list of patterns"
    if type(epochs) is not int or epochs < 1:
        return "have `epochs`, a whole number from 1"
    return None
