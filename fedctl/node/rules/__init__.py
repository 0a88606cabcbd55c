"""The family of local rules: what a node's training follows beyond the loss of the user's module.

A rule is a frozen dataclass whose fields are its options; it runs the node's training, once or more, with callbacks of
its own, so the user's module stays as it is. This module imports no torch, and a rule does so when it trains: names and
options are checked at once, on the coordinator. A new rule is one file here and one line in `RULES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from fedctl.errors import ConfigError, suggestion
from fedctl.share import Share

if TYPE_CHECKING:
    from torch import Tensor

RULES: Mapping[str, str] = {
    "fedprox": "fedctl.node.rules.fedprox:FedProx",
    "scaffold": "fedctl.node.rules.scaffold:Scaffold",
    "feddyn": "fedctl.node.rules.feddyn:FedDyn",
    "ditto": "fedctl.node.rules.ditto:Ditto",
    "phases": "fedctl.node.rules.phases:Phases",
    "moon": "fedctl.node.rules.moon:Moon",
}


class Session(Protocol):
    """One node's training, as a rule runs it: what it begins with, and the way to train.

    `lightning` is the user's Lightning, and `share` says which tensors the nodes have in common. `start` is the model
    that the training starts from, whole; `memory` is what the strategy sends beside it, and `kept` what this rule left
    here when this node's update last became part of a model (each empty where there is none). All are on the CPU.
    """

    lightning: Any
    share: Share
    start: Mapping[str, Tensor]
    memory: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]

    def fit(
        self,
        *callbacks: Any,
        start: Mapping[str, Tensor] | None = None,
        epochs: int | None = None,
        counts: bool = True,
    ) -> Any:
        """Train a new module once with these callbacks before the user's own, and return it.

        It begins as `start` (this session's by default) and runs for `epochs` (the task's by default). Only a fit that
        `counts` is what the task tells of: its examples, steps and metrics, its optimizer's state. Raises whatever the
        user's code raises.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What a rule's training came to.

    The update is what `module` holds. `kept` stays on the node, for the rule's next training there; `controls` travels
    beside the update, by names of the model's tensors.
    """

    module: Any
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    controls: Mapping[str, Tensor] = field(default_factory=dict)


class Rule(Protocol):
    """A local rule. `keeps` says whether it leaves something on the node for its next training there.

    `is_personal` says that what it keeps is a whole model of the node's own, to be scored beside the global one. A rule
    that names parts of the model has a method `check(module)`, which raises ConfigError where they are not there.
    """

    keeps: ClassVar[bool]
    is_personal: ClassVar[bool]

    def train(self, session: Session) -> Local:
        """Run the training; raises ConfigError where the rule does not reach what an optimizer steps on."""
        ...


def kind_of(name: str) -> type[Rule]:
    """The dataclass of the rule of that name; raises ConfigError where there is none."""
    if name not in RULES:
        hint = suggestion(name, RULES, f"the rules are {', '.join(RULES)}")
        raise ConfigError(f"local: there is no rule called {name!r}", hint=hint)
    module, _, member = RULES[name].partition(":")
    return cast("type[Rule]", getattr(importlib.import_module(module), member))


def check(rule: Rule, module: Any) -> None:
    """Raises ConfigError where the rule names parts that the user's module does not have."""
    if look := getattr(rule, "check", None):
        look(module)


def build(local: Mapping[str, Any]) -> Rule:
    """The rule that a task names, such as `{"name": "fedprox", "mu": 0.1}`, with options that were checked before.

    An option that is a word of Python's is a field with an underscore behind it: `lambda_`.
    """
    options = {f"{name}_" if iskeyword(name) else name: value for name, value in local.items()}
    return kind_of(options.pop("name"))(**options)
