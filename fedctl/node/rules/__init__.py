"""The family of local rules: what a node's training minimises beyond the loss of the user's module.

A rule is a frozen dataclass whose fields are its options; it gives the Trainer one callback, so the user's module stays
as it is. This module imports no torch, and a rule does so when its callback is made: names and options are checked at
once, on the coordinator. A new rule is one file here and one line in `RULES`.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from fedctl.errors import ConfigError

RULES: Mapping[str, str] = {
    "fedprox": "fedctl.node.rules.fedprox:FedProx",
}


class Rule(Protocol):
    """A local rule."""

    def callback(self, lightning: Any) -> Any:
        """A new callback of that Lightning, for one training."""
        ...


def kind_of(name: str) -> type[Rule]:
    """The dataclass of the rule of that name; raises ConfigError where there is none."""
    if name not in RULES:
        close = difflib.get_close_matches(name, RULES, n=1)
        raise ConfigError(
            f"local: there is no rule called {name!r}",
            hint=f"did you mean `{close[0]}`?" if close else f"the rules are {', '.join(RULES)}",
        )
    module, _, member = RULES[name].partition(":")
    return cast("type[Rule]", getattr(importlib.import_module(module), member))


def build(local: Mapping[str, Any]) -> Rule:
    """The rule that a task names, such as `{"name": "fedprox", "mu": 0.1}`, with options that were checked before."""
    options = dict(local)
    return kind_of(options.pop("name"))(**options)
