"""The kinds of value by which `when` says that a node may be used, as `fields` has the others."""

import re
from typing import Annotated, Any

from pydantic import PlainValidator

from fedctl.topology.fields import refusal
from fedctl.topology.wording import describe

WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_SPAN = re.compile(r"([0-9]{1,2}):([0-5][0-9])-([0-9]{1,2}):([0-5][0-9])")
_HOURS_EXAMPLE = 'such as "20:00-06:00", in quotes, by the node\'s own clock'
_DAYS_EXAMPLE = "such as mon-fri, or [sat, sun]"


def _hours(value: Any) -> tuple[tuple[int, int], ...]:
    spans = [value] if isinstance(value, str) else value
    if not isinstance(spans, list) or not spans:
        raise refusal(f"should be a span of hours or a list of them, not {describe(value)}", _HOURS_EXAMPLE)
    return tuple(_span(span) for span in spans)


def _span(text: Any) -> tuple[int, int]:
    match = _SPAN.fullmatch(text) if isinstance(text, str) else None
    begin, end = (int(h) * 60 + int(m) for h, m in ((match[1], match[2]), (match[3], match[4]))) if match else (0, 0)
    if begin == end or max(begin, end) > 24 * 60 or begin == 24 * 60:
        raise refusal(f"should be a span of hours, not {describe(text)}", _HOURS_EXAMPLE)
    return begin, end


def _days(value: Any) -> tuple[int, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise refusal(f"should be a day, a span or a list of them, not {describe(value)}", _DAYS_EXAMPLE)
    found = [day for name in names for day in _days_of(name)]
    return tuple(sorted(set(found)))


def _days_of(name: Any) -> list[int]:
    first, dash, last = name.partition("-") if isinstance(name, str) else ("", "", "")
    if first not in WEEK or (dash and last not in WEEK):
        raise refusal(f"should be days of the week, not {describe(name)}", _DAYS_EXAMPLE)
    begin, end = WEEK.index(first), WEEK.index(last or first)
    return [(begin + step) % 7 for step in range((end - begin) % 7 + 1)]


def _command(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and " " in value:
        listed = ", ".join(value.split())
        raise refusal(f"should be a program, or a list of it and its arguments, not {describe(value)}", f"[{listed}]")
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.isprintable() and w for w in words):
        raise refusal(
            f"should be a program on the node, or a list of it and its arguments, not {describe(value)}",
            "such as [/usr/local/bin/on-mains, --quiet]; no shell reads it",
        )
    if not words[0].startswith(("/", "~/")):
        raise refusal(
            f"should name the program by its path, not {describe(words[0])}", "such as /usr/local/bin/on-mains"
        )
    return tuple(words)


Hours = Annotated[tuple[tuple[int, int], ...], PlainValidator(_hours)]
Days = Annotated[tuple[int, ...], PlainValidator(_days)]
Command = Annotated[tuple[str, ...], PlainValidator(_command)]
