"""Speeds of lines as fed.yaml has them: `500kbit`, `2mbit`, `1gbit`, in bits a second and in decimal units."""

import re
from typing import Annotated, Any

from pydantic import PlainValidator

from fedctl.topology.fields import refusal
from fedctl.topology.wording import describe

_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmg]bit)")
_UNIT_BITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_LEAST_BPS = 16_000


def _speed(value: Any) -> float | None:
    """Bits a second."""
    if value is None:
        return None
    match = _SPEED.fullmatch(value.lower()) if isinstance(value, str) else None
    if match is None:
        raise refusal(
            f"should be bits a second with their unit, not {describe(value)}",
            "write it as `500kbit`, `2mbit`, `1.5mbit` or `1gbit`; a megabyte a second is 8mbit",
        )
    bps = float(match[1]) * _UNIT_BITS[match[2]]
    if bps < _LEAST_BPS:
        raise refusal(f"should be at least 16kbit, not {describe(value)}", "a slower line carries no model")
    return bps


Speed = Annotated[float | None, PlainValidator(_speed)]
