"""What an agent says of a task and of its machine, believed only as far as its form."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedctl.errors import Declined, NodeError, ProtocolError
from fedctl.ledger import Pin
from fedctl.node import agent
from fedctl.records import Progress, Result, TaskKey
from fedctl.strictjson import printable

REQUIRED = ("secure_aggregation", "differential_privacy")
"""What a node's owner may ask of every update."""
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_DIGITS = re.compile(r"[0-9a-f]{12}")


def result_of(key: TaskKey, value: object) -> Result:
    """A task's result; raises Declined where the node's owner stopped it, and ProtocolError for what is no result."""
    try:
        result = Result.from_json(value)
    except ValueError as error:
        raise ProtocolError(f"the node's result is not one: {error}") from error
    if result.key != key:
        raise ProtocolError(f"the node answered for {result.key}")
    if result.ask_again_s is not None:
        raise Declined(result.error or "its owner stopped the task", seconds=max(0.0, result.ask_again_s))
    return result


def pin_of(value: object) -> Pin | None:
    """The entry of the node's ledger that a result came with; raises ProtocolError for what is none."""
    try:
        return None if value is None else Pin.from_json(value)
    except ValueError as error:
        raise ProtocolError(f"the node's ledger has no such entry: {error}") from error


def progress_of(key: TaskKey, value: object) -> Progress:
    """A task's progress; a node speaks for its own task only."""
    try:
        progress = Progress.from_json(value)
    except ValueError:
        return Progress(key=key, phase="waiting")
    return replace(progress, key=key)


def heed(answer: object) -> None:
    """Raises Declined where an agent says that its machine may not be used now."""
    match answer:
        case {"may": True}:
            return
        case {"may": False, "why": str(why), "seconds": int(seconds) | float(seconds)} if 0 <= seconds < 1e9:
            raise Declined(printable(why[:500]), seconds=float(seconds))
        case _:
            raise ProtocolError("the agent does not say whether its machine may be used")


def facts_of(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an agent says of its machine, known names and types only: it goes into the journal. Raises NodeError."""
    facts: dict[str, Any] = {}
    for name in ("protocol", "cpus", "memory", "disk_free", "time", "python", "system", "hostname", "home"):
        match name, answer.get(name):
            case "python" | "system" | "hostname" | "home", str(text):
                facts[name] = printable(text[:1000])
            case "protocol" | "cpus" | "memory" | "disk_free" | "time", int() | float() as number if number >= 0:
                facts[name] = min(number, 2**63)
            case _:
                raise NodeError(f"the agent's greeting has no {name}")
    if facts["protocol"] != agent.PROTOCOL:
        raise NodeError(
            f"the agent there speaks protocol {facts['protocol']:g}, and this fedctl {agent.PROTOCOL}",
            hint="a forced command pins another version: have its owner run `fedctl node enroll` of this one",
        )
    return {**facts, **_guarded(answer)}


def _guarded(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an enrolled node says of its owner's program; nothing of others."""
    match answer:
        case {
            "enrolled": True,
            "version": str(version),
            "agent": str(digits),
            "identity": str() | None as identity,
            **rest,
        }:
            is_key = identity is None or _FINGERPRINT.fullmatch(identity)
            required = rest.get("required")
            if is_key and len(version) <= 100 and _DIGITS.fullmatch(digits) and isinstance(required, list):
                asked = [name for name in REQUIRED if name in required]
                told = {"version": printable(version), "agent": digits, "identity": identity, "required": asked}
                return {"enrolled": True, **told}
        case {"enrolled": True}:
            pass
        case _:
            return {}
    raise NodeError(
        "the agent's greeting says that the node is enrolled, and not how",
        hint="have its owner run `fedctl node enroll` of this version",
    )
