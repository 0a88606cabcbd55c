"""What a node's owner asks of every update, held against what the federation promises, before anything is trained.

Pure.
"""

from collections.abc import Mapping
from typing import Any

from fedctl.errors import NodeError
from fedctl.privacy import Privacy

_WRITTEN = {
    "secure_aggregation": "`privacy: {secure_aggregation: {}}`",
    "differential_privacy": "`privacy: {differential_privacy: {mode: local, noise: 1.0, clip: 1.0}}`",
}


def unmet(facts: Mapping[str, Any], privacy: Privacy) -> NodeError | None:
    """The error that a node is whose greeting asks for more than is promised; None for any other."""
    asked = facts.get("required") or []
    promised = {"secure_aggregation": privacy.is_secure, "differential_privacy": privacy.mode is not None}
    for name, hint in _WRITTEN.items():
        if name in asked and not promised[name]:
            words = name.replace("_", " ")
            return NodeError(f"its owner lets updates leave with {words} alone", hint=f"add {hint} to fed.yaml")
    return None
