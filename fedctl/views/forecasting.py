"""The forecast of a dry run, in words: what the lines would carry in a round and in the run, and for how long."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedctl.traffic import Traffic
from fedctl.views.text import counted, duration, of_raw, size

if TYPE_CHECKING:
    from fedctl.forecast import Forecast, LineForecast

MOST_LINES = 8


def forecast_pairs(forecast: "Forecast") -> Iterator[tuple[str, str]]:
    """Labels and values: a round, the run, and each line, the slowest ones first."""
    yield "a round", _both_ways(forecast.round)
    yield "the run", "; ".join([_both_ways(forecast.run), *_busy(forecast.line_s)])
    if len(forecast.lines) == 1:
        return
    slowest = sorted(forecast.lines, key=lambda line: -(line.line_s or 0.0))
    for line in slowest[:MOST_LINES]:
        run = f"{size(line.run.sent)} and {size(line.run.received)} in the run"
        yield _name(line), "; ".join([f"{_both_ways(line.round, 'it')} a round", run, *_busy(line.line_s)])
    if len(slowest) > MOST_LINES:
        yield "", f"and {counted(len(slowest) - MOST_LINES, 'more line')}"


def _both_ways(traffic: Traffic, whom: str = "the nodes") -> str:
    sent = " ".join(filter(None, (size(traffic.sent), _coded(traffic.sent, traffic.raw_sent))))
    received = " ".join(filter(None, (size(traffic.received), _coded(traffic.received, traffic.raw_received))))
    return f"{sent} to {whom}, {received} back"


def _coded(number: int, raw: int) -> str:
    said = of_raw(number, raw)
    return f"({said})" if said else ""


def _busy(line_s: float | None) -> Iterator[str]:
    if line_s is not None:
        yield f"at least {duration(line_s)} on the line"


def _name(line: "LineForecast") -> str:
    more = len(line.nodes) - 1
    return f"{line.nodes[0]} and {more:,} more" if more else line.nodes[0]
