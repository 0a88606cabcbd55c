"""What came of a run: the curve of the monitored metric, and what federating bought beside training alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.text import Text

from fedctl.federation import Monitor
from fedctl.measures import Comparison
from fedctl.report import StatusReport
from fedctl.views.canvas import GAP, Column, cut, fitting, folded, plot, row, titles, total
from fedctl.views.text import change, figure

_CURVE = "cyan"
_LOWER = {"max": "", "min": " (lower is better)"}


def curve_lines(report: StatusReport, width: int, height: int) -> list[Text]:
    """The metric over the rounds, in one line of signs or as a plot with its scale; then where it stands."""
    metric = report.monitor.metric
    curve = {one.round: one.metrics[metric] for one in report.history if one.settled and metric in one.metrics}
    values = [curve.get(number) for number in range(report.rounds + 1)]
    if len(curve) < 2 or height < 2:
        standing = _standing(report, list(curve.values()), width - len(metric) - GAP)
        return [Text.assemble((metric, "bold"), "  ", standing)] if standing and height else []
    standing = _standing(report, list(curve.values()), width)
    if height < 5:
        signs = plot(values, max(8, min(40, width // 3)), 1, _CURVE)[0]
        signs.rstrip()
        return [cut(Text.assemble((metric, "bold"), "  ", signs), width), standing]
    high, low = (figure(metric, bound(curve.values())) for bound in (max, min))
    margin = max(len(high), len(low))
    bars = plot(values, max(8, min(width, 100) - margin - GAP), height - 2, _CURVE)
    labels = [high, *[""] * (len(bars) - 2), low]
    scaled = [
        Text.assemble((f"{label:>{margin}} {'┤' if label else '│'}", "dim"), line)
        for label, line in zip(labels, bars, strict=True)
    ]
    heading = Text.assemble((metric, "bold"), (f", rounds 0 to {report.rounds}", "dim"))
    return [heading, *scaled, standing]


def _standing(report: StatusReport, values: Sequence[float], width: int) -> Text:
    """`0.9531 now · best 0.9531 in round 6 · worst on carol 0.9102 · 0.0889 at first`, as far as there is room."""
    metric = report.monitor.metric
    parts = []
    if values:
        when = "at the end" if report.state == "finished" else "now"
        parts.append(Text.assemble((figure(metric, values[-1]), "bold"), f" {when}"))
    if report.best and len(values) > 1:
        parts.append(Text(f"best {figure(metric, report.best.metrics.get(metric))} in round {report.best.round}"))
    if report.worst and len(report.nodes) > 1:
        parts.append(Text(f"worst on {report.worst.node} {figure(metric, report.worst.metrics.get(metric))}"))
    if len(values) > 1:
        parts.append(Text(f"{figure(metric, values[0])} at first"))
    between = Text(" · ", "dim")
    while len(parts) > 1 and between.join(parts).cell_len > width:
        parts.pop()
    return cut(between.join(parts), width)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The monitored metric of a model trained alone and of the federated one, on the same data."""

    alone: float
    federated: float
    monitor: Monitor

    @property
    def gain(self) -> float:
        """Above zero where the federated model is better, in either mode."""
        better = self.federated - self.alone
        return better if self.monitor.mode == "max" else -better

    @property
    def is_level(self) -> bool:
        """True when the difference vanishes in rounding."""
        return figure(self.monitor.metric, self.alone) == figure(self.monitor.metric, self.federated)


def comparison_lines(report: StatusReport, width: int, height: int | None = None) -> list[Text]:
    """A row for each node: its model trained alone beside the federated one; then what that means, in words."""
    if not report.compare:
        return []
    columns = fitting(_columns(report), width)
    verdict = [line for one in _verdict(report) for line in folded(one, width)]
    body = [row(columns, _cells(one, report.monitor)) for one in report.compare]
    room = len(body) if height is None else height - 2 - len(verdict)
    if room < len(body):
        left = len(body) - max(0, room - 1)
        body = [*body[: max(0, room - 1)], Text(f"… and {left:,} more", "dim")]
    return [cut(line, width) for line in [_groups(columns), titles(columns), *body, *verdict]]


def _columns(report: StatusReport) -> list[Column]:
    gain = "gain" if report.monitor.mode == "max" else "change"
    name = min(16, max(4, *(len(one.node) for one in report.compare)))
    return [
        Column(key="name", title="node", width=name, justify="left"),
        Column(key="alone", title="alone", width=8),
        Column(key="federated", title="federated", width=9),
        Column(key="gain", title=gain, width=8),
        Column(key="alone own", title="alone", width=10, priority=1),
        Column(key="federated own", title="federated", width=9, priority=1),
        Column(key="gain own", title=gain, width=8, priority=2),
    ]


def _groups(columns: Sequence[Column]) -> Text:
    """The titles above the titles: whose data a model was scored on."""
    shared = [column for column in columns if not column.key.endswith(" own")]
    line = Text(" " * (shared[0].width + GAP) + "on everyone's data", "dim")
    own = columns[len(shared) :]
    if own:
        line.pad_right(total(shared) + GAP + total(own) - len("on its own data") - line.cell_len)
        line.append("on its own data")
    return line


def _cells(one: Comparison, monitor: Monitor) -> dict[str, Text]:
    metric = monitor.metric
    cells = {"name": Text(one.node)}
    for suffix, alone, federated in (("", one.alone, one.federated), (" own", one.alone_own, one.federated_own)):
        cells[f"alone{suffix}"] = Text(figure(metric, alone.get(metric)))
        cells[f"federated{suffix}"] = Text(figure(metric, federated.get(metric)))
        if metric in alone and metric in federated:
            pair = _Pair(alone[metric], federated[metric], monitor)
            style = "dim" if pair.is_level else "green" if pair.gain > 0 else "yellow"
            difference = 0.0 if pair.is_level else pair.federated - pair.alone
            cells[f"gain{suffix}"] = Text(change(metric, difference), style)
    return cells


def _verdict(report: StatusReport) -> list[Text]:
    """What federating bought, without kindness: on everyone's data, and for each node on its own."""
    metric, monitor = report.monitor.metric, report.monitor
    pairs = [
        _Pair(one.alone[metric], one.federated[metric], monitor)
        for one in report.compare
        if math.isfinite(one.alone.get(metric, math.nan)) and math.isfinite(one.federated.get(metric, math.nan))
    ]
    if not pairs:
        return [Text(f"no {metric} to compare by", "yellow")]
    lines = [Text(), _bought(pairs, monitor)]
    better_alone = [
        one.node
        for one in report.compare
        if metric in one.alone_own and metric in one.federated_own and _prefers_alone(one, monitor)
    ]
    if better_alone:
        named = ", ".join(better_alone[:3]) + (f" and {len(better_alone) - 3} more" if len(better_alone) > 3 else "")
        lines.append(Text(f"better off alone on its own data: {named}", "yellow"))
    return lines


def _bought(pairs: Sequence[_Pair], monitor: Monitor) -> Text:
    metric = monitor.metric
    mean = _Pair(fmean(pair.alone for pair in pairs), fmean(pair.federated for pair in pairs), monitor)
    worst = min(pairs, key=lambda pair: pair.alone if monitor.mode == "max" else -pair.alone)
    span = f"worst node alone {figure(metric, worst.alone)} → {figure(metric, worst.federated)}"
    difference = f"{change(metric, mean.federated - mean.alone)} {metric}" + _LOWER[monitor.mode]
    if mean.is_level:
        return Text(f"federating made no difference to {metric} on everyone's data ({span})", "yellow")
    if mean.gain > 0:
        return Text(f"federating bought {difference} on everyone's data ({span})", "bold green")
    return Text(f"federating did not help: {difference} on everyone's data ({span})", "bold yellow")


def _prefers_alone(one: Comparison, monitor: Monitor) -> bool:
    pair = _Pair(one.alone_own[monitor.metric], one.federated_own[monitor.metric], monitor)
    return pair.gain < 0 and not pair.is_level
