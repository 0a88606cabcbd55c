"""What a node's owner lets a run have: paths; and of an enrolled node, what is approved."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedctl.demands import unmet
from fedctl.federation import Node
from fedctl.node import agent
from fedctl.operations.findings import Finding, text
from fedctl.privacy import Privacy
from fedctl.replies import REQUIRED

DIGITS = 12


def enrolment(node: Node, facts: Mapping[str, Any], stand: Mapping[str, Any], privacy: Privacy) -> Iterator[Finding]:
    """None for a node that is not enrolled; `stand` is what the agent says of the run's needs."""
    if facts.get("enrolled") is not True:
        return
    here = hashlib.sha256(Path(agent.__file__).read_bytes()).hexdigest()
    is_same = facts.get("agent") == here[:DIGITS]
    note = "" if is_same else f"its agent is of fedctl {text(facts, 'version')}, and speaks the same protocol"
    required = [name.replace("_", " ") for name in REQUIRED if name in (facts.get("required") or [])]
    asks = f", asks for {' and '.join(required)}" if required else ""
    lacking = unmet(facts, privacy)
    value = f"enrolled, identity {text(facts, 'identity')}{asks}"
    if lacking:
        yield Finding(
            name="owner", passed=False, value=f"{value}, and fed.yaml promises less", remedy=lacking.hint or ""
        )
    else:
        yield Finding(name="owner", passed=True, value=value, note=note)
    awaited = stand.get("awaited")
    for one in awaited if isinstance(awaited, list) else []:
        match one:
            case {"kind": "code" | "environment" as kind, "digest": str(digest), "shown": bool(is_shown)}:
                value = (
                    f"{kind} {digest[:DIGITS]} {'waits for its owner' if is_shown else 'was never shown to its owner'}"
                )
                ask = f"ask the owner of {node.name} to run `fedctl node approve {digest[:DIGITS]}` there"
                yield Finding(
                    name="approval",
                    passed=False,
                    value=value,
                    remedy=ask if is_shown else f"`fedctl provision`, then {ask}",
                )


def data(paths: Sequence[str], found: Sequence[object]) -> Finding:
    """Whether the paths among a node's arguments are there; `found` is of each whether it exists and may be read."""
    wrong = [
        f"{path} {_barred(state)}"
        for path, state in zip(paths, found, strict=True)
        if state != {"exists": True, "readable": True}
    ]
    return Finding(
        name="data",
        passed=not wrong,
        value="; ".join(wrong) or (", ".join(paths) if paths else "no paths are named"),
        remedy="correct `data:` of this node, or let the account there read it",
        mark="ok" if paths else "-",
    )


def _barred(state: object) -> str:
    match state:
        case {"forbidden": True}:
            return "is nothing that its owner lets tasks name"
        case {"exists": True, "readable": False}:
            return "may not be read"
        case _:
            return "is not there"
