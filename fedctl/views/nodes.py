"""The dashboard's table of nodes: a line each, the busy and the failed ones first where not all fit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from rich.text import Text

from fedctl.measures import Metrics
from fedctl.records import Progress, TaskKey
from fedctl.report import Activity, activity
from fedctl.state import Failed, NodeState, RunState
from fedctl.views.canvas import GAP, Column, bar, cell, cut, fitting, row, titles, total
from fedctl.views.text import clock, counted, duration, figure, plain, size

_LOOKS: Mapping[Activity, tuple[str, str]] = {
    "preparing": ("", "yellow"),
    "waiting": ("○", "dim"),
    "training": ("", "cyan"),
    "evaluating": ("", "blue"),
    "alone": ("", "magenta"),
    "comparing": ("", "blue"),
    "done": ("✓", "green"),
    "failed": ("✗", "red"),
    "lost": ("✗", "red"),
}
"""A sign and a colour for each activity; those without a sign of their own are busy and spin."""

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_RANKS: Mapping[Activity, int] = {"failed": 0, "lost": 0, "waiting": 2, "done": 3}
_STATE_WIDTH = 10
_LABEL_WIDTH = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One node at one moment."""

    node: NodeState
    activity: Activity
    progress: Progress | None
    seconds: float | None
    metrics: Metrics


def node_rows(state: RunState, progress: Mapping[str, Progress], now: datetime) -> list[Row]:
    """All nodes as they are at a moment, in their own order."""
    live: dict[str, list[Progress]] = {}
    for sample in progress.values():
        if _is_open(state, sample.key):
            live.setdefault(sample.key.node, []).append(sample)
    return [_node_row(state, node, live.get(node.name, ()), now) for node in state.nodes.values()]


def node_lines(
    rows: Sequence[Row], metric: str, width: int, height: int | None = None, tick: float | None = None
) -> list[Text]:
    """The table in at most `height` lines; `tick` (seconds) turns the signs of busy nodes, None stops them."""
    columns = _stretched(fitting(_columns(rows, metric, width), width - GAP), width - GAP)
    shown, rest = _chosen(rows, height)
    lines = [Text("  ") + titles(columns)]
    lines += [_line(one, columns, metric, width, tick) for one in shown]
    if rest:
        counts = Counter(one.activity for one in rest)
        told = ", ".join(f"{number:,} {word}" for word, number in counts.most_common())
        lines.append(cut(Text(f"… and {len(rest):,} more: {told}", "dim"), width))
    return lines


def _node_row(state: RunState, node: NodeState, samples: Sequence[Progress], now: datetime) -> Row:
    best = max(samples, key=lambda sample: (sample.phase != "waiting", sample.key == node.task), default=None)
    if best and best.phase == "waiting" and node.task:
        best = best if best.key == node.task else None
    task = best.key if best else node.task
    doing = activity(state, node, task)
    if doing in ("done", "failed", "lost", "waiting"):
        best = None
    since = node.since if task is not None and task == node.task else None
    seconds = max(0.0, (now - since).total_seconds()) if since else None
    metrics = {**node.metrics, **(node.score.metrics if node.score else {}), **(best.metrics if best else {})}
    return Row(node=node, activity=doing, progress=best, seconds=seconds, metrics=metrics)


def _is_open(state: RunState, key: TaskKey) -> bool:
    """Telemetry counts only while its task has had no answer and its round is the newest."""
    if key.kind in ("train", "evaluate") and key.round != (state.round + 1 if key.kind == "train" else state.round):
        return False
    known = state.answers(key.kind, key.round).get(key.node)
    return known is None or (isinstance(known, Failed) and known.attempt < key.attempt)


def _chosen(rows: Sequence[Row], height: int | None) -> tuple[list[Row], list[Row]]:
    """The rows to show and the rest; all in their own order where they fit below the titles."""
    if height is None or len(rows) + 1 <= height:
        return list(rows), []
    ranked = sorted(rows, key=lambda one: _RANKS.get(one.activity, 1))
    room = max(0, height - 2)
    return ranked[:room], ranked[room:]


def _columns(rows: Sequence[Row], metric: str, width: int) -> list[Column]:
    name = min(max((len(one.node.name) for one in rows), default=4), 12 if width < 80 else 16 if width < 120 else 28)
    columns = [
        Column(key="name", title="node", width=max(4, name), justify="left"),
        Column(key="state", title="state", width=_STATE_WIDTH, justify="left"),
        Column(key="bar", title="progress", width=_LABEL_WIDTH + 9, justify="left"),
        Column(key="loss", title="loss", width=6, priority=2),
        Column(key="metric", title=metric, width=max(6, min(len(metric), 16)), priority=1),
        Column(key="seconds", title="time", width=6, priority=3),
        Column(key="sent", title="↑ sent", width=6, priority=4),
        Column(key="received", title="↓ received", width=10, priority=4),
        Column(key="examples", title="examples", width=8, priority=5),
    ]
    if any(one.progress and one.progress.epochs > 1 for one in rows):
        columns.insert(3, Column(key="epoch", title="epoch", width=5, priority=6))
    if "loss" in metric:
        columns = [column for column in columns if column.key != "loss" or any(_loss(o.metrics, metric) for o in rows)]
    return columns


def _stretched(columns: Sequence[Column], width: int) -> list[Column]:
    """What is left of the line goes to the progress bar, within measure."""
    spare = max(0, min(width - total(columns), 20))
    return [replace(column, width=column.width + spare) if column.key == "bar" else column for column in columns]


def _line(one: Row, columns: Sequence[Column], metric: str, width: int, tick: float | None) -> Text:
    sign, style = _LOOKS[one.activity]
    if not sign:
        sign = "●" if tick is None else _SPINNER[int(tick * 10) % len(_SPINNER)]
    head = {"name": Text(one.node.name), "state": Text(one.activity, style)}
    if one.activity in ("failed", "lost"):
        start = Text.assemble((sign, style), " ", row(columns[:2], head), " " * GAP)
        return cut(Text.assemble(start, (_error(one), style)), width)
    cells = {
        **head,
        "bar": _progress(one, next(c.width for c in columns if c.key == "bar"), style),
        "epoch": Text(f"{one.progress.epoch}/{one.progress.epochs}" if one.progress and one.progress.epoch else ""),
        "loss": Text(figure("loss", _loss(one.metrics, metric))),
        "metric": Text(figure(metric, one.metrics.get(metric))),
        "seconds": _seconds(one),
        "sent": Text(size(one.node.bytes.sent) if one.node.bytes.sent else ""),
        "received": Text(size(one.node.bytes.received) if one.node.bytes.received else ""),
        "examples": Text(f"{one.node.examples:,}" if one.node.examples else ""),
    }
    return Text.assemble((sign, style), " ", row(columns, cells))


def _error(one: Row) -> str:
    reason = plain(one.node.error or "no reason was given")
    return f"attempt {one.node.attempt}: {reason}" if one.activity == "failed" else reason


def _progress(one: Row, width: int, style: str) -> Text:
    length = width - 1 - _LABEL_WIDTH
    if one.activity == "done":
        return bar(1.0, length, style)
    sample = one.progress
    if sample is None:
        return Text()
    share = _share(sample)
    if sample.phase in ("waiting", "loading", "saving"):
        label = sample.phase
    elif sample.steps:
        label = f"{share:.0%}"
    else:
        label = f"#{sample.step}"
    return Text.assemble(bar(share, length, style), " ", cell(Text(label), _LABEL_WIDTH))


def _share(sample: Progress) -> float:
    """How much of the task's own passes is done."""
    if sample.phase == "saving":
        return 1.0
    within = sample.step / sample.steps if sample.steps else 0.0
    return min(1.0, (max(0, sample.epoch - 1) + within) / max(1, sample.epochs))


def _seconds(one: Row) -> Text:
    if one.seconds is not None:
        return Text(clock(one.seconds))
    return Text(duration(one.node.seconds), "dim") if one.activity == "done" else Text()


def _loss(metrics: Metrics, metric: str) -> float | None:
    """The training loss, under whichever name the user's code logs it; never the monitored metric twice."""
    names = [name for name in metrics if "loss" in name.lower() and name != metric]
    preferred = sorted(names, key=lambda name: ("train" not in name, "val" in name, len(name), name))
    return metrics[preferred[0]] if preferred else None
