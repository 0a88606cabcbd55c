"""The live picture of a run, as a pure function of what is known: `dashboard`.

It fills the width it is given, up to a measure, and stays within a height: the header and the nodes come first, then
the curve of the monitored metric, then the last events. A finished run shows there what personal models and federating
bought.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from rich.console import RenderableType
from rich.text import Text

from fedctl.activity import Activity
from fedctl.events import Event
from fedctl.records import Progress
from fedctl.report import StatusReport, elapsed, report
from fedctl.state import RunState
from fedctl.views.canvas import Drawing, bar, cut, parted, spread
from fedctl.views.carried import carried_line
from fedctl.views.closing import closing_lines, curve_lines
from fedctl.views.nodes import Row, node_lines, node_rows
from fedctl.views.personal import personal_line
from fedctl.views.promised import promised_line
from fedctl.views.sentence import sentence, stamp
from fedctl.views.standing import LOOKS, WIDEST, in_step, outcome_lines, title
from fedctl.views.text import clock, roughly
from fedctl.views.waits import waiting_lines

_ENDLESS = 1_000_000
_LEAST_TABLE = 4
_CLOSING: Mapping[str, frozenset[Activity]] = {
    "fine-tuning": frozenset({"fine-tuning"}),
    "comparing": frozenset({"alone", "comparing"}),
}
"""What is done after the last round, and what the nodes are about then."""


def dashboard(
    state: RunState,
    progress: Mapping[str, Progress],
    recent: Sequence[Event],
    now: datetime,
    *,
    preparing: Mapping[str, str] | None = None,
    alive: bool = True,
    height: int | None = None,
) -> RenderableType:
    """The run at `now` (UTC), in at most `height` lines.

    `progress` holds the newest sample of each task under way, `preparing` by node what was said last as it is made
    ready.
    """
    moment = now if alive else state.last_at or now
    known = report(state, alive=alive, now=now, progress=progress)
    picture = _Picture(
        state=state,
        known=known,
        rows=node_rows(state, known, progress if alive else {}, moment, preparing or {}),
        recent=recent,
        moment=moment,
        height=_ENDLESS if height is None else height,
    )
    return Drawing(lambda width: picture.lines(min(width, WIDEST)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """All that is to be drawn; only the width is not known yet."""

    state: RunState
    known: StatusReport
    rows: Sequence[Row]
    recent: Sequence[Event]
    moment: datetime
    height: int

    def lines(self, width: int) -> list[Text]:
        head = self._header(width)
        foot = parted(outcome_lines(self.known, width))
        room = self.height - len(head) - len(foot)
        known = self.known
        views = (waiting_lines, personal_line, promised_line, carried_line)
        said = [line for view in views for line in view(known, width)]
        said = said[: max(0, room - _LEAST_TABLE)]
        room -= len(said)
        below = self._below(width, room)
        tick = self.moment.timestamp() if self.known.state == "running" else None
        table = node_lines(self.rows, self.state.metric, width, max(2, room - len(below)), tick=tick)
        return [*head, *table, *said, *below, *foot][: self.height]

    def _header(self, width: int) -> list[Text]:
        sign, style = LOOKS[self.known.state]
        state = "preparing" if self._is_preparing() else self.known.state
        step, fraction = self._step()
        times = self._times(width)
        length = width - len(step) - len(times) - 4
        track = bar(fraction, length, style) if length >= 6 else Text()
        return [
            spread(title(self.known), Text(f"{sign} {state}", style), width),
            spread(Text.assemble(step, "  ", track), Text(times, "dim"), width),
            Text(),
        ]

    def _is_preparing(self) -> bool:
        new = any(node.status == "new" for node in self.state.nodes.values())
        return self.known.state == "running" and (self.state.model is None or new)

    def _step(self) -> tuple[str, float]:
        """Which round it is, and how much of all rounds is done."""
        state, opened = self.state, self.state.open
        if opened is not None:
            within = min(1.0, len(opened.updates) / max(1, opened.wanted))
            number = f"round {opened.number} of {state.rounds}{in_step(opened.step)}"
            return number, (state.round + within) / max(1, state.rounds)
        done = f"{state.round} of {state.rounds} rounds"
        doing = {row.node.state for row in self.rows} if self.known.state == "running" else set()
        done = ", ".join([done, *(word for word, states in _CLOSING.items() if doing & states)])
        return done, state.round / max(1, state.rounds)

    def _times(self, width: int) -> str:
        past = clock(elapsed(self.state, self.moment))
        left = seconds_left(self.state, self.moment)
        if left is None or self.known.state != "running" or self._is_preparing():
            return past
        then = ", then the comparison" if self.state.compare and width >= 80 else ""
        return f"{past} · about {roughly(left)} left{then}"

    def _below(self, width: int, room: int) -> list[Text]:
        """What stands under the nodes: the richest choice that leaves them room enough."""
        for curve, tail, least in self._choices(width, room):
            if least + (curve and curve + 1) + (tail and tail + 1) <= room:
                return parted(curve_lines(self.known, width, curve), self._tail(width, tail))
        return []

    def _choices(self, width: int, room: int) -> list[tuple[int, int, int]]:
        """Heights of the curve and of what follows it, from rich to poor, each with the least left to the nodes."""
        table = len(self.rows) + 1
        fair, least = min(table, room // 2), min(table, _LEAST_TABLE)
        full = len(closing_lines(self.known, width)) if self.known.state == "finished" else 0
        if full:
            return [(8, full, table), (6, full, table), (2, full, table), (2, room // 2, 4), (1, 8, 3), (1, 0, least)]
        return [(8, 5, table), (6, 5, table), (2, 5, fair), (2, 3, fair), (2, 1, fair), (1, 1, 3), (1, 0, least)]

    def _tail(self, width: int, height: int) -> list[Text]:
        if self.known.state == "finished":
            return closing_lines(self.known, width, height) if height else []
        return [
            cut(Text.assemble((stamp(event), "dim"), "  ", sentence(event, self.state)), width)
            for event in (self.recent[-height:] if height else ())
        ]


def seconds_left(state: RunState, moment: datetime) -> float | None:
    """What the rounds that are left will take, judged by the median of those that are closed."""
    if not state.history or state.round >= state.rounds:
        return None
    each = median(closed.seconds for closed in state.history)
    spent = (moment - state.open.opened_at).total_seconds() if state.open else 0.0
    return (state.rounds - state.round - 1) * each + max(0.0, each - spent)
