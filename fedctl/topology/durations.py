"""Lengths of time, as fed.yaml writes them: `90s`, `30m`, `1h30m`, `2d`, or a number of seconds."""

import math
import re
from typing import Annotated, Any

from pydantic import PlainValidator

from fedctl.topology.fields import refusal
from fedctl.topology.wording import describe

_DURATION = re.compile("".join(rf"(?:([0-9]+(?:\.[0-9]+)?){unit})?" for unit in "dhms"))
_UNIT_S = (86_400, 3_600, 60, 1)


def _duration(value: Any, otherwise: str = "leave it out for none") -> float | None:
    if value is None:
        return None
    seconds = _seconds(value)
    if not math.isfinite(seconds) or seconds <= 0:
        raise refusal(
            f"should be a duration above 0, not {describe(value)}",
            f"write it as `90s`, `30m`, `1h30m` or `2d`; {otherwise}",
        )
    return seconds


def _some_time(value: Any) -> float:
    if (seconds := _duration(value, "leave it out for the default")) is None:
        raise refusal("should be a duration above 0, not empty", "write it as `90s`, `30m`, `1h30m` or `2d`")
    return seconds


def _patience(value: Any) -> float | None:
    return _duration(value, "null is for ever")


def _seconds(value: Any) -> float:
    """The duration in seconds; NaN where it is none."""
    if type(value) in (int, float):
        return float(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or not match[0]:
        return math.nan
    return sum(float(amount) * unit_s for amount, unit_s in zip(match.groups(), _UNIT_S, strict=True) if amount)


Duration = Annotated[float | None, PlainValidator(_duration)]
Patience = Annotated[float | None, PlainValidator(_patience)]
Seconds = Annotated[float, PlainValidator(_some_time)]
