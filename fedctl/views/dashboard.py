"""The live picture of a run, as a pure function of what is known: `dashboard`.

It fills the width it is given, up to a measure, and stays within a height: the header and the nodes come first, then the
curve of the monitored metric, then the last events. A run that is over shows what came of it in their place.
"""

import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import median

from rich.console import RenderableType
from rich.text import Text

from fedctl.events import Event
from fedctl.records import Progress
from fedctl.report import Standing, StatusReport, elapsed, report
from fedctl.state import RunState
from fedctl.views.canvas import Drawing, bar, cut, spread
from fedctl.views.closing import comparison_lines, curve_lines
from fedctl.views.nodes import Row, node_lines, node_rows
from fedctl.views.sentence import sentence, stamp
from fedctl.views.text import clock, plain

WIDEST = 120
_EVENTS, _PLOT, _MANY = 5, 8, 10_000
_LOOKS: Mapping[Standing, tuple[str, str]] = {
    "running": ("●", "cyan"),
    "held": ("■", "yellow"),
    "interrupted": ("■", "yellow"),
    "finished": ("✓", "green"),
    "failed": ("✗", "red"),
}


def dashboard(
    state: RunState,
    progress: Mapping[str, Progress],
    recent: Sequence[Event],
    now: datetime,
    *,
    alive: bool = True,
    height: int | None = None,
) -> RenderableType:
    """The run at `now` (UTC), in at most `height` lines; `progress` holds the newest sample of each task under way."""
    moment = now if alive else state.last_at or now
    known = report(state, alive=alive)
    rows = node_rows(state, progress if alive else {}, moment)
    tick = moment.timestamp() if known.state == "running" else None

    def draw(width: int) -> list[Text]:
        return _lines(state, known, rows, recent, moment, tick, min(width, WIDEST), height)

    return Drawing(draw)


def _lines(
    state: RunState,
    known: StatusReport,
    rows: Sequence[Row],
    recent: Sequence[Event],
    moment: datetime,
    tick: float | None,
    width: int,
    height: int | None,
) -> list[Text]:
    head = _header(state, known, moment, width)
    foot = outcome_lines(known, width)
    room = None if height is None else height - len(head) - len(foot)
    below = _below(state, known, recent, width, room)
    table = node_lines(rows, state.metric, width, None if room is None else max(2, room - len(below)), tick)
    return [*head, *table, *below, *foot][:height]


def _header(state: RunState, known: StatusReport, moment: datetime, width: int) -> list[Text]:
    sign, style = _LOOKS[known.state]
    is_preparing = known.state == "running" and (
        state.model is None or any(node.status == "new" for node in state.nodes.values())
    )
    word = "preparing" if is_preparing else known.state
    name = Text.assemble((plain(state.federation), "bold"), "  ", (plain(state.run), "dim"))
    times = clock(elapsed(state, moment))
    if not is_preparing and known.state == "running" and (left := seconds_left(state, moment)) is not None:
        times += f" · about {clock(left)} left" + (", then the comparison" if state.compare and width >= 80 else "")
    step, fraction = _step(state)
    length = width - len(step) - len(times) - 4
    track = bar(fraction, length, style) if length >= 6 else Text()
    return [
        spread(name, Text(f"{sign} {word}", style), width),
        spread(Text.assemble(step, "  ", track), Text(times, "dim"), width),
        Text(),
    ]


def _step(state: RunState) -> tuple[str, float]:
    """Which round it is, and how much of all rounds is done."""
    if state.open is not None:
        within = len(state.open.updates) / max(1, len(state.open.nodes))
        return f"round {state.open.number} of {state.rounds}", (state.round + within) / max(1, state.rounds)
    done = f"{state.round} of {state.rounds} rounds"
    if state.status == "running" and any(n.task and n.task.kind in ("alone", "compare") for n in state.nodes.values()):
        done += ", comparing"
    return done, state.round / max(1, state.rounds)


def seconds_left(state: RunState, moment: datetime) -> float | None:
    """What the rounds that are left will take, judged by the median of those that are closed."""
    if not state.history or state.round >= state.rounds:
        return None
    each = median(closed.seconds for closed in state.history)
    spent = (moment - state.open.opened_at).total_seconds() if state.open else 0.0
    return (state.rounds - state.round - 1) * each + max(0.0, each - spent)


def _below(
    state: RunState, known: StatusReport, recent: Sequence[Event], width: int, room: int | None
) -> list[Text]:
    """What stands under the nodes: the richest choice that leaves them room enough."""

    def tail(height: int) -> list[Text]:
        if known.state == "finished":
            return comparison_lines(known, width, height)
        shown = list(recent)[-height:] if height else []
        return [cut(Text.assemble((stamp(event), "dim"), "  ", sentence(event, state)), width) for event in shown]

    if room is None:
        return _parted(curve_lines(known, width, _PLOT), tail(_MANY if known.state == "finished" else _EVENTS))
    table = len(state.nodes) + 1
    for curve, rest, least in _choices(known, table, room):
        lines = _parted(curve_lines(known, width, curve), tail(rest))
        if len(lines) + least <= room:
            return lines
    return []


def _choices(known: StatusReport, table: int, room: int) -> list[tuple[int, int, int]]:
    """Heights of the curve and of what follows it, from rich to poor, each with the least that it leaves to the nodes."""
    fair = min(table, room // 2)
    if known.state == "finished" and known.compare:
        full = len(known.compare) + 5
        return [(_PLOT, full, table), (2, full, table), (2, full, fair), (2, 8, fair), (1, 6, 3), (0, 4, 3), (1, 0, 2)]
    return [(_PLOT, _EVENTS, table), (2, _EVENTS, fair), (2, 3, fair), (2, 1, fair), (1, 1, 3), (1, 0, 2)]


def _parted(*parts: Sequence[Text]) -> list[Text]:
    """The parts that have lines, each below an empty one."""
    return [line for part in parts if part for line in (Text(), *part)]


def outcome_lines(known: StatusReport, width: int) -> list[Text]:
    """Why a run stands still and what to type next; nothing while it runs and once it is finished."""
    lines = []
    if known.reason:
        lines = [Text(line, "red") for line in textwrap.wrap(plain(known.reason), width)[:4]]
    if known.state == "held":
        lines.append(Text.assemble("to go on: ", (f"fedctl aggregate {known.run} --commit", "bold")))
    if known.resume:
        lines.append(Text.assemble("to resume: ", (known.resume, "bold")))
    return [Text(), *(cut(line, width) for line in lines)] if lines else []
