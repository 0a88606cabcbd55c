"""What came of a run: the curve of the monitored metric, and what personal models and federating bought."""

from collections.abc import Mapping, Sequence

from rich.text import Text

from fedctl.measures import Comparison
from fedctl.report import StatusReport
from fedctl.views.canvas import GAP, Column, cut, fitting, folded, parted, plot, row, titles, total
from fedctl.views.personal import personal_lines
from fedctl.views.text import figure
from fedctl.views.verdict import pairs, verdict

_CURVE = "cyan"


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
    while len(parts) > 1 and _dotted(parts).cell_len > width:
        parts.pop()
    return cut(_dotted(parts), width)


def _dotted(parts: Sequence[Text]) -> Text:
    return Text().join([piece for part in parts for piece in (Text(" · ", "dim"), part)][1:])


def closing_lines(report: StatusReport, width: int, height: int | None = None) -> list[Text]:
    """Personal models beside the global one, then what federating bought; where not all fit, rows are left out."""
    compared = comparison_lines(report, width)
    whole = parted(personal_lines(report, width), compared)[1:]
    if height is None or len(whole) <= height:
        return whole
    half = max(height // 2, height - len(compared) - 1) if compared else height
    personal = personal_lines(report, width, half)
    left = height - len(personal) - 1 if personal else height
    return parted(personal, comparison_lines(report, width, left))[1:]


def comparison_lines(report: StatusReport, width: int, height: int | None = None) -> list[Text]:
    """A row for each node: its model trained alone beside the federated one; then what that means, in words.

    Where hardly any row fits, there are only the words, as far as the height allows.
    """
    if not report.compare:
        return []
    columns = fitting(_columns(report), width)
    words = [Text(), *(line for one in verdict(report) for line in folded(one, width))]
    if height is not None and height - 2 - len(words) < 1:
        return words[1:][: max(0, height)]
    gains = _gains(report)
    body = [_row(report, columns, one, gains.get(one.node, {})) for one in report.compare]
    room = len(body) if height is None else height - 2 - len(words)
    if room < len(body):
        left = len(body) - max(0, room - 1)
        body = [*body[: max(0, room - 1)], Text(f"… and {left:,} more", "dim")]
    return [cut(line, width) for line in [_groups(columns), titles(columns), *body, *words]]


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


def _row(report: StatusReport, columns: Sequence[Column], one: Comparison, gains: Mapping[str, Text]) -> Text:
    metric = report.monitor.metric
    numbers = {
        "alone": one.alone,
        "federated": one.federated,
        "alone own": one.alone_own,
        "federated own": one.federated_own,
    }
    cells = {key: Text(figure(metric, metrics.get(metric))) for key, metrics in numbers.items()}
    return row(columns, {"name": Text(one.node), **cells, **gains})


def _gains(report: StatusReport) -> dict[str, dict[str, Text]]:
    """By node, the cells of what federating has gained it."""
    gains: dict[str, dict[str, Text]] = {}
    for key, own in (("gain", False), ("gain own", True)):
        for name, pair in pairs(report, own=own).items():
            gains.setdefault(name, {})[key] = Text(pair.difference, pair.style)
    return gains
