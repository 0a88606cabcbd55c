"""The dashboard's table of nodes: a line each, the busy and the failed ones first where not all fit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from rich.text import Text

from fedctl.activity import Activity, NodeStanding, activity, at_work
from fedctl.measures import Metrics
from fedctl.records import Progress, TaskKey
from fedctl.report import StatusReport
from fedctl.state import RunState
from fedctl.views.canvas import GAP, Column, bar, cell, cut, fitting, row, titles, total
from fedctl.views.text import clock, duration, figure, of_raw, plain, size
from fedctl.views.waits import again
from fedctl.waiting import is_under_way

_LOOKS: Mapping[Activity, tuple[str, str]] = {
    "preparing": ("", "yellow"),
    "waiting": ("○", "dim"),
    "training": ("", "cyan"),
    "evaluating": ("", "blue"),
    "alone": ("", "magenta"),
    "comparing": ("", "blue"),
    "fine-tuning": ("", "magenta"),
    "masking": ("", "blue"),
    "unmasking": ("", "blue"),
    "unreachable": ("○", "yellow"),
    "unknown": ("?", "yellow"),
    "done": ("✓", "green"),
    "failed": ("✗", "red"),
    "lost": ("✗", "red"),
    "away": ("○", "yellow"),
}
"""A sign and a colour for each activity; those without a sign of their own are busy and spin."""
_LATE = ("!", "yellow")
"""The sign of a straggler that is busy."""

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_RANKS: Mapping[Activity, int] = {"failed": 0, "lost": 0, "unreachable": 0, "waiting": 2, "away": 2, "done": 3}
_STATE_WIDTH = 10
_LABEL_WIDTH = 4
_BAR_WIDTH = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One node at one moment: where it stands, its telemetry, and the seconds it has spent on its task.

    `preparing` is what was said last of how it is made ready; `late` marks a straggler.
    """

    node: NodeStanding
    progress: Progress | None
    seconds: float | None
    preparing: str = ""
    late: bool = False


def node_rows(
    state: RunState,
    known: StatusReport,
    progress: Mapping[str, Progress],
    now: datetime,
    preparing: Mapping[str, str],
) -> list[Row]:
    """All nodes as they are at a moment, in their own order; telemetry says more than the journal."""
    live: dict[str, list[Progress]] = {}
    for sample in progress.values():
        if is_under_way(state, sample.key):
            live.setdefault(sample.key.node, []).append(sample)
    late = {one.node for one in known.stragglers}
    rows = [_node_row(state, known, standing, live.get(standing.name, ()), now) for standing in known.nodes]
    return [replace(row, preparing=preparing.get(row.node.name, ""), late=row.node.name in late) for row in rows]


def node_lines(
    rows: Sequence[Row],
    metric: str,
    width: int,
    height: int | None = None,
    *,
    tick: float | None = None,
    bars: bool = True,
) -> list[Text]:
    """The table in at most `height` lines; `tick` (seconds) turns the signs of busy nodes, None stops them."""
    possible = [column for column in _columns(rows, metric, width) if bars or column.key != "bar"]
    columns = _stretched(fitting(possible, width - GAP), width - GAP)
    shown, rest = _chosen(rows, height)
    lines = [Text("  ") + titles(columns)]
    lines += [_line(one, columns, metric, width, tick) for one in shown]
    if rest:
        counts = Counter(one.node.state for one in rest)
        told = ": " + ", ".join(f"{number:,} {word}" for word, number in counts.most_common())
        if len(counts) == 1:
            told = f", all {rest[0].node.state}"
        lines.append(cut(Text(f"… and {len(rest):,} more{told}", "dim"), width))
    return lines


def _node_row(
    state: RunState, known: StatusReport, standing: NodeStanding, samples: Sequence[Progress], now: datetime
) -> Row:
    node = state.nodes[standing.name]
    told = [sample for sample in samples if sample.phase != "waiting" or node.task in (None, sample.key)]
    best = max(told, key=lambda sample: (sample.phase != "waiting", sample.key == node.task), default=None)
    task = best.key if best else at_work(state, node)
    doing = activity(state, node, task, running=known.state == "running")
    if doing in ("done", "failed", "lost", "away", "unknown", "waiting"):
        return Row(node=standing, progress=None, seconds=None)
    since = node.since if task == node.task else _begun(state, task)
    if best and best.phase == "unreachable":
        doing = "unreachable"
    return Row(
        node=replace(standing, state=doing, metrics={**standing.metrics, **(best.metrics if best else {})}),
        progress=best,
        seconds=max(0.0, (now - since).total_seconds()) if since else None,
    )


def _begun(state: RunState, task: TaskKey | None) -> datetime | None:
    """When a training that still counts began, which a node may do while it scores a model."""
    begun = task and state.begun(task.node)
    return begun[1] if begun and begun[0] == task else None


def _chosen(rows: Sequence[Row], height: int | None) -> tuple[list[Row], list[Row]]:
    """The rows to show and the rest; all in their own order where they fit below the titles."""
    if height is None or len(rows) + 1 <= height:
        return list(rows), []
    ranked = sorted(rows, key=lambda one: 0 if one.late else _RANKS.get(one.node.state, 1))
    room = max(0, height - 2)
    return ranked[:room], ranked[room:]


def _columns(rows: Sequence[Row], metric: str, width: int) -> list[Column]:
    name = min(max((len(one.node.name) for one in rows), default=4), 12 if width < 80 else 16 if width < 120 else 28)
    state = max((len(_state(one)) for one in rows), default=0)
    received = "↑ received" if width >= 100 else "↑ recv"
    columns = [
        Column(key="name", title="node", width=max(4, name), justify="left"),
        Column(key="state", title="state", width=max(_STATE_WIDTH, state), justify="left"),
        Column(key="bar", title="progress", width=_BAR_WIDTH + 1 + _LABEL_WIDTH, justify="left"),
        Column(key="loss", title="loss", width=6, priority=2),
        Column(key="metric", title=metric, width=max(6, min(len(metric), 16)), priority=1),
        Column(key="seconds", title="time", width=6, priority=3),
        Column(key="sent", title="↓ sent", width=6, priority=4),
        Column(key="received", title=received, width=len(received), priority=4),
        Column(key="examples", title="examples", width=8, priority=5),
    ]
    if any(_of_raw(one) for one in rows):
        columns.insert(8, Column(key="raw", title="of raw", width=6, priority=4))
    if any(metric in one.node.personal for one in rows):
        columns.insert(5, Column(key="personal", title="personal", width=8, priority=1))
    if any(one.node.accelerator for one in rows):
        longest = max(len(one.node.accelerator) for one in rows)
        columns.append(Column(key="accelerator", title="on", width=min(8, longest), justify="left", priority=3))
    if any(one.progress and one.progress.epochs > 1 for one in rows):
        columns.insert(3, Column(key="epoch", title="epoch", width=5, priority=6))
    if "loss" in metric:
        columns = [
            column for column in columns if column.key != "loss" or any(_loss(o.node.metrics, metric) for o in rows)
        ]
    return columns


def _stretched(columns: Sequence[Column], width: int) -> list[Column]:
    """What is left of the line goes to the progress bar, within measure."""
    spare = max(0, width - total(columns))
    return [replace(column, width=column.width + spare) if column.key == "bar" else column for column in columns]


def _line(one: Row, columns: Sequence[Column], metric: str, width: int, tick: float | None) -> Text:
    sign, style = _LOOKS[one.node.state]
    if one.late and not sign:
        sign, style = _LATE
    elif not sign:
        sign = "●" if tick is None else _SPINNER[int(tick * 10) % len(_SPINNER)]
    head = {"name": Text(one.node.name), "state": Text(_state(one), style)}
    if told := _told(one, style):
        return cut(Text.assemble((sign, style), " ", row(columns[:2], head), " " * GAP, told), width)
    cells = {
        **head,
        "bar": _progress(one, next((c.width for c in columns if c.key == "bar"), 0), style),
        "epoch": Text(f"{one.progress.epoch}/{one.progress.epochs}" if one.progress and one.progress.epoch else ""),
        "loss": Text(figure("loss", _loss(one.node.metrics, metric))),
        "metric": Text(figure(metric, one.node.metrics.get(metric))),
        "personal": Text(figure(metric, one.node.personal.get(metric))),
        "seconds": _seconds(one),
        "sent": Text(size(one.node.bytes.sent) if one.node.bytes.sent else ""),
        "received": Text(size(one.node.bytes.received) if one.node.bytes.received else ""),
        "raw": Text(_of_raw(one)),
        "examples": Text(f"{one.node.examples:,}" if one.node.examples else ""),
        "accelerator": Text(plain(one.node.accelerator)),
    }
    return Text.assemble((sign, style), " ", row(columns, cells))


def _state(one: Row) -> str:
    """What a node is about; of one that trains on for a closed round also which, as in the keys of its tasks."""
    goes_on = one.node.state == "training" and one.node.pending is not None
    return f"{one.node.state} r{one.node.pending}" if goes_on else one.node.state


def _told(one: Row, style: str) -> Text:
    """What takes the place of figures: why a node failed, or what was said last as it is made ready."""
    reason = plain(one.node.error or "no reason was given")
    match one.node.state:
        case "failed":
            return Text(f"attempt {one.node.attempt}: {reason}", style)
        case "lost" if one.node.again_s is not None and not one.node.awaited:
            return Text(f"{reason}; not waited for, {again(one.node)}", style)
        case "lost" | "away":
            return Text("; ".join(filter(None, (reason, again(one.node)))), style)
        case "preparing":
            return Text(plain(one.preparing), "dim")
        case _:
            return Text()


def _progress(one: Row, width: int, style: str) -> Text:
    length = width - 1 - _LABEL_WIDTH
    if one.node.state == "done":
        steps = one.node.partial_steps
        return bar(1.0, length, style) if steps is None else cut(Text(f"{steps:,} steps", "dim"), width)
    sample = one.progress
    if sample is None:
        return Text()
    if sample.phase == "unreachable":
        return cut(Text("its work goes on there", "dim"), width)
    if sample.phase in ("waiting", "loading", "saving"):
        return Text(sample.phase, "dim")
    share = _share(sample)
    label = f"{share:.0%}" if sample.steps else f"#{sample.step}"
    return Text.assemble(bar(share, length, style), " ", cell(Text(label), _LABEL_WIDTH, "right"))


def _share(sample: Progress) -> float:
    """How much of the task's own passes is done."""
    within = sample.step / sample.steps if sample.steps else 0.0
    return min(1.0, (max(0, sample.epoch - 1) + within) / max(1, sample.epochs))


def _of_raw(one: Row) -> str:
    """What codecs have made of a node's bytes, both ways together: `1/18`, `83%`."""
    carried = one.node.bytes
    return of_raw(carried.sent + carried.received, carried.raw_sent + carried.raw_received).removesuffix(" of raw")


def _seconds(one: Row) -> Text:
    if one.seconds is not None:
        return Text(clock(one.seconds))
    return Text(duration(one.node.seconds), "dim") if one.node.state == "done" else Text()


def _loss(metrics: Metrics, metric: str) -> float | None:
    """The training loss, under whichever name the user's code logs it; never the monitored metric twice."""
    names = [name for name in metrics if "loss" in name.lower() and name != metric]
    preferred = sorted(names, key=lambda name: ("train" not in name, "val" in name, len(name), name))
    return metrics[preferred[0]] if preferred else None
